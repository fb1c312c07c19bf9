"""How many dimensions products are best computed in, decided by a sample of the rows.

Fewer dimensions make products cheaper and bounds wider, so that more candidates get exact scores. Which of the
two weighs more depends on the spectrum of the features and on how many images ask.
"""

from __future__ import annotations

import logging

import torch

from ..compute.products import full_float32
from .basis import leading_directions
from .nearest import scored
from .precision import now, rounded, seconds_per_term
from .rows import UnitRows, evenly_spread

log = logging.getLogger(__name__)

# Products that take fewer seconds are not worth a trial.
_WORTH = 1.5
# Shares of the dimensions that are tried.
_SHARES = (4, 8, 16)
# Rows that are looked at, queries among these, and for each direction the rows that it is found with.
_ROWS, _QUERIES, _ROWS_A_DIRECTION = 16384, 128, 8
# Queries that scoring is timed with.
_TIMED = 64
# What must be left of the cost.
_GAIN = 0.9
# About what it takes to keep a candidate while products pass by: once for a batch of probes, or tile after tile
# where a product serves both of its images.
_KEPT_SECONDS = {False: 3e-7, True: 2e-6}
# Share of the lists in the sample that need no more candidates than are scored at first, and how many more are
# scored by fewer dimensions, since the sample is small.
_COVERED, _SPARE = 0.98, 1.25
# How many times as many candidates as usual there may be, for a batch of probes or for all images at once.
_MOST = {False: 8, True: 4}


@full_float32()
def fit_dimensions(images: UnitRows, asking: int, topn: int, usual: int, *, halved: bool = False) -> int:
    """Have products of some rows take fewer dimensions if that is faster.

    Args:
        images: N rows. Nothing is done unless they pick their basis and hold their factors, on a CPU.
        asking: how many images ask for their nearest among them.
        topn: how long their lists are.
        usual: how many candidates are scored for a list by products of all dimensions.
        halved: whether a product serves both of its images.

    Returns:
        How many candidates to score for a list.
    """
    dim, number, device = images.dim, len(images), images.device
    if not images.picks_basis:
        return usual
    images.compare_on(None)  # another search may have picked one
    if device.type != "cpu" or not topn or dim < 4 * max(_SHARES):
        return usual
    products = asking * number * seconds_per_term(images.dtype, device) / (2 if halved else 1)
    if products * dim < _WORTH:
        return usual
    count = dim // min(_SHARES)
    looked_at = min(_ROWS, images.budget.working_bytes // (8 * dim))
    some = torch.from_numpy(evenly_spread(number, looked_at)).to(device)
    # In no particular order: neighbours in a file are often alike.
    some = some[torch.randperm(len(some), generator=torch.Generator().manual_seed(0)).to(device)]
    table, places = images.gather(some)
    rows = table[places]
    if len(rows) < 2 * count:
        return usual
    count = min(count, len(rows) // _ROWS_A_DIRECTION)
    # Not with the first rows: of those that a basis is made of it leaves out less than of others.
    basis = leading_directions(rows[-_ROWS_A_DIRECTION * count :], count)
    each = _seconds_a_candidate(images, rows[:_TIMED])
    listed = _last_listed(rows, topn / number)
    projecting = number * dim * seconds_per_term(torch.float32, device)
    best, chosen, margin, told = torch.inf, dim, usual, []
    coordinates = basis.coordinates(rows)
    for share in (1, *_SHARES):
        width = dim if share == 1 else min(count, dim // share)
        bounds = rows if share == 1 else basis.narrowed(coordinates, width - 1)
        mean, most = (
            min(max(usual, int(found * number)), number)
            for found in _within_reach(bounds, listed, images.dtype)
        )
        cost = products * width + asking * (mean * each + most * _KEPT_SECONDS[halved])
        if share > 1:
            cost = (cost + projecting * width) / _GAIN
        told.append(f"{width} {cost:.1f} s, {mean} candidates")
        most = most if width == dim else min(number, int(_SPARE * most))
        # More candidates would take memory without end; lists that these do not prove are searched for.
        if cost < best and (width == dim or most <= _MOST[halved] * usual):
            best, chosen, margin = cost, width, min(most, _MOST[halved] * usual)
    if chosen < dim:
        images.compare_on(basis.first(chosen - 1))
    log.info(
        "products of %s dimensions; by a sample, dimensions, time and candidates a list: %s",
        *(f"all {dim}" if chosen == dim else f"{chosen} of {dim}", "; ".join(told)),
    )
    return margin


def _last_listed(rows: torch.Tensor, share: float) -> torch.Tensor:
    """The similarity that ends a list of a given share of the rows, (q, 1) of the first rows."""
    exact = rows[:_QUERIES] @ rows.T
    exact.fill_diagonal_(-torch.inf)
    return exact.topk(max(1, round(share * (len(rows) - 1))), dim=1).values[:, -1:]


def _within_reach(coordinates: torch.Tensor, last: torch.Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """What share of the rows the bound does not rule out for a list, in the mean and for nearly all lists."""
    some = coordinates[: len(last)]
    bounds = some @ coordinates.T
    bounds.fill_diagonal_(-torch.inf)
    if dtype == torch.bfloat16:  # of both rows, and of the product and that which ends the list
        errors = rounded(some, dtype).errors
        bounds += errors.mean() + errors.amax() + 2.0**-8
    found = (bounds >= last).sum(dim=1).to(torch.float32) / len(coordinates)
    return float(found.mean()), float(found.quantile(_COVERED))


def _seconds_a_candidate(images: UnitRows, queries: torch.Tensor) -> float:
    """What it takes to fetch a row and to score it for one of some queries."""
    drawn = torch.randint(len(images), (len(queries), 128), generator=torch.Generator().manual_seed(0))
    listed, times = drawn.to(images.device), []
    for _ in range(3):
        start = now(images.device)
        for _, _ in scored(queries, listed, images, 1):
            pass
        times.append(now(images.device) - start)
    return min(times) / listed.numel()
