"""What rankers by propagated neighbourhoods have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch

from ...data.candidates import Candidates
from ...graph.encoding import Encoding, Probes
from ...graph.neighbour_graph import NeighbourGraph, NeighbourLists
from ...graph.reciprocal import listed_back
from ...graph.sparse_rows import SparseRows, picked, whole_parts
from .base import GraphRanker


class PropagationRanker(GraphRanker):
    """Sort the whole gallery by (1 - lambda) A_p . A_g + lambda c(p, g), with A averaged over a graph.

    Edges weigh max(c, 0)^2. Online, A_p is the mean of the rows of the probe's nearest items, divided by its
    norm. A subclass has a field `lambda_value`.
    """

    online: ClassVar[bool] = True
    compares: ClassVar[str] = "dot"
    needs_rows: ClassVar[bool] = True
    query_time_params: ClassVar[tuple[str, ...]] = ("lambda_value",)

    lambda_value: float

    @abstractmethod
    def lists_of(self, graph: NeighbourGraph) -> tuple[torch.Tensor, NeighbourLists, int]:
        """Return the images that each is joined with at first, those it is averaged over, and how many times.

        Lists are (N, k), -1 past the end.
        """

    def propagated(self, graph: NeighbourGraph, one_sided: float = 1.0) -> SparseRows:
        """Return A of all images.

        Args:
            graph: of N images.
            one_sided: what the edge to an item weighs that does not list the image in turn, against 1.
        """
        joined, near, rounds = self.lists_of(graph)
        edges = _edges(near.similarities)
        if one_sided < 1:
            blocks = listed_back(near.items, near.items, chunk_bytes=graph.chunk_bytes)
            mutual = torch.cat([found for _, found in blocks])
            edges = torch.where(mutual, edges, edges * one_sided)
        adjacency = SparseRows.from_lists(joined, joined >= 0, graph.chunk_bytes).members()
        return adjacency.propagated(near.items, edges, rounds, graph.entries)

    def extend(self, encoding: Encoding, graph: NeighbourGraph) -> Encoding:
        """Join neighbours, and average, over the rows that items of before have; `one_sided` does not count."""
        assert encoding.rows is not None
        joined, near, rounds = self.lists_of(graph)
        edges = whole_parts(_edges(near.similarities))
        rows = SparseRows.from_lists(joined, joined >= 0, encoding.rows.chunk_bytes).members().unit()
        for _ in range(rounds):
            some, lists = picked([encoding.rows, rows], near.items)
            rows = some.averaged(lists, edges, most=graph.entries, width=graph.columns).unit()
        return Encoding(rows=rows)

    def mean_of(self, encoding: Encoding, near: Candidates) -> SparseRows:
        """Return A of probes from that of their nearest items."""
        assert encoding.rows is not None
        return encoding.rows.averaged(near.indices, whole_parts(_edges(near.scores))).unit()

    def score(self, overlap: torch.Tensor, probes: Probes) -> torch.Tensor:
        """Return the agreement of the neighbourhoods, mixed with the cosine similarity."""
        return overlap.mul_(1 - self.lambda_value).add_(probes.cosine, alpha=self.lambda_value)


def _edges(cosine: torch.Tensor) -> torch.Tensor:
    """The weights of edges, 0 where a list has ended."""
    return cosine.clamp_min(0) ** 2
