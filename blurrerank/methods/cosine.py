"""Plain cosine similarity: nothing is re-ranked. What every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .kinds.base import HeadRanker

if TYPE_CHECKING:
    import torch

    from ..data.candidates import Candidates
    from ..search.rows import Gatherable


@dataclass(frozen=True)
class Cosine(HeadRanker):
    """No re-ranking: the list as search returns it.

    Attributes:
        topn: number of items that are listed.
    """

    name: ClassVar[str] = "cosine"
    needs_features: ClassVar[bool] = False

    def rescore(self, probe: torch.Tensor, candidates: Candidates, gallery: Gatherable) -> torch.Tensor:
        """Return the cosine similarities themselves."""
        return candidates.scores

    def reranked(self, gallery: int) -> int:
        """Nothing changes place."""
        return 0


METHOD = Cosine
