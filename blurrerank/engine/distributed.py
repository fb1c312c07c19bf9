"""Search, re-ranking and metrics with the gallery cut among processes; the lists are those of one process.

Each process finds the best of its own rows for all probes of a batch. The candidates of a probe meet in one
process, which fetches the winners' rows from their owners and re-ranks them; then all know the lists.
`docs/scale.md` says what travels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from ..compute.device import pick_device
from ..compute.progress import Progress
from ..compute.stopwatch import Stopwatch
from ..data.candidates import Candidates
from ..data.sharded import ShardedSet
from ..data.sort_keys import from_sort_keys, sort_keys
from ..errors import ParameterError
from ..methods import HeadMethod, Method, WholeMethod
from ..search.exact import Batch, margin, search, similarities_of
from ..search.plan import Plan
from ..search.rows import UnitRows
from ..search.sharded_rows import FetchedRows, ShardedImages, best_of_share, merged
from ..search.tiles import best_keys
from .batches import RankedBatch, there


def rerank_sharded(
    data: ShardedSet,
    method: Method,
    *,
    depth: int | None = None,
    full_rows: bool = False,
    device: str = "auto",
    memory: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    watch: Stopwatch | None = None,
    first: int = 0,
) -> Iterator[RankedBatch]:
    """As `batches.rerank_batches`, with the same lists in every process.

    `similarities` and `final` of a batch are those of the gallery rows of this process, (p, rows here).

    Raises:
        ParameterError: for a method that looks at the gallery and then at each probe alone, and as there.
    """
    size, watch = len(data.gallery), watch or Stopwatch()
    shown = min(depth or method.depth(size), size)
    if isinstance(method, HeadMethod):
        rows = full_rows or shown > method.depth(size)
        plan = _plan(data, method, max(method.depth(size), shown), rows, device, memory, precision)
        yield from _heads(data, method, plan, shown, full_rows, progress, watch, first)
    elif isinstance(method, WholeMethod):
        plan = _plan(data, method, shown, True, device, memory, precision)
        yield from _whole(data, method, plan, shown, progress, watch, first)
    else:
        raise ParameterError(
            f"method {method.name} works in one process: run it without torchrun, or choose "
            "lbr, cosine or k-reciprocal"
        )


def _plan(
    data: ShardedSet,
    method: Method,
    listed: int,
    full_rows: bool,
    device: str,
    memory: int | None,
    precision: str,
) -> Plan:
    """How the work is cut, on which all processes must agree where they work in step."""
    size, here, group = len(data.gallery), len(data.shard), data.group
    head = method.depth(size) if isinstance(method, HeadMethod) else 0
    whole = isinstance(method, WholeMethod)
    plan = Plan.fit(
        data.part,
        listed=min(listed, here),
        head=margin(min(head, here), here),
        full_rows=(2 if whole else 1) * full_rows,
        device=pick_device(device),
        workspace=method.workspace(head, data.dim) if isinstance(method, HeadMethod) else 0,
        memory=memory,
        asking=len(data.probe) + whole * size,
        precision=precision,
    )
    # Half of what rows may take is for those of this process, half for those of others that pass by.
    held = max(1, plan.held // 2) if whole else plan.held
    # A probe's candidates come from everywhere, and the rows of its winners twice: asked for, and answered.
    per_probe = 8 * data.dim * head // group.size + 24 * listed * (1 + full_rows)
    batch = max(1, min(plan.probe_batch, plan.working // max(1, per_probe)))
    block = Plan.of_images(size, size, data.dim, plan.device, memory, precision=precision).gallery_block
    low = int(plan.dtype == torch.bfloat16)
    batch, block, held, working, low = group.agreed([batch, block, held, plan.working, low])
    return replace(
        plan,
        resident=plan.resident and here <= held,
        gallery_block=block,
        probe_batch=batch,
        held=held,
        working=working,
        dtype=torch.bfloat16 if low else torch.float32,
    )


def _search(
    data: ShardedSet,
    shard: UnitRows,
    plan: Plan,
    topn: int,
    full_rows: bool,
    progress: Progress | None,
    begin: int,
) -> Iterator[Batch]:
    """As `search`, of the rows of this process, which may be none; indices are global."""
    probe, first = plan.probes(data.probe), data.shard.first
    if len(shard):
        found = search(
            probe,
            shard,
            min(topn, len(shard)),
            batch=plan.probe_batch,
            full_rows=full_rows,
            progress=progress,
            first=begin,
        )
        for batch_found in found:
            near = batch_found.candidates
            yield replace(batch_found, candidates=Candidates(near.indices + first, near.scores))
        return
    for start in range(begin, len(probe), plan.probe_batch):
        queries = probe.rows(start, min(start + plan.probe_batch, len(probe)))
        nothing = torch.empty(len(queries), 0, device=plan.device)
        yield Batch(start, queries, Candidates(nothing.long(), nothing), nothing if full_rows else None)


def _heads(
    data: ShardedSet,
    method: HeadMethod,
    plan: Plan,
    shown: int,
    full_rows: bool,
    progress: Progress | None,
    watch: Stopwatch,
    start: int,
) -> Iterator[RankedBatch]:
    """Search, and give the head of each list new scores, each process for its share of the probes."""
    size, group = len(data.gallery), data.group
    head, reranked = method.depth(size), method.reranked(size)
    first = data.shard.first
    with watch("search"):
        shard = plan.rows(data.shard)
    for batch in watch.each("search", _search(data, shard, plan, head, False, progress, start)):
        with watch("search"):
            near = batch.candidates
            keys = best_of_share(sort_keys(near.scores, near.indices), head, group)
            found = Candidates(*from_sort_keys(group.gathered(keys)))
        near = found
        if reranked:
            with watch("re-rank"):
                near = Candidates(*from_sort_keys(keys))
                fetched = FetchedRows(near.indices, shard, size, group)
                # Whether a process has a share of a small batch or not: all have come here, none need go on.
                if len(keys):
                    probe = batch.probe[group.share(len(batch.probe))]
                    near = near.sorted_by(method.rescore(probe, near, fetched))
                near = Candidates(group.gathered(near.indices), group.gathered(near.scores))
        rows = partial(similarities_of, batch.probe, shard, found, first)
        if shown > head:
            with watch("search"):
                keys = best_keys(rows(), first, min(shown, len(shard)))
                near = near.followed_by(Candidates(*from_sort_keys(merged(keys, shown, group))))
        yield RankedBatch(batch.start, size, near.indices, near.scores, reranked, rows)


def _whole(
    data: ShardedSet,
    method: WholeMethod,
    plan: Plan,
    shown: int,
    progress: Progress | None,
    watch: Stopwatch,
    start: int,
) -> Iterator[RankedBatch]:
    """Look at all images together, then give the gallery new scores, each process for its rows."""
    size, group, probes = len(data.gallery), data.group, len(data.probe)
    with watch("search"):
        shard = plan.rows(data.shard)
        images = ShardedImages(data, shard, block=plan.gallery_block)

    def advance(done: int, others: int = 0) -> None:
        if progress is not None:
            progress(others + done, len(images) + probes)

    score = method.prepare(images, probes, plan, watch, lambda done, _: advance(done))
    found = _search(data, shard, plan, 0, True, lambda done, _: advance(done, len(images)), start)
    for batch in watch.each("search", found):
        assert batch.similarities is not None
        with watch("re-rank"):
            final = score(batch.start, batch.similarities) if len(shard) else batch.similarities
            keys = best_keys(final, data.shard.first, min(shown, len(shard)))
            indices, scores = from_sort_keys(merged(keys, shown, group))
        rows = partial(there, batch.similarities)
        yield RankedBatch(batch.start, size, indices, scores, size, rows, final)
