"""`SparseRows`: a matrix over images with few entries in each row, and its algebra.

Everything is computed without a loop over images, some rows at a time. Weights are whole numbers: their sums
are the same in every order, so that results depend neither on how the work is cut nor on the order in which a
GPU adds.

Sources: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017,
arXiv:1701.08398, sections 3.3 and 3.4, for `expanded` and `averaged`; Zhang, Jiang, Zheng, Tan,
Ding, Yang, "Understanding Image Retrieval Re-Ranking: A Graph Neural Network Perspective", arXiv:2012.07620,
for `propagated`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..data.ranges import offsets_of, ranges, split_by_size
from ..search.rows import blocks_of

ONE = 1 << 30
"""What the weights of an encoding sum to."""

WHOLE = 1 << 20
"""The share of an image's own encoding where others count less, in `SparseRows.averaged`."""

# Bytes worked on at a time, in several arrays: a CPU's share should stay in cache, a GPU wants more.
CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}

# Parts in which rows are cut to few entries while they are made symmetrical.
_PARTS = 8

# What expanding, averaging and comparing take for each entry: its key or place, its weight, and their copies.
_ENTRY_BYTES = 64


@dataclass(frozen=True)
class SparseRows:
    """A matrix over images with few entries in each row; its columns are the N images there are.

    Attributes:
        offsets: (N + 1,) int64: row i owns the entries `offsets[i]:offsets[i + 1]`.
        columns: (T,) int32 or int64, each at most once in a row.
        weights: (T,) int32, in parts of `ONE`; all 0 where only membership is known.
        chunk_bytes: bytes that operations may work with at a time; results inherit it.

    Examples:
        >>> chosen = torch.tensor([[True, True], [True, False]])
        >>> rows = SparseRows.from_lists(torch.tensor([[0, 2], [1, 0]]), chosen)
        >>> rows.uniform().to_scipy(3).toarray().tolist()
        [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    """

    ARRAYS: ClassVar[tuple[str, ...]] = ("offsets", "columns", "weights")

    offsets: torch.Tensor
    columns: torch.Tensor
    weights: torch.Tensor
    chunk_bytes: int = 0

    def __post_init__(self) -> None:
        """Fill in the device's usual chunk."""
        if not self.chunk_bytes:
            object.__setattr__(self, "chunk_bytes", CHUNK_BYTES[self.columns.device.type])

    @classmethod
    def from_lists(cls, lists: torch.Tensor, chosen: torch.Tensor, chunk_bytes: int = 0) -> SparseRows:
        """Make rows of the `chosen` entries of lists, with weights 0.

        Args:
            lists: (n, k) int32 or int64.
            chosen: (n, k) bool.
            chunk_bytes: see the class.
        """
        columns = lists[chosen]
        weights = torch.zeros_like(columns, dtype=torch.int32)
        return cls(offsets_of(chosen.sum(dim=1)), columns, weights, chunk_bytes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> torch.Tensor:
        """(N,) int64, the entries of each row."""
        return self.offsets.diff()

    def counts_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the entries of some rows alone, int64."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def rows(self, start: int, stop: int) -> SparseRows:
        """Return rows `start:stop`, sharing memory."""
        first, last = self.offsets[[start, stop]].tolist()
        offsets = self.offsets[start : stop + 1] - first
        return replace(
            self, offsets=offsets, columns=self.columns[first:last], weights=self.weights[first:last]
        )

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield consecutive `(start, stop)` of rows, to work on within `chunk_bytes`."""
        return split_by_size(self.counts, self.entries_at_a_time)

    def to(self, device: torch.device) -> SparseRows:
        """Return the same on `device`; what is there already is shared."""
        return SparseRows(*(getattr(self, name).to(device) for name in self.ARRAYS))

    def clone(self) -> SparseRows:
        """Return the same in memory of its own."""
        return replace(self, **{name: getattr(self, name).clone() for name in self.ARRAYS})

    def to_scipy(self, width: int) -> Any:
        """Return a `scipy.sparse.csr_array` of shape (N, width), float64, weights divided by `ONE`."""
        from scipy.sparse import csr_array

        offsets, columns, weights = (getattr(self, name).cpu().numpy() for name in self.ARRAYS)
        return csr_array((weights / ONE, columns, offsets), shape=(len(self), width))

    def transposed(self, width: int, part: slice | None = None) -> SparseRows:
        """Return the transpose, of `width` rows: for each column the rows, ascending, that have it; or a part.

        Args:
            width: how many columns there are.
            part: of which of them; by default of all.
        """
        first, last = (0, width) if part is None else (part.start, part.stop)
        per_column = torch.zeros(last - first, dtype=torch.int64, device=self.columns.device)
        for some in torch.split(self.columns, self.entries_at_a_time):
            inside = some if part is None else some[(some >= first) & (some < last)] - first
            per_column += torch.bincount(inside, minlength=last - first)
        offsets = offsets_of(per_column)
        columns, weights = (values.new_empty(int(offsets[-1])) for values in (self.columns, self.weights))
        free = offsets[:-1].clone()
        for start, stop in self.blocks():
            rows = self.rows(start, stop)
            column, row = rows.columns.long(), start + torch.repeat_interleave(rows.counts)
            weight = rows.weights
            if part is not None:
                chosen = torch.nonzero((column >= first) & (column < last)).flatten()
                column, row, weight = column[chosen] - first, row[chosen], weight[chosen]
            column, order = column.sort(stable=True)
            found = torch.bincount(column, minlength=last - first)
            # The place of an entry among those of its column in this piece.
            nth = torch.arange(len(column), device=column.device) - (found.cumsum(0) - found)[column]
            to = free[column] + nth
            columns[to], weights[to] = row[order].to(columns.dtype), weight[order]
            free += found
        return replace(self, offsets=offsets, columns=columns, weights=weights)

    def joined(self, other: SparseRows) -> SparseRows:
        """Return each row with the entries of the same row of `other` after its own, in other columns."""
        offsets = self.offsets + other.offsets
        columns = self.columns.new_empty(len(self.columns) + len(other.columns))
        weights = self.weights.new_empty(len(columns))
        for rows, before in ((self, other.offsets[:-1]), (other, self.offsets[1:])):
            for start, stop in rows.blocks():
                first, last = rows.offsets[[start, stop]].tolist()
                to = torch.arange(first, last, device=columns.device)
                to += torch.repeat_interleave(before[start:stop], rows.counts[start:stop])
                columns[to], weights[to] = rows.columns[first:last], rows.weights[first:last]
        return replace(self, offsets=offsets, columns=columns, weights=weights)

    def members(self) -> SparseRows:
        """Return the same members, each with weight `ONE`."""
        return replace(self, weights=torch.full_like(self.weights, ONE))

    def counted(self, weights: torch.Tensor) -> SparseRows:
        """Return the same members with whole `weights` (T,), which stand for themselves, not parts of `ONE`."""
        return replace(self, weights=weights.to(torch.int32))

    def shared(self, weights: torch.Tensor) -> SparseRows:
        """Return the same members with float `weights` (T,), 0 to 1, in parts of `ONE`."""
        return replace(self, weights=(weights.double() * ONE).round_().to(torch.int32))

    def balanced(self) -> SparseRows:
        """Return the weights divided by the roots of their row's and column's sums. For N over N images."""
        sums = torch.zeros(2, len(self), dtype=torch.int64, device=self.columns.device)
        for start, stop in self.blocks():
            some = self.rows(start, stop)
            sums[0].scatter_add_(0, start + torch.repeat_interleave(some.counts), some.weights.long())
            sums[1].scatter_add_(0, some.columns.long(), some.weights.long())
        roots = sums.clamp_min_(1).double().rsqrt_()
        parts = torch.empty_like(self.weights)
        for start, stop in self.blocks():
            some = self.rows(start, stop)
            first, last = self.offsets[[start, stop]].tolist()
            row, column = roots[0, start + torch.repeat_interleave(some.counts)], roots[1, some.columns.long()]
            parts[first:last] = (some.weights.double() * row * column * ONE).round_()
        return replace(self, weights=parts)

    def columns_within(self, part: slice) -> SparseRows:
        """Return the entries in some columns alone, numbered from the first of these."""

        def blocks() -> Iterator[SparseRows]:
            for start, stop in self.blocks():
                some = self.rows(start, stop)
                inside = (some.columns >= part.start) & (some.columns < part.stop)
                counts = torch.zeros(len(some), dtype=torch.int64, device=inside.device)
                counts.index_add_(0, torch.repeat_interleave(some.counts), inside.long())
                columns = some.columns[inside] - part.start
                yield replace(some, offsets=offsets_of(counts), columns=columns, weights=some.weights[inside])

        return stacked(list(blocks()))

    def shifted(self, columns: int) -> SparseRows:
        """Return the same entries so many columns further on."""
        return replace(self, columns=self.columns + columns)

    def symmetrised(self, most: int | None = None) -> SparseRows:
        """Return the mean of the matrix and its transpose, columns ascending. For N rows over N images.

        Args:
            most: how many entries of a row to keep, the largest; None keeps all.
        """
        total = len(self)
        if most is None:
            return self.mixed(self.transposed(total), 0.5)

        def blocks() -> Iterator[SparseRows]:
            # Where memory is short, there is never the whole transpose.
            for start, stop in blocks_of(total, max(1, -(-total // _PARTS))):
                transpose = self.transposed(total, slice(start, stop))
                yield from self.rows(start, stop)._mixed(transpose, 0.5, total)

        return self._stacked(blocks(), total, most)

    def mixed(self, other: SparseRows, share: float) -> SparseRows:
        """Return (1 - share) of this and `share` of another matrix of N over N images, columns ascending."""
        return stacked(list(self._mixed(other, share, len(self))))

    def _mixed(self, other: SparseRows, share: float, total: int) -> Iterator[SparseRows]:
        """The blocks of `mixed`, of rows over `total` columns."""
        part = round(share * WHOLE)
        for start, stop in split_by_size(self.counts + other.counts, self.entries_at_a_time):
            parts = [rows.rows(start, stop) for rows in (self, other)]
            keys = [torch.repeat_interleave(rows.counts) * total + rows.columns for rows in parts]
            values = [parts[0].weights.long() * (WHOLE - part), parts[1].weights.long() * part]
            found, sums = summed(torch.cat(keys), torch.cat(values))
            yield self._rows_of(found, total, sums // WHOLE, stop - start)

    def _rows_of(self, keys: torch.Tensor, total: int, weights: torch.Tensor, count: int) -> SparseRows:
        """So many rows over `total` columns, of entries by ascending keys, row * total + column."""
        counts = torch.bincount(keys.div(total, rounding_mode="floor"), minlength=count)
        columns = (keys % total).to(self.columns.dtype)
        return replace(self, offsets=offsets_of(counts), columns=columns, weights=weights.to(torch.int32))

    def _stacked(self, blocks: Iterable[SparseRows], count: int, most: int | None) -> SparseRows:
        """The `count` rows of blocks one after another, of each the `most` largest entries."""
        if most is None:
            return stacked(list(blocks))
        # Into one piece, whose pages take no memory before they are written to.
        columns, weights = self.columns.new_empty(count * most), self.weights.new_empty(count * most)
        counts, filled = [], 0
        for block in blocks:
            cut = block.largest(most)
            counts.append(cut.counts)
            end = filled + len(cut.columns)
            columns[filled:end], weights[filled:end] = cut.columns, cut.weights
            filled = end
        offsets = offsets_of(torch.cat(counts))
        return replace(self, offsets=offsets, columns=columns[:filled], weights=weights[:filled])

    def unit(self) -> SparseRows:
        """Return the rows divided by their Euclidean norms; rows of zeros stay so."""
        parts = torch.empty_like(self.weights)
        for start, stop in self.blocks():
            some = self.rows(start, stop)
            first, last = self.offsets[[start, stop]].tolist()
            owner = torch.repeat_interleave(some.counts)
            # Squares summed as whole numbers of less than 63 bits: v = 2^15 h + l.
            high, low = some.weights.long() >> 15, some.weights.long() & (1 << 15) - 1
            squares = torch.zeros(len(some), dtype=torch.float64, device=owner.device)
            for scale, values in ((1 << 30, high * high), (1 << 16, high * low), (1, low * low)):
                sums = torch.zeros(len(some), dtype=torch.int64, device=owner.device)
                squares += scale * sums.scatter_add_(0, owner, values).double()
            norms = squares.sqrt_().clamp_min_(1)
            parts[first:last] = (some.weights.double() * (ONE / norms)[owner]).round_()
        return replace(self, weights=parts)

    def propagated(
        self, lists: torch.Tensor, shares: torch.Tensor, rounds: int, most: int | None = None
    ) -> SparseRows:
        """Return A after so many times A <- W (A + A'), rows divided by their Euclidean norms.

        Args:
            lists: (N, k) int32 or int64, the columns of W; -1 pads.
            shares: (N, k) float32, the weights in W, from 0 to 1; of no meaning where the list is padded.
            rounds: how many times.
            most: how many entries of a row of A, and of A + A', are kept, the largest; None keeps all.
        """
        whole = whole_parts(shares)
        rows = self
        for _ in range(rounds):
            # One after another, so that the rows of before go as soon as they may.
            rows = rows.symmetrised(most)
            rows = rows.averaged(lists, whole, most=most)
            rows = rows.unit()
        return rows

    def expanded(self, halves: SparseRows) -> SparseRows:
        """Add to each row of reciprocal neighbours the smaller sets that mostly lie inside it: R*.

        The set r(j) of a member j is added if more than 2/3 of it is in the row.

        Args:
            halves: r, the reciprocal neighbours within half lists of all N images.

        Returns:
            As many rows as there are here, columns ascending, weights 0.
        """
        total = len(halves)
        sizes = torch.zeros(len(self), dtype=torch.int64, device=halves.columns.device)
        owner = torch.repeat_interleave(self.counts)
        sizes.scatter_add_(0, owner, halves.counts_of(self.columns.long()))
        counts, columns = [], []
        for start, stop in split_by_size(sizes, self.entries_at_a_time):
            some = self.rows(start, stop)
            candidates = some.columns.long()
            image = torch.repeat_interleave(some.counts)
            members = (image * total + candidates).sort().values
            # Every half list of every candidate, as keys of the image and who is in the list.
            half_counts = halves.counts_of(candidates)
            candidate, place = ranges(halves.offsets[candidates], half_counts)
            theirs = image[candidate] * total + halves.columns[place]
            at = torch.searchsorted(members, theirs).clamp_max_(max(0, len(members) - 1))
            inside = torch.bincount(candidate[members[at] == theirs], minlength=len(candidates))
            grows = 3 * inside > 2 * half_counts
            everyone = torch.unique(torch.cat([members, theirs[grows[candidate]]]))
            counts.append(torch.bincount(everyone // total, minlength=stop - start))
            columns.append((everyone % total).to(halves.columns.dtype))
        found = torch.cat(columns)
        weights = torch.zeros_like(found, dtype=torch.int32)
        return replace(self, offsets=offsets_of(torch.cat(counts)), columns=found, weights=weights)

    def largest(self, count: int) -> SparseRows:
        """Return the `count` largest entries of each row, columns in the order they have; ties to the first."""
        if not len(self) or int(self.counts.max()) <= count:
            return self
        chosen = torch.empty_like(self.columns, dtype=torch.bool)
        for start, stop in self.blocks():
            some = self.rows(start, stop)
            first, last = self.offsets[[start, stop]].tolist()
            owner, place = ranges(torch.zeros_like(some.counts), some.counts)
            order = (owner << 32 | (ONE - some.weights.long())).argsort(stable=True)
            chosen[first:last][order] = place < count
        counts = self.counts.clamp_max(count)
        return replace(
            self, offsets=offsets_of(counts), columns=self.columns[chosen], weights=self.weights[chosen]
        )

    def weighted(self, weights: torch.Tensor) -> SparseRows:
        """Return the same members with float `weights` (T,), 0 to 1, divided by their row's sum."""
        parts = torch.empty_like(self.weights)
        for start, stop in self.blocks():
            some = self.rows(start, stop)
            first, last = self.offsets[[start, stop]].tolist()
            owner = torch.repeat_interleave(some.counts)
            given = (weights[first:last].double() * ONE).round_().long()
            totals = torch.zeros(len(some), dtype=torch.int64, device=owner.device)
            totals.scatter_add_(0, owner, given)
            parts[first:last] = (given * (ONE / totals.double())[owner]).round_()
        return replace(self, weights=parts)

    def uniform(self) -> SparseRows:
        """Return the same members, all of a row with the same weight; they sum to `ONE` but for rounding."""
        counts = self.counts
        parts = ((ONE + counts // 2) // counts.clamp_min(1)).to(torch.int32)
        return replace(self, weights=parts.repeat_interleave(counts))

    def averaged(
        self,
        lists: torch.Tensor,
        shares: torch.Tensor | None = None,
        own: SparseRows | None = None,
        *,
        most: int | None = None,
        width: int = 0,
    ) -> SparseRows:
        """Return the mean of the rows that each list names: local query expansion. For N rows over N images.

        Args:
            lists: (n, k) int32 or int64, rows of this matrix; -1 pads.
            shares: (n, k) int64, the weight of each in the mean, from 0 to `WHOLE`; by default all the same.
            own: n rows that take part too, with weight `WHOLE`, unless they are empty.
            most: how many entries of a row to keep, the largest; None keeps all.
            width: how many columns there are; 0 is as many as rows.

        Returns:
            n rows, columns ascending.
        """
        if shares is None:
            shares = torch.ones_like(lists, dtype=torch.int64)
        shares = shares * (lists >= 0)
        divisors = shares.sum(dim=1)
        if own is not None:
            divisors = divisors + WHOLE * (own.counts > 0)
        return self._combined(lists, shares, own, divisors.clamp_min_(1), most, width)

    def totals(self, lists: torch.Tensor) -> SparseRows:
        """Return the sum of the rows that each list names, as `averaged` returns their mean."""
        shares = torch.ones_like(lists, dtype=torch.int64)
        return self._combined(lists, shares, None, shares.new_ones(len(lists)))

    def _combined(
        self,
        lists: torch.Tensor,
        shares: torch.Tensor,
        own: SparseRows | None,
        divisors: torch.Tensor,
        most: int | None = None,
        width: int = 0,
    ) -> SparseRows:
        """Rows of sums, divided and rounded; see `averaged`."""
        blocks = self._sums(lists, shares, own, divisors, width or len(self))
        return self._stacked(blocks, len(lists), most)

    def _sums(
        self,
        lists: torch.Tensor,
        shares: torch.Tensor,
        own: SparseRows | None,
        divisors: torch.Tensor,
        total: int,
    ) -> Iterator[SparseRows]:
        """The blocks of `_combined`, with `total` columns."""
        number = lists.shape[1]
        listed = lists >= 0
        counts = self.counts_of(lists.clamp_min(0).flatten().long()).mul_(listed.flatten()).view(lists.shape)
        sizes = counts.sum(dim=1)
        if own is not None:
            sizes += own.counts
        for start, stop in split_by_size(sizes, self.entries_at_a_time):
            some = lists[start:stop].clamp_min(0).flatten().long()
            entry, place = ranges(self.offsets[some], counts[start:stop].flatten())
            keys = entry.div(number, rounding_mode="floor").mul_(total).add_(self.columns[place])
            parts = self.weights[place] * shares[start:stop].flatten()[entry]
            if own is not None:
                mine = own.rows(start, stop)
                keys = torch.cat([keys, torch.repeat_interleave(mine.counts) * total + mine.columns])
                parts = torch.cat([parts, mine.weights.long() * WHOLE])
            distinct, found = summed(keys, parts)
            row = distinct.div(total, rounding_mode="floor")
            whole = divisors[start:stop][row]
            means = (found + whole // 2).div_(whole, rounding_mode="floor")
            yield self._rows_of(distinct, total, means, stop - start)

    @property
    def entries_at_a_time(self) -> int:
        """Entries to work on at a time within `chunk_bytes`."""
        return max(1, self.chunk_bytes // _ENTRY_BYTES)


def stacked(parts: Sequence[SparseRows]) -> SparseRows:
    """Return the rows of several matrices with the same columns, one after another."""
    offsets = offsets_of(torch.cat([part.counts for part in parts]))
    columns, weights = (torch.cat([getattr(part, name) for part in parts]) for name in ("columns", "weights"))
    return replace(parts[0], offsets=offsets, columns=columns, weights=weights)


def picked(parts: Sequence[SparseRows], lists: torch.Tensor) -> tuple[SparseRows, torch.Tensor]:
    """Return the rows that lists name among those of several matrices one after another, and lists of these.

    Args:
        parts: matrices with the same columns.
        lists: (n, k) int32 or int64, rows of all of them; -1 pads.

    Returns:
        Each row once, in a matrix of them alone, and (n, k) int64 which of its rows are named.
    """
    distinct, places = torch.unique(lists.clamp_min(0).long(), return_inverse=True)
    found, before = [], 0
    for part in parts:
        rows = distinct[(distinct >= before) & (distinct < before + len(part))] - before
        counts = part.counts_of(rows)
        _, entries = ranges(part.offsets[rows], counts)
        found.append(
            replace(
                part,
                offsets=offsets_of(counts),
                columns=part.columns[entries],
                weights=part.weights[entries],
            )
        )
        before += len(part)
    return stacked(found), places.masked_fill(lists < 0, -1)


def whole_parts(shares: torch.Tensor) -> torch.Tensor:
    """Return float shares, 0 to 1, as whole parts of `WHOLE`, int64."""
    return (shares * WHOLE).round_().long()


def summed(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distinct keys, ascending, and the sum of the values of each, all int64."""
    distinct, which = torch.unique(keys, return_inverse=True)
    return distinct, torch.zeros_like(distinct).scatter_add_(0, which, values)
