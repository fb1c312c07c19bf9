"""What rankers by propagated neighbourhoods have in common."""

from __future__ import annotations

from typing import ClassVar

import torch

from ...data.candidates import Candidates
from ...graph.encoding import Encoding, Probes
from ...graph.neighbour_graph import NeighbourGraph, NeighbourLists
from ...graph.sparse_rows import SparseRows, listed_back, picked, whole_parts
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

    def propagated(
        self,
        graph: NeighbourGraph,
        joined: torch.Tensor,
        near: NeighbourLists,
        rounds: int,
        one_sided: float = 1.0,
    ) -> SparseRows:
        """Return A of all images.

        Args:
            graph: of N images.
            joined: (N, k) the images that each is joined with at first, -1 past the end.
            near: those that are averaged over.
            rounds: how many times.
            one_sided: what the edge to an item weighs that does not list the image in turn, against 1.
        """
        edges = _edges(near.similarities)
        if one_sided < 1:
            blocks = listed_back(near.items, near.items, chunk_bytes=graph.chunk_bytes)
            mutual = torch.cat([found for _, found in blocks])
            edges = torch.where(mutual, edges, edges * one_sided)
        adjacency = SparseRows.from_lists(joined, joined >= 0, graph.chunk_bytes).members()
        return adjacency.propagated(near.items, edges, rounds, graph.entries)

    def continued(
        self,
        encoding: Encoding,
        graph: NeighbourGraph,
        joined: torch.Tensor,
        near: NeighbourLists,
        rounds: int,
    ) -> Encoding:
        """Return the encoding of items that are added, for `extend`.

        A begins with the items that each is joined with. In each round it becomes the mean of the rows over
        `near`, those of before for the items of before.

        Args:
            encoding: of the items of before.
            graph: of A items that are added.
            joined: (A, k) the images that each is joined with at first, -1 past the end.
            near: those that are averaged over.
            rounds: how many times.
        """
        assert encoding.rows is not None
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
