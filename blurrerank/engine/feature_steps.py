"""Feature steps applied: new features for the probes, for the gallery, or for both."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from ..compute.compute import Compute
from ..data.features import FeatureSet
from ..data.sharded import ShardedSet
from ..data.side import Side
from ..errors import BlurrerankWarning, InputError
from ..graph.find import find_graph
from ..graph.neighbour_graph import ListSizes
from ..graph.sparse_rows import ONE, SparseRows
from ..methods import FeatureStep, create
from ..methods.kinds.base import checked_result
from ..methods.kinds.steps import GraphStep, ListStep, Transform
from ..search.exact import Query
from ..search.plan import Plan
from ..search.rows import UnitRows, blocks_of, unit_rows, warn_of_reads
from .plans import images_plan, plan_for
from .request import Request
from .samples import RowSample
from .workspace import Workspace, cameras_of, open_workspace

Fitted = Mapping[str, torch.Tensor]
"""What a step found out about the gallery."""

# New features shorter than this are rounding: what they are a sum of cancels out.
_LEAST_NORM = 1e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class SteppedSide(Side):
    """New features, L2-normalised, with the labels and the digest of the side that they were made from."""

    unit = True

    origin: Side

    def row_digests(self) -> NDArray[np.uint8]:
        """Return those of the features as they came."""
        return self.origin.row_digests()

    def digest(self) -> str:
        """Return that of the features as they came."""
        return self.origin.digest()


def apply_feature_step(
    data: FeatureSet, step: FeatureStep, request: Request, compute: Compute
) -> tuple[FeatureSet, Request]:
    """Return the features that a step gives, and the request with its calibration features treated likewise.

    New features are held in memory up to a quarter of the budget, and in a temporary file beyond. Where the sum
    of features cancels out, an image keeps the features it had. An interrupted step is not resumed.

    Raises:
        ParameterError: for a budget that holds no neighbour lists of the step.
        InputError: if there are no cameras and the step needs them.
    """
    quiet = replace(compute, progress=None)
    if isinstance(step, ListStep) and step.changes == "probe":
        with compute.watch("search"):
            return _step_probes(data, step, quiet), request
    with compute.watch("index"):
        if isinstance(step, Transform):
            return _transform(data, step, request, quiet)
        if isinstance(step, ListStep):
            return _step_gallery(data, step, quiet), request
        assert isinstance(step, GraphStep)
        for _ in range(step.times()):
            data = _step_by_graph(data, step, quiet, online=request.online)
        return data, request


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
            new = _unit(step.apply(block, cams, fitted), block)
            store = _store(len(self.side), new.shape[1], compute) if store is None else store
            store[start : start + len(block)] = new.cpu()
        return _side(self.side, torch.empty(0, self.side.dim) if store is None else store)

    def warn_about(self, step: Transform, fitted: Fitted) -> None:
        """Warn of cameras that nothing is known of."""
        step.warn_about(self.cams.to(self.rows.device) if step.needs_cameras else None, fitted)


def _transform(
    data: FeatureSet, step: Transform, request: Request, compute: Compute
) -> tuple[FeatureSet, Request]:
    """Replace all features, each by itself."""
    plan = images_plan(data, len(data.gallery), compute)
    probes, gallery = len(data.probe), len(data.gallery)
    cams = torch.zeros(probes + gallery, dtype=torch.int64)
    if step.needs_cameras:
        cams = cameras_of(data, probes + gallery, step.name)
    probe_cams, every = cams[:probes], cams[probes:]
    held, here, group = _held(data), slice(0, gallery), None
    if isinstance(data, ShardedSet):
        here, group = data.group.share(gallery), data.group
    probe = _Images(data.probe, plan.probes(data.probe), probe_cams)
    items = _Images(held, plan.rows(held), every[here])
    others, known = [], None
    if request.calibration is not None:
        known = _Images.of(request.calibration, step, plan.probes(request.calibration))
        others.append(known.sample())
        if step.needs_cameras and bool(torch.isin(known.cams, every).all()):
            warnings.warn(
                f"{known.side.label} changes nothing: the gallery has images of all of its cameras, and their "
                "means are the gallery's",
                BlurrerankWarning,
                stacklevel=2,
            )
    if not request.online:
        others.append(probe.sample())
    fitted = step.fit(RowSample(items.rows, items.cams, every, group), others)
    probe.warn_about(step, fitted)
    changed = [images.changed(step, fitted, compute) for images in (probe, items, known) if images is not None]
    calibration = None if known is None else changed.pop()
    return _with(data, *changed), replace(request, calibration=calibration)


def fit_steps(
    gallery: Side, steps: Sequence[Transform], calibration: Side | None, compute: Compute
) -> tuple[Side, list[Fitted]]:
    """Fit steps on a gallery that stands, one after another.

    Args:
        gallery: its images, with cameras if a step needs them.
        steps: what to fit.
        calibration: images of cameras that the gallery perhaps lacks.
        compute: how.

    Returns:
        The gallery with its new features, and what each step needs to be applied to a probe.
    """
    sides, fitted = [gallery] if calibration is None else [gallery, calibration], []
    for step in steps:
        plan = Plan.of_images(len(gallery), len(gallery), sides[0].dim, compute)
        images = [_Images.of(side, step, plan.rows(side)) for side in sides]
        found = step.fit(images[0].sample(), [some.sample() for some in images[1:]])
        sides = [some.changed(step, found, compute) for some in images]
        fitted.append(found)
    return sides[0], fitted


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
        raise InputError(f"{side.label} has no cameras: method {step.name} needs them; choose another method")
    return torch.from_numpy(side.cams)


def _step_by_graph(data: FeatureSet, step: GraphStep, compute: Compute, *, online: bool) -> FeatureSet:
    """Replace all features by mixtures over the graph of all images; online, the gallery's over its own."""
    probes = 0 if online else len(data.probe)
    count = probes + len(data.gallery)
    plan = images_plan(data, count, compute)
    work = open_workspace(data, plan, together=not online)
    if step.apart:
        # What a side is to lists is what a camera is. Similarities between sides are computed for nothing.
        sides = (torch.arange(count) >= probes).long()
        graph = find_graph(work.images, ListSizes(within=step.neighbours()), cams=sides).within_alone()
    else:
        cams = cameras_of(data, count, step.name) if step.needs_cameras else None
        graph = find_graph(work.images, step.list_sizes(), cams=cams)
    weights = step.mixture(graph)
    del graph
    columns = work.gallery.columns
    held = _held(data)
    longest = _longest_share(data)
    size = _images_at_a_time(plan, math.ceil(len(weights.columns) / max(1, count)), data.dim)
    if not plan.resident:
        warn_of_reads(math.ceil(longest / size) + math.ceil(probes / size), count, data.dim)
    found = {}
    for name, side, first, last, turns in (
        ("probe", data.probe, 0, probes, probes),
        ("gallery", held, probes + columns.start, probes + columns.stop, longest),
    ):
        if not turns:
            continue
        store = None
        for start, stop in blocks_of(turns, size):
            begin, end = min(first + start, last), min(first + stop, last)
            some = weights.rows(begin, end)
            mixed, rows = _sums(some, work, probes), _rows(work, torch.arange(begin, end), probes)
            new = _unit(step.combine(rows, mixed, name), rows)
            store = _store(last - first, new.shape[1], compute) if store is None else store
            store[begin - first : end - first] = new.cpu()
        assert store is not None  # processes without a gallery item take turns too
        found[name] = _side(side, store)
    return _with(data, **found)


def _sums(weights: SparseRows, work: Workspace, probes: int) -> torch.Tensor:
    """(n, D) float32 sums of images' rows with n rows of weights."""
    distinct, places = torch.unique(weights.columns.long(), return_inverse=True)
    table = _rows(work, distinct, probes)
    shares = weights.weights.float() / ONE
    offsets = weights.offsets[:-1] - weights.offsets[0]
    return embedding_bag(places, table, offsets, mode="sum", per_sample_weights=shares)


def _rows(work: Workspace, images: torch.Tensor, probes: int) -> torch.Tensor:
    """The rows of (n,) ascending images, of which the first `probes` are probes."""
    images = images.to(work.images.device)
    cut = int((images < probes).sum())
    parts = []
    for source, items in ((work.probes, images[:cut]), (work.gallery, images[cut:] - probes)):
        table, places = source.gather(items)
        parts.append(table[places])
    return torch.cat(parts)


def _step_gallery(data: FeatureSet, step: ListStep, compute: Compute) -> FeatureSet:
    """Replace the gallery's features."""
    plan = images_plan(data, len(data.gallery), compute)
    work = open_workspace(data, plan)
    count = min(step.neighbours(), len(work.images))
    graph = find_graph(work.images, ListSizes(count - 1))
    held, columns = _held(data), work.gallery.columns
    store = _store(columns.stop - columns.start, data.dim, compute)
    longest = _longest_share(data)
    size = _images_at_a_time(plan, count, data.dim)
    if not plan.resident:
        warn_of_reads(math.ceil(longest / size), len(data.gallery), data.dim)
    for start, stop in blocks_of(longest, size):
        first, last = (min(columns.start + edge, columns.stop) for edge in (start, stop))
        table, places = work.gallery.gather(graph.lists[first:last].long())
        near = table[places]
        rows = _mix(step, near[:, 0], near, graph.similarities[first:last])
        store[first - columns.start : last - columns.start] = rows.cpu()
    return _with(data, gallery=_side(held, store))


def _step_probes(data: FeatureSet, step: ListStep, compute: Compute) -> FeatureSet:
    """Replace the probes' features."""
    count = min(step.neighbours(), len(data.gallery))
    # The search is that of a list of so many.
    plan = plan_for(data, create("cosine", topn=count).ranker, Request(), compute)
    work = open_workspace(data, plan)
    store = _store(len(data.probe), data.dim, compute)
    for batch in work.gallery.lists(work.probes, Query(count, plan.probe_batch)):
        for start, stop in blocks_of(len(batch.probe), _images_at_a_time(plan, count, data.dim)):
            table, places = work.gallery.gather(batch.found.indices[start:stop])
            rows = _mix(step, batch.probe[start:stop], table[places], batch.found.scores[start:stop])
            store[batch.start + start : batch.start + stop] = rows.cpu()
    return _with(data, probe=_side(data.probe, store))


def _mix(step: ListStep, rows: torch.Tensor, near: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
    """New unit rows of n images, from (n, D) theirs and (n, k, D) those of their nearest gallery items."""
    return _unit(checked_result(step, "mix", step.mix(rows, near, cosine), rows), rows)


def _unit(new: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """New features, L2-normalised; those of `rows` where they cancel out."""
    short = torch.linalg.vector_norm(new, dim=1, keepdim=True) < _LEAST_NORM
    return unit_rows(torch.where(short, rows, new) if new.shape == rows.shape else new)


def _held(data: FeatureSet) -> Side:
    """The gallery, or what this process has of it."""
    return data.shard if isinstance(data, ShardedSet) else data.gallery


def _with(data: FeatureSet, probe: Side | None = None, gallery: Side | None = None) -> FeatureSet:
    """The same with other sides; of a `ShardedSet`, `gallery` is the shard of this process."""
    if gallery is not None and isinstance(data, ShardedSet):
        gallery = replace(data.gallery, shard=gallery)
    return replace(data, probe=probe or data.probe, gallery=gallery or data.gallery)


def _longest_share(data: FeatureSet) -> int:
    """How many gallery items a process has at most: all take as many turns, since rows come from each other."""
    return math.ceil(len(data.gallery) / data.group.size) if isinstance(data, ShardedSet) else len(data.gallery)


def _images_at_a_time(plan: Plan, count: int, dim: int) -> int:
    """How many images to mix with `count` neighbours each within the budget."""
    return max(1, plan.budget.working_bytes // (12 * dim * (count + 2)))


def _store(rows: int, dim: int, compute: Compute) -> torch.Tensor:
    """Room for (rows, dim) float32."""
    if 4 * rows * dim <= compute.memory // 4:
        return torch.empty(rows, dim)
    with tempfile.TemporaryFile() as file:  # mapped, it stays until the last user lets go of it
        file.truncate(4 * rows * dim)
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(rows, dim)))


def _side(side: Side, rows: torch.Tensor) -> SteppedSide:
    """The labels of `side` with other features."""
    return SteppedSide(
        rows,
        side.ids,
        side.cams,
        side.names,
        label=side.label,
        first=side.first,
        sources=side.sources,
        origin=side,
    )
