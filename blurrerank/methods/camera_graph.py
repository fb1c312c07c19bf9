"""Camera-balanced graph re-ranking: neighbours are looked for within and across cameras apart.

Over images i with cameras, with c cosine similarities and lists by similarity, ties to the lower index:

    I(i)   = the ki nearest of i's own camera, itself the first; O(i) = the ko nearest of all other cameras
    A_ij   = 1 for j in I(i) or O(i), 0 elsewhere
    W_ij   = max(c(i, j), 0)^2 for the first k2i of I(i) and the first k2o of O(i), 0 elsewhere; times one_sided
             where i is not among the first k2i of I(j) and the first k2o of O(j)
    rounds times:  A <- W (A + A'), rows divided by their Euclidean norms
    score  = (1 - lambda) A_p . A_g + lambda c(p, g)

Lists end early where a camera has fewer images. Online, A is of the gallery alone, and A_p the sum of
W_pj A_j over the first max(k2i - 1, 1) gallery items of the probe's camera and the first k2o of all others,
divided by its norm; no item lists a probe, and one_sided does not count there.

Sources: the propagation is that of Zhang, Jiang, Zheng, Tan, Ding, Yang, "Understanding Image Retrieval
Re-Ranking: A Graph Neural Network Perspective", arXiv:2012.07620; lists within and across cameras are those of
Chen, Fan, Chen, Zhu, "CA-Jaccard: Camera-aware Jaccard Distance for Person Re-identification", CVPR 2024,
arXiv:2311.10605; how they are put together is this project's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..data.candidates import Candidates
from ..graph.encoding import Encoding, Probes
from ..graph.neighbour_graph import NeighbourGraph, NeighbourLists
from ..graph.neighbourhoods import Neighbourhoods
from ..graph.sparse_rows import SparseRows
from .kinds.parameters import ranged
from .kinds.propagation import PropagationRanker

# Images of an identity where the data do not tell: of the own camera, itself among them, and of all others.
_UNCLEAR_OWN, _UNCLEAR_OTHERS = 4, 8


def _own(near: Neighbourhoods) -> int:
    """How many images of its identity an image's camera has, itself among them."""
    return 1 + near.size("within")


def _matters(near: Neighbourhoods) -> bool:
    """Whether the own camera has a good part of the images; otherwise those of others are mean enough."""
    return 3 * near.size("within") >= near.size("across")


def _others(near: Neighbourhoods) -> int:
    """How many images of its identity all other cameras have."""
    return near.size("across") or _UNCLEAR_OTHERS


@dataclass(frozen=True)
class CameraGraph(PropagationRanker):
    """Sort the whole gallery by the agreement of camera-balanced neighbourhoods, mixed with cosine similarity.

    Attributes:
        ki: nearest images of the same camera, including itself, that an image is joined with.
        ko: nearest images of all other cameras that it is joined with.
        k2i: images of the same camera, including itself, over which neighbourhoods are averaged.
        k2o: images of all other cameras over which they are averaged.
        rounds: how many times neighbourhoods are averaged.
        one_sided: factor for edges to images that do not list this one in turn.
        lambda_value: weight of the cosine similarity.
    """

    name: ClassVar[str] = "camera-graph"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Where it comes from, docs/methods.md tells.
        "two-cameras": {"k2o": 2, "rounds": 3, "one_sided": 0.2, "lambda_value": 0.0},
    }

    ki: int = ranged(6, least=1, fits=lambda near: max(_own(near), 1 if near.size("across") else _UNCLEAR_OWN))
    ko: int = ranged(10, least=0, fits=lambda near: 1 + _others(near))
    k2i: int = ranged(3, least=1, fits=lambda near: _own(near) if _matters(near) else 1)
    k2o: int = ranged(3, least=0, fits=lambda near: math.ceil(math.sqrt(_others(near))))
    rounds: int = ranged(2, least=1, most=10)
    one_sided: float = ranged(1.0, least=0, most=1)
    lambda_value: float = ranged(0.3, least=0, most=1)

    def neighbours(self) -> int:
        """None of all cameras."""
        return 0

    def camera_neighbours(self) -> tuple[int, int]:
        """As many as either list asks for."""
        return max(self.ki - 1, self.k2i - 1, 1), max(self.ko, self.k2o)

    def lists_of(self, graph: NeighbourGraph) -> tuple[torch.Tensor, NeighbourLists, int]:
        """Return those within and across cameras, and the rounds."""
        joined, near = graph.by_camera(self.ki, self.ko), graph.by_camera(self.k2i, self.k2o)
        return joined.items, near, self.rounds

    def fit(self, graph: NeighbourGraph) -> Encoding:
        """Join neighbours, and average."""
        return Encoding(rows=self.propagated(graph, self.one_sided))

    def encode_probes(self, encoding: Encoding, probes: Probes) -> SparseRows:
        """Return the mean neighbourhood of the probe's nearest items."""
        assert probes.within is not None
        assert probes.across is not None
        parts = probes.within.head(max(self.k2i - 1, 1)), probes.across.head(self.k2o)
        near = torch.cat([part.indices for part in parts], dim=1)
        return self.mean_of(encoding, Candidates(near, torch.cat([part.scores for part in parts], dim=1)))


METHOD = CameraGraph
