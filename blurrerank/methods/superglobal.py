"""SuperGlobal re-ranking: the head of a list is refined by its own neighbours, and compared with its best.

For a probe q, let x_1 .. x_n be the unit rows of its n best gallery items by cosine similarity, best first, and
c cosine similarities:

    B(i)  = the k nearest others of x_i among the n
    x'_i  = (x_i + beta sum_j max(c(i, j), 0) x_j) / (1 + beta sum_j max(c(i, j), 0)) over j in B(i)
    y_i   = q . x'_i
    z     = the largest value, in each dimension, of x'_i over the k + 1 items with the largest y_i
    score = (y_i + z . x'_i) / 2

Ties go to the item that is further up in the list. Source: Shao, Chen, Karpur, Cui, Araujo, Cao, "Global
Features are All You Need for Image Retrieval and Reranking", ICCV 2023, arXiv:2308.06954, and the authors'
program, whose parameters are the defaults. That program lets negative similarities weigh too, and may then
divide by next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .kinds.base import HeadRanker
from .kinds.parameters import ranged

if TYPE_CHECKING:
    import torch

    from ..data.candidates import Candidates
    from ..search.rows import Gatherable

# In narrower products, BLAS libraries round equal rows differently by where they stand.
_LEAST_ROWS = 16


@dataclass(frozen=True)
class SuperGlobal(HeadRanker):
    """Sort the n best of a probe by the mean similarity of refined items to the probe and to the best of them.

    Attributes:
        topn: number of items at the head of the list that are sorted again.
        k: nearest other items of the head that refine an item. The k + 1 best refined items also act as a
            second probe.
        beta: weight of the other items, relative to the item itself.
    """

    name: ClassVar[str] = "superglobal"

    topn: int = ranged(400, least=1)
    k: int = ranged(9, least=0)
    beta: float = ranged(0.15, least=0)

    def notes(self, probes: int, gallery: int) -> list[str]:
        """More neighbours than a head has, too."""
        others = min(self.topn, gallery) - 1
        too_many = [f"k {self.k} is capped at the {others} other items of a head"] if self.k > others else []
        return super().notes(probes, gallery) + too_many

    def workspace_bytes(self, topn: int, dim: int) -> int:
        """Return what the head of one probe takes: its features, their products, sorted, and neighbours."""
        return 20 * topn * dim + 24 * topn * topn + 48 * topn * min(self.k + 1, topn)

    def rescore(self, probe: torch.Tensor, candidates: Candidates, gallery: Gatherable) -> torch.Tensor:
        """Return the new score of each candidate, (p, n) float32."""
        import torch

        table, places = gallery.gather(candidates.indices)
        # One probe at a time: a head is large, and what it is multiplied with must not depend on the others.
        scores = [
            self._refined(table[some], cosine) for some, cosine in zip(places, candidates.scores, strict=True)
        ]
        return torch.stack(scores) if scores else candidates.scores.clone()

    def _refined(self, items: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
        """(n,) float32 scores of (n, D) items with (n,) cosine similarities to the probe."""
        import torch
        from torch.nn.functional import embedding_bag

        from ..compute.products import full_float32, widen
        from ..data.sort_keys import from_sort_keys, sort_keys

        with full_float32():
            wide = widen(items, _LEAST_ROWS)
            alike = (wide @ wide.T)[: len(items), : len(items)]
        alike.fill_diagonal_(torch.inf)  # an item is the first of its own
        # Not a sort of whole rows, which takes longer than everything else.
        keys = sort_keys(alike, torch.ones_like(cosine, dtype=torch.int64).cumsum(0) - 1)
        places, near = from_sort_keys(keys.topk(min(self.k + 1, len(items)), dim=1).values)
        weights = near.double().clamp_min(0) * self.beta
        weights[:, 0] = 1
        weights = weights / weights.sum(dim=1, keepdim=True)
        seen = (weights * cosine.double()[places]).sum(dim=1)
        best = seen.argsort(descending=True, stable=True)[: self.k + 1]
        refined = embedding_bag(places[best], items.double(), mode="sum", per_sample_weights=weights[best])
        agreeing = (items * refined.amax(dim=0).float()).sum(dim=1, dtype=torch.float64)
        return ((seen + (weights * agreeing[places]).sum(dim=1)) / 2).float()


METHOD = SuperGlobal
