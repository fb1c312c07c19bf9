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
from torch.nn.functional import pad

from .precision import Rounded, ceiling, error_bound, pair_scores, product, rounded
from .ranking import NOBODY, Candidates, from_sort_keys, sort_keys
from .rows import UnitRows, blocks_of

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (images done, images in all): probes, and all images for a method that looks at them first."""

Then = Callable[[torch.Tensor, Candidates], Candidates]
"""Called with (p, D) float32 probes and their candidates; gives these back in another order."""

# Candidates beyond the list that are scored too: a share of it, and at least so many.
_SPARE_SHARE, _SPARE_LEAST = 0.6, 16
# How much wider the second margin is, and at which share of probes that need it the first grows.
_WIDER, _OFTEN = 4, 0.05
# BLAS libraries take other kernels, which round otherwise, for products of a few rows or columns (seen with
# MKL below 32). Padding to this width keeps every similarity independent of how the work was cut.
_LEAST_ROWS = 64
# Similarities computed before the top-n reads them: few enough that they are still in cache.
_TILE_PROBES = {"cpu": 512, "cuda": 4096}
# Gallery rows in one float32 product. Wider ones are slower (by a sixth at 4,096, with MKL on 2 cores).
_PRODUCT_GALLERY = 1024
# Bytes of candidates' rows at a time: a CPU should have them in cache still when they are used again.
_CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
# Similarities at a time whose ties are settled: bounds what that takes when every row ties.
_TIED_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Batch:
    """What search found for consecutive probes.

    Attributes:
        start: the first probe's row.
        probe: (p, D) float32, their L2-normalised features.
        candidates: their best n.
        similarities: (p, G) float32 cosine to the whole gallery, where asked for.
    """

    start: int
    probe: torch.Tensor
    candidates: Candidates
    similarities: torch.Tensor | None


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

    Yields:
        `Batch` after `Batch`, in the order of the probes.
    """
    full_rows = full_rows or depth > topn
    width = margin(topn, len(gallery))
    probes = widened = fell_back = 0
    if progress is not None:
        progress(0, len(probe))
    for start in range(0, len(probe), batch):
        queries = probe.rows(start, min(start + batch, len(probe)))
        lists = _Lists(queries, topn, then)
        similarities = _similarities(queries, gallery) if full_rows else None
        if topn:
            if similarities is None:
                near = nearest(rounded(queries, gallery.dtype), gallery, width)
            else:
                near = _nearest_in(similarities, queries, width)
            failed = lists.fill(torch.arange(len(queries), device=queries.device), near, gallery)
            probes, widened = probes + len(queries), widened + len(failed)
            # In groups that gather no more rows than all probes did before.
            for some in torch.split(failed, max(1, len(queries) // _WIDER)):
                near = nearest(rounded(queries[some], gallery.dtype), gallery, _WIDER * width)
                left = lists.fill(some, near, gallery)
                fell_back += len(left)
                least = from_sort_keys(lists.keys[left, -1])[1]
                lists.place(left, certain(queries[left], gallery, least, topn))
            if len(failed) > _OFTEN * len(queries) and gallery.resident:
                width = min(2 * width, len(gallery))
        if similarities is not None:
            _settle(similarities, lists.keys)
        found = lists.candidates()
        if similarities is not None and depth > topn:
            found = found.followed_by(_best_of(similarities, depth))
        yield Batch(start, queries, found, similarities)
        if progress is not None:
            progress(start + len(queries), len(probe))
    if topn:
        name = str(torch.float32 if full_rows else gallery.dtype).removeprefix("torch.")
        log.info(
            "candidates of %d probes by %s: %d needed a wider margin, %d of these every item in reach",
            *(probes, name, widened, fell_back),
        )


@dataclass(frozen=True)
class Near:
    """Candidates that a fast product found.

    Attributes:
        indices: (p, K) int64 into the gallery, in no order.
        most: (p,) float32, a score that no other item exceeds.
    """

    indices: torch.Tensor
    most: torch.Tensor


class _Lists:
    """The lists of a batch of probes, which come as they are proved."""

    def __init__(self, queries: torch.Tensor, count: int, then: Then | None) -> None:
        self.keys = torch.full((len(queries), count), NOBODY, device=queries.device)
        self._queries = queries
        self._then = then
        self._found: tuple[torch.Tensor, torch.Tensor] | None = None
        if then is not None:
            self._found = torch.empty_like(self.keys), queries.new_empty(self.keys.shape)

    def fill(self, some: torch.Tensor, near: Near, gallery: UnitRows) -> torch.Tensor:
        """Score the candidates of the probes `some`; gives those of them whose lists are not proved."""
        failed = []
        for rows, keys in scored(self._queries[some], near.indices, gallery, self.keys.shape[1]):
            who, proven = some[rows], from_sort_keys(keys[:, -1])[1] > near.most[rows]
            if not proven.all():
                failed.append(who[~proven])
                self.keys[failed[-1]] = keys[~proven]
                who, keys = who[proven], keys[proven]
            self.place(who, keys)
        return torch.cat(failed) if failed else some[:0]

    def place(self, some: torch.Tensor, keys: torch.Tensor) -> None:
        """These are the lists of the probes `some`."""
        if not len(some):
            return
        self.keys[some] = keys
        if self._then is not None and self._found is not None:
            found = self._then(self._queries[some], Candidates(*from_sort_keys(keys)))
            self._found[0][some], self._found[1][some] = found.indices, found.scores

    def candidates(self) -> Candidates:
        """All lists, after whatever is done with them."""
        return Candidates(*(self._found or from_sort_keys(self.keys)))


def nearest(queries: Rounded, gallery: UnitRows, count: int) -> Near:
    """The `count` nearest gallery items of p queries by products of rounded rows; all, if there are no more."""
    count = min(count, len(gallery))
    step = _TILE_PROBES[gallery.device.type]
    values = indices = None
    error = torch.zeros((), device=gallery.device)
    for start, stop in blocks_of(len(gallery), gallery.block):
        block = gallery.factors(start, stop)
        error = torch.maximum(error, block.errors.amax())
        tiles = (product(rows, block.rows) for rows in torch.split(queries.rows, step))
        parts = [tile.topk(min(count, stop - start), dim=1, sorted=False) for tile in tiles]
        found, items = (torch.cat(some) for some in zip(*parts, strict=True))
        items += start
        if values is not None and indices is not None:
            found, items = torch.cat([values, found], dim=1), torch.cat([indices, items], dim=1)
            found, order = found.topk(min(count, found.shape[1]), dim=1, sorted=False)
            items = items.gather(1, order)
        values, indices = found, items
    assert values is not None
    assert indices is not None
    bound = error_bound(queries.errors, error, gallery.dim, queries.rows.dtype)
    return Near(indices, _most(values, len(gallery), bound))


def _nearest_in(similarities: torch.Tensor, queries: torch.Tensor, count: int) -> Near:
    """Likewise, of float32 similarities that are there."""
    values, indices = similarities.topk(count, dim=1, sorted=False)
    bound = error_bound(queries.new_zeros(len(queries)), 0.0, queries.shape[1], torch.float32)
    return Near(indices, _most(values, similarities.shape[1], bound))


def _most(values: torch.Tensor, gallery: int, bound: torch.Tensor) -> torch.Tensor:
    if values.shape[1] == gallery:
        return torch.full_like(bound, -torch.inf)
    return ceiling(values.amin(dim=1), values.dtype) + bound


def scored(
    queries: torch.Tensor, indices: torch.Tensor, gallery: UnitRows, count: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The best `count` of given items by their exact scores.

    Args:
        queries: (p, D) float32.
        indices: (p, K) int64 into the gallery, K at least `count`.
        gallery: G rows.
        count: how many.

    Yields:
        For some of the probes at a time, which these are and their (c, count) sort keys, best first.
    """
    table, places = gallery.gather(indices)
    width, dim = indices.shape[1], queries.shape[1]
    step = max(1, _CHUNK_BYTES[table.device.type] // (4 * width * dim))
    nodes = torch.empty(min(step, len(queries)) * width, dim, device=table.device)
    for start, stop in blocks_of(len(queries), step):
        many = (stop - start) * width
        torch.index_select(table, 0, places[start:stop].flatten(), out=nodes[:many])
        scores = pair_scores(nodes[:many].view(-1, width, dim), queries[start:stop].unsqueeze(1))
        keys = sort_keys(scores, indices[start:stop])
        yield slice(start, stop), keys.topk(count, dim=1).values


def _rank(rows: torch.Tensor, queries: torch.Tensor, items: torch.Tensor, total: int) -> torch.Tensor:
    """Sort keys of pairs of rows."""
    return sort_keys(pair_scores(rows, queries), items)


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
    pairs = max(1, _CHUNK_BYTES[queries.device.type] // (8 * queries.shape[1]))
    for start, stop in blocks_of(len(gallery) if items is None else items, gallery.block):
        block = gallery.rows(start, stop)
        for first, last in blocks_of(len(queries), max(1, _TIED_ELEMENTS // (stop - start))):
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


def _similarities(queries: torch.Tensor, gallery: UnitRows) -> torch.Tensor:
    """(p, G) float32, the same however many probes there are."""
    similarities = torch.empty(len(queries), len(gallery), device=gallery.device)
    step = _TILE_PROBES[gallery.device.type]
    for first, block in gallery.blocks():
        columns = similarities[:, first : first + len(block)]
        for rows, tile in zip(torch.split(queries, step), torch.split(columns, step), strict=True):
            multiply(rows, block, out=tile)
    return similarities


def _settle(similarities: torch.Tensor, keys: torch.Tensor) -> None:
    """Put exact scores where they are known; what is not listed stays behind the list, where it was found."""
    if keys.shape[1]:
        indices, scores = from_sort_keys(keys)
        below = torch.nextafter(scores[:, -1:], torch.full_like(scores[:, -1:], -torch.inf))
        torch.minimum(similarities, below, out=similarities)
        similarities.scatter_(1, indices, scores)


def _best_of(similarities: torch.Tensor, topn: int) -> Candidates:
    step = _TILE_PROBES[similarities.device.type]
    best = [best_keys(rows, 0, topn) for rows in torch.split(similarities, step)]
    return Candidates(*from_sort_keys(torch.cat(best)))


def multiply(queries: torch.Tensor, block: torch.Tensor, *, out: torch.Tensor) -> None:
    """Similarities of (p, D) `queries` to one (b, D) gallery block, into (p, b) `out`."""
    for left in range(0, len(block), _PRODUCT_GALLERY):
        part = block[left : left + _PRODUCT_GALLERY]
        columns = out[:, left : left + len(part)]
        if min(len(queries), len(part)) < _LEAST_ROWS:
            product = widen(queries, _LEAST_ROWS) @ widen(part, _LEAST_ROWS).T
            columns.copy_(product[: len(queries), : len(part)])
        else:
            torch.mm(queries, part.T, out=columns)


def widen(rows: torch.Tensor, least: int) -> torch.Tensor:
    """(..., n, d) `rows` with rows of zeros below, up to `least` of them; as they are if there are as many."""
    missing = least - rows.shape[-2]
    return pad(rows, (0, 0, 0, missing)) if missing > 0 else rows


def best_keys(scores: torch.Tensor, first: int, topn: int) -> torch.Tensor:
    """Sort keys of each row's best `topn`, best first; column 0 is gallery item `first`."""
    columns = torch.arange(first, first + scores.shape[1], device=scores.device)
    if not topn:
        return columns.new_empty(len(scores), 0)
    if topn >= scores.shape[1]:
        return sort_keys(scores, columns).sort(dim=1, descending=True).values
    values, found = scores.topk(topn + 1, dim=1)
    keys = sort_keys(values, first + found)[:, :topn]
    # topk takes any of several equal scores. Where a tie crosses the end of the list, choose by key instead.
    tied = torch.nonzero(values[:, topn - 1] == values[:, topn]).flatten()
    for rows in torch.split(tied, max(1, _TIED_ELEMENTS // scores.shape[1])):
        keys[rows] = sort_keys(scores[rows], columns).topk(topn, dim=1).values
    return keys.sort(dim=1, descending=True).values
