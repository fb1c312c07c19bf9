"""Plain cosine similarity: nothing is re-ranked. What every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..data.candidates import Candidates
from ..search.rows import Gatherable
from . import HeadMethod


@dataclass(frozen=True)
class Cosine(HeadMethod):
    """The list as search returns it; `topn` only says how deep it is written."""

    name: ClassVar[str] = "cosine"

    def rescore(self, probe: torch.Tensor, candidates: Candidates, gallery: Gatherable) -> torch.Tensor:
        """The cosine similarities themselves."""
        return candidates.scores

    def reranked(self, gallery: int) -> int:
        """Nothing changes place."""
        return 0


METHOD = Cosine
