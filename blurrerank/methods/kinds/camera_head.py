"""Head rankers that look past the camera of the probe."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import ParameterError
from .base import HeadRanker

if TYPE_CHECKING:
    import torch

    from ...data.candidates import Candidates
    from ...search.rows import Gatherable


@dataclass(frozen=True)
class CameraHeadRanker(HeadRanker):
    """A head ranker that is given the gallery items near each candidate, of other cameras than the probe's.

    The candidate itself is the first of them, unless it is of that camera.
    """

    @property
    def needs_cameras(self) -> bool:
        """Always."""
        return True

    @abstractmethod
    def neighbours(self) -> int:
        """Return how many items there are for each candidate, at most as many as there are of other cameras."""

    @abstractmethod
    def rescore_near(self, candidates: Candidates, cosine: torch.Tensor) -> torch.Tensor:
        """Return new scores for the candidates of some probes, higher is better.

        Args:
            candidates: the `topn` best of each probe by cosine, fewer if the gallery is smaller.
            cosine: (p, n, k) float32, the probe's cosine similarity to the items near each candidate, nearest
                first, nan past the last.

        Returns:
            (p, n) float32, in the order of the candidates.
        """

    def rescore(self, probe: torch.Tensor, candidates: Candidates, gallery: Gatherable) -> torch.Tensor:
        """Raise `ParameterError`: the features of candidates alone do not tell what is near them."""
        raise ParameterError(f"method {self.name} needs the whole gallery, not only candidates")

    def workspace_bytes(self, topn: int, dim: int) -> int:
        """Return what the items near each candidate take, and the similarities to them."""
        return 40 * topn * self.neighbours()
