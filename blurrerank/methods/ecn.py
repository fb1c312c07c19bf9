"""Expanded cross neighbourhood re-ranking, by rank lists.

Over probes and gallery together, with lists by cosine similarity, ties to the lower index, each image the first
of its own:

    F_ij   = max(k - (place of j in the list of i), 0), places from 0: a weighted rank list
    E(i)   = the t nearest others of i, and the q nearest others of each of these
    s(p,g) = mean of F_j . F_g over j in E(p) and of F_j . F_p over j in E(g), counted as often as they occur
    score  = s, and cosine similarity - 2 where s is 0, behind all others

Source: Sarfraz, Schumann, Eberle, Stiefelhagen, "A Pose-Sensitive Embedding for Person Re-Identification with
Expanded Cross Neighborhood Re-Ranking", CVPR 2018, arXiv:1711.10378; that pairs without a common neighbour are
sorted by their distance is the authors' program's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..graph.encoding import Encoding, Probes
from ..graph.neighbour_graph import NeighbourGraph
from ..graph.sparse_rows import ONE, SparseRows
from .kinds.base import GraphRanker
from .kinds.parameters import ranged


@dataclass(frozen=True)
class ExpandedCrossNeighbourhood(GraphRanker):
    """Sort the whole gallery by the rank lists that the neighbours of probe and item share with the other.

    Attributes:
        k: length of the rank lists, each of which begins with the image itself.
        t: nearest other images that form a neighbourhood.
        q: nearest other images of each of these, which expand it.
    """

    name: ClassVar[str] = "ecn"
    compares: ClassVar[str] = "dot"

    k: int = ranged(25, least=1, most=1000)
    t: int = ranged(3, least=1, most=100)
    q: int = ranged(8, least=0, most=100)

    def neighbours(self) -> int:
        """As many as any list asks for."""
        return max(self.k - 1, self.t, self.q)

    def fit(self, graph: NeighbourGraph) -> Encoding:
        """Make rank lists, and sum those of each neighbourhood: a row is both, one beside the other."""
        lists, chunk = graph.lists, graph.chunk_bytes
        listed = lists[:, : self.k] >= 0
        ranks = SparseRows.from_lists(lists[:, : self.k], listed, chunk)
        ranks = ranks.counted((self.k + 1 - listed.cumsum(dim=1)).flatten())
        near, next_near = lists[:, 1 : self.t + 1], lists[:, 1 : self.q + 1]
        around = torch.cat([near, next_near[near.long()].flatten(1)], dim=1)
        sums = ranks.totals(around)
        count = len(graph)
        return Encoding(
            rows=ranks.joined(sums.shifted(count)), asking=sums.joined(ranks.shifted(count)), columns=2 * count
        )

    def score(self, overlap: torch.Tensor, probes: Probes) -> torch.Tensor:
        """Return the mean agreement, with cosine similarity where there is none."""
        counted = overlap * (ONE**2 / (2 * self.t * (1 + self.q)))
        return torch.where(overlap > 0, counted, probes.cosine - 2)


METHOD = ExpandedCrossNeighbourhood
