"""Sums over many images that come out the same in any order, whoever holds the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from ..compute.processes import Group
from ..methods.kinds.steps import CameraSums
from ..search.rows import UnitRows, blocks_of, warn_of_reads

# Values of unit rows are added as whole multiples of 2 ** -40, or of more where int64 would not hold the sum.
_PARTS = 40
# Where products are added, of 2 ** -16, or of more where float64 would not hold the sum exactly.
_FACTOR_PARTS = 16
# Rows at a time, since they are widened.
_ROWS = 1024


class RowSample:
    """See `steps.Sample`.

    Args:
        rows: those that this process holds, which may be none.
        cams: (N,) int64, their cameras.
        every: (M,) int64, the cameras of all images, those of other processes too.
        group: the processes among which the images are cut; None if this one holds them all.
    """

    def __init__(
        self, rows: UnitRows, cams: torch.Tensor, every: torch.Tensor, group: Group | None = None
    ) -> None:
        self._rows, self._cams, self._every, self._group = rows, cams, every, group
        images = len(every).bit_length()
        self._parts = 1 << min(_PARTS, 62 - images)
        self._factor_parts = 1 << min(_FACTOR_PARTS, (53 - images) // 2)

    def by_camera(self) -> CameraSums:
        """See `steps.Sample.by_camera`."""
        cams, counts = torch.unique(self._every, return_counts=True)
        shape = len(cams), self._rows.dim
        sums = torch.zeros(shape, dtype=torch.int64, device=self._rows.device)
        squares = torch.zeros_like(sums)
        for start, block in self._blocks():
            which = torch.searchsorted(cams, self._cams[start : start + len(block)]).to(block.device)
            sums.index_add_(0, which, self._whole(block))
            squares.index_add_(0, which, self._whole(block * block))
        cams, counts = cams.to(sums.device), counts.to(sums.device)
        return CameraSums(cams, counts, self._total(sums), self._total(squares))

    def products(self) -> torch.Tensor:
        """See `steps.Sample.products`."""
        return self._products([None])[0]

    def products_of(self, cams: torch.Tensor) -> Iterator[torch.Tensor]:
        """See `steps.Sample.products_of`."""
        some = max(1, self._rows.budget.working_bytes // (8 * self._rows.dim**2))
        if not self._rows.resident:
            warn_of_reads(math.ceil(len(cams) / some), len(self._rows), self._rows.dim)
        for start, stop in blocks_of(len(cams), some):
            yield from self._products(cams[start:stop].tolist())

    def _products(self, cams: Sequence[int | None]) -> torch.Tensor:
        """(C, D, D) float64 over the images of some cameras, of all for None."""
        dim, device = self._rows.dim, self._rows.device
        found = torch.zeros(len(cams), dim, dim, dtype=torch.float64, device=device)
        for start, block in self._blocks():
            factors = (block.double() * self._factor_parts).round_()
            own_cams = self._cams[start : start + len(block)].to(device)
            for total, cam in zip(found, cams, strict=True):
                own = factors if cam is None else factors[own_cams == cam]
                total.addmm_(own.T, own)
        if self._group is not None:
            found = self._group.all_reduce(found, "sum")
        return found.div_(self._factor_parts**2)

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """A few rows at a time."""
        for start, block in self._rows.blocks():
            for first, last in blocks_of(len(block), _ROWS):
                yield start + first, block[first:last]

    def _total(self, values: torch.Tensor) -> torch.Tensor:
        if self._group is not None:
            values = self._group.all_reduce(values, "sum")
        return values.double() / self._parts

    def _whole(self, values: torch.Tensor) -> torch.Tensor:
        return (values.double() * self._parts).round_().long()
