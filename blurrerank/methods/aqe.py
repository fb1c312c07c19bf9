"""Average and alpha query expansion: each probe moves towards its nearest gallery items.

With g_1 .. g_k the unit rows of the k nearest gallery items of a probe q, and c their cosine similarities:

    q' = normalise(q + sum_i max(c_i, 0)^alpha g_i)

alpha 0 is average query expansion, where q' is the mean of q and its k nearest.

Sources: Chum, Philbin, Sivic, Isard, Zisserman, "Total Recall", ICCV 2007, for the mean; Radenovic, Tolias,
Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019, arXiv:1711.02512, for alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .kinds.base import FeatureStep
from .kinds.parameters import ranged

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QueryExpansion(FeatureStep):
    """Replace each probe by the mean of itself and its k nearest gallery items, weighted by cosine^alpha.

    Attributes:
        k: nearest gallery items that are added to the probe; capped at the gallery.
        alpha: exponent of the cosine similarity that weighs them; 0 weighs all alike.
    """

    name: ClassVar[str] = "aqe"

    k: int = ranged(5, least=1)
    alpha: float = ranged(0.0, least=0)

    def neighbours(self) -> int:
        """The k nearest."""
        return self.k

    def mix(self, rows: torch.Tensor, near: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
        """Return the sum, whose length does not matter."""
        weights = cosine.clamp_min(0) ** self.alpha
        return rows + (weights.unsqueeze(2) * near).sum(dim=1)


METHOD = QueryExpansion
