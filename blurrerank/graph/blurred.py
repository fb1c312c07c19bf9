"""Features after the spectral feature transformation of each image's own neighbourhood, made when asked for.

Source: Luo, Chen, Wang, Zhang, "Spectral Feature Transformation for Person Re-identification", ICCV 2019,
arXiv:1811.11405; here of the gallery alone, before any probe is known.
"""

from __future__ import annotations

import torch

from ..search.rows import UnitRows, blocks_of

# Blurred features shorter than this are rounding: they cancel each other out.
_LEAST_NORM = 1e-6


class BlurredRows:
    """The mean of each image and its nearest, weighted by transition probabilities and L2-normalised.

    With c cosine similarities, T(i, j) = exp(c(i, j) / sigma) over the group of i, divided by their sum. Row i
    is sum_j T(i, j) x_j divided by its norm, or by 1e-6 if that is less.

    Attributes:
        group: (N, B) int32 or int64, each image and the others it is blurred with, in ascending order.
        weights: (N, B) float32, T over the norm, so that the similarity of any a to row i is the sum of
            weights[i] * c(a, group[i]).

    Args:
        images: rows of the N images and perhaps others.
        lists: (N, B), each image and its nearest others.
        similarities: (N, B) float32, cosine similarities to these.
        sigma: temperature of the transitions.
    """

    def __init__(self, images: UnitRows, lists: torch.Tensor, similarities: torch.Tensor, sigma: float) -> None:
        self._images = images
        # In ascending order they can be added up as the gallery passes by, with the same rounding.
        self.group, order = lists.sort(dim=1)
        self.weights = torch.softmax(similarities / sigma, dim=1).gather(1, order)
        held = images.block if images.resident else max(1, images.budget.held_rows // 2)
        for start, stop in blocks_of(len(lists), held):
            norms = torch.linalg.vector_norm(self.rows(start, stop), dim=1, keepdim=True)
            self.weights[start:stop] /= norms.clamp_min_(_LEAST_NORM)

    def __len__(self) -> int:
        return len(self.group)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows `start:stop`, (stop - start, D) float32."""
        images = self._images
        weights = self.weights[start:stop]
        mean = weights.new_zeros(stop - start, images.dim)
        for first, block in [(0, images.rows(0, len(images)))] if images.resident else images.blocks():
            for nth, column in enumerate(self.group[start:stop].T):
                here = torch.nonzero((column >= first) & (column < first + len(block))).flatten()
                found = block.index_select(0, column[here] - first)
                mean.index_add_(0, here, found.mul_(weights[here, nth : nth + 1]))
        return mean
