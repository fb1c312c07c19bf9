"""k-reciprocal re-ranking, exactly, without a matrix of all images by all images.

Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017,
arXiv:1701.08398; the arithmetic is that of the authors' Python program.

Over probes and gallery together, with d the squared Euclidean distance of unit rows, each row divided by its
own maximum:

    N(i)   = i and its k1 nearest others; h(i) = the first round(k1 / 2) + 1 of them, round half to even
    R(i)   = j in N(i) with i in N(j); r(i) likewise of h
    R*(i)  = R(i), and r(j) of each j in R(i) that has more than 2/3 of r(j) in R(i)
    V(i)   = exp(-d(i, j)) for j in R*(i), divided by their sum; 0 elsewhere
    V'(i)  = mean of V(j) over i and its k2 - 1 nearest others
    J(p,g) = 1 - s / (2 - s), where s = sum_j min(V'(p)_j, V'(g)_j)
    final  = (1 - lambda) J + lambda d

All of it is sparse but d of the probes, which is made for a few of them at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..compute.progress import Progress
from ..compute.stopwatch import Stopwatch
from ..data.checks import check_count, check_share
from ..errors import BlurrerankWarning, InputError, ParameterError
from ..graph.encoding import CHUNK_BYTES, SparseRows, average, expand, mutual, overlaps, weighted
from ..graph.neighbours import Keep, Neighbours, find_neighbours, pair_similarities
from ..search.plan import Plan
from ..search.rows import UnitRows
from . import WholeMethod

BASE_DISTANCES = ("squared", "squared-twice")

# What rounding makes of squared distances, which are differences of float32 similarities (5e-7 was seen, and
# 1e-6 at 20,000 dimensions); where a row has none above four times this, all images are equal.
_ROUNDING = 1e-6
_EQUAL = 4 * _ROUNDING
# Of distances that are divided by an image's largest: what rounding may come to untold, and what it may not.
_TOLD, _REFUSED = 1e-5, 1e-2


@dataclass(frozen=True)
class KReciprocal(WholeMethod):
    """Sort the whole gallery by (1 - lambda) Jaccard distance of k-reciprocal encodings + lambda d.

    Attributes:
        k1: how many neighbours besides itself an image has; capped at the number of other images.
        k2: how many images, itself among them, query expansion averages; 1 is none. Capped likewise.
        lambda_value: weight of the base distance against the Jaccard distance, 0 to 1.
        base_distance: `squared`, the squared Euclidean distance, or `squared-twice`, its square, as torchreid
            and layumi's scripts have it.
    """

    name: ClassVar[str] = "k-reciprocal"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "market1501": {"k1": 20, "k2": 6, "lambda_value": 0.3},
        "cuhk03": {"k1": 7, "k2": 3, "lambda_value": 0.85},
    }

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3
    base_distance: str = "squared"

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_count("k1", self.k1)
        check_count("k2", self.k2)
        check_share("lambda", self.lambda_value)
        if self.base_distance not in BASE_DISTANCES:
            raise ParameterError(
                f"base distance {self.base_distance!r} is not known: use {' or '.join(BASE_DISTANCES)}"
            )

    def capped(self, probes: int, gallery: int) -> list[str]:
        """More neighbours than there are images."""
        found, images = [], probes + gallery
        if self.k1 > images - 1:
            found.append(f"k1 {self.k1} is capped at the {images - 1} other images")
        if self.k2 > images:
            found.append(f"k2 {self.k2} is capped at the {images} images")
        return found

    def prepare(
        self,
        images: UnitRows,
        probes: int,
        plan: Plan,
        watch: Stopwatch,
        progress: Progress,
        known: Neighbours | None = None,
        checkpoint: Keep | None = None,
    ) -> Callable[[int, torch.Tensor], torch.Tensor]:
        """Encode all images; the scores are minus the final distances."""
        count = min(max(self.k1, self.k2 - 1), len(images) - 1)
        with watch("search"):
            near = find_neighbours(
                images,
                count,
                held=plan.held,
                working=plan.working,
                progress=progress,
                known=known,
                checkpoint=checkpoint,
            )
        chunk = min(plan.working, CHUNK_BYTES[images.device.type])
        with watch("re-rank"):
            _check_spread(near.lowest)
            largest = self._distance(near.lowest)
            # Their order is rounding: of equal images the lower index is nearer.
            equal = torch.nonzero(largest < self._least)
            others = torch.arange(count, device=equal.device).expand(len(equal), -1)
            near.lists[equal, 1 + others] = (others + (others >= equal)).to(near.lists.dtype)
            encodings = self.encode(
                near.lists, lambda members: self._weights(images, members, largest, plan.held, chunk), chunk
            )
            scored = images.scored(probes)
            inverted = encodings.rows(scored.start, scored.stop).transposed(len(images), chunk)
            of_probes = encodings.rows(0, probes).clone()

        def score(start: int, similarities: torch.Tensor) -> torch.Tensor:
            scores = torch.empty_like(similarities)
            step = max(1, chunk // (16 * similarities.shape[1]))
            for top in range(0, len(scores), step):
                some = similarities[top : top + step]
                first, last = start + top, start + top + len(some)
                overlap = overlaps(of_probes.rows(first, last), inverted, some.shape[1], chunk)
                base = self._normalised(some, largest[first:last].unsqueeze(1))
                scores[top : top + step] = self.blend(overlap, base).neg_()
            return scores

        return score

    def encode(
        self, lists: torch.Tensor, weigh: Callable[[SparseRows], torch.Tensor], chunk: int
    ) -> SparseRows:
        """V' of all images.

        Args:
            lists: (N, n) int32 or int64, each image and its nearest others, n at least what k1 and k2 ask for
                or N.
            weigh: gives exp(-d) of each entry of R*, (T,) float32.
            chunk: bytes to work with at a time.
        """
        reciprocal = mutual(lists[:, : self.k1 + 1], chunk)
        halves = mutual(lists[:, : round(self.k1 / 2) + 1], chunk)
        members = expand(reciprocal, halves, chunk)
        encodings = weighted(members, weigh(members), chunk)
        if self.k2 == 1:
            return encodings
        group = lists[:, : self.k2]
        return average(encodings, group, torch.ones_like(group, dtype=torch.int64), chunk)

    def blend(self, overlap: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """The final distance, from the overlap s of two encodings and the base distance d."""
        return (1 - overlap / (2 - overlap)).mul_(1 - self.lambda_value).add_(base, alpha=self.lambda_value)

    def _weights(
        self, images: UnitRows, members: SparseRows, largest: torch.Tensor, held: int, chunk: int
    ) -> torch.Tensor:
        """exp(-d) of each entry."""
        weights = pair_similarities(images, images, members.counts, members.columns, held=held, working=chunk)
        for start, stop in members.cut(chunk):
            some = members.rows(start, stop)
            first, last = members.offsets[[start, stop]].tolist()
            image = start + torch.repeat_interleave(some.counts)
            similarities = weights[first:last].masked_fill(some.columns == image, 1)
            weights[first:last] = torch.exp(-self._normalised(similarities, largest[image]))
        return weights

    def _distance(self, similarities: torch.Tensor) -> torch.Tensor:
        """The base distance of unit rows, not yet divided by the row's maximum."""
        distance = (2 - 2 * similarities).clamp_min_(0)
        return distance.square_() if self.base_distance == "squared-twice" else distance

    def _normalised(self, similarities: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """The base distance divided by the row's `largest`; 0 where all images are equal but for rounding."""
        return self._distance(similarities) * torch.where(largest < self._least, 0, 1 / largest)

    @property
    def _least(self) -> float:
        """What the largest distance of an image must reach for its images not to be all equal."""
        return _EQUAL**2 if self.base_distance == "squared-twice" else _EQUAL


def _check_spread(lowest: torch.Tensor) -> None:
    """Tell of images that are so alike that rounding shows in distances over the largest, or refuse them."""
    largest = 2 - 2 * lowest
    least, image = (value.item() for value in largest.min(dim=0))
    rounding = _ROUNDING / max(least, _ROUNDING)
    if rounding <= _TOLD or largest.max() < _EQUAL:
        return
    alike = (
        "features are much alike (none of probes and gallery has a cosine similarity below "
        f"{1 - least / 2:.6f} with image {image} of these)"
    )
    mend = "subtract the gallery's mean from all features, if that is meant"
    if rounding > _REFUSED:
        raise InputError(f"{alike}: float32 cannot tell how far apart they are for k-reciprocal; {mend}")
    warnings.warn(
        f"{alike}: scores of k-reciprocal may be off by {rounding:.0e}; {mend}",
        BlurrerankWarning,
        stacklevel=2,
    )


METHOD = KReciprocal
