"""Local blurring re-ranking: the spectral feature transformation of each probe's neighbourhood.

Source: Luo, Chen, Wang, Zhang, "Spectral Feature Transformation for Person Re-identification", ICCV 2019,
arXiv:1811.11405, section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..data.candidates import Candidates
from ..data.checks import check_count, check_sigma, check_switch
from ..errors import ParameterError
from ..search.precision import full_float32
from ..search.rows import Gatherable
from ..search.tiles import widen
from ..spectral import fused
from ..spectral.transform import blurred_scores
from . import HeadMethod

# Bytes worked on at a time: on a CPU they should stay in the last-level cache between
# the gathering and the product.
_CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}

# Below this sigma Gram matrices are computed in float64: an error e of theirs moves scores by up to
# 0.3 e / sqrt(sigma), which for float32 with many dimensions, or on matrix units, would be too much.
_FINE_SIGMA = 0.01

# Long before, a random walk has forgotten where it began.
_MOST_STEPS = 100

# In a product narrower than this, BLAS libraries round equal rows differently by where they stand (seen with
# MKL below 12), and duplicates would no longer tie.
_LEAST_NODES = 16


@dataclass(frozen=True)
class LocalBlurring(HeadMethod):
    """Sort the n best of a probe q by y = T (X q), with T the transition probabilities among them.

    Attributes:
        topn: n, the size of the neighbourhood.
        sigma: temperature of the affinity exp(cos / sigma), above 0.
        probe_in_graph: whether the probe is a node of the graph too.
        cosine: whether transformed features are compared by cosine instead of dot product.
        steps: how many steps of the random walk, up to 100.
    """

    name: ClassVar[str] = "lbr"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "market1501": {"topn": 50, "sigma": 0.1},
        "dukemtmc": {"topn": 50, "sigma": 0.1},
        "cuhk03": {"topn": 50, "sigma": 0.1},
        "msmt17": {"topn": 150, "sigma": 0.02},
    }

    sigma: float = 0.1
    probe_in_graph: bool = False
    cosine: bool = False
    steps: int = 1

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_sigma(self.sigma)
        check_count("steps", self.steps)
        if self.steps > _MOST_STEPS:
            raise ParameterError(f"steps must be at most {_MOST_STEPS}, not {self.steps}")
        check_switch("probe_in_graph", self.probe_in_graph)
        check_switch("cosine", self.cosine)

    def workspace(self, topn: int, dim: int) -> int:
        """The gathered features, and the Gram matrix with what the softmax makes of it."""
        return _workspace(topn, dim, fine=self._fine(self.sigma))

    def _fine(self, sigma: float) -> bool:
        """Whether float32 is not enough, as it is not for features that cancel each other out either."""
        return self.cosine or sigma < _FINE_SIGMA

    def rescore(self, probe: torch.Tensor, candidates: Candidates, gallery: Gatherable) -> torch.Tensor:
        """Blurred similarity of each candidate, (p, n) float32."""
        return self.rescore_each(probe, candidates, gallery, [self.sigma])[0]

    def rescore_each(
        self, probe: torch.Tensor, candidates: Candidates, gallery: Gatherable, sigmas: Sequence[float]
    ) -> torch.Tensor:
        """`rescore` for every one of `sigmas`, (sigmas, p, n) float32."""
        table, places = gallery.gather(candidates.indices)
        if self.steps == 1 and not self.probe_in_graph and not any(map(self._fine, sigmas)):
            blurred = fused.attempt(table, places, candidates.scores, sigmas)
            if blurred is not None:
                return blurred
        return self._plain(table, places, probe, candidates.scores, sigmas)

    @full_float32()
    def _plain(
        self,
        table: torch.Tensor,
        places: torch.Tensor,
        probe: torch.Tensor,
        scores: torch.Tensor,
        sigmas: Sequence[float],
    ) -> torch.Tensor:
        """`rescore_each` in plain torch, from the same Gram matrices for all `sigmas`."""
        each = _workspace(places.shape[1], table.shape[1], fine=any(map(self._fine, sigmas)))
        chunk = max(1, _CHUNK_BYTES[table.device.type] // each)
        blurred = scores.new_empty(len(sigmas), *scores.shape)
        for start in range(0, len(places), chunk):
            some = slice(start, start + chunk)
            nodes = table.index_select(0, places[some].flatten()).view(*places[some].shape, -1)
            blurred[:, some] = self._blur(nodes, probe[some], scores[some], sigmas)
        return blurred

    def _blur(
        self, nodes: torch.Tensor, probe: torch.Tensor, scores: torch.Tensor, sigmas: Sequence[float]
    ) -> torch.Tensor:
        """Scores of c neighbourhoods, (sigmas, c, n): nodes (c, n, D), probe (c, D), scores (c, n)."""
        graphs = {fine: self._graph(nodes, probe, scores, fine=fine) for fine in set(map(self._fine, sigmas))}
        found = []
        for sigma in sigmas:
            gram, seen = graphs[self._fine(sigma)]
            blurred = blurred_scores(gram, seen, sigma, steps=self.steps, cosine=self.cosine)
            found.append(blurred[:, : scores.shape[1]].to(scores.dtype))
        return torch.stack(found)

    def _graph(
        self, nodes: torch.Tensor, probe: torch.Tensor, scores: torch.Tensor, *, fine: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine similarities among all nodes of c graphs, (c, N, N), and to the probe, (c, N)."""
        if fine or self.probe_in_graph:
            nodes = torch.cat([nodes, probe.unsqueeze(1)], dim=1)
            scores = torch.cat([scores, torch.ones_like(scores[:, :1])], dim=1)
        number = nodes.shape[1]
        wide = widen(nodes.double() if fine else nodes, _LEAST_NODES)
        gram = torch.bmm(wide, wide.transpose(1, 2))[:, :number, :number]
        if fine:
            # Rows are unit rows as far as float32 goes.
            lengths = gram.diagonal(dim1=1, dim2=2).sqrt()
            gram = gram / (lengths.unsqueeze(1) * lengths.unsqueeze(2))
            scores = gram[:, :, -1]
        return (gram, scores) if self.probe_in_graph or not fine else (gram[:, :-1, :-1], scores[:, :-1])


def _workspace(topn: int, dim: int, *, fine: bool) -> int:
    return (16 * topn * dim + 48 * topn * topn) if fine else (4 * topn * dim + 16 * topn * topn)


METHOD = LocalBlurring
