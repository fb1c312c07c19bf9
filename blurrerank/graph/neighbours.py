"""The nearest of all images for each of them: exact, by pairs of blocks, from any point where one stopped."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from ..compute.progress import Progress
from ..data.sort_keys import NOBODY, fine_keys, from_fine_keys, from_sort_keys, sort_keys
from ..search.exact import CHUNK_BYTES, certain, margin
from ..search.precision import (
    ceiling,
    error_bound,
    fine_scores,
    full_float32,
    order_error,
    pair_scores,
    product,
)
from ..search.rows import Rows, UnitRows, blocks_of, warn_of_reads
from ..search.tiles import greatest
from .encoding import offsets_of, pieces

log = logging.getLogger(__name__)

# Rows on a side of a block of similarities: a CPU should keep the block in cache, a GPU wants more.
_BLOCK_ROWS = {"cpu": 4096, "cuda": 8192}
# Candidates for the farthest image.
_FARTHEST = 8
# Bytes that a candidate takes while lists are put together, and images at a time for which all are looked at.
_CANDIDATE_BYTES, _CERTAIN_ROWS = 96, 256


@dataclass(frozen=True)
class Neighbours:
    """Who is near whom.

    Attributes:
        lists: (N, K) int32 or int64: each image itself, then the K - 1 nearest others, nearest first.
        similarities: (N, K) float32 cosine similarities to these, 1 to itself.
        lowest: (N,) float32, the cosine similarity to the farthest image.
    """

    lists: torch.Tensor
    similarities: torch.Tensor
    lowest: torch.Tensor

    def __len__(self) -> int:
        return len(self.lists)


Keep = Callable[[Callable[[], Neighbours]], None]
"""Called now and then with a function that gives what is known so far."""


@full_float32()
def find_neighbours(
    images: UnitRows,
    count: int,
    *,
    held: int,
    working: int,
    progress: Progress,
    known: Neighbours | None = None,
    checkpoint: Keep | None = None,
) -> Neighbours:
    """The `count` nearest others of every image by cosine similarity, and its lowest similarity to any.

    A product serves both of its images, so that half of them suffice; as in `search`, products only say which
    pairs to score. Ties go to the lower index.

    Args:
        images: N rows.
        count: how many others, 0 to N - 1.
        held: how many rows may be held while others are read; nothing is read twice if that is all.
        working: bytes for similarities.
        progress: called with (images' worth of work done, N).
        known: the answer for the first images alone, with the same `count` or as many as there were, from
            which to go on.
        checkpoint: called now and then with a function that gives the answer for the images so far.
    """
    total, device = len(images), images.device
    # A block of products, what is wanted of its transpose, and what top-n makes of it; and its rows, which are
    # there as they are stored, in float32 and rounded, when they are read again.
    few = working // (16 * images.dim)
    block = max(1, min(_BLOCK_ROWS[device.type], int((working / 16) ** 0.5), few, held, total))
    nearest = _Candidates(images, margin(count, total - 1) if count else 0, largest=True)
    farthest = _Candidates(images, min(_FARTHEST, total), largest=False)
    settled = _settled_rows(nearest, farthest, working)
    if not images.resident:
        # A stripe reads what was before it, and each part of the lists everything, twice.
        warn_of_reads(math.ceil(total / held / 2) + 2 * math.ceil(total / settled), total, images.dim)
    errors = torch.zeros(total, device=device)
    start = 0 if known is None else len(known)
    if known is not None and start:
        nearest.know(known.similarities[:, 1:], known.lists[:, 1:].long())

    def answer(images_met: int) -> Neighbours:
        """Of the first images alone."""
        return _settled(images, images_met, count, nearest, farthest, errors, known, held, working)

    # Images are met in order: when a stripe of them is done, all up to its end know each other.
    spans = list(pairwise([*range(0, start, block), *range(start, total, block), total]))
    width = 1 if images.resident else max(1, held // block)
    done, tiles = start * start, 0
    for stripe in range(len(range(0, start, block)), len(spans), width):
        columns = spans[stripe : stripe + width]
        begin, end = columns[0][0], columns[-1][1]
        kept = images.factors(begin, end)
        errors[begin:end] = kept.errors
        before = images.spans(spans[:stripe])
        for top, bottom in spans[: stripe + len(columns)]:
            left = (
                kept[top - begin : bottom - begin]
                if top >= begin
                else images.factors(top, bottom, next(before))
            )
            errors[top:bottom] = left.errors
            for first, until in columns:
                if first < top:
                    continue
                if images.mine(tiles):
                    tile = product(left.rows, kept.rows[first - begin : until - begin])
                    farthest.update(slice(top, bottom), tile, first)
                    if first == top:
                        tile.fill_diagonal_(-torch.inf)
                    nearest.update(slice(top, bottom), tile, first)
                    if first > top:
                        tile = tile.T.contiguous()
                        farthest.update(slice(first, until), tile, top)
                        nearest.update(slice(first, until), tile, top)
                tiles += 1
                done += (bottom - top) * (until - first) * (1 + (first > top))
            progress(done // total, total)
        if checkpoint is not None:
            checkpoint(partial(answer, end))
    nearest.join(images)
    farthest.join(images)
    return answer(total)


class _Candidates:
    """For each image those with the greatest products, or the smallest, of all it has met."""

    def __init__(self, images: UnitRows, width: int, *, largest: bool) -> None:
        self.keys = torch.full((len(images), width), NOBODY, device=images.device)
        self.ends = torch.full((len(images),), -torch.inf, device=images.device)  # the product that ends a list
        self._dtype = images.dtype
        self.sign = 1 if largest else -1

    def know(self, similarities: torch.Tensor, items: torch.Tensor) -> None:
        """Begin with (m, w) exact similarities of the first m images to `items`."""
        some, width = slice(0, len(items)), items.shape[1]
        self.keys[some, :width] = sort_keys(self.sign * similarities, items)
        self._end(torch.arange(len(items), device=self.keys.device))

    def update(self, rows: slice, products: torch.Tensor, first: int) -> None:
        """Take note of products with the images from `first` on."""
        width = self.keys.shape[1]
        if not width:
            return
        best = products.amax(dim=1) if self.sign > 0 else products.amin(dim=1).neg_()
        some = torch.nonzero(best > self.ends[rows]).flatten()
        if not len(some):
            return
        if len(some) < len(products):
            products = products.index_select(0, some)
        values, items = greatest(products if self.sign > 0 else -products, min(width, products.shape[1]))
        keys = sort_keys(values.to(torch.float32), first + items)
        self._note(rows.start + some, keys.masked_fill_(values == -torch.inf, NOBODY))  # itself

    def _note(self, some: torch.Tensor, found: torch.Tensor) -> None:
        merged = torch.cat([self.keys[some], found], dim=1)
        self.keys[some] = merged.topk(self.keys.shape[1], dim=1).values
        self._end(some)

    def join(self, images: UnitRows) -> None:
        """Take the best of what all processes have met."""
        self.keys = images.best(self.keys)
        self._end(torch.arange(len(self.keys), device=self.keys.device))

    def most(self, some: slice) -> torch.Tensor:
        """What no exact product with an image that is not listed exceeds."""
        return ceiling(self.ends[some], self._dtype)

    def _end(self, some: torch.Tensor) -> None:
        if not self.keys.shape[1]:
            return
        last = self.keys[some].amin(dim=1)
        self.ends[some] = from_sort_keys(last)[1].masked_fill_(last == NOBODY, -torch.inf)


def _settled(
    images: UnitRows,
    met: int,
    count: int,
    nearest: _Candidates,
    farthest: _Candidates,
    errors: torch.Tensor,
    known: Neighbours | None,
    held: int,
    working: int,
) -> Neighbours:
    """What follows for the first `met` images from the products among them."""
    others, device = min(count, met - 1), images.device
    bound = error_bound(errors[:met], errors[:met].amax(), images.dim, images.dtype)
    dtype = torch.int32 if len(images) < 2**31 else torch.int64
    lists = torch.empty(met, others + 1, dtype=dtype, device=device)
    lists[:, 0] = torch.arange(met, device=device)
    similarities = torch.ones(met, others + 1, device=device)
    lowest = torch.empty(met, device=device)
    unproven = 0
    for start, stop in blocks_of(met, _settled_rows(nearest, farthest, working)):
        some = slice(start, stop)
        scores, items = _scored(images, nearest, some, held, working)
        items, scores, failed = _nearest(
            images, some, met, others, scores, items, nearest.most(some) + bound[some], held, working
        )
        lists[some, 1:], similarities[some, 1:] = items, scores
        scores, _ = _scored(images, farthest, some, held, working)
        lowest[some] = -_greatest(images, some, met, scores, farthest.most(some) + bound[some])
        unproven += failed
    if known is not None:
        lowest[: len(known)] = torch.minimum(lowest[: len(known)], known.lowest)
    log.info(
        "neighbours of %d images by %s products: %d were not proved, and every item in reach was scored",
        *(met, str(images.dtype).removeprefix("torch."), unproven),
    )
    return Neighbours(lists, similarities, lowest)


def _settled_rows(nearest: _Candidates, farthest: _Candidates, working: int) -> int:
    """How many images' lists are put together at a time."""
    return max(1, working // (_CANDIDATE_BYTES * max(1, nearest.keys.shape[1], farthest.keys.shape[1])))


def _scored(
    images: UnitRows, candidates: _Candidates, some: slice, held: int, working: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact scores of images' candidates, negative for the farthest and -inf where there is none; the items."""
    keys = candidates.keys[some]
    there = keys != NOBODY
    items = from_sort_keys(keys)[0].masked_fill_(~there, 0)
    scores = torch.full(keys.shape, -torch.inf, device=keys.device)
    found = pair_similarities(
        images, images, there.sum(dim=1), items[there], first=some.start, held=held, working=working
    )
    scores[there] = candidates.sign * found
    return scores, items


def _nearest(
    images: UnitRows,
    some: slice,
    met: int,
    count: int,
    scores: torch.Tensor,
    items: torch.Tensor,
    most: torch.Tensor,
    held: int,
    working: int,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The nearest of the candidates, their similarities, and for how many images others had to be looked at.

    Whose list an image is in decides about the encodings of many: where float32 cannot tell which of two is
    nearer, float64 does.
    """
    if not count:
        return items[:, :0], scores[:, :0], 0
    unsure = torch.zeros_like(scores, dtype=torch.bool)
    ordered, order = scores.sort(dim=1, descending=True)
    slack = order_error(images.dim)
    close = ordered[:, :-1] - ordered[:, 1:] <= slack
    unsure[:, :-1] |= close
    unsure[:, 1:] |= close
    unsure = torch.zeros_like(unsure).scatter_(1, order, unsure)
    fine = scores.to(torch.float64)
    fine[unsure] = pair_similarities(
        images,
        images,
        unsure.sum(dim=1),
        items[unsure],
        first=some.start,
        held=held,
        working=working,
        fine=True,
    )
    at = fine_keys(fine, items, len(images)).topk(count, dim=1).indices
    found, similarities = items.gather(1, at), scores.gather(1, at)
    complete = torch.isfinite(scores).sum(dim=1) == met - 1
    failed = torch.nonzero(~complete & (similarities[:, -1] <= most + slack)).flatten()
    step = max(1, min(_CERTAIN_ROWS, working // (8 * images.dim * (count + 1))))
    for rows in torch.split(failed, step):
        who = some.start + rows
        table, places = images.gather(who)
        queries = table[places]
        least = similarities[rows, -1] - slack
        keys = certain(queries, images, least, count, rank=_finely, items=met, but=who)
        found[rows] = from_fine_keys(keys, len(images))
        table, places = images.gather(found[rows])
        similarities[rows] = pair_scores(table[places], queries.unsqueeze(1))
    return found, similarities, len(failed)


def _greatest(
    images: UnitRows, some: slice, met: int, scores: torch.Tensor, most: torch.Tensor
) -> torch.Tensor:
    """Minus the smallest similarity of each image to any, itself too."""
    best = scores.amax(dim=1)
    complete = torch.isfinite(scores).sum(dim=1) == met
    failed = torch.nonzero(~complete & (best <= most)).flatten()
    for rows in torch.split(failed, _CERTAIN_ROWS):
        table, places = images.gather(some.start + rows)
        best[rows] = from_sort_keys(certain(-table[places], images, best[rows], 1, items=met)[:, 0])[1]
    return best


def _finely(rows: torch.Tensor, queries: torch.Tensor, items: torch.Tensor, total: int) -> torch.Tensor:
    """Keys by scores in float64."""
    return fine_keys(fine_scores(rows, queries), items, total)


def pair_similarities(
    images: UnitRows,
    others: Rows,
    counts: torch.Tensor,
    columns: torch.Tensor,
    *,
    held: int,
    working: int,
    first: int = 0,
    fine: bool = False,
) -> torch.Tensor:
    """Similarity of each image with those in its list, equal for equal rows wherever they stand.

    Args:
        images: N rows and more.
        others: M rows that `columns` point into, such as `images` themselves.
        counts: (n,) how many entries each of consecutive images has.
        columns: (T,) int32 or int64, the entries of one image after another.
        held: how many rows may be held.
        working: bytes for the products.
        first: the image that the first of `counts` is of.
        fine: whether to tell apart what float32 cannot.

    Returns:
        (T,) float32, or float64 if they are to be fine.
    """
    total, number = len(counts), 0
    # The rows of both sides should be in cache between being gathered and being multiplied.
    step = max(1, min(working // 3, CHUNK_BYTES[images.device.type]) // ((40 if fine else 8) * images.dim))
    score, dtype = (fine_scores, torch.float64) if fine else (pair_scores, torch.float32)
    found = torch.zeros(len(columns), dtype=dtype, device=images.device)
    ends = offsets_of(counts)
    width = len(others) if images.resident and len(others) <= held else max(1, held // 4)
    spans = list(pieces(counts, step) if images.resident else blocks_of(total, width))
    alike = total > 0 and width >= len(others) and bool((counts == counts[0]).all())
    for low, high in blocks_of(len(others), width):
        block = others.rows(low, high)
        for start, stop in spans:
            kept = images.rows(first + start, first + stop)
            begin, end = ends[[start, stop]].tolist()
            some = columns[begin:end]
            if alike and 0 < end - begin <= step:
                number += 1
                if images.mine(number):
                    right = block.index_select(0, some).view(stop - start, -1, images.dim)
                    found[begin:end] = score(right, kept.unsqueeze(1)).flatten()
                continue
            owner = torch.repeat_interleave(counts[start:stop])
            for pairs in torch.split(torch.nonzero((some >= low) & (some < high)).flatten(), step):
                number += 1
                if not images.mine(number):
                    continue
                left = kept.index_select(0, owner[pairs])
                right = block.index_select(0, some[pairs] - low)
                found[begin + pairs] = score(left, right)
    return images.joined(found)
