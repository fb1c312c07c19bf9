"""Compare sparse rows of one matrix with those of another, by the columns that they have in common.

Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017,
arXiv:1701.08398, section 3.5, for `overlap`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.sparse import csr_array

from ..data.ranges import offsets_of, ranges, split_by_size
from .sparse_rows import ONE, SparseRows, summed


def compared(rows: SparseRows, lists: Sequence[SparseRows], width: int, compares: str) -> torch.Tensor:
    """Return how every row v_p of a matrix compares with every row v_g of another.

    Args:
        rows: p rows.
        lists: the transpose of the other matrix, whose rows are the columns of both; or several that make it up
            together.
        width: G, how many rows the other matrix has.
        compares: `overlap`, sum_j min(v_pj, v_gj), or `dot`, sum_j v_pj v_gj, which must stay below 8, as it
            does where the rows' norms are 1.

    Returns:
        (p, G) float32; an overlap is 0 to 1, but for the rounding of the weights.
    """
    if compares == "dot" and rows.columns.device.type == "cpu":
        return _scaled(_products(rows, lists, width), compares)
    dtype = torch.int64 if compares == "dot" else torch.int32
    sums = torch.zeros(len(rows) * width, dtype=dtype, device=rows.columns.device)
    for at, shared in _shared(rows, lists, width, compares, dtype):
        sums.scatter_add_(0, at, shared)
    return _scaled(sums, compares).view(len(rows), width)


def reached(
    rows: SparseRows, lists: Sequence[SparseRows], width: int, compares: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of another matrix that have columns in common with these, and how they compare.

    Args:
        rows: p rows.
        lists: see `compared`.
        width: G, how many rows the other matrix has.
        compares: see `compared`.

    Returns:
        (t,) int64, p * G + g for row p of this matrix and g of the other, ascending; and (t,) float32.
    """
    parts = list(_shared(rows, lists, width, compares, torch.int64))
    if not parts:
        return rows.offsets.new_empty(0), rows.offsets.new_empty(0, dtype=torch.float32)
    keys, sums = summed(*(torch.cat(some) for some in zip(*parts, strict=True)))
    return keys, _scaled(sums, compares)


def _products(rows: SparseRows, lists: Sequence[SparseRows], width: int) -> torch.Tensor:
    """The sums of `compared` for `dot`, (p, G) int64: on a CPU scipy adds faster than torch scatters."""
    columns, places = torch.unique(rows.columns.long(), return_inverse=True)
    mine = _integers(rows.weights, places, rows.offsets, len(columns))
    products = np.zeros((len(rows), width), dtype=np.int64)
    for inverted in lists:
        counts = inverted.counts_of(columns)
        _, chosen = ranges(inverted.offsets[columns], counts)
        theirs = _integers(inverted.weights[chosen], inverted.columns[chosen], offsets_of(counts), width)
        products += (mine @ theirs).toarray()
    return torch.from_numpy(products)


def _integers(weights: torch.Tensor, columns: torch.Tensor, offsets: torch.Tensor, width: int) -> csr_array:
    """A matrix of whole parts whose products do not overflow."""
    shape = len(offsets) - 1, width
    return csr_array((weights.long().numpy(), columns.numpy(), offsets.numpy()), shape=shape)


def _scaled(sums: torch.Tensor, compares: str) -> torch.Tensor:
    """What sums of whole parts stand for, float32."""
    return sums.double().div_(ONE**2).float() if compares == "dot" else sums * (1 / ONE)


def _shared(
    rows: SparseRows, lists: Sequence[SparseRows], width: int, compares: str, dtype: torch.dtype
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pieces of (t,) places p * width + g in a matrix of both, and what to add there."""
    combine = torch.mul if compares == "dot" else torch.minimum
    row, _ = ranges(rows.offsets[:-1], rows.counts)
    columns = rows.columns.long()
    for inverted in lists:
        starts, counts = inverted.offsets[columns], inverted.counts_of(columns)
        for first, last in split_by_size(counts, rows.entries_at_a_time):
            owner, place = ranges(starts[first:last], counts[first:last])
            mine, theirs = rows.weights[first:last][owner], inverted.weights[place]
            shared = combine(mine.to(dtype), theirs.to(dtype))
            yield (row[first:last] * width)[owner].add_(inverted.columns[place]), shared
