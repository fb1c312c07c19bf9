"""Where the gallery items of each probe's identity stand in its full list.

The full list of every probe is never stored: items ahead of a match are counted while the probe's
similarities pass by, and re-ranking a head moves only what is in that head.
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
"""How far cumulative match curves reach."""

# Bytes worked on at a time, in several arrays: a CPU's share should stay in cache, a GPU wants more.
_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}
# What one element of a chunk takes: its key, the key with junk masked, its cell, and their copies.
_ELEMENT_BYTES = 48
_LAST = torch.iinfo(torch.int64).min
_PAD = torch.iinfo(torch.int64).max


class MatchFinder:
    """Finds `Positions` for consecutive probes of one `FeatureSet` that has ids.

    Args:
        data: the features, with ids on both sides.
        single_shot: also find `Positions.within`.
        device: where similarities will come from.
        memory: the whole budget in bytes (2 GiB by default), of which an eighth is worked in here.
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
        # Identities numbered from 0; distractors come last, as they are nobody, and junk with them, uncounted.
        people = self._people_among(ids)
        group = np.searchsorted(people, ids)
        group[ids <= DISTRACTOR] = len(people)
        self._people = people
        self._group = torch.from_numpy(group).to(device)
        self._images = torch.from_numpy(np.bincount(group, minlength=len(people) + 1)).to(device)

    def by_similarity(self, start: int, similarities: torch.Tensor) -> Positions:
        """Positions in the full lists by cosine similarity.

        Args:
            start: the first probe.
            similarities: (p, G) float32, of consecutive probes.
        """
        parts = []
        for rows, matches, present in self._chunks(start, len(similarities), similarities.shape[1]):
            keys = sort_keys(similarities[rows], self._columns)
            wanted, matches = self._wanted(keys, matches)
            wanted = wanted.masked_fill(~present, _PAD)
            keys = keys.masked_fill(self._junk, _LAST)
            ranks, within = self._count(start, rows, keys, wanted, self._group)
            parts.append(_pack(matches, ranks, within, present))
        return Positions.concatenate(parts)

    def in_lists(self, start: int, lists: torch.Tensor, before: Positions | None = None) -> Positions:
        """Positions in lists that are given, for consecutive probes.

        Args:
            start: the first probe.
            lists: (p, R) int64 gallery indices, best first, -1 where a list has ended.
            before: positions in the full lists of which `lists` are a re-ordered head. An item that is not in
                its list keeps the rank it has there; without `before` its rank is -1.
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

    def agrees(self, found: Positions, lists: NDArray[Any]) -> bool:
        """Whether `found`, of all probes and the whole gallery, can be where the matches stand.

        It has to name each match once, and those of the lists in the places that they have there.

        Args:
            found: positions in the full lists.
            lists: (P, R) heads of these, -1 where a list has ended.
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
        mine = np.repeat(np.where(self._probe_ids > DISTRACTOR, self._probe_ids, JUNK), lengths)
        return (
            np.array_equal(found.indices, matches)
            and np.array_equal(items[places], matches[listed])
            and np.count_nonzero(self._ids[items] == mine) == len(places)
        )

    def _chunks(
        self, start: int, count: int, width: int, *, per_match: bool = False
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Slices of the batch, with (c, m) matches of their probes and which of these are not padding."""
        first, last = self._spans(self._probe_ids[start : start + count])
        before, numbers = self._layout(slice(start, start + count), last - first)
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
            held = present & (at >= first[rows, None]) & (at < last[rows, None])
            matches = np.where(held, self._order[np.where(held, at, 0)], -1)
            yield rows, torch.from_numpy(matches).to(self.device), torch.from_numpy(present).to(self.device)

    def _spans(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where in the gallery sorted by identity the matches of probes with these `ids` begin and end."""
        first = np.searchsorted(self._sorted_ids, ids, side="left")
        last = np.searchsorted(self._sorted_ids, ids, side="right")
        last[ids <= DISTRACTOR] = first[ids <= DISTRACTOR]
        return first, last

    # What follows is where a gallery that is cut into parts differs.

    def _people_among(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """All identities of the gallery, ascending, from the ids that are here."""
        return np.unique(ids[ids > DISTRACTOR])

    def _layout(self, probes: slice, here: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many matches of each probe come before those that are `here`, and how many there are in all."""
        return np.zeros_like(here), here

    def _wanted(self, keys: torch.Tensor, matches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and gallery indices of the (c, m) matches, of which -1 are not here."""
        return keys.gather(1, matches.clamp_min(0)), matches

    def _over_all(self, counts: torch.Tensor) -> torch.Tensor:
        """Counts over the whole gallery."""
        return counts

    def _count(
        self, start: int, rows: slice, keys: torch.Tensor, wanted: torch.Tensor, group: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """How many items stand ahead of each wanted one, and `Positions.within`.

        Args:
            start: the batch's first probe.
            rows: the probes of this chunk within the batch.
            keys: (c, C) int64, greater is nearer the front.
            wanted: (c, m) int64, the keys of the matches, `_PAD` for padding.
            group: (C,) or (c, C), the identity of each item.
        """
        probes, most = wanted.shape
        wanted, order = wanted.sort(dim=1)
        # An item ahead of b of the matches is counted in cell b; a match then has ahead of it whatever was
        # counted in the cells above its own.
        cells = torch.searchsorted(wanted, keys)
        cells += torch.arange(probes, device=self.device).unsqueeze(1) * (most + 1)
        groups = len(self._images) if self.single_shot else 1
        if self.single_shot:
            cells = cells * groups + group
        counted = torch.bincount(cells.flatten(), minlength=probes * (most + 1) * groups)
        ahead = counted.view(probes, most + 1, groups).flip(1).cumsum(1).flip(1)[:, 1:]
        ahead = self._over_all(ahead)
        ahead = torch.empty_like(ahead).scatter_(1, order.unsqueeze(2).expand_as(ahead), ahead)
        ranks = ahead.sum(dim=2)
        if not self.single_shot:
            return ranks, None
        own = np.searchsorted(self._people, self._probe_ids[start : start + rows.stop][rows])
        return ranks, self._draws(ahead, torch.from_numpy(own).to(self.device))

    def _draws(self, ahead: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """(c, m, K) probability that at most k = 0 .. K - 1 others stand ahead in a single-shot draw.

        Each other identity j is ahead with the probability that the image drawn of it is, independently; so
        their number has the Poisson binomial distribution, built up one identity at a time. Every distractor
        is always in the gallery.

        Args:
            ahead: (c, m, I + 1) images ahead of each match, by identity, distractors last.
            own: (c,) the identity of the probe, which is left out.
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
    """Drop the padding."""
    counts = present.sum(dim=1).cpu().numpy()
    return Positions(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        matches[present].cpu().numpy(),
        ranks[present].cpu().numpy(),
        None if within is None else within[present].cpu().numpy(),
    )


def _with_tail(head: Positions, full: Positions, offset: int, counted: torch.Tensor) -> Positions:
    """`head`, with what it does not list taken from entry `offset` on of `full`.

    An item outside the head cannot stand among the `counted` (p,) items of it, whatever rounding says.
    """
    entries = slice(offset, offset + len(head.ranks))
    unlisted: NDArray[np.bool_] = head.ranks < 0
    tail = np.maximum(full.ranks[entries], counted.cpu().numpy()[head.probes])
    within = None
    if head.within is not None and full.within is not None:
        within = np.where(unlisted[:, None], full.within[entries], head.within)
    return Positions(head.offsets, head.indices, np.where(unlisted, tail, head.ranks), within)
