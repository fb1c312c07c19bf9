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


def _transform(
    data: FeatureSet, step: Transform, request: Request, compute: Compute
) -> tuple[FeatureSet, Request]:
    """Replace all features, each by itself."""
    plan = images_plan(data, len(data.gallery), compute)
    probes, gallery = len(data.probe), len(data.gallery)
    cams = torch.zeros(probes + gallery, dtype=torch.int64)
    if step.needs_cameras:
        cams = cameras_of(data, probes + gallery, step.name)
    held, here, group = _held(data), slice(0, gallery), None
    if isinstance(data, ShardedSet):
        here, group = data.group.share(gallery), data.group
    rows = {"probe": plan.probes(data.probe), "gallery": plan.rows(held)}
    own = {"probe": cams[:probes], "gallery": cams[probes:][here]}
    others, known = [], request.calibration
    if known is not None:
        assert known.cams is not None
        rows["calibration"], own["calibration"] = plan.probes(known), torch.from_numpy(known.cams)
        others.append(RowSample(rows["calibration"], own["calibration"], own["calibration"]))
        if step.needs_cameras and bool(torch.isin(own["calibration"], cams[probes:]).all()):
            warnings.warn(
                f"{known.label} changes nothing: the gallery has images of all of its cameras, and their means "
                "are the gallery's",
                BlurrerankWarning,
                stacklevel=2,
            )
    if not request.online:
        others.append(RowSample(rows["probe"], own["probe"], own["probe"]))
    fitted = step.fit(RowSample(rows["gallery"], own["gallery"], cams[probes:], group), others)
    step.warn_about(own["probe"].to(plan.device) if step.needs_cameras else None, fitted)
    sides = {
        name: _applied(step, fitted, side, rows[name], own[name], compute)
        for name, side in (("probe", data.probe), ("gallery", held), ("calibration", known))
        if side is not None
    }
    known = sides.pop("calibration", None)
    return _with(data, **sides), replace(request, calibration=known)


def _applied(
    step: Transform, fitted: Fitted, side: Side, rows: UnitRows, cams: torch.Tensor, compute: Compute
) -> SteppedSide:
    """What `step` makes of a side whose unit rows are `rows`."""
    store = None
    for start, block in rows.blocks():
        some = cams[start : start + len(block)].to(block.device) if step.needs_cameras else None
        new = _unit(step.apply(block, some, fitted), block)
        store = _store(len(side), new.shape[1], compute) if store is None else store
        store[start : start + len(block)] = new.cpu()
    return _side(side, torch.empty(0, side.dim) if store is None else store)


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
    fitted = []
    for step in steps:
        plan = Plan.of_images(len(gallery), len(gallery), gallery.dim, compute)
        sides = [gallery] if calibration is None else [gallery, calibration]
        rows, cams = [plan.rows(side) for side in sides], [_cameras_of(side, step) for side in sides]
        sample, *others = (RowSample(some, own, own) for some, own in zip(rows, cams, strict=True))
        found = step.fit(sample, others)
        gallery, *known = (_applied(step, found, *one, compute) for one in zip(sides, rows, cams, strict=True))
        calibration = known[0] if known else None
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
            cams = _cameras_of(side, step)
            found = {name: values.to(compute.device) for name, values in found.items()}
            step.warn_about(cams.to(compute.device) if step.needs_cameras else None, found)
            side = _applied(step, found, side, plan.rows(side), cams, compute)
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
