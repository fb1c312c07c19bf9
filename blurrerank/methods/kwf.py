"""K-nearest weighted fusion: an item is as similar to a probe as its nearest items of other cameras are.

For a probe q of camera c, unit rows x_j of gallery items, and i one of the n best of q by cosine similarity:

    N(i)  = the k nearest gallery items of i, itself the first, of all cameras but c
    score = the mean of q . x_j over j in N(i)

which is the product of q and the mean row of N(i). Where the gallery has items of camera c alone, cosine
similarity stands.

Source: Che, Nguyen, Tran, Phan, Nguyen, "A Re-ranking Method using K-nearest Weighted Fusion for Person
Re-identification", ICPRAM 2025, arXiv:2509.04050, with equal weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .kinds.camera_head import CameraHeadRanker
from .kinds.parameters import ranged

if TYPE_CHECKING:
    import torch

    from ..data.candidates import Candidates


@dataclass(frozen=True)
class WeightedFusion(CameraHeadRanker):
    """Sort the n best of a probe by its mean similarity to the items near each of them.

    Attributes:
        topn: number of items at the head of the list that are sorted again.
        k: nearest items from other cameras than the probe's, including the item itself, over which an item is
            averaged.
    """

    name: ClassVar[str] = "kwf"

    topn: int = ranged(100, least=1)
    k: int = ranged(6, least=1, most=1000)

    def neighbours(self) -> int:
        """What is averaged."""
        return self.k

    def rescore_near(self, candidates: Candidates, cosine: torch.Tensor) -> torch.Tensor:
        """Return the mean over the items near each candidate, (p, n) float32."""
        import torch

        mean = cosine.double().nanmean(dim=2).float()
        return torch.where(mean.isnan(), candidates.scores, mean)


METHOD = WeightedFusion
