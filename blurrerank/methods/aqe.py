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

from .kinds.expansion import Expansion

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QueryExpansion(Expansion):
    """Replace each probe by the mean of itself and its k nearest gallery items, weighted by cosine^alpha.

    Attributes:
        k: nearest gallery items that are added to the probe; capped at the size of the gallery.
    """

    name: ClassVar[str] = "aqe"

    def mix(self, rows: torch.Tensor, near: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
        """Return the sum, whose length does not matter."""
        return rows + self.weighted_sum(near, cosine)


METHOD = QueryExpansion
