"""Plain cosine similarity: nothing is re-ranked. What every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..ranking import Candidates
from ..search import UnitRows
from . import Method


@dataclass(frozen=True)
class Cosine(Method):
    """The list as search returns it; `topn` only says how deep it is written."""

    name: ClassVar[str] = "cosine"

    def rescore(self, probe: torch.Tensor, candidates: Candidates, gallery: UnitRows) -> torch.Tensor:
        """The cosine similarities themselves."""
        return candidates.scores

    @property
    def reranked(self) -> int:
        """Nothing changes place."""
        return 0


METHOD = Cosine
