"""Similarities of many pairs of images, without a matrix of all by all."""

from __future__ import annotations

import torch

from ..data.ranges import offsets_of, split_by_size
from ..search.given_similarities import SimilarityRows
from ..search.nearest import CHUNK_BYTES
from ..search.precision import fine_scores, pair_scores
from ..search.rows import Rows, UnitRows, blocks_of


def pair_similarities(
    images: UnitRows | SimilarityRows,
    others: Rows | SimilarityRows,
    counts: torch.Tensor,
    columns: torch.Tensor,
    *,
    first: int = 0,
    fine: bool = False,
) -> torch.Tensor:
    """Return the similarity of each image with those in its list, equal for equal rows wherever they stand.

    Args:
        images: N rows and more, whose budget is kept; or their similarities, and `others` likewise.
        others: M rows that `columns` point into, such as `images` themselves.
        counts: (n,) how many entries each of consecutive images has.
        columns: (T,) int32 or int64, the entries of one image after another.
        first: the image that the first of `counts` is of.
        fine: whether to tell apart what float32 cannot.

    Returns:
        (T,) float32, or float64 if they are to be fine.
    """
    if isinstance(images, SimilarityRows):
        return images.pairs(counts, columns)
    assert not isinstance(others, SimilarityRows)
    total, number = len(counts), 0
    held, working = images.budget.held_rows, images.budget.working_bytes
    if others is not images:
        held //= 2  # rows that are made are held beside those that they are made from
    # The rows of both sides should be in cache between being gathered and being multiplied.
    step = max(1, min(working // 3, CHUNK_BYTES[images.device.type]) // ((40 if fine else 8) * images.dim))
    score, dtype = (fine_scores, torch.float64) if fine else (pair_scores, torch.float32)
    found = torch.zeros(len(columns), dtype=dtype, device=images.device)
    ends = offsets_of(counts)
    # Made once: to have fresh memory for each piece takes longer than all that is done with it.
    fetched = torch.empty(2, min(step, len(columns)), images.dim, device=images.device)
    width = len(others) if images.resident and len(others) <= held else max(1, held // 4)
    spans = list(split_by_size(counts, step) if images.resident else blocks_of(total, width))
    alike = total > 0 and width >= len(others) and bool((counts == counts[0]).all())
    for low, high in blocks_of(len(others), width):
        block = others.rows(low, high)
        for start, stop in spans:
            kept = images.rows(first + start, first + stop)
            begin, end = ends[[start, stop]].tolist()
            some = columns[begin:end]
            if alike and 0 < end - begin <= step:
                number += 1
                if images.is_assigned_here(number):
                    right = torch.index_select(block, 0, some, out=fetched[0, : len(some)])
                    right = right.view(stop - start, -1, images.dim)
                    found[begin:end] = score(right, kept.unsqueeze(1)).flatten()
                continue
            owner = torch.repeat_interleave(counts[start:stop])
            for pairs in torch.split(torch.nonzero((some >= low) & (some < high)).flatten(), step):
                number += 1
                if not images.is_assigned_here(number):
                    continue
                left = torch.index_select(kept, 0, owner[pairs], out=fetched[0, : len(pairs)])
                right = torch.index_select(block, 0, some[pairs] - low, out=fetched[1, : len(pairs)])
                found[begin + pairs] = score(left, right)
    return images.sum_over_processes(found)
