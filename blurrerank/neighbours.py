"""The nearest of all images for each of them: exact, by pairs of blocks, from any point where one stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from .encoding import offsets_of, pieces
from .ranking import from_sort_keys, sort_keys
from .rows import Rows, UnitRows, blocks_of
from .search import Progress, best_keys, multiply

# Rows on a side of a block of similarities: a CPU should keep the block in cache, a GPU wants more.
_BLOCK_ROWS = {"cpu": 2048, "cuda": 8192}
# So many of a block are found twice as fast as a long list's worth.
_FEW = 16
# Comes after every similarity, whatever its image.
_NOBODY = torch.iinfo(torch.int64).min


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


def find_neighbours(
    images: UnitRows,
    count: int,
    *,
    held: int,
    working: int,
    progress: Progress,
    known: Neighbours | None = None,
    checkpoint: Callable[[Callable[[], Neighbours]], None] | None = None,
) -> Neighbours:
    """The `count` nearest others of every image by cosine similarity, and its lowest similarity to any.

    A similarity serves both of its images, so that half the products suffice. Ties go to the lower index.

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
    # A block of similarities, what is wanted of its transpose, and what top-n makes of it.
    block = max(1, min(_BLOCK_ROWS[device.type], int((working / 16) ** 0.5), held, total))
    best = torch.full((total, count), _NOBODY, device=device)
    last = torch.full((total,), -torch.inf, device=device)  # the similarity that ends each list
    lowest = torch.full((total,), torch.inf, device=device)
    scratch = torch.empty(block, block, device=device)
    start = 0
    if known is not None:
        start = len(known)
        ends = known.similarities.shape[1] - 1
        best[:start, :ends] = sort_keys(known.similarities[:, 1:], known.lists[:, 1:].long())
        lowest[:start] = known.lowest
        if ends == count > 0:
            last[:start] = known.similarities[:, -1]

    def update(rows: slice, similarities: torch.Tensor, first: int) -> None:
        """Take note of similarities to the images from `first` on, which come in ascending order."""
        lowest[rows] = torch.minimum(lowest[rows], similarities.amin(dim=1))
        if first == rows.start:
            similarities.fill_diagonal_(-torch.inf)
        if not count:
            return
        # Of equal similarities the one that came before is better.
        some = torch.nonzero(similarities.amax(dim=1) > last[rows]).flatten()
        candidates = similarities.index_select(0, some)
        some += rows.start
        few = best_keys(candidates, first, min(_FEW, count))
        many = from_sort_keys(few[:, -1])[1] > last[some]
        note(some[~many], few[~many])
        note(some[many], best_keys(candidates[many], first, count))

    def note(some: torch.Tensor, found: torch.Tensor) -> None:
        """Put keys into the lists of the images `some`."""
        if len(some):
            best[some] = torch.cat([best[some], found], dim=1).topk(count, dim=1).values
            ends = best[some, -1]
            last[some] = from_sort_keys(ends)[1].masked_fill_(ends == _NOBODY, -torch.inf)

    def answer(images: int) -> Neighbours:
        """Of the first images alone."""
        others = min(count, images - 1)
        dtype = torch.int32 if total < 2**31 else torch.int64
        lists = torch.empty(images, others + 1, dtype=dtype, device=device)
        similarities = torch.ones(images, others + 1, device=device)
        lists[:, 0] = torch.arange(images, device=device)
        for top in range(0, images, block):
            rows = slice(top, min(top + block, images))
            lists[rows, 1:], similarities[rows, 1:] = from_sort_keys(best[rows, :others])
        return Neighbours(lists, similarities, lowest[:images].clone())

    # Images are met in order: when a stripe of them is done, all up to its end know each other.
    spans = list(pairwise([*range(0, start, block), *range(start, total, block), total]))
    width = 1 if images.resident else max(1, held // block)
    done, tiles = start * start, 0
    for stripe in range(len(range(0, start, block)), len(spans), width):
        columns = spans[stripe : stripe + width]
        begin, end = columns[0][0], columns[-1][1]
        kept = images.rows(begin, end)
        for top, bottom in spans[: stripe + len(columns)]:
            left = kept[top - begin : bottom - begin] if top >= begin else images.rows(top, bottom)
            for first, until in columns:
                if first < top:
                    continue
                right = kept[first - begin : until - begin]
                if images.mine(tiles):
                    tile = scratch[: len(left), : len(right)]
                    multiply(left, right, out=tile)
                    update(slice(top, bottom), tile, first)
                    if first > top:
                        update(slice(first, until), tile.T, top)
                tiles += 1
                done += len(left) * len(right) * (1 + (first > top))
            progress(done // total, total)
        if checkpoint is not None:
            checkpoint(partial(answer, end))
    best, lowest = images.best(best), images.joined(lowest, "min")
    return answer(total)


def pair_similarities(
    images: UnitRows,
    others: Rows,
    counts: torch.Tensor,
    columns: torch.Tensor,
    *,
    held: int,
    working: int,
) -> torch.Tensor:
    """Similarity of each image with those in its list, equal for equal rows wherever they stand.

    Args:
        images: N rows.
        others: M rows that `columns` point into, such as `images` themselves.
        counts: (N,) how many entries each image has.
        columns: (T,) int32 or int64, the entries of one image after another.
        held: how many rows may be held.
        working: bytes for the products.

    Returns:
        (T,) float32.
    """
    total = len(images)
    step = max(1, working // (12 * images.dim))
    found = torch.zeros(len(columns), device=images.device)
    number = 0
    ends = offsets_of(counts)
    width = len(others) if images.resident and len(others) <= held else max(1, held // 4)
    spans = list(pieces(counts, step) if images.resident else blocks_of(total, width))
    for low, high in blocks_of(len(others), width):
        block = others.rows(low, high)
        for start, stop in spans:
            kept = images.rows(start, stop)
            first, last = ends[[start, stop]].tolist()
            owner = torch.repeat_interleave(counts[start:stop])
            some = columns[first:last]
            for pairs in torch.split(torch.nonzero((some >= low) & (some < high)).flatten(), step):
                number += 1
                if not images.mine(number):
                    continue
                left = kept.index_select(0, owner[pairs])
                right = block.index_select(0, some[pairs] - low)
                found[first + pairs] = left.mul_(right).sum(dim=1)
    return images.joined(found, "sum")
