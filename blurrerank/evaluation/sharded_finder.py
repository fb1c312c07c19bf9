"""`ShardFinder`: finds the ranks of matches when each process has the similarities to its own gallery shard."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from ..compute.processes import Group
from ..data.positions import Positions
from ..data.sharded import ShardedSet
from ..data.sort_keys import NOBODY, from_sort_keys
from .match_finder import MatchFinder


class ShardFinder(MatchFinder):
    """Finds `Positions` when each process has the similarities to its own gallery rows.

    All processes must call `by_similarity` together; it returns the same result in all of them. Only the first
    process, which has all labels, looks at lists.

    Args:
        data: the features, with ids on both sides.
        single_shot: also find `Positions.within`.
        device: the device of the similarities.
        memory: the whole budget in bytes; the same in all processes.
    """

    def __init__(
        self, data: ShardedSet, *, single_shot: bool, device: torch.device, memory: int | None = None
    ) -> None:
        """Count the matches of each probe in each shard of the gallery."""
        self._processes: Group = data.group
        super().__init__(data.part, single_shot=single_shot, device=device, memory=memory)
        self._whole = None
        if not data.group.rank:
            self._whole = MatchFinder(data, single_shot=single_shot, device=device, memory=memory)
        self._widest = -(-len(data.gallery) // data.group.size)
        self._columns += data.shard.first
        if not len(self._order):
            self._order = np.zeros(1, dtype=np.int64)  # index 0 is read, and then masked
        if single_shot:
            self._images = self._sum_over_shards(self._images)
        first, last = self._spans(self._probe_ids)
        here = torch.from_numpy(last - first)
        counts = torch.stack(data.group.all_to_all([here] * data.group.size)).numpy()
        self._before = counts[: data.group.rank].sum(axis=0)
        self._number = counts.sum(axis=0)

    def in_lists(self, start: int, lists: torch.Tensor, before: Positions | None = None) -> Positions:
        """Return `MatchFinder.in_lists` on the first process; the others return `before` unchanged."""
        if self._whole is not None:
            return self._whole.in_lists(start, lists, before)
        assert before is not None
        return before

    def _chunks(
        self, start: int, count: int, width: int, *, per_match: bool = False
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        # All processes must cut the batch the same way, so use the width of the largest shard.
        return super()._chunks(start, count, self._widest, per_match=per_match)

    def _all_identities(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        identities = super()._all_identities(ids)
        if not self.single_shot:
            return identities
        return np.unique(self._processes.all_gather(torch.from_numpy(identities)).numpy())

    def _match_counts(
        self, probes: slice, here: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._before[probes], self._number[probes]

    def _match_keys(self, keys: torch.Tensor, matches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Index -1 reads the padding column, which is smaller than every key and so loses the maximum.
        keys = pad(keys, (0, 1), value=NOBODY)
        found = keys.gather(1, matches.remainder(keys.shape[1]))
        found = self._processes.all_reduce(found, "max")
        return found, from_sort_keys(found)[0]

    def _sum_over_shards(self, counts: torch.Tensor) -> torch.Tensor:
        return self._processes.all_reduce(counts, "sum")
