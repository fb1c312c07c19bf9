"""k-reciprocal encoding against a gallery that is known in advance: each probe by itself, in any company.

docs/online.md has the definition, what a probe costs, and how it differs from the batch method. With x_i the
unit rows of the gallery, c cosine similarities and every list by similarity, ties to the lower index:

    M(i)   = the pool items nearest to i by c; i itself is not among them
    T(i,j) = exp(c(i, j) / sigma) over i and the first blur - 1 of M(i), divided by their sum
    x~(i)  = sum_j T(i, j) x_j, divided by its norm, or by 1e-6 if that is less: the spectral feature
             transformation of the neighbourhood
    b(a,j) = a . x~(j), for a probe or an item a
    N(a)   = M(a) sorted by b(a, j); an item is the first of its own
    R(a)   = a, and those of the first k1 others in N(a) that have a in theirs; r(a) likewise with
             round(k1 / 2), half to even
    R*(a)  = R(a), and r(j) of each j in R(a) that has more than 2/3 of r(j) in R(a)
    V(a)   = 1 / |R*(a)| for j in R*(a), 0 elsewhere
    V'(a)  = mean of V(a), weight 1, and V(j) of the first k2 - 1 others in N(a), weight
             exp((b(a, j) - b1) / sigma), with b1 the largest
    J(p,g) = s / (2 - s), where s = sum_j min(V'(p)_j, V'(g)_j)
    score  = (1 - lambda) J + lambda exp((c(p, g) - c1) / sigma), with c1 the largest

A probe p is in nobody's list, and not in its own R(p). An item j counts it among its first k1 if p is nearer
than the k1-th other there: if b(p, j) is above b(j, k1-th), or if there are fewer than k1 others. Where no item
does, V(p) is empty and V'(p) the mean of the others alone.

Sources: the encoding is that of Zhong et al., CVPR 2017, arXiv:1701.08398, the transformation that of Luo et
al., ICCV 2019, arXiv:1811.11405; how they are put together here is this project's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..errors import ParameterError
from ..graph.added import added_to
from ..graph.encoding import BlurredEncoding, Encoding, Probes
from ..graph.neighbour_graph import NeighbourGraph, sort_items
from ..graph.neighbourhoods import Neighbourhoods
from ..graph.sparse_rows import WHOLE, SparseRows, picked
from .kinds.base import DEFAULT_DEPTH, GraphRanker
from .kinds.parameters import ranged


def _gallery_images(near: Neighbourhoods) -> int | None:
    """How many gallery images an identity has, which are those that a probe should find."""
    others = near.size("nearest")
    return others + 1 if others else None


@dataclass(frozen=True)
class KReciprocalOnline(GraphRanker):
    """Sort the whole gallery by Jaccard similarity of encodings, mixed with the transition from the probe.

    Attributes:
        pool: nearest items by cosine similarity that are considered for each image.
        blur: nearest images, including itself, that a gallery item is blurred with; 1 turns this off.
        sigma: temperature of all transitions.
        k1: number of neighbours of an image, without itself; at most `pool`.
        k2: nearest images, including itself, that query expansion averages; 1 is none; at most `pool` + 1.
        lambda_value: weight of the transition from the probe.
    """

    name: ClassVar[str] = "k-reciprocal-online"
    transductive: ClassVar[bool] = False
    online: ClassVar[bool] = True
    blurs: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True
    query_time_params: ClassVar[tuple[str, ...]] = ("lambda_value",)

    pool: int = ranged(DEFAULT_DEPTH, least=1)
    blur: int = ranged(8, least=1)
    # exp((c - c1) / sigma) is then no denormal number even for opposite features: float32 keeps the order.
    sigma: float = ranged(0.1, above=0, least=0.025)
    k1: int = ranged(15, least=1, fits=_gallery_images)
    k2: int = ranged(6, least=1, fits=_gallery_images)
    lambda_value: float = ranged(0.2, least=0, most=1)

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        least = max(self.k1, self.k2 - 1, self.blur - 1)
        if least > self.pool:
            raise ParameterError(
                f"pool {self.pool} must be at least {least}: k1, k2 - 1 and blur - 1 neighbours come from it"
            )

    def neighbours(self) -> int:
        """The pool."""
        return self.pool

    def notes(self, probes: int, gallery: int) -> list[str]:
        """A neighbourhood larger than the gallery."""
        return [f"pool {self.pool} is capped at the gallery's {gallery} items"] if self.pool > gallery else []

    def workspace_bytes(self, listed: int) -> int:
        """Return what the similarities to the groups of the candidates take."""
        return 32 * listed * self.blur

    def fit(self, graph: NeighbourGraph) -> BlurredEncoding:
        """Blur, find k-reciprocal neighbours, encode."""
        blurred = graph.blurred(self.blur, self.sigma)
        others = graph.lists.shape[1] - 1
        near = graph.reordered(graph.similarities_to(blurred), min(self._depth, others))
        nearness = near.similarities[:, 1:]
        none = nearness.new_full((len(graph),), -torch.inf)
        reach = none if others < self.k1 else nearness[:, self.k1 - 1].clone()
        halves = near.reciprocal(round(self.k1 / 2))
        own = near.reciprocal(self.k1).expanded(halves).uniform()
        rows, group, blur = self._mean(own, near), blurred.group, blurred.weights
        return BlurredEncoding(rows=rows, group=group, blur=blur, reach=reach, halves=halves, encodings=own)

    def extend(self, encoding: Encoding, graph: NeighbourGraph) -> BlurredEncoding:
        """Blur, find k-reciprocal neighbours, encode; items of before have the neighbours that they had."""
        assert isinstance(encoding, BlurredEncoding)
        found, near = added_to(encoding, graph, graph.blurred(self.blur, self.sigma), self.k1, self._depth)
        some, lists = picked([encoding.encodings, found.encodings], near.lists[:, : self.k2])
        return replace(found, rows=self._mean(some, replace(near, lists=lists)))

    def encode_probes(self, encoding: Encoding, probes: Probes) -> SparseRows:
        """Return V' of each probe."""
        assert isinstance(encoding, BlurredEncoding)
        assert probes.near is not None
        assert probes.cosine_at is not None
        items = probes.near.indices
        blurred = probes.cosine_at(encoding.group[items]).mul_(encoding.blur[items]).sum(dim=2)
        nearest, nearness = sort_items(items, blurred, self._depth)
        first = nearest[:, : self.k1]
        reciprocal = nearness[:, : self.k1] > encoding.reach[first]
        chunk = encoding.encodings.chunk_bytes
        own = SparseRows.from_lists(first, reciprocal, chunk).expanded(encoding.halves).uniform()
        return encoding.encodings.averaged(nearest[:, : self.k2 - 1], self._shares(nearness), own)

    def score(self, overlap: torch.Tensor, probes: Probes) -> torch.Tensor:
        """Return the Jaccard similarity, mixed with the transition from the probe."""
        assert probes.near is not None
        jaccard = overlap.div_(2 - overlap).mul_(1 - self.lambda_value)
        transition = (probes.cosine - probes.near.scores[:, :1]).div_(self.sigma).exp_()
        return jaccard.add_(transition, alpha=self.lambda_value)

    def _mean(self, encodings: SparseRows, near: NeighbourGraph) -> SparseRows:
        """V' of images, each the first of its own list."""
        lists = near.lists[:, : self.k2]
        shares = torch.full_like(lists, WHOLE, dtype=torch.int64)
        shares[:, 1:] = self._shares(near.similarities[:, 1:])
        return encodings.averaged(lists, shares, width=near.columns)

    @property
    def _depth(self) -> int:
        """How many neighbours are used of those that are looked at."""
        return max(self.k1, self.k2 - 1)

    def _shares(self, nearness: torch.Tensor) -> torch.Tensor:
        """The weights of the nearest others in query expansion, (N, up to k2 - 1) whole parts of `WHOLE`."""
        behind = nearness[:, : self.k2 - 1] - nearness[:, :1]
        return (behind.div_(self.sigma).exp_() * WHOLE).round_().long()


METHOD = KReciprocalOnline
