"""k-reciprocal encodings: sparse rows over images, built and compared without a loop over images.

Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017,
arXiv:1701.08398, sections 3.3 to 3.5. `methods/k_reciprocal.py` has the definition as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

ONE = 1 << 30
"""What the weights of an encoding sum to. Weights are whole numbers: their sums are then the same in every
order, so that the lists depend neither on how the work is cut nor on the order in which a GPU adds."""

WHOLE = 1 << 20
"""What an image's own encoding counts in query expansion where the others count less, in whole parts too."""

# Bytes worked on at a time, in several arrays: a CPU's share should stay in cache, a GPU wants more.
CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}

# What expanding, averaging and comparing take for each entry: its key or place, its weight, and their copies.
_ENTRY_BYTES = 64


@dataclass(frozen=True)
class SparseRows:
    """A matrix with few entries in each row.

    Attributes:
        offsets: (N + 1,) int64: row i owns the entries `offsets[i]:offsets[i + 1]`.
        columns: (T,) int32 or int64, each at most once in a row.
        weights: (T,) int32.
    """

    offsets: torch.Tensor
    columns: torch.Tensor
    weights: torch.Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> torch.Tensor:
        """(N,) entries of each row."""
        return self.offsets.diff()

    def rows(self, start: int, stop: int) -> SparseRows:
        """Rows `start:stop`, sharing memory."""
        first, last = self.offsets[[start, stop]].tolist()
        offsets = self.offsets[start : stop + 1] - first
        return SparseRows(offsets, self.columns[first:last], self.weights[first:last])

    def cut(self, chunk: int) -> Iterator[tuple[int, int]]:
        """Consecutive `(start, stop)` of rows, to work on within `chunk` bytes."""
        return pieces(self.counts, max(1, chunk // _ENTRY_BYTES))

    def to(self, device: torch.device) -> SparseRows:
        """The same on `device`; what is there already is shared."""
        return SparseRows(self.offsets.to(device), self.columns.to(device), self.weights.to(device))

    def clone(self) -> SparseRows:
        """The same in memory of its own."""
        return SparseRows(self.offsets.clone(), self.columns.clone(), self.weights.clone())

    def transposed(self, width: int, chunk: int) -> SparseRows:
        """The other way round, of `width` rows: in which rows, ascending, each column appears.

        Works with `chunk` bytes at a time.
        """
        columns, weights = torch.empty_like(self.columns), torch.empty_like(self.weights)
        per_column = torch.zeros(width, dtype=torch.int64, device=self.columns.device)
        for part in torch.split(self.columns, max(1, chunk // _ENTRY_BYTES)):
            per_column += torch.bincount(part, minlength=width)
        offsets = offsets_of(per_column)
        free = offsets[:-1].clone()
        for start, stop in self.cut(chunk):
            some = self.rows(start, stop)
            column, order = some.columns.long().sort(stable=True)
            found = torch.bincount(column, minlength=width)
            # The place of an entry among those of its column in this piece.
            nth = torch.arange(len(column), device=column.device) - (found.cumsum(0) - found)[column]
            to = free[column] + nth
            columns[to] = (start + torch.repeat_interleave(some.counts)).to(columns.dtype)[order]
            weights[to] = some.weights[order]
            free += found
        return SparseRows(offsets, columns, weights)


def ranges(starts: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers `starts[r]` to `starts[r] + counts[r] - 1` for each r in turn.

    Args:
        starts: (R,) int64.
        counts: (R,) int64, may be 0.

    Returns:
        `(owner, number)`, both (sum of counts,) int64: the r of each number, and the number.
    """
    owner = torch.repeat_interleave(counts)
    number = torch.arange(len(owner), device=owner.device)
    number += (starts - counts.cumsum(0) + counts)[owner]
    return owner, number


def pieces(sizes: torch.Tensor, limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive `(start, stop)` whose `sizes` sum to at most `limit`, or that are a single element."""
    ends = sizes.cumsum(0).cpu().numpy()
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield start, stop
        start = stop


def mutual(lists: torch.Tensor, chunk: int) -> SparseRows:
    """Those of each image's list that have the image in theirs; weights are still to be found and all 0.

    Args:
        lists: (N, K) int32 or int64, each image itself and its nearest others.
        chunk: bytes to work with at a time.
    """
    step = max(1, chunk // (8 * lists.shape[1] ** 2))
    counts, columns = [], []
    for start in range(0, len(lists), step):
        some = lists[start : start + step]
        itself = torch.arange(start, start + len(some), device=lists.device).view(-1, 1, 1)
        found = (lists[some.long()] == itself).any(dim=2)
        counts.append(found.sum(dim=1))
        columns.append(some[found])
    members = torch.cat(columns)
    return SparseRows(offsets_of(torch.cat(counts)), members, torch.zeros_like(members, dtype=torch.int32))


def expand(reciprocal: SparseRows, halves: SparseRows, chunk: int) -> SparseRows:
    """R*: who is in each image's encoding; the weights are still to be found and all 0.

    Args:
        reciprocal: R, n rows over N images.
        halves: r, the reciprocal neighbours within half lists of all N images.
        chunk: bytes to work with at a time.
    """
    total = len(halves)
    half_counts = halves.counts
    sizes = torch.zeros(len(reciprocal), dtype=torch.int64, device=halves.columns.device)
    owner = torch.repeat_interleave(reciprocal.counts)
    sizes.scatter_add_(0, owner, half_counts[reciprocal.columns.long()])
    counts, columns = [], []
    for start, stop in pieces(sizes, max(1, chunk // _ENTRY_BYTES)):
        some = reciprocal.rows(start, stop)
        candidates = some.columns.long()
        image = torch.repeat_interleave(some.counts)
        members = (image * total + candidates).sort().values
        # Every half list of every candidate, as keys of the image and who is in the list.
        candidate, place = ranges(halves.offsets[candidates], half_counts[candidates])
        theirs = image[candidate] * total + halves.columns[place]
        at = torch.searchsorted(members, theirs).clamp_max_(max(0, len(members) - 1))
        inside = torch.bincount(candidate[members[at] == theirs], minlength=len(candidates))
        grows = 3 * inside > 2 * half_counts[candidates]
        everyone = torch.unique(torch.cat([members, theirs[grows[candidate]]]))
        counts.append(torch.bincount(everyone // total, minlength=stop - start))
        columns.append((everyone % total).to(halves.columns.dtype))
    found = torch.cat(columns)
    return SparseRows(offsets_of(torch.cat(counts)), found, torch.zeros_like(found, dtype=torch.int32))


def weighted(members: SparseRows, weights: torch.Tensor, chunk: int) -> SparseRows:
    """`members` with float `weights` (T,), 0 to 1, divided by their row's sum and as whole parts of `ONE`."""
    parts = torch.empty_like(members.weights)
    for start, stop in members.cut(chunk):
        some = members.rows(start, stop)
        first, last = members.offsets[[start, stop]].tolist()
        owner = torch.repeat_interleave(some.counts)
        given = (weights[first:last].double() * ONE).round_().long()
        totals = torch.zeros(len(some), dtype=torch.int64, device=owner.device).scatter_add_(0, owner, given)
        parts[first:last] = (given * (ONE / totals.double())[owner]).round_()
    return replace(members, weights=parts)


def average(
    encodings: SparseRows,
    lists: torch.Tensor,
    shares: torch.Tensor,
    chunk: int,
    *,
    own: SparseRows | None = None,
) -> SparseRows:
    """Local query expansion: the mean of the rows in each list, weighted by `shares`.

    Args:
        encodings: N rows.
        lists: (n, k) int32 or int64.
        shares: (n, k) int64, what each of the list counts, from 0 to `WHOLE`.
        chunk: bytes to work with at a time.
        own: n rows that take part too and count `WHOLE`, unless they are empty.

    Returns:
        n rows.
    """
    total, number = len(encodings), lists.shape[1]
    counts = encodings.counts
    sizes = counts[lists.flatten().long()].view(len(lists), number).sum(dim=1)
    sums = shares.sum(dim=1)
    if own is not None:
        sizes += own.counts
        sums = sums + WHOLE * (own.counts > 0)
    new_counts, columns, weights = [], [], []
    for start, stop in pieces(sizes, max(1, chunk // _ENTRY_BYTES)):
        some = lists[start:stop].flatten().long()
        entry, place = ranges(encodings.offsets[some], counts[some])
        keys = entry.div(number, rounding_mode="floor").mul_(total).add_(encodings.columns[place])
        parts = encodings.weights[place] * shares[start:stop].flatten()[entry]
        if own is not None:
            mine = own.rows(start, stop)
            keys = torch.cat([keys, torch.repeat_interleave(mine.counts) * total + mine.columns])
            parts = torch.cat([parts, mine.weights.long() * WHOLE])
        distinct, which = torch.unique(keys, return_inverse=True)
        found = torch.zeros_like(distinct).scatter_add_(0, which, parts)
        row = distinct.div(total, rounding_mode="floor")
        whole = sums[start:stop][row]
        new_counts.append(torch.bincount(row, minlength=stop - start))
        columns.append((distinct % total).to(encodings.columns.dtype))
        weights.append((found + whole // 2).div_(whole, rounding_mode="floor").to(torch.int32))
    joined = torch.cat(columns)
    columns.clear()  # not to hold them twice while the weights are joined
    return SparseRows(offsets_of(torch.cat(new_counts)), joined, torch.cat(weights))


def overlaps(probes: SparseRows, inverted: SparseRows, gallery: int, chunk: int) -> torch.Tensor:
    """s = sum_j min(V_pj, V_gj) of every probe with every gallery item, through the inverted lists.

    Args:
        probes: encodings of p probes.
        inverted: for each image j, the gallery items with j in their encoding.
        gallery: G, how many items the gallery has.
        chunk: bytes to work with at a time.

    Returns:
        (p, G) float32, 0 to 1 but for the rounding of the weights.
    """
    found = torch.zeros(len(probes) * gallery, dtype=torch.int32, device=probes.columns.device)
    row, _ = ranges(probes.offsets[:-1], probes.counts)
    columns = probes.columns.long()
    starts = inverted.offsets[columns]
    counts = inverted.offsets[columns + 1] - starts
    for first, last in pieces(counts, max(1, chunk // _ENTRY_BYTES)):
        owner, place = ranges(starts[first:last], counts[first:last])
        shared = torch.minimum(probes.weights[first:last][owner], inverted.weights[place])
        at = (row[first:last] * gallery)[owner].add_(inverted.columns[place])
        found.scatter_add_(0, at, shared)
    return found.view(len(probes), gallery) * (1 / ONE)


def offsets_of(counts: torch.Tensor) -> torch.Tensor:
    """The `SparseRows.offsets` of rows with so many entries."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
