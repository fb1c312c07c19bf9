"""The nearest gallery items by fast products, with a bound on the rest, and their exact scores.

The score of a pair is the float32 sum of its products, which depends on the two rows alone: not on what else is
searched, on block sizes, threads or the precision asked for. Fast products, which do depend on these, only say
which pairs to score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..compute.products import full_float32
from ..data.candidates import Candidates
from ..data.ranges import ranges
from ..data.sort_keys import NOBODY, from_sort_keys, sort_keys
from .precision import ceiling, error_bound, output_error, pair_scores, product, rounded
from .rows import Gatherable, PassingRows, UnitRows, blocks_of
from .tiles import best_keys, greatest, multiply

# Similarities computed before the top-n reads them: few enough that they are still in cache.
TILE_PROBES = {"cpu": 512, "cuda": 4096}


# Bytes of candidates' rows at a time: a CPU should have them in cache still when they are used again.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}


# Products at a time among which `exhaustive_top_k` looks for pairs, and bytes that one takes if it is in reach.
_REACH_ELEMENTS, _REACH_BYTES = 1 << 22, 64
# When coarse bounds leave more than this share of the pairs, float32 products say which these are.
_CROWDED = 0.05


@dataclass(frozen=True)
class Near:
    """Candidates that a fast product found.

    Attributes:
        indices: (p, K) int64 into the gallery, in no order.
        unlisted_score_bound: (p,) float32, a score that no other item exceeds.
        rows: where the rows of the candidates are.
    """

    indices: torch.Tensor
    unlisted_score_bound: torch.Tensor
    rows: Gatherable


@full_float32()
def nearest(
    queries: torch.Tensor, gallery: UnitRows, count: int, similarities: torch.Tensor | None = None
) -> Near:
    """The `count` gallery items nearest to each of p queries by fast products; all, if there are no more.

    Args:
        queries: (p, D) float32.
        gallery: G rows.
        count: how many.
        similarities: (p, G) float32, to put the products there, which are float32 then and the same however
            many queries there are.
    """
    count, step = min(count, len(gallery)), TILE_PROBES[gallery.device.type]
    mine = gallery.factors_of(queries) if similarities is None else rounded(queries, torch.float32)
    values = indices = None
    error = torch.zeros((), device=gallery.device)
    scratch: torch.Tensor | None = None
    kept: Gatherable = gallery
    if not gallery.resident and count:
        kept = PassingRows(min(len(gallery), count * len(queries)), gallery.dim, gallery.device)
    for start, block in gallery.blocks():
        stop = start + len(block)
        found = []
        if similarities is None:
            theirs = gallery.factors(start, stop, block)
            error = torch.maximum(error, theirs.errors.amax())
        for first, last in blocks_of(len(queries), step):
            if similarities is None:
                tile = scratch = product(mine.rows[first:last], theirs.rows, scratch)
            else:
                tile = similarities[first:last, start:stop]
                multiply(queries[first:last], block, out=tile)
            if count:
                found.append(greatest(tile, min(count, stop - start)))
        if not count:
            continue
        best, items = (torch.cat(some) for some in zip(*found, strict=True))
        items += start
        if values is not None and indices is not None:
            best, items = torch.cat([values, best], dim=1), torch.cat([indices, items], dim=1)
            best, order = best.topk(min(count, best.shape[1]), dim=1, sorted=False)
            items = items.gather(1, order)
        values, indices = best, items
        if isinstance(kept, PassingRows):
            kept.keep(indices, start, block)
    if values is None or indices is None:
        return Near(torch.empty(len(queries), 0, dtype=torch.int64), torch.empty(len(queries)), kept)
    bound = torch.full((len(queries),), -torch.inf, device=gallery.device)
    if count < len(gallery):
        bound = ceiling(values.amin(dim=1), values.dtype)
        if similarities is None:
            bound += gallery.product_bound(mine.errors, error)
        else:
            bound += error_bound(mine.errors, 0.0, gallery.dim, torch.float32)
    return Near(indices, bound, kept)


def scored(
    queries: torch.Tensor, indices: torch.Tensor, rows: Gatherable, count: int
) -> Iterator[tuple[slice, Candidates]]:
    """The best `count` of given items by their exact scores.

    Args:
        queries: (p, D) float32.
        indices: (p, K) int64 into the gallery, K at least `count`.
        rows: where those of the items are.
        count: how many.

    Yields:
        For some of the probes at a time, which these are and their (c, count) best, best first.
    """
    table, places = rows.gather(indices)
    width, dim = indices.shape[1], queries.shape[1]
    step = max(1, CHUNK_BYTES[table.device.type] // (4 * width * dim))
    # A share for each thread: products of neighbourhoods are not cut any further.
    step = -(-step // torch.get_num_threads()) * torch.get_num_threads()
    nodes = torch.empty(min(step, len(queries)) * width, dim, device=table.device)
    for start, stop in blocks_of(len(queries), step):
        many = (stop - start) * width
        torch.index_select(table, 0, places[start:stop].flatten(), out=nodes[:many])
        scores = pair_scores(nodes[:many].view(-1, width, dim), queries[start:stop].unsqueeze(1))
        best = sort_keys(scores, indices[start:stop]).topk(count, dim=1).indices
        yield slice(start, stop), Candidates(indices[start:stop].gather(1, best), scores.gather(1, best))


Allowed = Callable[[slice, int, int], torch.Tensor]
"""Called with some probes and the first and last of some items: (p, items) bool, which pairs may be listed."""


def _rank(rows: torch.Tensor, queries: torch.Tensor, items: torch.Tensor, total: int) -> torch.Tensor:
    """Sort keys of pairs of rows."""
    return sort_keys(pair_scores(rows, queries), items)


@full_float32()
def exhaustive_top_k(
    queries: torch.Tensor,
    gallery: UnitRows,
    least: torch.Tensor,
    count: int,
    *,
    rank: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor] = _rank,
    items: int | None = None,
    allowed: Allowed | None = None,
) -> torch.Tensor:
    """The best of the gallery for each probe: every item is scored that float32 cannot exclude.

    Args:
        queries: (p, D) float32.
        gallery: G rows.
        least: (p,) float32, a score that `count` items reach.
        count: how many.
        rank: gives keys for (t, D) rows, which it may overwrite, (t, D) queries, (t,) items and G.
        items: how many of the gallery to look at, from the first; by default all.
        allowed: says which items each probe may be listed with; by default all.

    Returns:
        (p, count) keys, best first; `NOBODY` where there are fewer.
    """
    reached = least - error_bound(queries.new_zeros(len(queries)), 0.0, gallery.dim, torch.float32)
    mine = gallery.factors_of(queries) if gallery.holds_factors else None
    at_once = min(_REACH_ELEMENTS, gallery.budget.working_bytes // _REACH_BYTES)
    best = torch.full((len(queries), count), NOBODY, device=queries.device)
    pairs = max(1, CHUNK_BYTES[queries.device.type] // (8 * queries.shape[1]))
    for start, stop in blocks_of(len(gallery) if items is None else items, gallery.block):
        block = gallery.rows(start, stop)
        theirs = None if mine is None else gallery.factors(start, stop)
        for first, last in blocks_of(len(queries), max(1, at_once // (stop - start))):
            rows = slice(first, last)
            reach = None
            if mine is not None and theirs is not None:
                bound = gallery.product_bound(mine.errors[rows], theirs.errors.amax())
                bound += output_error(gallery.dtype)
                reach = product(mine.rows[rows], theirs.rows) >= (least[rows] - bound).unsqueeze(1)
            if reach is None or reach.sum() > _CROWDED * reach.numel():
                reach = queries[rows] @ block.T >= reached[rows].unsqueeze(1)
            if allowed is not None:
                reach &= allowed(rows, start, stop)
            who, item = torch.nonzero(reach).unbind(1)
            if not len(who):
                continue
            counts = torch.bincount(who, minlength=len(reach))
            _, places = ranges(torch.zeros_like(counts), counts)
            keys = torch.full((len(reach), int(counts.max())), NOBODY, device=block.device)
            for some in torch.split(torch.arange(len(who), device=who.device), pairs):
                asking, listed = who[some], item[some]
                found = rank(block[listed], queries[rows][asking], start + listed, len(gallery))
                keys[asking, places[some]] = found
            best[rows] = torch.cat([best[rows], keys], dim=1).topk(count, dim=1).values
    return best


def similarities_of(
    queries: torch.Tensor, gallery: UnitRows, found: Candidates, first: int = 0
) -> torch.Tensor:
    """Similarities of queries to the whole gallery, the same however many queries there are.

    Args:
        queries: (p, D) float32.
        gallery: G rows.
        found: their lists by exact scores, which the similarities then agree with.
        first: the index that lists name the first row by, if the gallery is a part of a larger one.

    Returns:
        (p, G) float32.
    """
    similarities = torch.empty(len(queries), len(gallery), device=gallery.device)
    nearest(queries, gallery, 0, similarities)
    overwrite_with_exact_scores(similarities, found, first)
    return similarities


def overwrite_with_exact_scores(similarities: torch.Tensor, found: Candidates, first: int = 0) -> None:
    """Put exact scores where they are known; what is not listed stays behind the list, where it was found."""
    if found.indices.shape[1]:
        last = found.scores[:, -1:]
        torch.minimum(similarities, torch.nextafter(last, last.new_tensor(-torch.inf)), out=similarities)
        columns = found.indices - first
        probes, places = torch.nonzero((columns >= 0) & (columns < similarities.shape[1]), as_tuple=True)
        similarities[probes, columns[probes, places]] = found.scores[probes, places]


def best_by_similarity(similarities: torch.Tensor, topn: int) -> Candidates:
    """Return the best `topn` of each row of (p, G) similarities."""
    step = TILE_PROBES[similarities.device.type]
    best = [best_keys(rows, 0, topn) for rows in torch.split(similarities, step)]
    return Candidates(*from_sort_keys(torch.cat(best)))
