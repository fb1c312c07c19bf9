"""An index that several processes answer from, each with its part of the gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..compute.processes import Group
from ..data.sharded import ShardedGallery, ShardedSet
from ..data.side import Side
from ..graph.encoding import Encoding
from ..methods import FeatureStep, GraphRanker
from .gallery_index import GalleryIndex, IndexedSide


@dataclass(frozen=True, eq=False, kw_only=True)
class _SharedIndex(ShardedGallery):
    """The gallery of an index, and what is known of it where this process scores its part.

    Attributes:
        index: the whole gallery.
    """

    index: IndexedSide
    _parts: dict[str, Encoding] = field(default_factory=dict, init=False, repr=False)

    def encoded_for(self, method: GraphRanker) -> Encoding | None:
        """See `IndexedSide.encoded_for`; here it compares with the items of this process."""
        found = self.index.encoded_for(method)
        if found is None:
            return None
        if method.name not in self._parts:  # taken once out of all that the index has
            self._parts[method.name] = found.part(self.group.share(len(self)))
        return self._parts[method.name]

    def fitted_for(self, steps: Sequence[FeatureStep]) -> Sequence[Mapping[str, torch.Tensor]] | None:
        """See `IndexedSide.fitted_for`."""
        return self.index.fitted_for(steps)


def shared(index: GalleryIndex, probe: Side, group: Group) -> ShardedSet:
    """Return probes and the gallery of an index, of which each process scores its part.

    Args:
        index: one of which everything can be looked at, and which all processes have open.
        probe: the probes.
        group: the processes.
    """
    probe = probe.numbered(index.gallery)
    return ShardedSet(probe, _SharedIndex.of(index.gallery, group, index=index.gallery))
