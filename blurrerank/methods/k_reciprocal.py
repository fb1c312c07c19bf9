"""k-reciprocal re-ranking, exactly, without a matrix of all images by all images.

Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017,
arXiv:1701.08398; the arithmetic is that of the authors' Python program.

Over probes and gallery together, with d the squared Euclidean distance of unit rows, each row divided by its
own maximum:

    N(i)   = i and its k1 nearest others; h(i) = the first round(k1 / 2) + 1 of them, round half to even
    R(i)   = j in N(i) with i in N(j); r(i) likewise of h
    R*(i)  = R(i), and r(j) of each j in R(i) that has more than 2/3 of r(j) in R(i)
    V(i)   = exp(-d(i, j)) for j in R*(i), divided by their sum; 0 elsewhere
    V'(i)  = mean of V(j) over i and its k2 - 1 nearest others
    J(p,g) = 1 - s / (2 - s), where s = sum_j min(V'(p)_j, V'(g)_j)
    final  = (1 - lambda) J + lambda d
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from ..graph.encoding import Encoding
from ..graph.neighbour_graph import NeighbourGraph
from ..graph.sparse_rows import SparseRows
from ..graph.spread import ALL_EQUAL, check_spread
from .kinds.jaccard import JaccardRanker
from .kinds.parameters import choice, ranged

# Images times k1 squared, from which on re-ranking takes minutes where the search takes seconds.
_SLOW = 2e9


@dataclass(frozen=True)
class KReciprocal(JaccardRanker):
    """Sort the whole gallery by (1 - lambda) Jaccard distance of k-reciprocal encodings + lambda d.

    Attributes:
        k1: number of neighbours of an image, without itself; capped at the number of other images.
        k2: nearest images, including itself, over which query expansion averages; 1 turns it off. Capped
            likewise.
        lambda_value: weight of the base distance against the Jaccard distance.
        base_distance: the squared Euclidean distance, or the square of that, as in torchreid and layumi's
            scripts.
    """

    name: ClassVar[str] = "k-reciprocal"
    online_form: ClassVar[str] = "k-reciprocal-online"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "market1501": {"k1": 20, "k2": 6, "lambda_value": 0.3},
        "cuhk03": {"k1": 7, "k2": 3, "lambda_value": 0.85},
    }

    k1: int = ranged(20, least=1, fits=lambda near: near.size("nearest") or None)
    k2: int = ranged(6, least=1, fits=lambda near: (near.size("nearest") + 1) // 2 or None)
    lambda_value: float = ranged(0.3, least=0, most=1)
    base_distance: str = choice("squared", ("squared", "squared-twice"))

    def neighbours(self) -> int:
        """As many as either list asks for."""
        return max(self.k1, self.k2 - 1)

    def notes(self, probes: int, gallery: int) -> list[str]:
        """More neighbours than there are images."""
        found, images = [], probes + gallery
        if self.k1 > images - 1:
            found.append(f"k1 {self.k1} is capped at the {images - 1} other images")
        if self.k2 > images:
            found.append(f"k2 {self.k2} is capped at the {images} images")
        if images * min(self.k1, images) ** 2 > _SLOW:
            found.append(f"k1 {self.k1} takes long: the work grows with its square; usual values are 4 to 30")
        return found

    def fit(self, graph: NeighbourGraph) -> Encoding:
        """Encode all images."""
        assert graph.lowest is not None
        check_spread(graph.lowest, self.name)
        graph = graph.with_equal_images_by_index(self.distance(graph.lowest) < self.least)
        return Encoding(rows=self.encode(graph, partial(self.weights, graph)))

    def encode(self, graph: NeighbourGraph, weigh: Callable[[SparseRows], torch.Tensor]) -> SparseRows:
        """Return V' of all images; `weigh` gives exp(-d) of each entry of R*, (T,) float32."""
        halves = graph.reciprocal(round(self.k1 / 2))
        members = graph.reciprocal(self.k1).expanded(halves)
        encodings = members.weighted(weigh(members))
        return encodings if self.k2 == 1 else encodings.averaged(graph.lists[:, : self.k2])

    def distance(self, cosine: torch.Tensor) -> torch.Tensor:
        """Return the base distance of unit rows, not yet divided by the row's largest."""
        distance = super().distance(cosine)
        return distance.square_() if self.base_distance == "squared-twice" else distance

    @property
    def least(self) -> float:
        """What the largest distance of an image must reach for its images not to be all equal."""
        return ALL_EQUAL**2 if self.base_distance == "squared-twice" else ALL_EQUAL


METHOD = KReciprocal
