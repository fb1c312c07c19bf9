"""What rankers by Jaccard distance have in common: encodings weighted by distance, mixed with it in the end."""

from __future__ import annotations

from typing import ClassVar

import torch

from ...graph.encoding import Probes
from ...graph.neighbour_graph import NeighbourGraph
from ...graph.sparse_rows import SparseRows
from ...graph.spread import ALL_EQUAL
from .base import GraphRanker


class JaccardRanker(GraphRanker):
    """Sort the whole gallery by (1 - lambda) J + lambda d, over probes and gallery together.

    J is 1 - s / (2 - s) with s the overlap of encodings, and d the squared Euclidean distance of unit rows,
    each image's divided by the largest of them. A subclass has a field `lambda_value`.
    """

    needs_farthest: ClassVar[bool] = True

    lambda_value: float

    def weights(self, graph: NeighbourGraph, members: SparseRows) -> torch.Tensor:
        """Return exp(-d) of each entry of `members`, (T,) float32."""
        assert graph.lowest is not None
        largest = self.distance(graph.lowest)

        def weight(cosine: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            return torch.exp(-self._normalised(cosine, largest[image]))

        return graph.weigh(members, weight)

    def score(self, overlap: torch.Tensor, probes: Probes) -> torch.Tensor:
        """Return minus the final distances."""
        assert probes.lowest is not None
        largest = self.distance(probes.lowest).unsqueeze(1)
        return self.blend(overlap, self._normalised(probes.cosine, largest)).neg_()

    def blend(self, overlap: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Return the final distance, from the overlap s of two encodings and the base distance d."""
        return (1 - overlap / (2 - overlap)).mul_(1 - self.lambda_value).add_(base, alpha=self.lambda_value)

    def distance(self, cosine: torch.Tensor) -> torch.Tensor:
        """Return the base distance of unit rows, not yet divided by the row's largest."""
        return (2 - 2 * cosine).clamp_min_(0)

    @property
    def least(self) -> float:
        """What the largest distance of an image must reach for its images not to be all equal."""
        return ALL_EQUAL

    def _normalised(self, cosine: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """The base distance divided by the row's `largest`; 0 where all images are equal but for rounding."""
        return self.distance(cosine) * torch.where(largest < self.least, 0, 1 / largest)
