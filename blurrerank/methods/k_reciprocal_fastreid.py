"""k-reciprocal re-ranking as fast-reid and OpenUnReID compute it.

Over probes and gallery together, with c cosine similarities and lists by similarity, ties to the lower index,
each image the first of its own:

    N(i)   = the k1 nearest of i, itself among them; h(i) = the first round(k1 / 2) + 1 of them, round half to
             even
    R(i)   = j in N(i) with i in N(j); r(i) likewise of h
    R*(i)  = R(i), and r(j) of each j in R(i) that has more than 2/3 of r(j) in R(i)
    V(i)   = exp(-d(i, j)) for j in R*(i), divided by their sum, with d = 2 - 2 c; 0 elsewhere
    V'(i)  = mean of V(j) over the k2 nearest of i, itself among them, of at most k1
    J(p,g) = 1 - s / (2 - s), where s = sum_j min(V'(p)_j, V'(g)_j)
    final  = (1 - lambda) J + lambda (1 - c(p, g))

`k-reciprocal` has lists that are longer by one, divides d by the row's largest before the exponential, and
mixes the result with that instead of the cosine distance.

Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017,
arXiv:1701.08398, in the arithmetic of `compute_jaccard_distance` of OpenUnReID, which fast-reid has taken over
and mixes with the distance of its default metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..graph.encoding import Encoding, Probes
from ..graph.neighbour_graph import NeighbourGraph
from .kinds.jaccard import JaccardRanker
from .kinds.parameters import ranged


@dataclass(frozen=True)
class FastReidKReciprocal(JaccardRanker):
    """Sort the whole gallery by (1 - lambda) Jaccard distance of encodings + lambda cosine distance.

    Attributes:
        k1: number of neighbours of an image, including itself; capped at the number of images.
        k2: nearest images, including itself, over which query expansion averages; 1 turns it off. Capped at k1.
        lambda_value: weight of the cosine distance against the Jaccard distance.
    """

    name: ClassVar[str] = "k-reciprocal-fastreid"
    online_form: ClassVar[str] = "k-reciprocal-online"
    needs_farthest: ClassVar[bool] = False

    k1: int = ranged(20, least=1)
    k2: int = ranged(6, least=1)
    lambda_value: float = ranged(0.3, least=0, most=1)

    def neighbours(self) -> int:
        """All of a list but the image itself."""
        return self.k1 - 1

    def notes(self, probes: int, gallery: int) -> list[str]:
        """More neighbours than there are images, or than are listed."""
        found, images = [], probes + gallery
        if self.k1 > images:
            found.append(f"k1 {self.k1} is capped at the {images} images")
        if self.k2 > min(self.k1, images):
            found.append(f"k2 {self.k2} is capped at the {min(self.k1, images)} images of a list")
        return found

    def fit(self, graph: NeighbourGraph) -> Encoding:
        """Encode all images."""
        members = graph.reciprocal(self.k1 - 1).expanded(graph.reciprocal(round(self.k1 / 2)))
        encodings = members.weighted(graph.weigh(members, lambda cosine, _: torch.exp(2 * cosine - 2)))
        return Encoding(rows=encodings.averaged(graph.lists[:, : min(self.k1, self.k2)]))

    def score(self, overlap: torch.Tensor, probes: Probes) -> torch.Tensor:
        """Return minus the final distances."""
        return self.blend(overlap, 1 - probes.cosine).neg_()


METHOD = FastReidKReciprocal
