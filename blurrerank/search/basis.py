"""Search in fewer dimensions than the features have, with a bound on what that leaves out.

Features of real models are far from full rank. With an orthonormal basis of k directions let x be the
coordinates of a unit row g on it, and r the length of what is left of the row; likewise y and s of a query q:

    q.g <= y.x + s r = (y, s).(x, r)

by the Cauchy-Schwarz inequality for what is left. The rows (x, r) have k + 1 dimensions and are unit rows
again, so that a product of these is a bound that `precision.error_bound` holds for too, in whatever precision.
Items that the bound does not rule out get exact scores, as always. On directions in which the features have
most of their energy, r is small, and few items are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..compute.products import full_float32
from .precision import Rounded, rounded

# Rows at a time.
_ROWS = 2048
# Dimensions added up in one float32 product: the shorter the sums, the less they may be off.
_SUMMED = 256


@dataclass(frozen=True)
class Basis:
    """Directions to compare rows on.

    Attributes:
        directions: (D, k) float32, columns orthonormal but for `skew`.
        skew: the most that the directions, taken together, are away from orthonormal ones.
    """

    directions: torch.Tensor
    skew: float

    @classmethod
    def of(cls, directions: torch.Tensor) -> Basis:
        """Take (D, k) float32 directions, and see how far from orthonormal they are."""
        wide = directions.to(torch.float64)
        gram = wide.T @ wide
        gram.diagonal().sub_(1)
        # For singular values s of the directions, |s - 1| <= |s^2 - 1|.
        return cls(directions, float(torch.linalg.matrix_norm(gram)))

    def first(self, count: int) -> Basis:
        """Its first so many directions."""
        return Basis(self.directions[:, :count].contiguous(), self.skew)

    @property
    def width(self) -> int:
        """How many dimensions products have."""
        return self.directions.shape[1] + 1

    @property
    def coordinate_error(self) -> float:
        """How far the computed coordinates of a unit row may be from those on orthonormal directions."""
        dim, count = self.directions.shape
        # Each coordinate is off by at most this times the sum of its magnitudes, which is at most 1.
        terms = (min(_SUMMED, dim) + math.ceil(dim / _SUMMED) + 2) * 2.0**-24
        return (terms * math.sqrt(count) + self.skew) * (1 + 2.0**-10)

    @full_float32()
    def factors(self, rows: torch.Tensor, dtype: torch.dtype) -> Rounded:
        """Rows as products take them: (N, k + 1), coordinates and the length of the rest.

        Args:
            rows: (N, D) float32, unit rows.
            dtype: what products are computed in.
        """
        factors = torch.empty(len(rows), self.width, dtype=dtype, device=rows.device)
        errors = torch.empty(len(rows), device=rows.device)
        for start in range(0, len(rows), _ROWS):
            some = slice(start, start + _ROWS)
            part = rounded(self.coordinates(rows[some]), dtype)
            factors[some], errors[some] = part.rows, part.errors
        return Rounded(factors, errors.add_(self.coordinate_error))

    def coordinates(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, k + 1) float32 of (N, D) unit rows: coordinates, and the most that what is left may measure."""
        dim, count = self.directions.shape
        found = torch.empty(len(rows), count + 1, device=rows.device)
        coordinates = found[:, :count].zero_()
        for start in range(0, dim, _SUMMED):
            stop = start + _SUMMED
            coordinates.addmm_(rows[:, start:stop], self.directions[start:stop])
        self._note_rest(found)
        return found

    def narrowed(self, coordinates: torch.Tensor, count: int) -> torch.Tensor:
        """(N, count + 1) float32: what `coordinates` gives on the first `count` directions alone."""
        found = coordinates[:, : count + 1].clone()
        self._note_rest(found)
        return found

    def _note_rest(self, found: torch.Tensor) -> None:
        """Set the last column of (n, c + 1): the most that what c coordinates leave may measure."""
        coordinates, count, dim = found[:, :-1], found.shape[1] - 1, len(self.directions)
        # The length of the coordinates from below, of the row from above; in float64, as they may be close.
        length = torch.linalg.vector_norm(coordinates, dim=1).double()
        length = (length * (1 - (count + 4) * 2.0**-23) - self.coordinate_error).clamp_min_(0)
        rest = ((1 + (dim + 4) * 2.0**-23) ** 2 - length.square_()).sqrt_()
        found[:, -1] = rest * (1 + 2.0**-22)


@full_float32()
def leading_directions(rows: torch.Tensor, count: int) -> Basis:
    """A basis that has about as much of the energy of rows as so many directions can have, most first.

    Source: Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53 (2011), algorithms 4.4
    and 5.1, from the first rows instead of random combinations of all.

    Args:
        rows: (S, D) float32, in no particular order, S and D at least `count`.
        count: k, how many directions.
    """
    drawn = rows[:count].T
    found, _ = torch.linalg.qr(rows.T @ (rows @ drawn))
    on_these = rows @ found
    _, order = torch.linalg.eigh(on_these.T @ on_these)
    return Basis.of(found @ order.flip(1))
