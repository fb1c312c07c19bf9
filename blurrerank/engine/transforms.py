"""Feature steps that treat each image by itself: fitted on the gallery, applied to either side."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..compute.compute import Compute
from ..data.features import FeatureSet
from ..data.sharded import ShardedGallery, ShardedSet
from ..data.side import Side
from ..errors import BlurrerankWarning, ParameterError
from ..methods import FeatureStep
from ..methods.kinds.cameras import camera_name, warn_of_unknown
from ..methods.kinds.steps import Transform
from ..search.plan import Plan
from ..search.rows import UnitRows
from .plans import images_plan, shared_plan
from .request import Request, without_cameras
from .samples import RowSample
from .stepped import Room, SteppedSide, held_gallery, room_for, stepped_side, unit, with_sides
from .workspace import cameras_of_both

# Below so many images, what they have in common is as much what they show as what their camera does to them.
_FEW = 20

Fitted = Mapping[str, torch.Tensor]
"""What a step found out about the gallery."""


@dataclass(frozen=True)
class _Images:
    """Images that a step is fitted on or applied to.

    Attributes:
        side: their labels.
        rows: their N rows.
        cams: (N,) int64, zeros for a step that does not look at cameras.
    """

    side: Side
    rows: UnitRows
    cams: torch.Tensor

    @classmethod
    def of(cls, side: Side, step: Transform, rows: UnitRows) -> _Images:
        """Take the cameras from the side."""
        return cls(side, rows, _cameras_of(side, step))

    def sample(self) -> RowSample:
        """What the step is fitted on."""
        return RowSample(self.rows, self.cams, self.cams)

    def changed(self, step: Transform, fitted: Fitted, compute: Compute) -> SteppedSide:
        """What the step makes of them."""
        store = None
        for start, block in self.rows.blocks():
            cams = self.cams[start : start + len(block)].to(block.device) if step.needs_cameras else None
            new = unit(step.apply(block, cams, fitted), block)
            store = room_for(len(self.side), new.shape[1], compute) if store is None else store
            store.rows[start : start + len(block)] = new.cpu()
        return stepped_side(self.side, Room(torch.empty(0, self.side.dim)) if store is None else store)

    def warn_if_useless(self, step: Transform, cams: torch.Tensor) -> None:
        """Warn of camera images whose cameras are all among the gallery's `cams`."""
        if step.needs_cameras and bool(torch.isin(self.cams, cams).all()):
            warnings.warn(
                f"{self.side.label} has no effect: the gallery has images of all of its cameras, and means "
                "are taken from the gallery",
                BlurrerankWarning,
                stacklevel=3,
            )

    def warn_if_few(self, step: Transform, cams: torch.Tensor) -> None:
        """Warn of a camera that is known by a few of these images alone, since no other has one of `cams`."""
        found, counts = torch.unique(self.cams[~torch.isin(self.cams, cams)], return_counts=True)
        if len(found) and int(counts.min()) < _FEW:
            place = int(counts.argmin())
            known = f"{counts[place]} probes" if counts[place] > 1 else "one probe"
            name = camera_name(int(found[place]), self.side.texts.get("cams", {}))
            warnings.warn(
                f"{name} has no images in the gallery, and {step.name} estimates it from "
                f"{known}: lists may suffer; pass earlier images of this camera with --camera-images",
                BlurrerankWarning,
                stacklevel=3,
            )

    def warn_about(self, step: Transform, fitted: Fitted) -> None:
        """Warn of cameras that nothing is known of."""
        if step.needs_cameras:
            warn_of_unknown(self.cams.to(self.rows.device), fitted["cams"], self.side.texts.get("cams", {}))


def transform(
    data: FeatureSet, step: Transform, request: Request, compute: Compute
) -> tuple[FeatureSet, Request]:
    """Return new features, each by itself; see `apply_feature_step`."""
    plan = images_plan(data, len(data.gallery), compute)
    probes, gallery = len(data.probe), len(data.gallery)
    probe_cams, every = (torch.zeros(count, dtype=torch.int64) for count in (probes, gallery))
    if step.needs_cameras:
        probe_cams, every = cameras_of_both(data, step.name)
    held, here, group = held_gallery(data), slice(0, gallery), None
    if isinstance(data, ShardedSet):
        here, group = data.group.share(gallery), data.group
    probe = _Images(data.probe, plan.probes(data.probe), probe_cams)
    items = _Images(held, plan.rows(held), every[here])
    others, known = [], None
    if request.camera_images is not None:
        known = _Images.of(request.camera_images, step, plan.probes(request.camera_images))
        others.append(known.sample())
        known.warn_if_useless(step, every)
    if step.needs_cameras and not request.online:
        others.append(probe.sample())
        probe.warn_if_few(step, every if known is None else torch.cat([every, known.cams]))
    fitted = step.fit(RowSample(items.rows, items.cams, every, group), others)
    probe.warn_about(step, fitted)
    changed = [images.changed(step, fitted, compute) for images in (probe, items, known) if images is not None]
    camera_images = None if known is None else changed.pop()
    return with_sides(data, *changed), replace(request, camera_images=camera_images)


def fit_steps(
    gallery: Side, steps: Sequence[Transform], camera_images: Side | None, compute: Compute
) -> tuple[Side, list[Fitted]]:
    """Fit steps on a gallery that stands, one after another.

    Args:
        gallery: its images, with cameras if a step needs them; it may be cut among processes.
        steps: what to fit.
        camera_images: images of cameras that the gallery perhaps lacks.
        compute: how.

    Returns:
        The gallery with its new features, and what each step needs to be applied to a probe.

    Raises:
        ParameterError: for a step that does not declare what it keeps.
    """
    fitted = []
    for step in steps:
        plan = Plan.of_images(len(gallery), len(gallery), gallery.dim, compute)
        every, held, group, here = _cameras_of(gallery, step), gallery, None, slice(0, len(gallery))
        if isinstance(gallery, ShardedGallery):
            held, group = gallery.shard, gallery.group
            plan, here = shared_plan(plan, len(held), group), group.share(len(gallery))
        items = _Images(held, plan.rows(held), every[here])
        known = None if camera_images is None else _Images.of(camera_images, step, plan.rows(camera_images))
        if known is not None:
            known.warn_if_useless(step, every)
        sample = RowSample(items.rows, items.cams, every, group)
        found = step.fit(sample, [] if known is None else [known.sample()])
        if found.keys() != step.keeps.keys():
            raise ParameterError(
                f"method {step.name} does not say what it keeps, so no index can be built for it"
            )
        changed = items.changed(step, found, compute)
        gallery = gallery.with_rows(changed) if isinstance(gallery, ShardedGallery) else changed
        camera_images = None if known is None else known.changed(step, found, compute)
        fitted.append(found)
    return gallery, fitted


def apply_fitted(
    data: FeatureSet, steps: Sequence[FeatureStep], fitted: Sequence[Fitted], compute: Compute
) -> FeatureSet:
    """Return `data` with the probes treated by steps that its gallery went through already.

    Raises:
        InputError: if there are no cameras and a step needs them.
    """
    side = data.probe
    with compute.watch("search"):
        for step, found in zip(steps, fitted, strict=True):
            assert isinstance(step, Transform)
            plan = Plan.of_images(len(side), len(side), side.dim, compute)
            images = _Images.of(side, step, plan.rows(side))
            found = {name: values.to(compute.device) for name, values in found.items()}
            images.warn_about(step, found)
            side = images.changed(step, found, compute)
    return replace(data, probe=side)


def _cameras_of(side: Side, step: Transform) -> torch.Tensor:
    """(N,) int64, zeros for a step that does not look at cameras."""
    if not step.needs_cameras:
        return torch.zeros(len(side), dtype=torch.int64)
    if side.cams is None:
        raise without_cameras(f"{side.label} has no cameras", step.name)
    return torch.from_numpy(side.cams)
