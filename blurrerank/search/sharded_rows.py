"""Features of which each process of a `Group` holds a part of the gallery; rows that come from their owners.

The gallery is cut into contiguous slices in order of rank, so that global indices are local ones plus an
offset, and whatever is joined in order of rank is in order of index. Probes are read by every process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from ..compute.processes import Group
from ..data.side import Side
from ..data.sort_keys import NOBODY
from .rows import UnitRows


class FetchedRows:
    """The gallery rows that some candidates need, brought from the processes that hold them.

    Args:
        indices: int64, any shape, into the whole gallery; all that `gather` will be asked for.
        shard: the rows of this process.
        size: G, how many items the whole gallery has.
        group: the processes, all of which must come here.
    """

    def __init__(self, indices: torch.Tensor, shard: UnitRows, size: int, group: Group) -> None:
        """Ask the owners."""
        self.device, self.dim, self._size = shard.device, shard.dim, size
        self._distinct = torch.unique(indices)
        starts = [group.share(size, rank).start for rank in range(group.size)]
        cuts = torch.searchsorted(self._distinct, torch.tensor(starts, device=self.device)).tolist()
        wanted = [
            self._distinct[start:stop]
            for start, stop in zip(cuts, [*cuts[1:], len(self._distinct)], strict=True)
        ]
        asked = group.all_to_all(wanted)
        table, places = shard.gather(torch.cat(asked) - starts[group.rank])
        answers = torch.split(table.index_select(0, places), [len(part) for part in asked])
        self._table = torch.cat(group.all_to_all(answers))

    def __len__(self) -> int:
        return self._size

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `UnitRows.gather`, of rows that were fetched."""
        return self._table, torch.searchsorted(self._distinct, indices)


class ShardedImages(UnitRows):
    """Gallery rows, with or without probes before them, which come from their owners when they are asked for.

    All processes must ask for the same rows in the same order.
    """

    def __init__(self, probe: Side | None, gallery: Side, shard: UnitRows, group: Group) -> None:
        """Prepare to read; `shard` are the gallery rows of this process, in blocks that all agree on."""
        self.group, self._shard = group, shard
        self._size = len(gallery)
        sides = [gallery] if probe is None else [probe, gallery]
        super().__init__(
            *sides,
            device=shard.device,
            block=shard.block,
            resident=False,
            dtype=shard.dtype,
            # Half of what rows may take is for those of this process, half for those of others that pass by.
            budget=replace(shard.budget, held_rows=max(1, shard.budget.held_rows // 2)),
        )

    def spans(self, spans: Sequence[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """Yield the rows of each `(start, stop)` in turn, from their owners."""
        for start, stop in spans:
            yield self._fetch(start, stop)

    def _fetch(self, start: int, stop: int) -> torch.Tensor:
        rows = torch.empty(stop - start, self.dim, device=self.device)
        probes = len(self) - self._size
        if start < probes:
            some = UnitRows(self.sides[0], device=self.device, block=self.block, resident=False)
            rows[: min(stop, probes) - start] = some.rows(start, min(stop, probes))
        for rank in range(self.group.size):
            held = self.group.share(self._size, rank)
            first, last = max(start - probes, held.start), min(stop - probes, held.stop)
            if first < last:
                piece = rows[probes + first - start : probes + last - start]
                if rank == self.group.rank:
                    piece.copy_(self._shard.rows(first - held.start, last - held.start))
                self.group.broadcast(piece, rank)
        return rows

    def is_assigned_here(self, number: int) -> bool:
        """Whether this process does this piece of the work."""
        return bool(self.group.rank == number % self.group.size)

    def sum_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of each value over the processes."""
        return self.group.all_reduce(values, "sum")

    def merge_top_keys(self, keys: torch.Tensor) -> torch.Tensor:
        """The best keys of all processes, merged piece by piece, so that little more than `keys` is held."""
        for some in torch.split(keys, self.block):
            some.copy_(merged(some, some.shape[1], self.group))
        return keys


def merged(keys: torch.Tensor, count: int, group: Group) -> torch.Tensor:
    """The best `count` of each row's sort keys over all processes, everywhere.

    Each process merges its share of the rows, so that a key travels to one process, and a winner to all.

    Args:
        keys: (p, n) int64, of the same p rows in all processes; n may differ.
        count: how many to keep, up to as many as there are.
        group: the processes.

    Returns:
        (p, count) int64, best first.
    """
    return group.all_gather(best_of_share(keys, count, group))


def best_of_share(keys: torch.Tensor, count: int, group: Group) -> torch.Tensor:
    """As `merged`, but of the rows that are this process's share alone, and here alone."""
    # All lists have one length: a process with few rows fills up with keys that lose.
    widened = torch.full((len(keys), count), NOBODY, dtype=torch.int64, device=keys.device)
    widened[:, : keys.shape[1]] = keys[:, :count]
    found = group.all_to_all([widened[group.share(len(keys), rank)] for rank in range(group.size)])
    return torch.cat(found, dim=1).topk(count, dim=1).values if count else found[0]
