"""`Candidates`: the best gallery items of each probe, passed from search to re-ranking."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError
from .sort_keys import sort_keys


@dataclass(frozen=True, eq=False)
class Candidates:
    """The best n gallery items of each probe by cosine similarity, best first, on one device.

    Attributes:
        indices: (P, n) int64 into the gallery.
        scores: (P, n) float32 cosine similarities, descending.

    Raises:
        InputError: on construction, for other shapes or dtypes.
    """

    indices: torch.Tensor
    scores: torch.Tensor

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        shapes = tuple(self.indices.shape), tuple(self.scores.shape)
        if len(shapes[0]) != 2 or shapes[0] != shapes[1]:
            raise InputError(f"candidates have shapes {shapes[0]} and {shapes[1]}: expected (P, n) for both")
        if self.indices.dtype != torch.int64 or self.scores.dtype != torch.float32:
            raise InputError(
                f"candidates are {self.indices.dtype} and {self.scores.dtype}: expected int64 and float32"
            )

    def head(self, depth: int) -> Candidates:
        """Return the first `depth` items of each list."""
        return Candidates(self.indices[:, :depth], self.scores[:, :depth])

    def first(self, allowed: torch.Tensor, count: int) -> Candidates:
        """Return the first `count` items of each list that are (P, n) `allowed`; -1 and -inf past the end.

        Items that are -1 are never among them.
        """
        allowed = allowed & (self.indices >= 0)
        nth = allowed.cumsum(dim=1)
        owner, place = torch.nonzero(allowed & (nth <= count), as_tuple=True)
        to = nth[owner, place] - 1
        indices = self.indices.new_full((len(nth), count), -1)
        scores = self.scores.new_full((len(nth), count), -torch.inf)
        indices[owner, to], scores[owner, to] = self.indices[owner, place], self.scores[owner, place]
        return Candidates(indices, scores)

    def followed_by(self, deeper: Candidates) -> Candidates:
        """Append the rest of the `deeper` lists, whose heads have the same items as these, in any order."""
        indices, scores = (
            torch.cat([head, full[:, head.shape[1] :]], dim=1)
            for head, full in ((self.indices, deeper.indices), (self.scores, deeper.scores))
        )
        return Candidates(indices, scores)

    def sorted_by(self, scores: torch.Tensor) -> Candidates:
        """Return the same items sorted by new (P, n) float32 `scores`, best first."""
        order = sort_keys(scores, self.indices).argsort(dim=1, descending=True)
        return Candidates(self.indices.gather(1, order), scores.gather(1, order))
