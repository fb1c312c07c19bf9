"""Products in a lower precision, and how far what they give may lie from the exact similarity.

For unit rows q and g, their roundings q' and g', and e = |q - q'|, f = |g - g'|, which are computed:

    |q.g - q'.g'| <= |q - q'| |g| + |q'| |g - g'| <= e + (1 + e) f

by the Cauchy-Schwarz inequality. A sum of D products in float32, in whatever order, is wrong by at most D u
times the sum of their magnitudes, u being the unit roundoff (Higham, "Accuracy and Stability of Numerical
Algorithms", section 3.1), and an output that is rounded too by half the spacing of its numbers.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

import torch

from ..errors import ParameterError

PRECISIONS = ("auto", "float32", "bfloat16")
"""What the products of a search may be computed in. The lists are the same."""

# Bytes rounded at a time: on a CPU they should stay in cache while their errors are found.
_ROUNDED_BYTES = {"cpu": 1 << 20, "cuda": 256 << 20}
# The size of the product that tells whether a precision gains, and by how much it must.
_TRIAL = (256, 1024, 1024)
_TRIAL_GAIN = 0.8
_TRIAL_TIMES = 8


@dataclass(frozen=True)
class Rounded:
    """Rows as products take them.

    Attributes:
        rows: (N, D) float32 or bfloat16.
        errors: (N,) float32, the Euclidean distance of each from the row it stands for.
    """

    rows: torch.Tensor
    errors: torch.Tensor

    def __getitem__(self, some: slice | torch.Tensor) -> Rounded:
        return Rounded(self.rows[some], self.errors[some])

    def __len__(self) -> int:
        return len(self.rows)


def rounded(rows: torch.Tensor, dtype: torch.dtype) -> Rounded:
    """Rows in another precision.

    Args:
        rows: (N, D) float32, unit rows.
        dtype: float32, which copies nothing, or bfloat16.
    """
    if dtype == torch.float32:
        return Rounded(rows, torch.zeros(len(rows), device=rows.device))
    found = torch.empty_like(rows, dtype=dtype)
    errors = torch.empty(len(rows), device=rows.device)
    step = max(1, _ROUNDED_BYTES[rows.device.type] // (4 * rows.shape[1]))
    for some, into, error in zip(*(torch.split(whole, step) for whole in (rows, found, errors)), strict=True):
        into.copy_(some)
        torch.linalg.vector_norm(some - into, dim=1, out=error)
    return Rounded(found, errors)


def product(queries: torch.Tensor, block: torch.Tensor, scratch: torch.Tensor | None = None) -> torch.Tensor:
    """(p, D) queries times (b, D) rows of the same dtype: (p, b).

    `scratch`, an earlier product that is not needed any more, is overwritten if it has the same size.

    On a CPU bfloat16 in is bfloat16 out. On a GPU it is float32: a bfloat16 result may have been rounded
    more than once there.
    """
    if queries.device.type == "cuda" and queries.dtype == torch.bfloat16:
        return torch.mm(queries, block.T, out_dtype=torch.float32)
    same = scratch is not None and scratch.shape == (len(queries), len(block))
    return torch.mm(queries, block.T, out=scratch if same else None)


def error_bound(
    errors: torch.Tensor,
    gallery_error: torch.Tensor | float,
    dim: int,
    dtype: torch.dtype,
    *,
    width: int | None = None,
    stretch: float = 0.0,
) -> torch.Tensor:
    """How far the product of a query with any gallery row may lie from their exact score.

    The exact score is itself a float32 sum, so that its rounding is in the bound too. What rounding the output
    adds is not; see `ceiling`.

    Args:
        errors: (p,) float32, those of the queries.
        gallery_error: the greatest of the gallery's.
        dim: D, the number of dimensions.
        dtype: what the product was computed in.
        width: how many terms a product has, if not D; see `basis.Basis`.
        stretch: how much longer than unit rows those may be that the product is of.

    Returns:
        (p,) float32.
    """
    # Norms of unit rows, and the errors, are sums of D numbers in float32 themselves.
    norm = 1 + (dim + 4) * 2.0**-23 + stretch
    terms = (dim if width is None else width) + 1
    mine = errors * norm
    other = gallery_error * norm
    # Tensor cores and AMX cut where others round; four times the roundoff of float32 covers both.
    unit = 2.0**-24 if dtype == torch.float32 else 2.0**-22
    summed = terms * unit / (1 - min(0.5, terms * unit))
    if errors.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        summed += 2.0**-9  # each factor cut to ten bits
    bound = mine * norm + (norm + mine) * other + summed * (norm + mine) * (norm + other) + summing_error(dim)
    return bound * (1 + 2.0**-20)


def pair_scores(rows: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """The exact score of pairs: the sum of their products, which no neighbour in memory has a part in.

    No matrix product: those round equal rows differently by where they stand, and duplicates would not tie.
    GPUs cut even a float32 sum by the shape and the address of its rows; in float64 hardly anything is left to
    round.

    Args:
        rows: (..., D) float32 or float64, which is overwritten.
        queries: (..., D), the same or broadcast to it.

    Returns:
        (...) of the same dtype.
    """
    terms = rows.mul_(queries)
    if rows.device.type == "cuda":
        return terms.sum(dim=-1, dtype=torch.float64).to(rows.dtype)
    if terms.shape[:-1].numel() == 1:
        # One sum alone is shared out to all threads if it is long; two are not.
        return torch.cat([terms.flatten(0, -2)] * 2).sum(dim=-1)[:1].view(terms.shape[:-1])
    return terms.sum(dim=-1)


def fine_scores(rows: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Cosine similarities of pairs in float64.

    A unit row in float32 has a length that is off by its rounding, which would favour some rows over others.
    What is left of the rounding then counts the less, the nearer the two are to each other.

    Args:
        rows: (..., D) float32.
        queries: (..., D) float32, the same or broadcast to it.

    Returns:
        (...) float64.
    """
    rows, queries = rows.to(torch.float64), queries.to(torch.float64)
    squares = pair_scores(rows.clone(), rows) * pair_scores(queries.clone(), queries)
    return pair_scores(rows, queries) / squares.sqrt_()


def summing_error(dim: int) -> float:
    """How far the float32 score of two unit rows of so many dimensions may lie from their cosine similarity."""
    terms = (dim + 1) * 2.0**-24
    return terms / (1 - min(0.5, terms)) * (1 + (dim + 4) * 2.0**-22)


def order_error(dim: int) -> float:
    """How far apart float32 scores of two items must be for their `fine_scores` to be in the same order.

    Both sums may be off, and the lengths of both rows by what a few roundings leave.
    """
    return 2 * summing_error(dim) + 2.0**-21


def ceiling(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The most that a number may have been before it was rounded to one of `values`, float32.

    Rounding keeps order, so that whatever was rounded to no more than a value was no more than its ceiling.

    Args:
        values: any shape.
        dtype: what was rounded to.
    """
    wide = values.to(torch.float32)
    if dtype != torch.bfloat16:
        return wide
    # Half the spacing of numbers with 8 significant bits.
    return wide + torch.ldexp(torch.full_like(wide, 2.0**-9), torch.frexp(wide).exponent)


def output_error(dtype: torch.dtype) -> float:
    """How far any product below 2 may be from what it was before it was rounded to `dtype`; see `ceiling`."""
    return 2.0**-8 if dtype == torch.bfloat16 else 0.0


def pick_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that products are computed in.

    Args:
        precision: one of `PRECISIONS`; `auto` is bfloat16 where that is faster on this machine, which is
            measured once a process, in some milliseconds.
        device: where.

    Raises:
        ParameterError: for another name, or bfloat16 on a GPU with a torch that cannot do it exactly enough.
    """
    if precision not in PRECISIONS:
        raise ParameterError(f"precision {precision!r} is not known: use {' or '.join(PRECISIONS)}")
    able = device.type != "cuda" or _wide_output()
    if precision == "bfloat16" and not able:
        raise ParameterError("precision bfloat16 on a GPU needs torch 2.8 or later: use float32")
    if precision == "bfloat16" or (precision == "auto" and able and _gains(device)):
        return torch.bfloat16
    return torch.float32


def _wide_output() -> bool:
    """Whether a product may be given out wider than it came in."""
    return tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)


def _gains(device: torch.device) -> bool:
    """Whether a bfloat16 product is faster than a float32 one by more than its candidates cost."""
    low, full = (seconds_per_term(dtype, device) for dtype in (torch.bfloat16, torch.float32))
    return low < _TRIAL_GAIN * full


def seconds_per_term(dtype: torch.dtype, device: torch.device) -> float:
    """What a multiplication and an addition of a product take, measured once a process."""
    return _trial(device)[dtype] / math.prod(_TRIAL)


@functools.cache
def _trial(device: torch.device) -> dict[torch.dtype, float]:
    """Seconds of a product in either precision, the best of some."""
    probes, gallery, dim = _TRIAL
    times: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for dtype in (torch.float32, torch.bfloat16) * _TRIAL_TIMES:
        queries, block = (
            torch.full((rows, dim), 0.5, dtype=dtype, device=device) for rows in (probes, gallery)
        )
        start = now(device)
        product(queries, block)
        times[dtype].append(now(device) - start)
    return {dtype: min(found) for dtype, found in times.items()}


def now(device: torch.device) -> float:
    """Seconds, when all work on a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
