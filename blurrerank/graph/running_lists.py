"""The best candidates of many images, kept up to date while tiles of products pass by.

A list has room for more candidates than it keeps: new ones are put behind it, and only when there is no room
left is it cut to the best. What does not reach the end of a list is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..data.ranges import ranges
from ..data.sort_keys import NOBODY, from_sort_keys, sort_keys
from ..search.precision import ceiling
from ..search.rows import UnitRows, blocks_of

# Room behind a list: a share of it, and at least so much.
_ROOM_SHARE, _ROOM_LEAST = 0.5, 4
# Lists cut at a time.
_CUT_ROWS = 4096


@dataclass(frozen=True)
class Pairs:
    """Which other images an image may be listed with: an image itself never is.

    Attributes:
        cams: (N,) int64 cameras; None if any other image will do.
        same: with cameras, whether those of the own camera are wanted or those of all others.
    """

    cams: torch.Tensor | None = None
    same: bool = True

    def allowed(self, images: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return (n, stop - start) bool: may each of `images` be listed with those from `start` on?"""
        others = torch.arange(start, stop, device=images.device)
        found = others != images.unsqueeze(1)
        if self.cams is not None:
            alike = self.cams[start:stop] == self.cams[images].unsqueeze(1)
            found &= alike if self.same else ~alike
        return found

    def alike(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor | None:
        """Return bool, which pairs of two different images may be listed; None if all may."""
        if self.cams is None:
            return None
        return (self.cams[images] == self.cams[others]) == self.same

    def may_be(self, *, same: bool) -> bool:
        """Return whether an image of the own camera may be listed, or one of another."""
        return self.cams is None or self.same == same

    def available(self, met: int) -> torch.Tensor:
        """Return (met,) int64, how many of the first `met` images each of them may be listed with."""
        if self.cams is None:
            return torch.full((met,), met - 1)
        order = self.cams[:met].sort().values
        first = torch.searchsorted(order, self.cams[:met])
        last = torch.searchsorted(order, self.cams[:met], right=True)
        own = last - first
        return own - 1 if self.same else met - own


class RunningLists:
    """For each image those with the greatest products, or the smallest, of all it has met.

    Args:
        images: N rows.
        width: candidates for an image.
        pairs: which images may be listed.
        largest: whether the greatest products count.
    """

    def __init__(self, images: UnitRows, width: int, pairs: Pairs, *, largest: bool = True) -> None:
        self.width = width
        self.pairs = pairs
        self.sign = 1 if largest else -1
        room = max(_ROOM_LEAST, int(_ROOM_SHARE * width)) if width else 0
        self._keys = torch.full((len(images), width + room), NOBODY, device=images.device)
        self._filled = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self._dtype = images.dtype
        self.ends = torch.full((len(images),), -torch.inf, device=images.device)
        """(N,) float32: the product, or minus it, that another one must exceed to be a candidate."""

    def start_from(self, similarities: torch.Tensor, items: torch.Tensor) -> None:
        """Begin with (m, w) exact similarities of the first m images to `items`, of which -1 are none."""
        some, width = slice(0, len(items)), items.shape[1]
        keys = sort_keys(self.sign * similarities, items.clamp_min(0))
        self._keys[some, :width] = keys.masked_fill_(items < 0, NOBODY)
        self._filled[some] = width
        self._cut(torch.arange(len(items), device=keys.device))

    def offer(self, images: torch.Tensor, others: torch.Tensor, products: torch.Tensor) -> None:
        """Take note of products, negative ones where the smallest count.

        Args:
            images: (E,) int64, whose lists may change; equal ones side by side.
            others: (E,) int64, whom they may list.
            products: (E,) float32, -inf where there is none.
        """
        alike = self.pairs.alike(images, others)
        while len(images):
            reach = products > self.ends[images]
            if alike is not None:
                reach, alike = reach & alike, None
            images, others, products = _where(reach, images, others, products)
            distinct, runs = torch.unique_consecutive(images, return_counts=True)
            _, places = ranges(self._filled[distinct], runs)
            fits = places < self._keys.shape[1]
            some, free, *fitting = _where(fits, images, places, products, others)
            self._keys[some, free] = sort_keys(*fitting)
            self._filled.index_add_(0, some, torch.ones_like(some))
            images, others, products = _where(~fits, images, others, products)
            self._cut(torch.unique_consecutive(images))

    def best(self, some: slice) -> torch.Tensor:
        """Return (n, width) sort keys of the candidates of some images, best first, `NOBODY` after the last."""
        images = torch.arange(len(self._keys), device=self._keys.device)[some]
        # A list that was cut, and that nothing was put behind since, is as it should be.
        self._cut(images[(self._filled[images] > self.width) | (self.ends[images] == -torch.inf)])
        return self._keys[some, : self.width]

    def merge_processes(self, images: UnitRows) -> None:
        """Take the best of what all processes have met."""
        for start, stop in blocks_of(len(self._keys), _CUT_ROWS):
            self.best(slice(start, stop))
        self._keys[:, : self.width] = images.merge_top_keys(self._keys[:, : self.width])
        self._filled.fill_(self.width)
        self._note_ends(slice(None))

    def unlisted_score_bound(self, some: slice) -> torch.Tensor:
        """Return what no product in exact arithmetic with an image that is not listed exceeds."""
        return ceiling(self.ends[some], self._dtype)

    def _cut(self, images: torch.Tensor) -> None:
        """Keep the best of the lists of some images, and note where these end."""
        if not self.width:
            return
        for some in torch.split(images, _CUT_ROWS):
            self._keys[some, : self.width] = self._keys[some].topk(self.width, dim=1).values
            self._keys[some, self.width :] = NOBODY
            self._filled[some] = self._filled[some].clamp_max_(self.width)
            self._note_ends(some)

    def _note_ends(self, some: slice | torch.Tensor) -> None:
        """Note where lists end that are cut and have their best candidates first."""
        if self.width:
            last = self._keys[some, self.width - 1]
            self.ends[some] = from_sort_keys(last)[1].masked_fill_(last == NOBODY, -torch.inf)


def _where(mask: torch.Tensor, *values: torch.Tensor) -> list[torch.Tensor]:
    """Those of (E,) values where a mask is set: finding the places once is faster than indexing by the mask."""
    places = torch.nonzero(mask).flatten()
    return [each.index_select(0, places) for each in values]
