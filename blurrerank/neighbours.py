"""The nearest of all images for each of them: exact, by pairs of blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .encoding import SparseRows, pieces
from .ranking import from_sort_keys
from .rows import UnitRows
from .search import Progress, best_keys, multiply

# Rows on a side of a block of similarities: a CPU should keep the block in cache, a GPU wants more.
_BLOCK_ROWS = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Neighbours:
    """Who is near whom.

    Attributes:
        lists: (N, K) int32 or int64: each image itself, then the K - 1 nearest others, nearest first.
        lowest: (N,) float32, the cosine similarity to the farthest image.
    """

    lists: torch.Tensor
    lowest: torch.Tensor


def find_neighbours(images: UnitRows, count: int, *, held: int, working: int, progress: Progress) -> Neighbours:
    """The `count` nearest others of every image by cosine similarity, and its lowest similarity to any.

    A similarity serves both of its images, so that half the products suffice. Ties go to the lower index.

    Args:
        images: N rows.
        count: how many others, 1 to N - 1.
        held: how many rows may be held while others are read; nothing is read twice if that is all.
        working: bytes for similarities.
        progress: called with (images' worth of work done, N).
    """
    total, device = len(images), images.device
    # A block of similarities, its transpose and what top-n makes of it.
    block = max(1, min(_BLOCK_ROWS[device.type], int((working / 16) ** 0.5), held, total))
    held = max(block, held // block * block)
    best = torch.full((total, count), torch.iinfo(torch.int64).min, device=device)
    lowest = torch.full((total,), torch.inf, device=device)
    scratch = torch.empty(block, block, device=device)

    def update(rows: slice, similarities: torch.Tensor, first: int) -> None:
        """Take note of similarities to the images from `first` on."""
        found = best_keys(similarities, first, count)
        best[rows] = torch.cat([best[rows], found], dim=1).topk(count, dim=1).values

    done = 0
    for start in range(0, total, held):
        kept = images.rows(start, min(start + held, total))
        for first in range(start, total, block):
            columns = slice(first, min(first + block, total))
            inside = first - start < len(kept)
            right = kept[first - start : columns.stop - start] if inside else images.rows(first, columns.stop)
            for top in range(start, min(first + 1, start + len(kept)), block):
                left = kept[top - start : top - start + block]
                rows = slice(top, top + len(left))
                tile = scratch[: len(left), : len(right)]
                multiply(left, right, out=tile)
                lowest[rows] = torch.minimum(lowest[rows], tile.amin(dim=1))
                if top == first:
                    tile.fill_diagonal_(-torch.inf)
                else:
                    mirrored = tile.T.contiguous()
                    lowest[columns] = torch.minimum(lowest[columns], mirrored.amin(dim=1))
                    update(columns, mirrored, top)
                    done += len(left) * len(right)
                update(rows, tile, first)
                done += len(left) * len(right)
            progress(done // total, total)
    lists = torch.empty(total, count + 1, dtype=torch.int32 if total < 2**31 else torch.int64, device=device)
    lists[:, 0] = torch.arange(total, device=device)
    for start in range(0, total, block):
        lists[start : start + block, 1:] = from_sort_keys(best[start : start + block])[0]
    return Neighbours(lists, lowest)


def pair_similarities(images: UnitRows, members: SparseRows, *, held: int, working: int) -> torch.Tensor:
    """Cosine similarity of each image with each in its row, equal for equal rows wherever they stand.

    Args:
        images: N rows.
        members: whom to compare each image with.
        held: how many rows may be held.
        working: bytes for the products.

    Returns:
        (T,) float32, an entry of `members` each.
    """
    total = len(images)
    step = max(1, working // (12 * images.dim))
    found = torch.empty(len(members.columns), device=images.device)
    if images.resident:
        spans, width = pieces(members.counts, step), total
    else:
        width = max(1, held // 4)
        spans = ((start, min(start + width, total)) for start in range(0, total, width))
    for start, stop in spans:
        kept = images.rows(start, stop)
        some = members.rows(start, stop)
        owner = torch.repeat_interleave(some.counts)
        first = int(members.offsets[start])
        for low in range(0, total, width):
            block = images.rows(low, min(low + width, total))
            inside = (some.columns >= low) & (some.columns < low + len(block))
            for pairs in torch.split(torch.nonzero(inside).flatten(), step):
                left = kept.index_select(0, owner[pairs])
                right = block.index_select(0, some.columns[pairs] - low)
                found[first + pairs] = left.mul_(right).sum(dim=1)
    return found
