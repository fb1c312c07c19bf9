"""Who of an image's list has the image in turn."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..data.ranges import offsets_of
from .sparse_rows import SparseRows


def reciprocal_neighbours(lists: torch.Tensor, back: torch.Tensor, *, chunk_bytes: int) -> SparseRows:
    """Return those of each image's list that have the image in theirs, with weights 0.

    Args:
        lists: (N, K) int32 or int64, each image itself and its nearest others; -1 pads.
        back: (N, L) likewise, the lists in which the image must be.
        chunk_bytes: bytes to work with at a time.
    """
    counts, columns = [], []
    for some, found in listed_back(lists, back, chunk_bytes=chunk_bytes):
        counts.append(found.sum(dim=1))
        columns.append(some[found])
    members = torch.cat(columns)
    weights = torch.zeros_like(members, dtype=torch.int32)
    return SparseRows(offsets_of(torch.cat(counts)), members, weights, chunk_bytes)


def listed_back(
    lists: torch.Tensor, back: torch.Tensor, *, chunk_bytes: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield some rows of `lists`, and likewise bool: which of them have the image in their list in `back`.

    Args:
        lists: (N, K) int32 or int64, -1 pads.
        back: (N, L) likewise.
        chunk_bytes: bytes to work with at a time.
    """
    step = max(1, chunk_bytes // (8 * lists.shape[1] * back.shape[1]))
    for start in range(0, len(lists), step):
        some = lists[start : start + step]
        itself = torch.arange(start, start + len(some), device=lists.device).view(-1, 1, 1)
        yield some, (back[some.long()] == itself).any(dim=2) & (some >= 0)
