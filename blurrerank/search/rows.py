"""L2-normalised rows of features: held in memory, or read again by blocks."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.device import DEFAULT_MEMORY
from ..data.side import Side
from ..errors import BlurrerankWarning
from .basis import Basis
from .precision import Rounded, error_bound, rounded

# Rows converted at a time, as float32: few enough to stay in cache between being read and being divided.
_PIECE_BYTES = 4 << 20


# Warn above this many passes over the rows: by then, reading probably dominates.
_MANY_READS = 10
# Dimensions up to which float32 is good enough for the norm of a row.
_LONG = 2048


def unit_rows(
    block: torch.Tensor, device: torch.device | str | None = None, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows divided by their Euclidean norm.

    Args:
        block: (N, D) of any float dtype, finite, no row all zero.
        device: where the result lives; by default where `block` is.
        out: (N, D) float32 there, to put it.

    Returns:
        (N, D) float32. Equal values in different dtypes give equal bits. Rows whose float32 norm would
        overflow or vanish are scaled by their largest value first.
    """
    rows = block.to(device=device or block.device, dtype=torch.float32)
    norms = _norms(rows)
    extreme = ~((norms > 1e-15) & (norms < 1e15)).flatten()
    if extreme.any():
        wide = block.to(device=rows.device, dtype=torch.float64)[extreme]
        scaled = (wide / wide.abs().amax(dim=1, keepdim=True)).to(torch.float32)
        rows = rows.clone() if rows.data_ptr() == block.data_ptr() else rows
        rows[extreme] = scaled
        norms[extreme] = _norms(scaled)
    unit: torch.Tensor = rows / norms if out is None else torch.div(rows, norms, out=out)
    return unit


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """(N, 1) float32. A sum in float32 of very many squares drifts, by 1e-5 in 20,000 dimensions."""
    wide = torch.float64 if rows.shape[1] > _LONG else None
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=wide)
    return norms.to(torch.float32)


def warn_of_reads(times: int, count: int, dim: int) -> None:
    """Warn of rows that are read many times over because the memory budget does not hold them."""
    if times > _MANY_READS:
        enough = count * 4 * dim * 8 / 3  # three eighths of a budget are for them
        warnings.warn(
            f"the memory budget does not hold {count:,} x {dim:,} features: they are read {times:,} times; a "
            f"budget of {math.ceil(enough / 2**20):,} MiB would hold them",
            BlurrerankWarning,
            stacklevel=3,
        )


def blocks_of(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive `(start, stop)` up to `total`, of `size` each but for the last."""
    for start in range(0, total, size):
        yield start, min(start + size, total)


def evenly_spread(count: int, some: int) -> NDArray[np.int64]:
    """Ascending places of at most `some` of `count` items, as far from each other as can be."""
    return np.unique(np.linspace(0, count - 1, min(count, some)).astype(np.int64))


@dataclass(frozen=True)
class RowBudget:
    """What work on many rows may take.

    Attributes:
        held_rows: how many float32 rows may be held while others are read.
        working_bytes: bytes for everything else at a time.
    """

    held_rows: int
    working_bytes: int


class Rows(Protocol):
    """Rows that are there, or are made, when asked for."""

    def __len__(self) -> int:
        """N, how many there are."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop`, (stop - start, D) float32."""


class Gatherable(Protocol):
    """Rows of which any can be had."""

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `UnitRows.gather`."""


class PassingRows:
    """Rows kept out of blocks that pass by, for as long as they are wanted.

    Args:
        most: how many may be wanted at a time.
        dim: D, the number of dimensions.
        device: where they are.
    """

    def __init__(self, most: int, dim: int, device: torch.device) -> None:
        """Make room."""
        self._table = torch.empty(most, dim, device=device)
        self._free = torch.arange(most, device=device)
        self._items = torch.empty(0, dtype=torch.int64, device=device)  # ascending
        self._places = self._items

    def keep(self, wanted: torch.Tensor, start: int, block: torch.Tensor) -> None:
        """Keep of all rows so far, and of the block that begins with row `start`, those that are wanted."""
        distinct = torch.unique(wanted)
        still = torch.isin(self._items, distinct, assume_unique=True)
        free = torch.cat([self._free, self._places[~still]])
        new = distinct[distinct >= start]
        places, self._free = free[: len(new)], free[len(new) :]
        self._table[places] = block[new - start]
        self._items = torch.cat([self._items[still], new])
        self._places = torch.cat([self._places[still], places])

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `UnitRows.gather`; for rows that are kept."""
        return self._table, self._places[torch.searchsorted(self._items, indices)]


class UnitRows:
    """L2-normalised float32 rows of one side, or of several one after another, on one device.

    Held whole when `resident`; otherwise read from the sides, block by block, each time they are needed.
    """

    def __init__(
        self,
        *sides: Side,
        device: torch.device,
        block: int,
        resident: bool,
        dtype: torch.dtype = torch.float32,
        keep: bool = False,
        budget: RowBudget | None = None,
        picks_basis: bool = False,
    ) -> None:
        """Prepare `sides` to be read `block` rows at a time; reads them now if they are to be resident.

        Args:
            sides: of the same dimension.
            device: where the rows are to be.
            block: how many to read at a time.
            resident: whether to hold them.
            dtype: what `factors` are in.
            keep: whether to hold `factors` too, where the rows are held.
            budget: for work that looks at all rows; by default they may all be held.
            picks_basis: whether a search may have products take fewer dimensions, where `factors` are held.
        """
        self.sides = sides
        self.device = device
        self.block = block
        self.dtype = dtype
        self.budget = budget or RowBudget(sum(map(len, sides)), DEFAULT_MEMORY // 8)
        self._keep = keep
        self.picks_basis = picks_basis and resident and keep
        self._basis: Basis | None = None
        self._factors: Rounded | None = None
        self._rows: torch.Tensor | None = None
        if resident:
            self._rows = self._read(0, len(self))

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
        parts = [self.unread(side) for side in self.sides]
        if self._rows is not None:
            for part, rows in zip(parts, torch.split(self._rows, list(map(len, self.sides))), strict=True):
                part._rows = rows
        return parts

    def unread(self, *sides: Side) -> UnitRows:
        """The rows of `sides`, or all of them, to be read when they are asked for."""
        return UnitRows(
            *(sides or self.sides),
            device=self.device,
            block=self.block,
            resident=False,
            dtype=self.dtype,
            budget=self.budget,
        )

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop`, (stop - start, D)."""
        return self._read(start, stop) if self._rows is None else self._rows[start:stop]

    @property
    def holds_factors(self) -> bool:
        """Whether what products take is made once, and is not the rows themselves."""
        return self.resident and self._keep and (self.dtype != torch.float32 or self._basis is not None)

    @property
    def basis(self) -> Basis | None:
        """What rows are compared on by products; None for all dimensions."""
        return self._basis

    def compare_on(self, basis: Basis | None) -> None:
        """Have products take rows on a basis, whose bounds hold for them; rows and factors must be held."""
        assert basis is None or (self.resident and self._keep)
        if basis is not self._basis:
            self._basis, self._factors = basis, None

    def factors_of(self, rows: torch.Tensor) -> Rounded:
        """Any (n, D) float32 unit rows as products with these take them."""
        return rounded(rows, self.dtype) if self._basis is None else self._basis.factors(rows, self.dtype)

    def product_bound(self, errors: torch.Tensor, others: torch.Tensor | float) -> torch.Tensor:
        """How far products may lie from exact scores, or on a basis below these; see `error_bound`."""
        if self._basis is None:
            return error_bound(errors, others, self.dim, self.dtype)
        width, stretch = self._basis.width, 3 * self._basis.coordinate_error
        return error_bound(errors, others, self.dim, self.dtype, width=width, stretch=stretch)

    def factors(self, start: int, stop: int, rows: torch.Tensor | None = None) -> Rounded:
        """Rows `start:stop` as products take them; `rows` are these, where they are at hand."""
        if self._factors is None and self._rows is not None and self.holds_factors:
            self._factors = self.factors_of(self._rows)
        if self._factors is not None:
            return self._factors[start:stop]
        if rows is not None or self.dtype == torch.float32:
            return rounded(self.rows(start, stop) if rows is None else rows, self.dtype)
        # A block at a time: of float32 rows there need not be more.
        found = Rounded(
            torch.empty(stop - start, self.dim, dtype=self.dtype, device=self.device),
            torch.empty(stop - start, device=self.device),
        )
        spans = [(start + first, start + last) for first, last in blocks_of(stop - start, self.block)]
        for (first, last), some in zip(spans, self.spans(spans), strict=True):
            part = rounded(some, self.dtype)
            found.rows[first - start : last - start] = part.rows
            found.errors[first - start : last - start] = part.errors
        return found

    def _read(self, start: int, stop: int) -> torch.Tensor:
        return next(self.spans([(start, stop)]))

    def spans(self, spans: Sequence[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """The rows of each `(start, stop)` in turn; those that are read from disk, one step ahead."""
        if self._rows is not None:
            yield from (self.rows(start, stop) for start, stop in spans)
            return
        if all(side.unit and side.block(0, 1).device == self.device for side in self.sides):
            for start, stop in spans:
                parts = self._stored(start, stop)
                yield parts[0] if len(parts) == 1 else torch.cat(parts)
            return
        pieces = [list(self._pieces(start, stop)) for start, stop in spans]
        reads = [partial(side.block, first, last) for some in pieces for side, first, last in some]
        # As far as the next span, for which there is room; there is none for one that stands alone.
        stored = _prefetch(reads, max(map(len, pieces)) if len(spans) > 1 else 1)
        for (start, stop), some in zip(spans, pieces, strict=True):
            rows = torch.empty(stop - start, self.dim, device=self.device)
            to = 0
            for side, first, last in some:
                into, found = rows[to : to + last - first], next(stored)
                if side.unit:
                    into.copy_(found)
                else:
                    unit_rows(found, self.device, out=into)
                to += last - first
            yield rows

    def _stored(self, start: int, stop: int) -> list[torch.Tensor]:
        """Rows `start:stop` as the sides hold them, not copied, of one side after another."""
        found, before = [], 0
        for side in self.sides:
            first, last = max(start - before, 0), min(stop - before, len(side))
            if first < last:
                found.append(side.block(first, last))
            before += len(side)
        return found or [self.sides[0].block(0, 0)]

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Side, int, int]]:
        """What to read of which side for rows `start:stop`."""
        before = 0
        for side in self.sides:
            first, end = max(start - before, 0), min(stop - before, len(side))
            rows = _whole_chunks(max(1, min(self.block, _PIECE_BYTES // (4 * self.dim))), side)
            while first < end:
                # A piece ends where a chunk of the file does, so that no chunk is read twice.
                last = min((first // rows + 1) * rows, end)
                yield side, first, last
                first = last
            before += len(side)

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Every row in order, block by block, each with the index of its first row."""
        spans = list(blocks_of(len(self), self.block))
        for (start, _), rows in zip(spans, self.spans(spans), strict=True):
            yield start, rows

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

    # Where rows lie with several processes, these divide the work and join its results.

    def is_assigned_here(self, number: int) -> bool:
        """Whether this process does this piece of the work."""
        return True

    def sum_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of each value over all processes."""
        return values

    def merge_top_keys(self, keys: torch.Tensor) -> torch.Tensor:
        """The best keys of each row, as many as it has, over all processes."""
        return keys


def _whole_chunks(rows: int, side: Side) -> int:
    """About so many rows, as many as make whole chunks of the file they are in."""
    chunks = getattr(side.features, "chunks", None)
    return max(rows // chunks[0], 1) * int(chunks[0]) if chunks else rows


def _prefetch(reads: Sequence[Callable[[], torch.Tensor]], depth: int) -> Iterator[torch.Tensor]:
    """What each of `reads` gives, while up to `depth` of the next are read."""
    if len(reads) < 2:
        yield from (read() for read in reads)
        return
    with ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(read) for read in reads[:depth])
        try:
            for number in range(len(reads)):
                found = coming.popleft().result()
                if number + depth < len(reads):
                    coming.append(reader.submit(reads[number + depth]))
                yield found
        finally:
            for read in coming:
                read.cancel()
