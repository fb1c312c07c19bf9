"""CA-Jaccard: k-reciprocal encoding whose neighbours are looked for within and across cameras apart.

Over probes and gallery together, with d the squared Euclidean distance of unit rows, each row divided by its
own maximum, and lists by distance, ties to the lower index:

    R(i)   = i; j of the k1_intra nearest others of i's camera that have i among theirs; j of the
             k1_inter + 1 nearest of all other cameras that have i among theirs
    V(i)   = exp(-d(i, j)) for j in R(i), divided by their sum; 0 elsewhere
    V'(i)  = mean of V(j) over i, its k2_intra - 1 nearest others of its camera, and its k2_inter nearest of
             all other cameras
    J(p,g) = 1 - s / (2 - s), where s = sum_j min(V'(p)_j, V'(g)_j)
    final  = (1 - lambda) J + lambda d

Lists end early where a camera has fewer images. Source: Chen, Fan, Chen, Zhu, "CA-Jaccard: Camera-aware
Jaccard Distance for Person Re-identification", CVPR 2024, arXiv:2311.10605. The one more across cameras is
the authors' program's, which cuts all lists as if each image were the first of its own; it fills lists that
end early with images of the wrong cameras, and this does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..graph.encoding import Encoding
from ..graph.neighbour_graph import NeighbourGraph
from ..graph.spread import check_spread
from .kinds.jaccard import JaccardRanker
from .kinds.parameters import ranged


@dataclass(frozen=True)
class CameraAwareJaccard(JaccardRanker):
    """Sort the whole gallery by (1 - lambda) Jaccard distance of camera-aware encodings + lambda d.

    Attributes:
        k1_intra: nearest other images of the same camera that can be reciprocal neighbours.
        k1_inter: nearest images of all other cameras that can be, plus one.
        k2_intra: images of the same camera, including itself, over which query expansion averages.
        k2_inter: images of all other cameras over which it averages.
        lambda_value: weight of the base distance against the Jaccard distance.
    """

    name: ClassVar[str] = "ca-jaccard"

    k1_intra: int = ranged(5, least=0)
    k1_inter: int = ranged(20, least=0)
    k2_intra: int = ranged(3, least=1)
    k2_inter: int = ranged(3, least=0)
    lambda_value: float = ranged(0.3, least=0, most=1)

    def neighbours(self) -> int:
        """None of all cameras."""
        return 0

    def camera_neighbours(self) -> tuple[int, int]:
        """As many as either list asks for."""
        return max(self.k1_intra, self.k2_intra - 1), max(self.k1_inter + 1, self.k2_inter)

    def fit(self, graph: NeighbourGraph) -> Encoding:
        """Encode all images."""
        assert graph.lowest is not None
        check_spread(graph.lowest, self.name)
        members = graph.reciprocal_by_camera(self.k1_intra, self.k1_inter + 1)
        encodings = members.weighted(self.weights(graph, members))
        return Encoding(rows=encodings.averaged(graph.by_camera(self.k2_intra, self.k2_inter).items))


METHOD = CameraAwareJaccard
