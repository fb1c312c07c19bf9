"""Where the matches stand when each process has the similarities to its own part of the gallery."""

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
    """Finds `Positions` from similarities of which each process has those to its own rows.

    All processes must come to `by_similarity` together; what it returns is the same everywhere. Lists are
    looked at on the first process alone, which knows all labels.

    Args:
        data: the features, with ids on both sides.
        single_shot: also find `Positions.within`.
        device: where similarities will come from.
        memory: the whole budget in bytes; the same in all processes.
    """

    def __init__(
        self, data: ShardedSet, *, single_shot: bool, device: torch.device, memory: int | None = None
    ) -> None:
        """Count the matches of each probe in each part of the gallery."""
        self._processes: Group = data.group
        super().__init__(data.part, single_shot=single_shot, device=device, memory=memory)
        self._whole = None
        if not data.group.rank:
            self._whole = MatchFinder(data, single_shot=single_shot, device=device, memory=memory)
        self._widest = -(-len(data.gallery) // data.group.size)
        self._columns += data.shard.first
        if not len(self._order):
            self._order = np.zeros(1, dtype=np.int64)  # read, in places that are then overwritten
        if single_shot:
            self._images = self._over_all(self._images)
        first, last = self._spans(self._probe_ids)
        here = torch.from_numpy(last - first)
        counts = torch.stack(data.group.exchanged([here] * data.group.size)).numpy()
        self._before = counts[: data.group.rank].sum(axis=0)
        self._number = counts.sum(axis=0)

    def in_lists(self, start: int, lists: torch.Tensor, before: Positions | None = None) -> Positions:
        """As `MatchFinder.in_lists` on the first process; on the others `before`, and nothing is looked at."""
        if self._whole is not None:
            return self._whole.in_lists(start, lists, before)
        assert before is not None
        return before

    def _chunks(
        self, start: int, count: int, width: int, *, per_match: bool = False
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        # All processes cut the batch alike, whatever they hold.
        return super()._chunks(start, count, self._widest, per_match=per_match)

    def _people_among(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        people = super()._people_among(ids)
        if not self.single_shot:
            return people
        return np.unique(self._processes.gathered(torch.from_numpy(people)).numpy())

    def _layout(self, probes: slice, here: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._before[probes], self._number[probes]

    def _wanted(self, keys: torch.Tensor, matches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # The last column, which -1 names as well, loses against every key there is.
        keys = pad(keys, (0, 1), value=NOBODY)
        found = keys.gather(1, matches.remainder(keys.shape[1]))
        found = self._processes.reduced(found, "max")
        return found, from_sort_keys(found)[0]

    def _over_all(self, counts: torch.Tensor) -> torch.Tensor:
        return self._processes.reduced(counts, "sum")
