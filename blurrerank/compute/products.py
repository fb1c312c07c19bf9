"""Matrix products that depend neither on settings of torch nor on what else is multiplied with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import pad


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


def widen(rows: torch.Tensor, least: int) -> torch.Tensor:
    """Append rows of zeros to (..., n, d) `rows` where there are fewer than `least`.

    BLAS libraries take other kernels, which round otherwise, for products of a few rows or columns.
    """
    missing = least - rows.shape[-2]
    return pad(rows, (0, 0, 0, missing)) if missing > 0 else rows
