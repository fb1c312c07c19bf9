"""Exact cosine search: the best n of the gallery for every probe, over blocks of gallery.

The score of a pair is the float32 sum of its products, which depends on the two rows alone: not on what else is
searched, on block sizes, threads or the precision asked for. Fast products, which do depend on these, only say
which pairs to score, with a margin that is proved to suffice, probe by probe; where it does not, it is widened.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..compute.progress import Progress
from ..data.candidates import Candidates
from ..data.sort_keys import NOBODY, from_sort_keys, sort_keys
from .precision import ceiling, error_bound, full_float32, pair_scores, product, rounded
from .rows import Gatherable, PassingRows, UnitRows, blocks_of
from .tiles import best_keys, greatest, multiply

log = logging.getLogger(__name__)


Then = Callable[[torch.Tensor, Candidates, Gatherable], Candidates]
"""Called with (p, D) float32 probes, their candidates and where the rows of these are; gives another order."""


# Candidates beyond the list that are scored too: a share of it, and at least so many.
_SPARE_SHARE, _SPARE_LEAST = 0.3, 12


# How much wider the second margin is, and at which share of probes that need it the first grows.
_WIDER, _OFTEN = 4, 0.05


# Similarities computed before the top-n reads them: few enough that they are still in cache.
TILE_PROBES = {"cpu": 512, "cuda": 4096}


# Bytes of candidates' rows at a time: a CPU should have them in cache still when they are used again.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}


# Products at a time among which `certain` looks for pairs: bounds what it takes when every item is in reach.
_REACH_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Batch:
    """What search found for consecutive probes.

    Attributes:
        start: the first probe's row.
        probe: (p, D) float32, their L2-normalised features.
        candidates: their best n.
        similarities: (p, G) float32 cosine to the whole gallery, where asked for.
        found: the candidates by cosine similarity, if something was done with them since.
    """

    start: int
    probe: torch.Tensor
    candidates: Candidates
    similarities: torch.Tensor | None
    found: Candidates | None = None


def margin(topn: int, gallery: int) -> int:
    """How many candidates are scored at first for a list of `topn`."""
    return min(gallery, topn + max(_SPARE_LEAST, int(topn * _SPARE_SHARE))) if topn else 0


def search(
    probe: UnitRows,
    gallery: UnitRows,
    topn: int,
    *,
    batch: int,
    depth: int = 0,
    full_rows: bool = False,
    progress: Progress | None = None,
    then: Then | None = None,
    first: int = 0,
) -> Iterator[Batch]:
    """The exact top-n of the gallery by cosine similarity, for `batch` probes at a time.

    Ties go to the lower gallery index. One pass over the gallery per batch, and more where a proof fails.

    Args:
        probe: the probes, P rows.
        gallery: the gallery, G rows of the same dimension on the same device.
        topn: how many to find by exact scores, up to G.
        batch: probes per batch.
        depth: how far the lists go, up to G; beyond `topn` by the similarities of one float32 product.
        full_rows: also keep each batch's similarities to the whole gallery.
        progress: called at the start and after each batch.
        then: what is to be done with the first `topn` of each list while their rows are in cache.
        first: the probe to begin with.

    Yields:
        `Batch` after `Batch`, in the order of the probes.
    """
    full_rows = full_rows or depth > topn
    width = margin(topn, len(gallery))
    probes = widened = fell_back = 0
    if progress is not None:
        progress(first, len(probe))
    for start in range(first, len(probe), batch):
        queries = probe.rows(start, min(start + batch, len(probe)))
        lists = _Lists(queries, topn, then)
        similarities = None
        if full_rows:
            similarities = torch.empty(len(queries), len(gallery), device=gallery.device)
        failed = lists.fill(None, nearest(queries, gallery, width, similarities))
        if topn:
            probes, widened = probes + len(queries), widened + len(failed)
            unproven = 0
            # In groups that gather no more rows than all probes did before.
            for first, last in blocks_of(len(failed), max(1, len(queries) // _WIDER)):
                some = failed[first:last]
                left = lists.fill(some, nearest(queries[some], gallery, _WIDER * width))
                unproven += len(left)
                if len(left):
                    keys = certain(queries[left], gallery, lists.found.scores[left, -1], topn)
                    lists.place(left, Candidates(*from_sort_keys(keys)), gallery)
            fell_back += unproven
            if len(failed) > max(_OFTEN * len(queries), 2 * unproven) and gallery.resident:
                width = min(2 * width, _WIDER * margin(topn, len(gallery)), len(gallery))
        if similarities is not None:
            _settle(similarities, lists.found)
        found = lists.after
        if similarities is not None and depth > topn:
            found = found.followed_by(_best_of(similarities, depth))
        yield Batch(start, queries, found, similarities, lists.found)
        if progress is not None:
            progress(start + len(queries), len(probe))
    if topn:
        name = str(torch.float32 if full_rows else gallery.dtype).removeprefix("torch.")
        log.info(
            "lists of %d probes by %s products: %d were not proved at first, "
            "%d of these nor with a wider margin",
            *(probes, name, widened, fell_back),
        )


@dataclass(frozen=True)
class Near:
    """Candidates that a fast product found.

    Attributes:
        indices: (p, K) int64 into the gallery, in no order.
        most: (p,) float32, a score that no other item exceeds.
        rows: where the rows of the candidates are.
    """

    indices: torch.Tensor
    most: torch.Tensor
    rows: Gatherable


class _Lists:
    """The lists of a batch of probes, which come as they are proved."""

    def __init__(self, queries: torch.Tensor, count: int, then: Then | None) -> None:
        self._queries = queries
        self._then = then
        self.found = _empty(queries, count)
        self.after = self.found if then is None else _empty(queries, count)

    def fill(self, some: torch.Tensor | None, near: Near) -> torch.Tensor:
        """Score the candidates of the probes `some`, or of all; gives those whose lists are not proved."""
        queries = self._queries if some is None else self._queries[some]
        proven = torch.ones(len(queries), dtype=torch.bool, device=queries.device)
        if self.found.indices.shape[1]:
            for rows, found in scored(queries, near.indices, near.rows, self.found.indices.shape[1]):
                # Not asked here whether they all are: a GPU would have to wait for the answer each time.
                proven[rows] = found.scores[:, -1] > near.most[rows]
                self.place(rows if some is None else some[rows], found, near.rows)
        failed = torch.nonzero(~proven).flatten()
        return failed if some is None else some[failed]

    def place(self, some: slice | torch.Tensor, found: Candidates, rows: Gatherable) -> None:
        """These are the lists of the probes `some`, as far as is known."""
        _put(self.found, some, found)
        if self._then is not None:
            _put(self.after, some, self._then(self._queries[some], found, rows))


def _empty(queries: torch.Tensor, count: int) -> Candidates:
    indices = torch.empty(len(queries), count, dtype=torch.int64, device=queries.device)
    return Candidates(indices, queries.new_empty(indices.shape))


def _put(lists: Candidates, some: slice | torch.Tensor, found: Candidates) -> None:
    lists.indices[some], lists.scores[some] = found.indices, found.scores


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
    mine = rounded(queries, gallery.dtype if similarities is None else torch.float32)
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
    most = torch.full((len(queries),), -torch.inf, device=gallery.device)
    if count < len(gallery):
        most = ceiling(values.amin(dim=1), values.dtype)
        most += error_bound(mine.errors, error, gallery.dim, mine.rows.dtype)
    return Near(indices, most, kept)


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


def _rank(rows: torch.Tensor, queries: torch.Tensor, items: torch.Tensor, total: int) -> torch.Tensor:
    """Sort keys of pairs of rows."""
    return sort_keys(pair_scores(rows, queries), items)


@full_float32()
def certain(
    queries: torch.Tensor,
    gallery: UnitRows,
    least: torch.Tensor,
    count: int,
    *,
    rank: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor] = _rank,
    items: int | None = None,
    but: torch.Tensor | None = None,
) -> torch.Tensor:
    """The best of the gallery for each probe, whatever it takes: all are scored that float32 cannot exclude.

    Args:
        queries: (p, D) float32.
        gallery: G rows.
        least: (p,) float32, a score that `count` items reach.
        count: how many.
        rank: gives keys for (t, D) rows, which it may overwrite, (t, D) queries, (t,) items and G.
        items: how many of the gallery to look at, from the first; by default all.
        but: (p,) int64, an item for each probe that is passed over.

    Returns:
        (p, count) keys, best first.
    """
    least = least - error_bound(queries.new_zeros(len(queries)), 0.0, gallery.dim, torch.float32)
    best = torch.full((len(queries), count), NOBODY, device=queries.device)
    pairs = max(1, CHUNK_BYTES[queries.device.type] // (8 * queries.shape[1]))
    for start, stop in blocks_of(len(gallery) if items is None else items, gallery.block):
        block = gallery.rows(start, stop)
        for first, last in blocks_of(len(queries), max(1, _REACH_ELEMENTS // (stop - start))):
            rows = slice(first, last)
            reach = queries[rows] @ block.T >= least[rows].unsqueeze(1)
            if but is not None:
                reach &= torch.arange(start, stop, device=block.device) != but[rows].unsqueeze(1)
            keys = torch.full(reach.shape, NOBODY, device=block.device)
            for some in torch.split(torch.nonzero(reach), pairs):
                who, item = some.T
                keys[who, item] = rank(block[item], queries[rows][who], start + item, len(gallery))
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
    _settle(similarities, found, first)
    return similarities


def _settle(similarities: torch.Tensor, found: Candidates, first: int = 0) -> None:
    """Put exact scores where they are known; what is not listed stays behind the list, where it was found."""
    if found.indices.shape[1]:
        last = found.scores[:, -1:]
        torch.minimum(similarities, torch.nextafter(last, last.new_tensor(-torch.inf)), out=similarities)
        columns = found.indices - first
        probes, places = torch.nonzero((columns >= 0) & (columns < similarities.shape[1]), as_tuple=True)
        similarities[probes, columns[probes, places]] = found.scores[probes, places]


def _best_of(similarities: torch.Tensor, topn: int) -> Candidates:
    step = TILE_PROBES[similarities.device.type]
    best = [best_keys(rows, 0, topn) for rows in torch.split(similarities, step)]
    return Candidates(*from_sort_keys(torch.cat(best)))
