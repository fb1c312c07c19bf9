"""Numbers for rows of different lengths that lie one after another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


def ranges(starts: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers `starts[r]` to `starts[r] + counts[r] - 1` for each r in turn.

    Args:
        starts: (R,) int64.
        counts: (R,) int64, may be 0.

    Returns:
        `(owner, number)`, both (sum of counts,) int64: the r of each number, and the number.

    >>> ranges(torch.tensor([5, 0]), torch.tensor([2, 1]))
    (tensor([0, 0, 1]), tensor([5, 6, 0]))
    """
    owner = torch.repeat_interleave(counts)
    number = torch.arange(len(owner), device=owner.device)
    number += (starts - counts.cumsum(0) + counts)[owner]
    return owner, number


def split_by_size(sizes: torch.Tensor, limit: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive `(start, stop)` whose `sizes` sum to at most `limit`, or that are a single element.

    >>> list(split_by_size(torch.tensor([1, 1, 5, 1]), 2))
    [(0, 2), (2, 3), (3, 4)]
    """
    ends = sizes.cumsum(0).cpu().numpy()
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield start, stop
        start = stop


def offsets_of(counts: torch.Tensor) -> torch.Tensor:
    """Return the `SparseRows.offsets` of rows with so many entries."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
