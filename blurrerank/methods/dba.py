"""Database augmentation: each gallery item moves towards its nearest gallery items, before any probe is known.

With g_1 .. g_k the unit rows of the k nearest gallery items of an item g, itself the first of them, and c their
cosine similarities:

    g' = normalise(sum_i max(c_i, 0)^alpha g_i)

Sources: Turcot, Lowe, "Better Matching with Fewer Features", ICCV Workshops 2009; the exponent as in Gordo,
Almazan, Revaud, Larlus, "End-to-end Learning of Deep Visual Representations for Image Retrieval", IJCV 2017,
arXiv:1610.07940, and Radenovic et al., arXiv:1711.02512.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .kinds.expansion import Expansion

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DatabaseAugmentation(Expansion):
    """Replace each gallery item by the mean of its k nearest, itself among them, weighted by cosine^alpha.

    Attributes:
        k: nearest gallery items, including itself, that an item is averaged with; 1 changes nothing. Capped at
            the size of the gallery.
    """

    name: ClassVar[str] = "dba"
    changes: ClassVar[str] = "gallery"

    def mix(self, rows: torch.Tensor, near: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
        """Return the sum, whose length does not matter."""
        return self.weighted_sum(near, cosine)


METHOD = DatabaseAugmentation
