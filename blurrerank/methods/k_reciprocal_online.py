"""k-reciprocal encoding against a gallery that stands: each probe alone, whatever the others are.

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

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch

from ..data.candidates import Candidates
from ..data.checks import check_count, check_share, check_sigma
from ..data.sort_keys import from_sort_keys, sort_keys
from ..errors import ParameterError
from ..graph.encoding import CHUNK_BYTES, ONE, WHOLE, SparseRows, average, expand, mutual, offsets_of, overlaps
from ..graph.neighbours import Neighbours, pair_similarities
from ..search.rows import UnitRows, blocks_of
from . import GalleryMethod

# exp((c - c1) / sigma) is then no denormal number even for opposite features, so that float32 keeps the order.
_LEAST_SIGMA = 0.025
# Blurred features shorter than this are rounding: they cancel each other out.
_LEAST_NORM = 1e-6


@dataclass(frozen=True)
class EncodedGallery:
    """What a gallery knows of itself: all that a probe is compared with, beside the features.

    Attributes:
        group: (G, B) int32 or int64: each item and the others it is blurred with, in ascending order.
        blur: (G, B) float32: T(i, j) of these over the norm of the sum, so that b(a, i) is the sum of
            blur[i] * c(a, group[i]).
        reach: (G,) float32: the similarity b that a probe must exceed to be among an item's k1 nearest; minus
            infinity where it need not.
        halves: r of each item; the weights mean nothing.
        encodings: V of each item.
        inverted: V' by columns: for each item j, the items with j in their encoding.
    """

    group: torch.Tensor
    blur: torch.Tensor
    reach: torch.Tensor
    halves: SparseRows
    encodings: SparseRows
    inverted: SparseRows

    def __len__(self) -> int:
        return len(self.reach)

    def to(self, device: torch.device) -> EncodedGallery:
        """The same on `device`; what is there already is shared."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True)
class KReciprocalOnline(GalleryMethod):
    """Sort the whole gallery by Jaccard similarity of encodings, mixed with the transition from the probe.

    Attributes:
        pool: how many items by cosine similarity are looked at around each image.
        blur: how many images, itself among them, a gallery item is blurred with; 1 is none.
        sigma: temperature of all transitions, at least 0.025.
        k1: how many neighbours besides itself an image has, at most `pool`.
        k2: how many images, itself among them, query expansion averages; 1 is none; at most `pool` + 1.
        lambda_value: weight of the transition from the probe, 0 to 1.
    """

    name: ClassVar[str] = "k-reciprocal-online"
    free: ClassVar[tuple[str, ...]] = ("lambda_value",)

    blur: int = 8
    sigma: float = 0.1
    k1: int = 15
    k2: int = 6
    lambda_value: float = 0.2

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        for name in ("blur", "k1", "k2"):
            check_count(name, getattr(self, name))
        check_sigma(self.sigma)
        if self.sigma < _LEAST_SIGMA:
            raise ParameterError(f"sigma must be at least {_LEAST_SIGMA}, not {self.sigma!r}")
        check_share("lambda", self.lambda_value)
        least = max(self.k1, self.k2 - 1, self.blur - 1)
        if least > self.pool:
            raise ParameterError(
                f"pool {self.pool} must be at least {least}: k1, k2 - 1 and blur - 1 neighbours come from it"
            )

    def workspace(self, pool: int) -> int:
        """Similarities to the groups of the candidates."""
        return 32 * pool * self.blur

    def encode(self, gallery: UnitRows, near: Neighbours, held: int, working: int) -> EncodedGallery:
        """Blur, find k-reciprocal neighbours, encode."""
        chunk = min(working, CHUNK_BYTES[gallery.device.type])
        number = len(gallery)
        # In ascending order they can be added up as the gallery passes by, with the same rounding.
        group, order = near.lists[:, : self.blur].sort(dim=1)
        blur = torch.softmax(near.similarities[:, : self.blur] / self.sigma, dim=1).gather(1, order)
        for start, stop in blocks_of(number, gallery.block if gallery.resident else max(1, held // 2)):
            mean = _Blurred(gallery, group, blur).rows(start, stop)
            blur[start:stop] /= torch.linalg.vector_norm(mean, dim=1, keepdim=True).clamp_min_(_LEAST_NORM)

        others = near.lists[:, 1:]
        counts = torch.full((number,), others.shape[1], device=others.device)
        # Half as many blurred rows as others at a time, since they are held beside these.
        similarities = pair_similarities(
            gallery, _Blurred(gallery, group, blur), counts, others.flatten(), held=held // 2, working=chunk
        ).view_as(others)
        depth = min(max(self.k1, self.k2 - 1), others.shape[1])
        lists = near.lists[:, : depth + 1].clone()
        nearness = similarities.new_empty(number, depth)
        for start, stop in blocks_of(number, max(1, chunk // (32 * max(1, others.shape[1])))):
            found, nearness[start:stop] = _sorted(others[start:stop].long(), similarities[start:stop], depth)
            lists[start:stop, 1:] = found
        full = others.shape[1] < self.k1
        reach = nearness[:, self.k1 - 1].clone() if not full else nearness.new_full((number,), -torch.inf)

        halves = mutual(lists[:, : round(self.k1 / 2) + 1], chunk)
        encodings = _uniform(expand(mutual(lists[:, : self.k1 + 1], chunk), halves, chunk))
        averaged = encodings
        if self.k2 > 1:
            shares = torch.full((number, min(self.k2, depth + 1)), WHOLE, device=lists.device)
            shares[:, 1:] = self._shares(nearness)
            averaged = average(encodings, lists[:, : self.k2], shares, chunk)
        return EncodedGallery(group, blur, reach, halves, encodings, averaged.transposed(number, chunk))

    def score(
        self, encoded: EncodedGallery, candidates: Candidates, similarities: torch.Tensor, working: int
    ) -> torch.Tensor:
        """Encode the probes and compare, a few of them at a time."""
        chunk = min(working, CHUNK_BYTES[similarities.device.type])
        scores = torch.empty_like(similarities)
        per_probe = max(16 * len(encoded), self.workspace(candidates.indices.shape[1]))
        for start, stop in blocks_of(len(scores), max(1, chunk // per_probe)):
            some = Candidates(candidates.indices[start:stop], candidates.scores[start:stop])
            seen = similarities[start:stop]
            overlap = overlaps(
                self._encode_probes(encoded, some, seen, chunk), encoded.inverted, len(encoded), chunk
            )
            jaccard = overlap.div_(2 - overlap).mul_(1 - self.lambda_value)
            transition = (seen - some.scores[:, :1]).div_(self.sigma).exp_()
            scores[start:stop] = jaccard.add_(transition, alpha=self.lambda_value)
        return scores

    def _encode_probes(
        self, encoded: EncodedGallery, candidates: Candidates, similarities: torch.Tensor, chunk: int
    ) -> SparseRows:
        """V' of each probe."""
        items = candidates.indices
        group = encoded.group[items]
        seen = similarities.gather(1, group.flatten(1).long()).view(group.shape)
        blurred = seen.mul_(encoded.blur[items]).sum(dim=2)
        nearest, nearness = _sorted(items, blurred, max(self.k1, self.k2 - 1))
        first = nearest[:, : self.k1]
        has = nearness[:, : self.k1] > encoded.reach[first]
        reciprocal = SparseRows(offsets_of(has.sum(dim=1)), first[has], first[has])
        own = _uniform(expand(reciprocal, encoded.halves, chunk))
        if self.k2 == 1:
            return own
        return average(encoded.encodings, nearest[:, : self.k2 - 1], self._shares(nearness), chunk, own=own)

    def _shares(self, nearness: torch.Tensor) -> torch.Tensor:
        """What the nearest others count in query expansion, (N, up to k2 - 1) whole parts of `WHOLE`."""
        behind = nearness[:, : self.k2 - 1] - nearness[:, :1]
        return (behind.div_(self.sigma).exp_() * WHOLE).round_().long()


class _Blurred:
    """Gallery features after blurring, made when asked for."""

    def __init__(self, gallery: UnitRows, group: torch.Tensor, blur: torch.Tensor) -> None:
        self._gallery, self._group, self._blur = gallery, group, blur

    def __len__(self) -> int:
        return len(self._gallery)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop`, (stop - start, D)."""
        gallery = self._gallery
        blur = self._blur[start:stop]
        mean = blur.new_zeros(stop - start, gallery.dim)
        for first, block in [(0, gallery.rows(0, len(gallery)))] if gallery.resident else gallery.blocks():
            for nth, column in enumerate(self._group[start:stop].T):
                here = torch.nonzero((column >= first) & (column < first + len(block))).flatten()
                found = block.index_select(0, column[here] - first)
                mean.index_add_(0, here, found.mul_(blur[here, nth : nth + 1]))
        return mean


def _sorted(items: torch.Tensor, similarities: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `depth` most similar of each row's (N, n) `items`, most similar first, and their similarities."""
    keys = sort_keys(similarities, items)
    return from_sort_keys(keys.sort(dim=1, descending=True).values[:, :depth])


def _uniform(members: SparseRows) -> SparseRows:
    """The same weight for all members of a row, which sum to `ONE` but for rounding."""
    counts = members.counts
    parts = ((ONE + counts // 2) // counts.clamp_min(1)).to(torch.int32)
    return SparseRows(members.offsets, members.columns, parts.repeat_interleave(counts))


METHOD = KReciprocalOnline
