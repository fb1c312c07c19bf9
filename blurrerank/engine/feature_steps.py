"""Feature steps applied: new features for one side, from the nearest gallery items of each image."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.compute import Compute
from ..data.features import FeatureSet
from ..data.sharded import ShardedSet
from ..data.side import Side
from ..graph.find import find_graph
from ..graph.neighbour_graph import ListSizes
from ..methods import FeatureStep, create
from ..methods.kinds.base import checked_result
from ..search.exact import Query
from ..search.plan import Plan
from ..search.rows import blocks_of, unit_rows, warn_of_reads
from .plans import plan_for
from .request import Request
from .workspace import open_workspace

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


def apply_feature_step(data: FeatureSet, step: FeatureStep, compute: Compute) -> FeatureSet:
    """Return the features that a step gives.

    New features are held in memory up to a quarter of the budget, and in a temporary file beyond. Where the sum
    of features cancels out, an image keeps the features it had. An interrupted step is not resumed.

    Raises:
        ParameterError: for a budget that not even one image fits.
    """
    quiet = replace(compute, progress=None)
    if step.changes == "probe":
        with compute.watch("search"):
            return _step_probes(data, step, quiet)
    with compute.watch("index"):
        return _step_gallery(data, step, quiet)


def _step_gallery(data: FeatureSet, step: FeatureStep, compute: Compute) -> FeatureSet:
    """Replace the gallery's features."""
    plan = Plan.of_images(len(data.gallery), len(data.gallery), data.dim, compute)
    if isinstance(data, ShardedSet):
        plan = plan.agreed(data.group)
        plan = replace(plan, resident=plan.resident and len(data.shard) <= plan.budget.held_rows // 2)
    work = open_workspace(data, plan)
    count = min(step.neighbours(), len(work.images))
    graph = find_graph(work.images, ListSizes(count - 1))
    held, columns = data.shard if isinstance(data, ShardedSet) else data.gallery, work.gallery.columns
    store = _store(columns.stop - columns.start, data.dim, compute)
    # All processes take as many turns, since rows come from each other.
    longest = -(-len(data.gallery) // data.group.size) if isinstance(data, ShardedSet) else len(data.gallery)
    size = _images_at_a_time(plan, count, data.dim)
    if not plan.resident:
        warn_of_reads(-(-longest // size), len(data.gallery), data.dim)
    for start, stop in blocks_of(longest, size):
        first, last = (min(columns.start + edge, columns.stop) for edge in (start, stop))
        table, places = work.gallery.gather(graph.lists[first:last].long())
        near = table[places]
        rows = _mix(step, near[:, 0], near, graph.similarities[first:last])
        store[first - columns.start : last - columns.start] = rows.cpu()
    new = _side(held, store)
    if isinstance(data, ShardedSet):
        return replace(data, gallery=replace(data.gallery, shard=new))
    return replace(data, gallery=new)


def _step_probes(data: FeatureSet, step: FeatureStep, compute: Compute) -> FeatureSet:
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
    return replace(data, probe=_side(data.probe, store))


def _mix(step: FeatureStep, rows: torch.Tensor, near: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
    """New unit rows of n images, from (n, D) theirs and (n, k, D) those of their nearest gallery items."""
    mixed = checked_result(step, "mix", step.mix(rows, near, cosine), rows)
    short = torch.linalg.vector_norm(mixed, dim=1, keepdim=True) < _LEAST_NORM
    return unit_rows(torch.where(short, rows, mixed))


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
