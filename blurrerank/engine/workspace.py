"""The rows that a piece of work looks at, whether this process holds them all or a part of the gallery."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..data.features import FeatureSet
from ..data.sharded import ShardedSet
from ..data.similarities import SimilaritySet
from ..search.distributed import DistributedGallery
from ..search.given import Lists
from ..search.given_similarities import GivenGallery, SimilarityRows
from ..search.plan import Plan
from ..search.rows import UnitRows
from ..search.sharded_rows import ShardedImages
from ..search.sources import GallerySource, ListedGallery, LocalGallery
from .request import without_cameras


@dataclass(frozen=True)
class Workspace:
    """What a method works on.

    Attributes:
        probes: the probes' rows; where similarities are given, those of `images`.
        gallery: where lists come from.
        images: all images whose neighbours are looked for: the gallery, or probes and gallery.
    """

    probes: UnitRows | SimilarityRows
    gallery: GallerySource
    images: UnitRows | SimilarityRows

    @property
    def rows(self) -> UnitRows:
        """The same, of what works with features."""
        assert isinstance(self.images, UnitRows)
        return self.images


def open_workspace(
    data: FeatureSet, plan: Plan, *, together: bool = False, candidates: Lists | None = None
) -> Workspace:
    """Read what the plan says is held, and prepare to read the rest.

    Args:
        data: the features.
        plan: how the work is cut.
        together: whether the probes are among `Workspace.images`.
        candidates: lists to look up instead of searching.
    """
    if isinstance(data, SimilaritySet):
        known = SimilarityRows(data, plan.device, plan.budget, together=together)
        return Workspace(known, GivenGallery(SimilarityRows(data, plan.device, plan.budget), data), known)
    probes = plan.probes(data.probe)
    if isinstance(data, ShardedSet):
        shard = plan.rows(data.shard)
        everything = ShardedImages(data.probe if together else None, data.gallery, shard, data.group)
        return Workspace(probes, DistributedGallery(shard, len(data.gallery), data.group), everything)
    if together:
        images = plan.rows(data.probe, data.gallery)
        probes, gallery = images.parts()
        return Workspace(probes, LocalGallery(gallery), images)
    gallery = plan.rows(data.gallery)
    source = LocalGallery(gallery) if candidates is None else ListedGallery(gallery, candidates)
    return Workspace(probes, source, gallery)


def cameras_of(data: FeatureSet, images: int, wanted_by: str) -> torch.Tensor:
    """Return (N,) int64, the cameras of the gallery, or of probes and gallery if there are so many `images`.

    Raises:
        InputError: if there are none.
    """
    sides = [data.gallery] if images == len(data.gallery) else [data.probe, data.gallery]
    cams = [side.cams for side in sides if side.cams is not None]
    found = torch.zeros(images, dtype=torch.int64)
    leads = not isinstance(data, ShardedSet) or data.group.rank == 0
    if leads and len(cams) < len(sides):
        raise without_cameras(data.lacking("cams"), wanted_by)
    if leads:
        found = torch.from_numpy(np.concatenate(cams))
    return data.group.broadcast(found, 0) if isinstance(data, ShardedSet) else found


def cameras_if_any(data: FeatureSet) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return what `cameras_of_both` does; None unless both sides have cameras."""
    there = data.has_cams
    if isinstance(data, ShardedSet):  # only the first process knows
        there = bool(data.group.broadcast(torch.tensor([int(there)]), 0))
    return cameras_of_both(data, "") if there else None


def cameras_of_both(data: FeatureSet, wanted_by: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (P,) and (G,) int64, the cameras of the probes and of the whole gallery.

    Raises:
        InputError: if there are none.
    """
    probes = len(data.probe)
    every = cameras_of(data, probes + len(data.gallery), wanted_by)
    return every[:probes], every[probes:]
