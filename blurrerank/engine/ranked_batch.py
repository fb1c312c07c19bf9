"""The lists of consecutive probes, and where the matches stand in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.positions import Positions
from ..data.sort_keys import index_dtype, strictly_decreasing
from ..evaluation.match_finder import MatchFinder


@dataclass(frozen=True)
class RankedBatch:
    """The lists of consecutive probes, on the device they were made on.

    Attributes:
        start: the first probe.
        gallery_size: G, how many items the gallery has.
        indices: (p, R) int64 into the gallery, best first; R is the depth asked for, or the re-ranked head's.
        scores: (p, R) float32; head and tail are each descending.
        reranked: how many items at the head may have changed place.
        similarities: gives the (p, g) float32 cosine similarities to the g gallery items of this process, which
            are all of them in one process, where asked for.
        final: (p, g) float32, the new scores of these items, from methods that rank the whole gallery.
        given: (p, R) int64, lists that came from elsewhere, by cosine similarity. R is then that of the longest
            of these, and past the end of a list indices are -1 and scores -inf.
    """

    start: int
    gallery_size: int
    indices: torch.Tensor
    scores: torch.Tensor
    reranked: int
    similarities: Callable[[], torch.Tensor] | None = None
    final: torch.Tensor | None = None
    given: torch.Tensor | None = None

    def counted_among(self, kept: torch.Tensor) -> RankedBatch:
        """Return the lists of given candidates with the items numbered among (G,) int64 `kept`, ascending."""

        def numbered(items: torch.Tensor) -> torch.Tensor:
            places = torch.searchsorted(kept, items.clamp_min(0))
            return torch.where(items < 0, -1, places)

        assert self.given is not None
        return replace(
            self,
            gallery_size=len(kept),
            indices=numbered(self.indices),
            given=numbered(self.given),
            similarities=None,
        )

    def lists(self, depth: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Return indices (p, depth) and strictly decreasing scores as arrays, as a `Ranking` holds them."""
        indices = self.indices[:, :depth].cpu().numpy()
        scores = strictly_decreasing(self.scores[:, :depth].cpu().numpy())
        if self.given is not None:
            scores[indices < 0] = -np.inf
        return indices.astype(index_dtype(self.gallery_size)), scores

    def before(self, finder: MatchFinder) -> Positions:
        """Return where the matches stand in the full lists by cosine, or in those that were given."""
        if self.given is not None:
            return finder.in_lists(self.start, self.given)
        assert self.similarities is not None
        return finder.by_similarity(self.start, self.similarities())

    def after(self, finder: MatchFinder, before: Positions | None = None) -> Positions:
        """Return where the matches stand in the re-ranked full lists; a known `before` is not found again."""
        if self.final is not None:
            return finder.by_similarity(self.start, self.final)
        before = before or self.before(finder)
        if not self.reranked:
            return before
        if self.given is not None:
            return finder.in_lists(self.start, self.indices)
        return finder.in_lists(self.start, self.indices[:, : self.reranked], before=before)
