"""The best candidates of many images, kept up to date while blocks of products pass by."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..data.sort_keys import NOBODY, from_sort_keys, sort_keys
from ..search.precision import ceiling
from ..search.rows import UnitRows
from ..search.tiles import greatest


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
        largest: whether the greatest products count.
    """

    def __init__(self, images: UnitRows, width: int, *, largest: bool = True) -> None:
        self.keys = torch.full((len(images), width), NOBODY, device=images.device)
        # The product that ends each list.
        self._ends = torch.full((len(images),), -torch.inf, device=images.device)
        self._dtype = images.dtype
        self.sign = 1 if largest else -1

    def start_from(self, similarities: torch.Tensor, items: torch.Tensor) -> None:
        """Begin with (m, w) exact similarities of the first m images to `items`, of which -1 are none."""
        some, width = slice(0, len(items)), items.shape[1]
        keys = sort_keys(self.sign * similarities, items.clamp_min(0))
        self.keys[some, :width] = keys.masked_fill_(items < 0, NOBODY)
        self._note_ends(torch.arange(len(items), device=self.keys.device))

    def update(
        self,
        images: torch.Tensor,
        products: torch.Tensor,
        others: torch.Tensor,
        starts: torch.Tensor | None = None,
    ) -> None:
        """Take note of products.

        Args:
            images: (n,) int64, whose lists may change.
            products: (n, m) float32, -inf where there is none.
            others: (M,) int64, the images that products are with.
            starts: (n,) int64, which of `others` the first product of each row is with; 0 by default.
        """
        width = self.keys.shape[1]
        if not width:
            return
        best = products.amax(dim=1) if self.sign > 0 else products.amin(dim=1).neg_()
        some = torch.nonzero(best > self._ends[images]).flatten()
        if not len(some):
            return
        if len(some) < len(products):
            products = products.index_select(0, some)
        values, places = greatest(products if self.sign > 0 else -products, min(width, products.shape[1]))
        if starts is not None:
            places = places.add_(starts[some].unsqueeze(1)).clamp_max_(len(others) - 1)
        keys = sort_keys(values.to(torch.float32), others[places])
        keys.masked_fill_(values == -torch.inf, NOBODY)
        some = images[some]
        merged = torch.cat([self.keys[some], keys], dim=1)
        self.keys[some] = merged.topk(width, dim=1).values
        self._note_ends(some)

    def merge_processes(self, images: UnitRows) -> None:
        """Take the best of what all processes have met."""
        self.keys = images.merge_top_keys(self.keys)
        self._note_ends(torch.arange(len(self.keys), device=self.keys.device))

    def unlisted_score_bound(self, some: slice) -> torch.Tensor:
        """Return what no product in exact arithmetic with an image that is not listed exceeds."""
        return ceiling(self._ends[some], self._dtype)

    def _note_ends(self, some: torch.Tensor) -> None:
        if not self.keys.shape[1]:
            return
        last = self.keys[some].amin(dim=1)
        self._ends[some] = from_sort_keys(last)[1].masked_fill_(last == NOBODY, -torch.inf)
