"""Local blurring of whole neighbourhoods: new scores for the best items of many probes.

Source: Luo, Chen, Wang, Zhang, "Spectral Feature Transformation for Person Re-identification", ICCV 2019,
arXiv:1811.11405, section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..compute.products import full_float32, widen
from . import fused
from .transform import blurred_scores

# Bytes worked on at a time: on a CPU they should stay in the last-level cache between
# the gathering and the product.
_CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}

# Below this sigma Gram matrices are computed in float64: an error e of theirs moves scores by up to
# 0.3 e / sqrt(sigma), which for float32 with many dimensions, or on matrix units, would be too much.
_FINE_SIGMA = 0.01

# In a product narrower than this, BLAS libraries round equal rows differently by where they stand (seen with
# MKL below 12), and duplicates would no longer tie.
_LEAST_NODES = 16


@dataclass(frozen=True)
class Blurring:
    """How neighbourhoods are blurred; see `transform.blurred_scores`.

    Attributes:
        steps: steps of the random walk.
        cosine: whether transformed features are compared by cosine instead of dot product.
        probe_in_graph: whether the probe is a node of the graph too.
    """

    steps: int = 1
    cosine: bool = False
    probe_in_graph: bool = False

    def workspace_bytes(self, topn: int, dim: int, sigma: float) -> int:
        """Return the bytes for one neighbourhood: its features, the Gram matrix, and the softmax."""
        if self._needs_float64(sigma):
            return 16 * topn * dim + 48 * topn * topn
        return 4 * topn * dim + 16 * topn * topn

    def scores(
        self,
        table: torch.Tensor,
        places: torch.Tensor,
        probe: torch.Tensor,
        cosine: torch.Tensor,
        sigmas: Sequence[float],
    ) -> torch.Tensor:
        """Return the blurred similarity of each item at every temperature.

        Args:
            table: (U, D) float32 unit rows.
            places: (p, n) int64, the rows of the items in `table`.
            probe: (p, D) float32 unit rows.
            cosine: (p, n) float32, cosine similarities of items and probes.
            sigmas: temperatures, above 0.

        Returns:
            (sigmas, p, n) float32.
        """
        if self.steps == 1 and not self.probe_in_graph and not any(map(self._needs_float64, sigmas)):
            blurred = fused.attempt(table, places, cosine, sigmas)
            if blurred is not None:
                return blurred
        return self._plain(table, places, probe, cosine, sigmas)

    def of_graphs(self, gram: torch.Tensor, cosine: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
        """Return the blurred similarity of each item where all similarities are known.

        Args:
            gram: (p, n, n) float32, similarities among the items.
            cosine: (p, n) float32, similarities of items and probes.
            sigmas: temperatures, above 0.

        Returns:
            (sigmas, p, n) float32.
        """
        graph, seen = gram.double(), cosine.double()
        if self.probe_in_graph:
            graph = torch.cat([graph, seen.unsqueeze(1)], dim=1)
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
            graph = torch.cat([graph, seen.unsqueeze(2)], dim=2)
        found = [blurred_scores(graph, seen, sigma, steps=self.steps, cosine=self.cosine) for sigma in sigmas]
        return torch.stack([blurred[:, : cosine.shape[1]].to(cosine.dtype) for blurred in found])

    @full_float32()
    def _plain(
        self,
        table: torch.Tensor,
        places: torch.Tensor,
        probe: torch.Tensor,
        cosine: torch.Tensor,
        sigmas: Sequence[float],
    ) -> torch.Tensor:
        """`scores` in plain torch, from the same Gram matrices for all `sigmas`."""
        each = self.workspace_bytes(places.shape[1], table.shape[1], min(sigmas))
        chunk = max(1, _CHUNK_BYTES[table.device.type] // each)
        blurred = cosine.new_empty(len(sigmas), *cosine.shape)
        for start in range(0, len(places), chunk):
            some = slice(start, start + chunk)
            nodes = table.index_select(0, places[some].flatten()).view(*places[some].shape, -1)
            blurred[:, some] = self._blur(nodes, probe[some], cosine[some], sigmas)
        return blurred

    def _blur(
        self, nodes: torch.Tensor, probe: torch.Tensor, cosine: torch.Tensor, sigmas: Sequence[float]
    ) -> torch.Tensor:
        """Scores of c neighbourhoods, (sigmas, c, n): nodes (c, n, D), probe (c, D), cosine (c, n)."""
        fineness = {self._needs_float64(sigma) for sigma in sigmas}
        graphs = {fine: self._graph(nodes, probe, cosine, fine=fine) for fine in fineness}
        found = []
        for sigma in sigmas:
            gram, seen = graphs[self._needs_float64(sigma)]
            blurred = blurred_scores(gram, seen, sigma, steps=self.steps, cosine=self.cosine)
            found.append(blurred[:, : cosine.shape[1]].to(cosine.dtype))
        return torch.stack(found)

    def _graph(
        self, nodes: torch.Tensor, probe: torch.Tensor, cosine: torch.Tensor, *, fine: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine similarities among all nodes of c graphs, (c, N, N), and to the probe, (c, N)."""
        if fine or self.probe_in_graph:
            nodes = torch.cat([nodes, probe.unsqueeze(1)], dim=1)
            cosine = torch.cat([cosine, torch.ones_like(cosine[:, :1])], dim=1)
        number = nodes.shape[1]
        wide = widen(nodes.double() if fine else nodes, _LEAST_NODES)
        gram = torch.bmm(wide, wide.transpose(1, 2))[:, :number, :number]
        if fine:
            # Rows are unit rows as far as float32 goes.
            lengths = gram.diagonal(dim1=1, dim2=2).sqrt()
            gram = gram / (lengths.unsqueeze(1) * lengths.unsqueeze(2))
            cosine = gram[:, :, -1]
        return (gram, cosine) if self.probe_in_graph or not fine else (gram[:, :-1, :-1], cosine[:, :-1])

    def _needs_float64(self, sigma: float) -> bool:
        """Whether float32 is not enough, as it is not for features that cancel each other out either."""
        return self.cosine or sigma < _FINE_SIGMA
