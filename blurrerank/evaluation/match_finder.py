"""`MatchFinder`: finds the ranks of each probe's matches in its full list.

The full lists are never stored: items ahead of a match are counted block by block as similarities are computed,
and re-ranking a head moves only the items in that head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from ..compute.device import DEFAULT_MEMORY
from ..data.features import FeatureSet
from ..data.labels import DISTRACTOR, JUNK
from ..data.positions import Positions
from ..data.sort_keys import sort_keys

MAX_RANK = 50
"""Length of cumulative match curves."""

# Bytes of working memory per chunk: small enough for the cache of a CPU, larger on a GPU.
_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}
# Bytes per element of a chunk: its key, the key with junk masked, its cell, and their copies.
_ELEMENT_BYTES = 48
_LAST = torch.iinfo(torch.int64).min
_PAD = torch.iinfo(torch.int64).max


class MatchFinder:
    """Finds `Positions` for consecutive probes of one `FeatureSet` that has ids.

    Args:
        data: the features, with ids on both sides.
        single_shot: also find `Positions.within`.
        device: the device of the similarities.
        memory: the whole budget in bytes (2 GiB by default); this class uses an eighth of it.
    """

    def __init__(
        self,
        data: FeatureSet,
        *,
        single_shot: bool,
        device: torch.device,
        memory: int | None = None,
    ) -> None:
        """Sort the gallery by identity."""
        assert data.probe.ids is not None
        assert data.gallery.ids is not None
        self.device = device
        self.single_shot = single_shot
        self._chunk = min((memory or DEFAULT_MEMORY) // 8, _CHUNK_BYTES[device.type])
        ids = data.gallery.ids
        self._probe_ids, self._ids = data.probe.ids, ids
        self._order = np.argsort(ids, kind="stable")
        self._sorted_ids = ids[self._order]
        self._junk = torch.from_numpy(ids == JUNK).to(device)
        self._columns = torch.arange(len(ids), device=device)
        # Identities numbered from 0; the last number is for distractors, and for junk, which is never counted.
        identities = self._all_identities(ids)
        group = np.searchsorted(identities, ids)
        group[ids <= DISTRACTOR] = len(identities)
        self._identities = identities
        self._group = torch.from_numpy(group).to(device)
        self._images = torch.from_numpy(np.bincount(group, minlength=len(identities) + 1)).to(device)

    def by_similarity(self, start: int, similarities: torch.Tensor) -> Positions:
        """Return the positions in the full lists by cosine similarity.

        Args:
            start: index of the first probe.
            similarities: (p, G) float32, for consecutive probes.
        """
        parts = []
        for rows, matches, present in self._chunks(start, len(similarities), similarities.shape[1]):
            keys = sort_keys(similarities[rows], self._columns)
            wanted, matches = self._match_keys(keys, matches)
            wanted = wanted.masked_fill(~present, _PAD)
            keys = keys.masked_fill(self._junk, _LAST)
            ranks, within = self._count(start, rows, keys, wanted, self._group)
            parts.append(_pack(matches, ranks, within, present))
        return Positions.concatenate(parts)

    def in_lists(self, start: int, lists: torch.Tensor, before: Positions | None = None) -> Positions:
        """Return the positions in the given lists, for consecutive probes.

        Args:
            start: index of the first probe.
            lists: (p, R) int64 gallery indices, best first, -1 past the end of a list.
            before: positions in the full lists, whose heads `lists` re-orders. An item outside its list keeps
                its rank from `before`; without `before` its rank is -1.
        """
        parts = []
        offset = 0
        for rows, matches, present in self._chunks(start, len(lists), lists.shape[1], per_match=True):
            heads = lists[rows]
            counted = (heads >= 0) & ~self._junk[heads.clamp_min(0)]
            keys = -torch.arange(heads.shape[1], device=self.device).expand_as(heads)
            found = (matches.unsqueeze(2) == heads.unsqueeze(1)) & present.unsqueeze(2)
            place = found.to(torch.int8).argmax(dim=2)
            listed = found.any(dim=2)
            wanted = keys.gather(1, place).masked_fill(~listed, _PAD)
            keys = keys.masked_fill(~counted, _LAST)
            ranks, within = self._count(start, rows, keys, wanted, self._group[heads.clamp_min(0)])
            ranks = ranks.masked_fill(~listed, -1)
            within = None if within is None else within.masked_fill(~listed.unsqueeze(2), 0.0)
            part = _pack(matches, ranks, within, present)
            if before is not None:
                part = _with_tail(part, before, offset, counted.sum(dim=1))
            offset += len(part.ranks)
            parts.append(part)
        return Positions.concatenate(parts)

    def is_consistent(self, found: Positions, lists: NDArray[Any]) -> bool:
        """Return whether positions fit the labels and the heads of the lists.

        Each match must occur once, and the matches in the lists must have their ranks there.

        Args:
            found: positions of all probes in the full lists.
            lists: (P, R) heads of these lists, -1 past the end of a list.
        """
        first, last = self._spans(self._probe_ids)
        offsets = np.concatenate([[0], np.cumsum(last - first)])
        if not np.array_equal(found.offsets, offsets) or (found.ranks < 0).any():
            return False
        owner = found.probes
        matches = self._order[first[owner] + np.arange(len(owner)) - offsets[owner]]
        counted = (lists >= 0) & ~self._junk.cpu().numpy()[np.maximum(lists, 0)]
        items, lengths = lists[counted], counted.sum(axis=1)
        listed = found.ranks < lengths[owner]
        places = (np.cumsum(lengths) - lengths)[owner[listed]] + found.ranks[listed]
        probe_ids = np.repeat(np.where(self._probe_ids > DISTRACTOR, self._probe_ids, JUNK), lengths)
        return (
            np.array_equal(found.indices, matches)
            and np.array_equal(items[places], matches[listed])
            and np.count_nonzero(self._ids[items] == probe_ids) == len(places)
        )

    def _chunks(
        self, start: int, count: int, width: int, *, per_match: bool = False
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Yield slices of the batch, the (c, m) matches of their probes, and which of these are not padding."""
        first, last = self._spans(self._probe_ids[start : start + count])
        before, numbers = self._match_counts(slice(start, start + count), last - first)
        most = int(numbers.max(initial=0))
        per_probe = width * max(1, most if per_match else 1)
        if self.single_shot:
            per_probe = max(per_probe, (most + 1) * len(self._images))
        step = max(1, self._chunk // (_ELEMENT_BYTES * max(1, per_probe)))
        for top in range(0, count, step):
            rows = slice(top, min(top + step, count))
            number = numbers[rows, None]
            place = np.arange(number.max(initial=0))
            present = place < number
            at = first[rows, None] + place - before[rows, None]
            local = present & (at >= first[rows, None]) & (at < last[rows, None])
            matches = np.where(local, self._order[np.where(local, at, 0)], -1)
            yield rows, torch.from_numpy(matches).to(self.device), torch.from_numpy(present).to(self.device)

    def _spans(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the matches for these probe `ids` begin and end in the gallery sorted by identity."""
        first = np.searchsorted(self._sorted_ids, ids, side="left")
        last = np.searchsorted(self._sorted_ids, ids, side="right")
        last[ids <= DISTRACTOR] = first[ids <= DISTRACTOR]
        return first, last

    # `ShardFinder` overrides these four for a sharded gallery.

    def _all_identities(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return all identities of the gallery, ascending, from the `ids` of this process."""
        return np.unique(ids[ids > DISTRACTOR])

    def _match_counts(
        self, probes: slice, here: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return per probe the matches in lower shards and in all, given those `here`."""
        return np.zeros_like(here), here

    def _match_keys(self, keys: torch.Tensor, matches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and gallery indices of the (c, m) matches; -1 marks a match in another shard."""
        return keys.gather(1, matches.clamp_min(0)), matches

    def _sum_over_shards(self, counts: torch.Tensor) -> torch.Tensor:
        """Return counts over the whole gallery."""
        return counts

    def _count(
        self, start: int, rows: slice, keys: torch.Tensor, wanted: torch.Tensor, group: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return how many items rank ahead of each match, and `Positions.within`.

        Args:
            start: the first probe of the batch.
            rows: the probes of this chunk within the batch.
            keys: (c, C) int64 sort keys, larger ranks higher.
            wanted: (c, m) int64, the keys of the matches, `_PAD` for padding.
            group: (C,) or (c, C), the number of each item's identity.
        """
        probes, most = wanted.shape
        wanted, order = wanted.sort(dim=1)
        # An item ahead of b of the matches is counted in cell b. The items ahead of a match are then those
        # counted in the cells above its own.
        cells = torch.searchsorted(wanted, keys)
        cells += torch.arange(probes, device=self.device).unsqueeze(1) * (most + 1)
        groups = len(self._images) if self.single_shot else 1
        if self.single_shot:
            cells = cells * groups + group
        counted = torch.bincount(cells.flatten(), minlength=probes * (most + 1) * groups)
        ahead = counted.view(probes, most + 1, groups).flip(1).cumsum(1).flip(1)[:, 1:]
        ahead = self._sum_over_shards(ahead)
        ahead = torch.empty_like(ahead).scatter_(1, order.unsqueeze(2).expand_as(ahead), ahead)
        ranks = ahead.sum(dim=2)
        if not self.single_shot:
            return ranks, None
        own = np.searchsorted(self._identities, self._probe_ids[start : start + rows.stop][rows])
        return ranks, self._single_shot_within(ahead, torch.from_numpy(own).to(self.device))

    def _single_shot_within(self, ahead: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return `Positions.within`: (c, m, K) float64, the probabilities under single-shot draws.

        Entry k is the probability that at most k = 0 .. K - 1 other identities rank ahead of the match. Each
        other identity is ahead, independently, with the probability that the image drawn of it is ahead; so
        their number has a Poisson binomial distribution, built up one identity at a time. All distractors
        always stay in the gallery.

        Args:
            ahead: (c, m, I + 1) number of images ahead of each match, by identity, distractors last.
            own: (c,) number of the probe's own identity, which is left out.
        """
        chance = ahead.to(torch.float64) / self._images.clamp_min(1)
        own = own.clamp_max(len(self._images) - 1).view(-1, 1, 1).expand(-1, chance.shape[1], 1)
        chance = chance.scatter(2, own, 0.0)
        exactly = torch.zeros(*ahead.shape[:2], MAX_RANK, dtype=torch.float64, device=self.device)
        exactly[:, :, 0] = 1.0
        for j in torch.nonzero(chance[:, :, :-1].flatten(0, 1).any(dim=0)).flatten().tolist():
            p = chance[:, :, j : j + 1]
            shifted = pad(exactly, (1, 0))[:, :, :-1]
            exactly = exactly * (1 - p) + shifted * p
        at_most = exactly.cumsum(dim=2)
        left = torch.arange(MAX_RANK, device=self.device) - ahead[:, :, -1:]
        return at_most.gather(2, left.clamp_min(0)).masked_fill(left < 0, 0.0)


def _pack(
    matches: torch.Tensor, ranks: torch.Tensor, within: torch.Tensor | None, present: torch.Tensor
) -> Positions:
    """Return `Positions` without the padding."""
    counts = present.sum(dim=1).cpu().numpy()
    return Positions(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        matches[present].cpu().numpy(),
        ranks[present].cpu().numpy(),
        None if within is None else within[present].cpu().numpy(),
    )


def _with_tail(head: Positions, full: Positions, offset: int, counted: torch.Tensor) -> Positions:
    """Fill the unlisted entries of `head` from `full`, starting at entry `offset` of `full`.

    An item outside the head ranks behind all `counted` (p,) items of it, even if rounding says otherwise.
    """
    entries = slice(offset, offset + len(head.ranks))
    unlisted: NDArray[np.bool_] = head.ranks < 0
    tail = np.maximum(full.ranks[entries], counted.cpu().numpy()[head.probes])
    within = None
    if head.within is not None and full.within is not None:
        within = np.where(unlisted[:, None], full.within[entries], head.within)
    return Positions(head.offsets, head.indices, np.where(unlisted, tail, head.ranks), within)
