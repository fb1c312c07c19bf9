"""Compare sparse rows of one matrix with those of another, by the columns that they have in common.

Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017,
arXiv:1701.08398, section 3.5, for `overlap`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ..data.ranges import ranges, split_by_size
from ..search.rows import blocks_of
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
        return _products(rows, lists, width)
    dtype = torch.int64 if compares == "dot" else torch.int32
    sums = torch.zeros(len(rows) * width, dtype=dtype, device=rows.columns.device)
    for at, shared in _shared(rows, lists, width, compares, dtype):
        sums.scatter_add_(0, at, shared)
    return _scaled(sums, compares).view(len(rows), width)


def comparison_bytes(compares: str, device: torch.device) -> int:
    """Return about how much working memory a pair of rows takes, with its score, in bytes."""
    return 32 if compares == "dot" and device.type == "cuda" else 16


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
    """What `compared` returns for `dot`: on a CPU scipy adds faster than torch scatters."""
    found = torch.empty(len(rows), width)
    # scipy works in one thread, and lets others work meanwhile.
    threads = torch.get_num_threads()
    blocks = list(blocks_of(len(rows), max(1, -(-len(rows) // threads))))
    if len(blocks) == 1:
        _fill(found, rows, lists)
    else:
        list(_pool(threads).map(lambda some: _fill(found[slice(*some)], rows.rows(*some), lists), blocks))
    return found


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that are kept: to start them for each comparison takes nearly as long as a small one."""
    return ThreadPoolExecutor(threads)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of these threads


def _fill(found: torch.Tensor, rows: SparseRows, lists: Sequence[SparseRows]) -> None:
    """Set (p, G) float32 to the dot products of p rows with those that have `lists`."""
    columns, places = np.unique(rows.columns.numpy(), return_inverse=True)
    mine = _matrix(rows, rows.weights.long(), places.astype(columns.dtype), len(columns))
    products = None
    for inverted in lists:
        theirs = _matrix(inverted, inverted.weights, inverted.columns.numpy(), found.shape[1])[columns]
        theirs.data = theirs.data.astype(np.int64)  # whole parts, whose products do not overflow
        products = mine @ theirs if products is None else products + mine @ theirs
    if products is None:
        found.zero_()
        return
    products.data = _scaled(torch.from_numpy(products.data), "dot").numpy()
    products.toarray(out=found.numpy())


def _matrix(
    rows: SparseRows, weights: torch.Tensor, columns: NDArray[np.signedinteger[Any]], width: int
) -> csr_array:
    """A scipy matrix of rows, with these weights and columns; nothing is copied if offsets fit their dtype."""
    offsets = rows.offsets.numpy()
    if len(columns) < 2**31:
        offsets = offsets.astype(columns.dtype, copy=False)
    return csr_array((weights.numpy(), columns, offsets), shape=(len(rows), width))


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
