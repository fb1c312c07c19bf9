"""Expanded cross neighbourhood re-ranking, by cosine similarities.

Over probes and gallery together, with c cosine similarities of the unit rows x, and lists by similarity, ties
to the lower index:

    E(i)   = the t nearest others of i, and the q nearest others of each of these
    s(p,g) = mean of c(j, g) over j in E(p) and of c(j, p) over j in E(g), counted as often as they occur

With m_i the mean of x_j over j in E(i), s(p,g) = (m_p . x_g + x_p . m_g) / 2, which is the cosine similarity of

    p' = (m_p, x_p, 0, sqrt(1 - |m_p|^2)) and g' = (x_g, m_g, sqrt(1 - |m_g|^2), 0)

so that this is a feature step: probes and gallery items get features of different make, to be compared with
each other by `cosine`.

Source: Sarfraz, Schumann, Eberle, Stiefelhagen, "A Pose-Sensitive Embedding for Person Re-Identification with
Expanded Cross Neighborhood Re-Ranking", CVPR 2018, arXiv:1711.10378; in the authors' program it is the method
`origdist`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .kinds.parameters import ranged
from .kinds.steps import GraphStep

if TYPE_CHECKING:
    import torch

    from ..graph.neighbour_graph import NeighbourGraph
    from ..graph.sparse_rows import SparseRows


@dataclass(frozen=True)
class CrossNeighbourhoodMeans(GraphStep):
    """Put the mean of each image's expanded neighbourhood beside the image, the other way round in the gallery.

    Attributes:
        t: nearest other images that form a neighbourhood.
        q: nearest other images of each of these, which expand it.
    """

    name: ClassVar[str] = "ecn-cosine"

    t: int = ranged(3, least=1, most=100)
    q: int = ranged(8, least=0, most=100)

    def neighbours(self) -> int:
        """As many as either list asks for."""
        return max(self.t, self.q)

    def mixture(self, graph: NeighbourGraph) -> SparseRows:
        """Return the share of each image in the mean of the expanded neighbourhood."""
        import torch

        from ..graph.sparse_rows import SparseRows

        lists = graph.lists
        near, next_near = lists[:, 1 : self.t + 1], lists[:, 1 : self.q + 1]
        around = torch.cat([near, next_near[near.long()].flatten(1)], dim=1)
        itself = torch.ones_like(lists[:, :1], dtype=torch.bool)
        return SparseRows.from_lists(lists[:, :1], itself, graph.chunk_bytes).members().averaged(around)

    def combine(self, rows: torch.Tensor, mixed: torch.Tensor, side: str) -> torch.Tensor:
        """Return (n, 2 D + 2) rows, all of length sqrt(2)."""
        import torch

        rest = (1 - (mixed**2).sum(dim=1, keepdim=True)).clamp_min(0).sqrt()
        if side == "probe":
            return torch.cat([mixed, rows, torch.zeros_like(rest), rest], dim=1)
        return torch.cat([rows, mixed, rest, torch.zeros_like(rest)], dim=1)


METHOD = CrossNeighbourhoodMeans
