"""What average query expansion and database augmentation have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .parameters import ranged
from .steps import ListStep

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Expansion(ListStep):
    """A feature step that sums the k nearest gallery items.

    Attributes:
        k: nearest gallery items that are summed; capped at the size of the gallery.
        alpha: exponent of the cosine similarity that weighs them; 0 weighs all alike.
    """

    k: int = ranged(5, least=1)
    alpha: float = ranged(0.0, least=0)

    def neighbours(self) -> int:
        """The k nearest."""
        return self.k

    def weighted_sum(self, near: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
        """Return (n, D), the sum of max(cosine, 0)^alpha times the rows in `near`, (n, k, D)."""
        weights = cosine.clamp_min(0) ** self.alpha
        return (weights.unsqueeze(2) * near).sum(dim=1)
