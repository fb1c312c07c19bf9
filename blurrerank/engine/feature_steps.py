"""Feature steps applied: new features for the probes, for the gallery, or for both."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch.nn.functional import embedding_bag

from ..compute.compute import Compute
from ..data.features import FeatureSet
from ..data.sharded import ShardedSet
from ..graph.find import find_graph
from ..graph.neighbour_graph import ListSizes
from ..graph.sparse_rows import ONE, SparseRows
from ..methods import FeatureStep, create
from ..methods.kinds.base import checked_result
from ..methods.kinds.steps import GraphStep, ListStep, Transform
from ..search.exact import Query
from ..search.plan import Plan
from ..search.rows import blocks_of, warn_of_reads
from .plans import images_plan, plan_for
from .request import Request
from .stepped import held_gallery, room_for, stepped_side, unit, with_sides
from .transforms import transform
from .workspace import Workspace, cameras_of, open_workspace


def apply_feature_step(
    data: FeatureSet, step: FeatureStep, request: Request, compute: Compute
) -> tuple[FeatureSet, Request]:
    """Return the features that a step gives, and the request with its camera images treated likewise.

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
            return transform(data, step, request, quiet)
        if isinstance(step, ListStep):
            return _step_gallery(data, step, quiet), request
        assert isinstance(step, GraphStep)
        for _ in range(step.times()):
            data = _step_by_graph(data, step, quiet, online=request.online)
        return data, request


def _step_by_graph(data: FeatureSet, step: GraphStep, compute: Compute, *, online: bool) -> FeatureSet:
    """Replace all features by mixtures over the graph of all images; online, the gallery's over its own."""
    probes = 0 if online else len(data.probe)
    count = probes + len(data.gallery)
    plan = images_plan(data, count, compute)
    work = open_workspace(data, plan, together=not online)
    if step.apart:
        # What a side is to lists is what a camera is. Similarities between sides are computed for nothing.
        sides = (torch.arange(count) >= probes).long()
        graph = find_graph(work.rows, ListSizes(within=step.neighbours()), cams=sides).within_alone()
    else:
        cams = cameras_of(data, count, step.name) if step.needs_cameras else None
        graph = find_graph(work.rows, step.list_sizes(), cams=cams)
    weights = step.mixture(graph)
    del graph
    columns = work.gallery.columns
    held = held_gallery(data)
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
            new = unit(step.combine(rows, mixed, name), rows)
            store = room_for(last - first, new.shape[1], compute) if store is None else store
            store.rows[begin - first : end - first] = new.cpu()
        assert store is not None  # processes without a gallery item take turns too
        found[name] = stepped_side(side, store)
    return with_sides(data, **found)


def _sums(weights: SparseRows, work: Workspace, probes: int) -> torch.Tensor:
    """(n, D) float32 sums of images' rows with n rows of weights."""
    distinct, places = torch.unique(weights.columns.long(), return_inverse=True)
    table = _rows(work, distinct, probes)
    shares = weights.weights.float() / ONE
    offsets = weights.offsets[:-1] - weights.offsets[0]
    return embedding_bag(places, table, offsets, mode="sum", per_sample_weights=shares)


def _rows(work: Workspace, images: torch.Tensor, probes: int) -> torch.Tensor:
    """The rows of (n,) ascending images, of which the first `probes` are probes."""
    images = images.to(work.rows.device)
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
    count = min(step.neighbours(), len(work.rows))
    graph = find_graph(work.rows, ListSizes(count - 1))
    held, columns = held_gallery(data), work.gallery.columns
    store = room_for(columns.stop - columns.start, data.dim, compute)
    longest = _longest_share(data)
    size = _images_at_a_time(plan, count, data.dim)
    if not plan.resident:
        warn_of_reads(math.ceil(longest / size), len(data.gallery), data.dim)
    for start, stop in blocks_of(longest, size):
        first, last = (min(columns.start + edge, columns.stop) for edge in (start, stop))
        table, places = work.gallery.gather(graph.lists[first:last].long())
        near = table[places]
        rows = _mix(step, near[:, 0], near, graph.similarities[first:last])
        store.rows[first - columns.start : last - columns.start] = rows.cpu()
    return with_sides(data, gallery=stepped_side(held, store))


def _step_probes(data: FeatureSet, step: ListStep, compute: Compute) -> FeatureSet:
    """Replace the probes' features."""
    count = min(step.neighbours(), len(data.gallery))
    # The search is that of a list of so many.
    plan = plan_for(data, create("cosine", topn=count).ranker, Request(), compute)
    work = open_workspace(data, plan)
    store = room_for(len(data.probe), data.dim, compute)
    for batch in work.gallery.lists(work.probes, Query(count, plan.probe_batch)):
        for start, stop in blocks_of(len(batch.probe), _images_at_a_time(plan, count, data.dim)):
            table, places = work.gallery.gather(batch.found.indices[start:stop])
            rows = _mix(step, batch.probe[start:stop], table[places], batch.found.scores[start:stop])
            store.rows[batch.start + start : batch.start + stop] = rows.cpu()
    return with_sides(data, probe=stepped_side(data.probe, store))


def _mix(step: ListStep, rows: torch.Tensor, near: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
    """New unit rows of n images, from (n, D) theirs and (n, k, D) those of their nearest gallery items."""
    return unit(checked_result(step, "mix", step.mix(rows, near, cosine), rows), rows)


def _longest_share(data: FeatureSet) -> int:
    """How many gallery items a process has at most: all take as many turns, since rows come from each other."""
    return math.ceil(len(data.gallery) / data.group.size) if isinstance(data, ShardedSet) else len(data.gallery)


def _images_at_a_time(plan: Plan, count: int, dim: int) -> int:
    """How many images to mix with `count` neighbours each within the budget."""
    return max(1, plan.budget.working_bytes // (12 * dim * (count + 2)))
