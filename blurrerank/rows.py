"""L2-normalised rows of features: held in memory, or read again by blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from .features import Side


def unit_rows(block: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
    """Rows divided by their Euclidean norm.

    Args:
        block: (N, D) of any float dtype, finite, no row all zero.
        device: where the result lives; by default where `block` is.

    Returns:
        (N, D) float32. Equal values in different dtypes give equal bits. Rows whose float32 norm would
        overflow or vanish are scaled by their largest value first.
    """
    rows = block.to(device=device or block.device, dtype=torch.float32)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    extreme = ~((norms > 1e-15) & (norms < 1e15)).flatten()
    if extreme.any():
        wide = block.to(device=rows.device, dtype=torch.float64)[extreme]
        scaled = (wide / wide.abs().amax(dim=1, keepdim=True)).to(torch.float32)
        rows = rows.clone() if rows.data_ptr() == block.data_ptr() else rows
        rows[extreme] = scaled
        norms[extreme] = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    unit: torch.Tensor = rows / norms
    return unit


def blocks_of(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive `(start, stop)` up to `total`, of `size` each but for the last."""
    for start in range(0, total, size):
        yield start, min(start + size, total)


class Rows(Protocol):
    """Rows that are there, or are made, when asked for."""

    def __len__(self) -> int:
        """N, how many there are."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop`, (stop - start, D) float32."""


class Gallery(Protocol):
    """Gallery rows as a method that scores candidates anew sees them."""

    def __len__(self) -> int:
        """G, how many there are."""

    @property
    def dim(self) -> int:
        """D, the number of dimensions."""

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `UnitRows.gather`."""


class UnitRows:
    """L2-normalised float32 rows of one side, or of several one after another, on one device.

    Held whole when `resident`; otherwise read from the sides, block by block, each time they are needed.
    """

    def __init__(self, *sides: Side, device: torch.device, block: int, resident: bool) -> None:
        """Prepare `sides` to be read `block` rows at a time; reads them now if they are to be resident."""
        self.sides = sides
        self.device = device
        self.block = block
        self._rows = self._read(0, len(self)) if resident else None

    def __len__(self) -> int:
        return sum(map(len, self.sides))

    @property
    def dim(self) -> int:
        """D, the number of dimensions."""
        return self.sides[0].dim

    @property
    def resident(self) -> bool:
        """Whether all rows are held in memory."""
        return self._rows is not None

    def parts(self) -> list[UnitRows]:
        """The rows of each side alone, sharing memory."""
        parts = [UnitRows(side, device=self.device, block=self.block, resident=False) for side in self.sides]
        if self._rows is not None:
            for part, rows in zip(parts, torch.split(self._rows, list(map(len, self.sides))), strict=True):
                part._rows = rows
        return parts

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop`, (stop - start, D)."""
        return self._read(start, stop) if self._rows is None else self._rows[start:stop]

    def _read(self, start: int, stop: int) -> torch.Tensor:
        """Read rows, a block at a time, since each exists three times while it is converted."""
        if len(self.sides) == 1 and self.sides[0].unit:
            found = self.sides[0].block(start, stop)
            if found.device == self.device:
                return found
        rows = torch.empty(stop - start, self.dim, device=self.device)
        before = 0
        for side in self.sides:
            for first in range(max(start - before, 0), min(stop - before, len(side)), self.block):
                last = min(first + self.block, stop - before, len(side))
                to = before - start
                found = side.block(first, last)
                rows[to + first : to + last] = found if side.unit else unit_rows(found, self.device)
            before += len(side)
        return rows

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Every row in order, block by block, each with the index of its first row."""
        for start, stop in blocks_of(len(self), self.block):
            yield start, self.rows(start, stop)

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A table of rows that holds those at `indices`, and where in the table each of them is.

        Args:
            indices: int64, any shape.

        Returns:
            `(table, places)`: (U, D) float32 and int64 of the shape of `indices`, so that
            `table[places]` are the rows asked for. Resident rows are their own table; otherwise one pass over
            the blocks that are concerned collects the distinct rows.
        """
        if self._rows is not None:
            return self._rows, indices
        distinct, places = torch.unique(indices, return_inverse=True)
        table = torch.empty(len(distinct), self.dim, device=self.device)
        for start, stop in blocks_of(len(self), self.block):
            first, last = torch.searchsorted(distinct, torch.tensor([start, stop], device=self.device)).tolist()
            if first < last:
                table[first:last] = self.rows(start, stop)[distinct[first:last] - start]
        return table, places

    # Where rows lie with several processes, these divide the work and join what came of it.

    def mine(self, number: int) -> bool:
        """Whether this process does this piece of the work."""
        return True

    def joined(self, values: torch.Tensor, how: str) -> torch.Tensor:
        """The `sum` or `min` of each value over all processes."""
        return values

    def best(self, keys: torch.Tensor) -> torch.Tensor:
        """The best keys of each row, as many as it has, over all processes."""
        return keys

    def scored(self, probes: int) -> slice:
        """Which rows, the first `probes` of all aside, this process gives scores to."""
        return slice(probes, len(self))
