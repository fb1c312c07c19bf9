"""Graph convolution for re-ranking: features are averaged over the graph of probes and gallery.

Over probes and gallery together, with c cosine similarities and lists by similarity, each image the first of
its own:

    S(i, j)  = exp(c(i, j) / beta) for j among the k1 nearest of i, 0 elsewhere
    S'(i, j) = likewise for j = i and the k2 - 1 nearest of all other cameras
    L        = S divided by the roots of its row sums and column sums; L' likewise
    x'(i)    = normalise(sum_j ((1 - scale) L + scale L')(i, j) x(j)), and that so many rounds

With `scale` 0 cameras do not matter. Source: Zhang, Qian, Liu, Chen, Wang, Li, Jin, "Graph Convolution for
Re-ranking in Person Re-identification", arXiv:2107.02220. The authors' program sorts in float16 on a GPU, and
this does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .kinds.parameters import ranged
from .kinds.steps import GraphStep

if TYPE_CHECKING:
    import torch

    from ..graph.neighbour_graph import NeighbourGraph
    from ..graph.sparse_rows import SparseRows


@dataclass(frozen=True)
class GraphConvolution(GraphStep):
    """Replace all features by weighted means of their neighbours, also of those across cameras.

    Attributes:
        k1: nearest images, including itself, that an image is averaged with.
        k2: likewise across cameras: itself and the k2 - 1 nearest images of all other cameras.
        beta: temperature of the weights exp(cos / beta).
        scale: share of the mean across cameras.
        rounds: number of times that features are averaged.
    """

    name: ClassVar[str] = "gcr"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "market1501": {"k1": 15, "k2": 3, "beta": 0.2, "scale": 0.3, "rounds": 3},
    }

    k1: int = ranged(15, least=1)
    k2: int = ranged(3, least=1)
    beta: float = ranged(0.2, above=0)
    scale: float = ranged(0.3, least=0, most=1)
    rounds: int = ranged(3, least=1, most=100)

    def times(self) -> int:
        """As many as there are rounds."""
        return self.rounds

    def neighbours(self) -> int:
        """All of a list but the image itself."""
        return self.k1 - 1

    def camera_neighbours(self) -> tuple[int, int]:
        """Those across cameras, if they have a share."""
        return 0, self.k2 - 1 if self.scale else 0

    def mixture(self, graph: NeighbourGraph) -> SparseRows:
        """Return the weights of each image's neighbours."""
        lists, cosine = graph.lists[:, : self.k1], graph.similarities[:, : self.k1]
        mean = self._convolution(graph, lists, cosine)
        if not self.scale:
            return mean
        near = graph.by_camera(1, self.k2 - 1)
        return mean.mixed(self._convolution(graph, near.items, near.similarities), self.scale)

    def _convolution(self, graph: NeighbourGraph, lists: torch.Tensor, cosine: torch.Tensor) -> SparseRows:
        from ..graph.sparse_rows import SparseRows

        # All over exp(1 / beta), which cancels out; a cosine above 1 is rounding.
        listed, weights = lists >= 0, ((cosine - 1).clamp_max(0) / self.beta).exp()
        return SparseRows.from_lists(lists, listed, graph.chunk_bytes).shared(weights[listed]).balanced()


METHOD = GraphConvolution
