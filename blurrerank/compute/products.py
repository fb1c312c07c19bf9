"""Matrix products that depend neither on settings of torch nor on what else is multiplied with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import pad

# Products of always the same shape are computed in the same way.
_TILE = 64


@contextmanager
def full_float32() -> Iterator[None]:
    """Have torch multiply float32 as float32 in here, whatever `torch.set_float32_matmul_precision` says."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@full_float32()
def row_products(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return (n, d) `rows` @ (d, e) `matrix`, each row the same bit for bit whatever the others are."""
    found = rows.new_empty(len(rows), matrix.shape[1])
    wide = widen(matrix.T, _TILE).T
    for start in range(0, len(rows), _TILE):
        some = rows[start : start + _TILE]
        found[start : start + _TILE] = (widen(some, _TILE) @ wide)[: len(some), : matrix.shape[1]]
    return found


def widen(rows: torch.Tensor, least: int) -> torch.Tensor:
    """Append rows of zeros to (..., n, d) `rows` where there are fewer than `least`.

    BLAS libraries take other kernels, which round otherwise, for products of a few rows or columns.
    """
    missing = least - rows.shape[-2]
    return pad(rows, (0, 0, 0, missing)) if missing > 0 else rows
