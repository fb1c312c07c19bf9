"""What search and re-ranking hand on: `Candidates`, `Ranking`, and where the matches stand in it.

The one tie rule of the project lives here too: the better score first, and of equal scores the lower
gallery index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError

_LOW = 0xFFFFFFFF
NOBODY = torch.iinfo(torch.int64).min
"""A sort key that comes after every other."""

Bits = TypeVar("Bits", torch.Tensor, NDArray[np.int32])


def _monotone(bits: Bits) -> Bits:
    """The bits of float32 numbers as int32 that order as the numbers do; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def index_dtype(gallery_size: int) -> type[np.signedinteger[Any]]:
    """What gallery indices are kept as: int32 as long as that reaches."""
    return np.int32 if gallery_size <= 2**31 else np.int64


def sort_keys(scores: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Integers that order as the lists do: descending by score, then ascending by gallery index.

    Being all different, they give the same order under any sort and any top-n, on any device.

    Args:
        scores: float32, any shape.
        indices: int64 below 2^32, broadcastable to `scores`.

    Returns:
        int64, the shape of `scores`: the score's bits made monotone above, the index reversed below.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes one zero of the two
    return (_monotone(bits).to(torch.int64) << 32) | (_LOW - indices)


def from_sort_keys(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gallery indices (int64) and scores (float32) back from `sort_keys`, exactly."""
    return _LOW - (keys & _LOW), _monotone((keys >> 32).to(torch.int32)).view(torch.float32)


def fine_keys(scores: torch.Tensor, indices: torch.Tensor, total: int) -> torch.Tensor:
    """Sort keys that tell scores apart as finely as the indices leave room for.

    Args:
        scores: float64 between -1.5 and 1.5, or -inf, any shape.
        indices: int64 below `total`, of the same shape.
        total: how many there may be, up to 2^32: of 63 bits a score has what these do not need.

    Returns:
        int64, ordered as `sort_keys`; `NOBODY` for -inf.
    """
    bits = max(1, (total - 1).bit_length())
    fixed = (scores.clamp_min(-1.5) * 2.0 ** (62 - bits)).round().to(torch.int64)
    keys = (fixed << bits) | ((1 << bits) - 1 - indices)
    return keys.masked_fill_(scores == -torch.inf, NOBODY)


def from_fine_keys(keys: torch.Tensor, total: int) -> torch.Tensor:
    """The indices back from `fine_keys`."""
    low = (1 << max(1, (total - 1).bit_length())) - 1
    return low - (keys & low)


def strictly_decreasing(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lower each score that does not lie below its predecessor to the next float32 that does.

    Tools that read a ranking sort it by score again, each with its own idea of ties: with this they all
    restore the list. A score without a tie before it is untouched.

    Args:
        scores: (P, R) float32 in list order.

    Returns:
        (P, R) float32, strictly decreasing along each row.

    >>> bool(strictly_decreasing(np.array([[1, 1]], dtype=np.float32))[0, 1] == np.nextafter(np.float32(1), 0))
    True
    """
    bits = (scores + np.float32(0)).view(np.int32)
    monotone = _monotone(bits).astype(np.int64)
    # The two zeros are neighbours as integers but equal as numbers: close the gap, reopen it below.
    monotone += monotone < 0
    steps = np.arange(scores.shape[1])
    monotone = np.minimum.accumulate(monotone + steps, axis=1) - steps
    monotone -= monotone < 0
    return _monotone(monotone.astype(np.int32)).view(np.float32)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The best n gallery items of each probe by cosine similarity, best first, on one device.

    Attributes:
        indices: (P, n) int64 into the gallery.
        scores: (P, n) float32 cosine similarities, descending.

    Raises:
        InputError: on construction, for other shapes or dtypes.
    """

    indices: torch.Tensor
    scores: torch.Tensor

    def __post_init__(self) -> None:
        """Refuse what are no candidates."""
        shapes = tuple(self.indices.shape), tuple(self.scores.shape)
        if len(shapes[0]) != 2 or shapes[0] != shapes[1]:
            raise InputError(f"candidates have shapes {shapes[0]} and {shapes[1]}: expected one (P, n)")
        if self.indices.dtype != torch.int64 or self.scores.dtype != torch.float32:
            raise InputError(
                f"candidates are {self.indices.dtype} and {self.scores.dtype}: expected int64 and float32"
            )

    def head(self, depth: int) -> Candidates:
        """The first `depth` of each list."""
        return Candidates(self.indices[:, :depth], self.scores[:, :depth])

    def followed_by(self, deeper: Candidates) -> Candidates:
        """These, and then the rest of `deeper` lists of which these are a head in whatever order."""
        indices, scores = (
            torch.cat([mine, theirs[:, mine.shape[1] :]], dim=1)
            for mine, theirs in ((self.indices, deeper.indices), (self.scores, deeper.scores))
        )
        return Candidates(indices, scores)

    def sorted_by(self, scores: torch.Tensor) -> Candidates:
        """The same items with (P, n) float32 new scores, best first."""
        order = sort_keys(scores, self.indices).argsort(dim=1, descending=True)
        return Candidates(self.indices.gather(1, order), scores.gather(1, order))


@dataclass(frozen=True, eq=False)
class Positions:
    """Where, in each probe's full list, the gallery items of the probe's own identity stand.

    This is all that CMC, AP and INP need, whatever the protocol, and it is small. Probe p owns the entries
    `offsets[p]:offsets[p + 1]`.

    Attributes:
        offsets: (P + 1,) int64.
        indices: (T,) int32 or int64 into the gallery.
        ranks: (T,) int64, zero-based, junk not counted; -1 where the list ends before the item.
        within: (T, K) float64 or None. Single-gallery-shot only: the probability that at most k other
            identities (k = 0 .. K - 1) stand ahead of the item when one image of each is drawn.
    """

    offsets: NDArray[np.int64]
    indices: NDArray[Any]
    ranks: NDArray[np.int64]
    within: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Refuse, with `InputError`, arrays that cannot be positions."""
        entries = len(self.indices)
        sound = (
            self.offsets.ndim == self.indices.ndim == self.ranks.ndim == 1
            and len(self.offsets) > 0
            and {self.offsets.dtype.kind, self.indices.dtype.kind, self.ranks.dtype.kind} == {"i"}
            and self.offsets[0] == 0
            and self.offsets[-1] == entries == len(self.ranks)
            and bool((np.diff(self.offsets) >= 0).all())
            and bool((self.ranks >= -1).all())
            and (self.within is None or (self.within.ndim == 2 and len(self.within) == entries))
        )
        if not sound:
            raise InputError("positions of the matches contradict themselves; the file is damaged: run again")

    @property
    def probes(self) -> NDArray[np.int64]:
        """(T,) the probe that each entry belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def apart(self, gallery_size: int) -> bool:
        """Whether the matches of each probe stand in places of their own, of a list of so many."""
        there = self.ranks >= 0
        probes, ranks = self.probes[there], self.ranks[there]
        order = np.lexsort((ranks, probes))
        probes, ranks = probes[order], ranks[order]
        twice = (probes[1:] == probes[:-1]) & (ranks[1:] == ranks[:-1])
        return bool((ranks < gallery_size).all() and not twice.any())

    @classmethod
    def concatenate(cls, parts: Sequence[Positions]) -> Positions:
        """Positions of consecutive batches of probes as one."""
        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        within = [part.within for part in parts if part.within is not None]
        return cls(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate([part.indices for part in parts]),
            np.concatenate([part.ranks for part in parts]),
            np.concatenate(within) if len(within) == len(parts) else None,
        )


@dataclass(frozen=True, eq=False)
class Ranking:
    """The gallery ranked for every probe, best first, down to some depth.

    Attributes:
        indices: (P, R) int32 or int64 into the gallery; -1 pads lists that end early.
        scores: (P, R) float32, strictly decreasing along each list: a sort key, whatever sorts.
        gallery_size: how many items the gallery has; R may be less.
        method: the method's name, such as `lbr`; `unknown` for lists made elsewhere.
        params: every parameter of the method.
        reranked_depth: how many items at the head were re-ranked; 0 for plain cosine.
        cosine_tail: whether, after the re-ranked head, the full list goes on by cosine similarity.
        candidates: where the lists came from, if not from a search of the whole gallery: of what they do not
            hold nothing is known, unless it is in `positions`.
        digest: `FeatureSet.digest()` of the input, where known.
        labels_digest: `FeatureSet.labels_digest()` that `positions` were found with.
        positions: where the matches stand in the full list, where known.
        source: how messages call it.

    Raises:
        InputError: on construction, for shapes that disagree, an index outside the gallery or twice in a list,
            or scores that do not decrease; names the probe.
    """

    indices: NDArray[Any]
    scores: NDArray[np.float32]
    gallery_size: int
    method: str = "unknown"
    params: Mapping[str, Any] = field(default_factory=dict)
    reranked_depth: int = 0
    cosine_tail: bool = False
    candidates: str | None = None
    digest: str | None = None
    labels_digest: str | None = None
    positions: Positions | None = None
    source: str = "the ranking"

    def __post_init__(self) -> None:
        """Refuse what is not a ranking."""
        problem = self._problem()
        if problem:
            raise InputError(problem)

    def __repr__(self) -> str:
        params = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return (
            f"Ranking({len(self)} probes, first {self.depth} of {self.gallery_size}, {self.method}({params}))"
        )

    @property
    def depth(self) -> int:
        """R, how much of each list is here."""
        return int(self.indices.shape[1])

    def __len__(self) -> int:
        return int(self.indices.shape[0])

    def check_size(self, probes: int, gallery: int) -> None:
        """Raise `InputError` unless this ranks `gallery` items for each of `probes`."""
        if (len(self), self.gallery_size) != (probes, gallery):
            raise InputError(
                f"{self.source} is of {len(self)} probes x {self.gallery_size} gallery items and the features "
                f"are {probes} x {gallery}: they do not belong together"
            )

    def _problem(self) -> str | None:
        indices, scores = self.indices, self.scores
        if indices.ndim != 2 or indices.shape != scores.shape:
            return f"ranking indices {indices.shape} and scores {scores.shape} must share one (probes, depth)"
        if indices.dtype.kind != "i" or scores.dtype != np.float32:
            return f"ranking is {indices.dtype} and {scores.dtype}: expected int32 or int64, and float32"
        if self.depth == 0:
            return "ranking has no entries: its depth is 0"
        listed = indices >= 0
        outside = (indices < -1) | (indices >= self.gallery_size)
        if outside.any():
            probe = int(np.argmax(outside.any(axis=1)))
            entry = int(indices[probe][outside[probe]][0])
            return f"ranking of probe {probe} names gallery item {entry} of {self.gallery_size}"
        if (listed[:, 1:] & ~listed[:, :-1]).any():
            return "ranking has -1 inside a list: it may only pad the end"
        rows = np.sort(indices, axis=1)
        twice = ((rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)).any(axis=1)
        if twice.any():
            return f"ranking of probe {int(np.argmax(twice))} lists one gallery item twice"
        rising = (~(scores[:, 1:] < scores[:, :-1]) & listed[:, 1:]).any(axis=1)
        if rising.any() or np.isnan(scores[listed]).any():
            return f"ranking scores of probe {int(np.argmax(rising))} do not strictly decrease"
        found = self.positions
        if found is not None and (
            len(found.offsets) != len(self) + 1
            or ((found.indices < 0) | (found.indices >= self.gallery_size)).any()
            or not found.apart(self.gallery_size)
        ):
            return "positions of the matches do not belong to the lists; the file is damaged: run again"
        return None
