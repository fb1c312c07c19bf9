"""GNN re-ranking: neighbourhoods are averaged over a graph, and compared.

Over images i, with c cosine similarities and lists by similarity, ties to the lower index, each image the first
of its own:

    A_ij   = 1 for j among the k1 nearest of i, 0 elsewhere
    W_ij   = max(c(i, j), 0)^2 for j among the k2 nearest of i, 0 elsewhere
    twice:  A <- W (A + A'), rows divided by their Euclidean norms; not at all if k2 is 1
    score  = (1 - lambda) A_p . A_g + lambda c(p, g)

Online, A is of the gallery alone, and A_p the sum of W_pj A_j over the first max(k2 - 1, 1) gallery items,
divided by its norm.

Source: Zhang, Jiang, Zheng, Tan, Ding, Yang, "Understanding Image Retrieval Re-Ranking: A Graph Neural Network
Perspective", arXiv:2012.07620. The paper and the presets, which are the authors', have no lambda; it is that of
layumi's program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..graph.encoding import Encoding, Probes
from ..graph.neighbour_graph import NeighbourGraph, NeighbourLists
from ..graph.sparse_rows import SparseRows
from .kinds.parameters import ranged
from .kinds.propagation import PropagationRanker


@dataclass(frozen=True)
class GraphNeuralNetwork(PropagationRanker):
    """Sort the whole gallery by the agreement of averaged neighbourhoods, mixed with cosine similarity.

    Attributes:
        k1: nearest images, including itself, that an image is joined with; capped at the number of images.
        k2: nearest images, including itself, over which neighbourhoods are averaged; 1 turns this off. Capped
            likewise.
        lambda_value: weight of the cosine similarity.
    """

    name: ClassVar[str] = "gnn"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "market1501": {"k1": 26, "k2": 7, "lambda_value": 0.0},
        "veri776": {"k1": 60, "k2": 10, "lambda_value": 0.0},
    }

    # Half as many again as an identity has are joined; means are over fewer, the surest.
    k1: int = ranged(
        26, least=1, fits=lambda near: 1 + round(1.5 * near.size("nearest")) if near.size("nearest") else None
    )
    k2: int = ranged(
        7, least=1, fits=lambda near: 1 + round(near.size("nearest") ** 0.5) if near.size("nearest") else None
    )
    lambda_value: float = ranged(0.3, least=0, most=1)

    def neighbours(self) -> int:
        """As many as either list asks for, and one for a probe."""
        return max(self.k1 - 1, self.k2 - 1, 1)

    def lists_of(self, graph: NeighbourGraph) -> tuple[torch.Tensor, NeighbourLists, int]:
        """Return the first k1 and the first k2, and no rounds where there is nothing to average."""
        near = NeighbourLists(graph.lists[:, : self.k2], graph.similarities[:, : self.k2])
        return graph.lists[:, : self.k1], near, 2 if self.k2 > 1 else 0

    def fit(self, graph: NeighbourGraph) -> Encoding:
        """Join neighbours, and average."""
        return Encoding(rows=self.propagated(graph).unit())

    def encode_probes(self, encoding: Encoding, probes: Probes) -> SparseRows:
        """Return the mean neighbourhood of the probe's nearest items."""
        assert probes.near is not None
        return self.mean_of(encoding, probes.near.head(max(self.k2 - 1, 1)))


METHOD = GraphNeuralNetwork
