"""`Ranking`: the ranked lists of all probes, with the method that made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .positions import Positions
from .side import Side
from .sort_keys import index_dtype
from .tracks import numbers_of


@dataclass(frozen=True, eq=False)
class Ranking:
    """The ranked gallery items of each probe, best first, to depth R.

    Attributes:
        indices: (P, R) int32 or int64 into the gallery; -1 pads shorter lists at the end.
        scores: (P, R) float32, strictly decreasing along each list, so that any sort restores the list.
        gallery_size: number of gallery items; R may be less.
        method: the method's name, such as `lbr`; `unknown` for lists from another tool.
        params: all parameters of the method.
        setting: `transductive` if the method looked at all probes together, `online` if it ranked each by
            itself; None of a method that always does the latter, or where it is not known.
        reranked_depth: how many items at the head were re-ranked; 0 for plain cosine.
        cosine_tail: whether the full list continues by cosine similarity after the re-ranked head.
        candidates: the source of the candidate lists, or None after a search of the whole gallery. The ranks of
            items outside the candidate lists are unknown, except those in `positions`.
        digest: `FeatureSet.digest()` of the input, if known.
        labels_digest: `FeatureSet.labels_digest()` of the labels that `positions` were found with.
        positions: the ranks of the matches in the full lists, if known.
        source: name of the ranking in messages.

    Raises:
        InputError: on construction, for shapes that disagree, an index outside the gallery or twice in a list,
            or scores that do not strictly decrease; names the probe.
    """

    indices: NDArray[Any]
    scores: NDArray[np.float32]
    gallery_size: int
    method: str = "unknown"
    params: Mapping[str, Any] = field(default_factory=dict)
    setting: str | None = None
    reranked_depth: int = 0
    cosine_tail: bool = False
    candidates: str | None = None
    digest: str | None = None
    labels_digest: str | None = None
    positions: Positions | None = None
    source: str = "the ranking"

    def __post_init__(self) -> None:
        """Validate the lists."""
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
        """R, the length of the stored lists."""
        return int(self.indices.shape[1])

    def __len__(self) -> int:
        return int(self.indices.shape[0])

    def by_track(self, gallery: Side) -> Ranking:
        """Return a ranking of the tracks of the gallery, each where its best image stands.

        This is the image-to-track search of VeRi-776: the distance to a track is the least of its images'.

        Args:
            gallery: what is ranked, with tracks; `FeatureSet.by_track` puts them in the same order.

        Raises:
            InputError: if there are no tracks, or the gallery has another size.

        Examples:
            >>> from .side import Side
            >>> images = Side(np.eye(3), tracks=np.array([7, 7, 5]))
            >>> lists = np.array([[1, 0, 2]], np.int32)
            >>> ranking = Ranking(lists, np.array([[0.9, 0.8, 0.7]], np.float32), gallery_size=3)
            >>> ranking.by_track(images).indices.tolist()
            [[0, 1]]
        """
        self.check_size(len(self), len(gallery))
        numbers, firsts = numbers_of(gallery)
        found = [self._tracks_of(row, numbers) for row in range(len(self))]
        width = max(len(places) for places in found)
        indices = np.full((len(self), width), -1, dtype=index_dtype(len(firsts)))
        scores = np.full(indices.shape, -np.inf, dtype=np.float32)
        for row, places in enumerate(found):
            indices[row, : len(places)] = numbers[self.indices[row, places]]
            scores[row, : len(places)] = self.scores[row, places]
        return Ranking(
            indices,
            scores,
            gallery_size=len(firsts),
            method=self.method,
            params=self.params,
            setting=self.setting,
            source=self.source,
        )

    def _tracks_of(self, row: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of a list where tracks are met for the first time."""
        listed = self.indices[row][self.indices[row] >= 0]
        return np.sort(np.unique(numbers[listed], return_index=True)[1])

    def check_size(self, probes: int, gallery: int) -> None:
        """Raise `InputError` unless this ranks `gallery` items for each of `probes` probes."""
        if (len(self), self.gallery_size) != (probes, gallery):
            raise InputError(
                f"{self.source} ranks {len(self)} probes x {self.gallery_size} gallery items, but the features "
                f"are {probes} x {gallery}: use the features it was made from"
            )

    def _problem(self) -> str | None:
        indices, scores = self.indices, self.scores
        if indices.ndim != 2 or indices.shape != scores.shape:
            return (
                f"ranking indices {indices.shape} and scores {scores.shape} must have one shape (probes, depth)"
            )
        if indices.dtype.kind != "i" or scores.dtype != np.float32:
            return (
                f"ranking has {indices.dtype} indices and {scores.dtype} scores: expected int32 or int64 "
                "indices and float32 scores"
            )
        if self.depth == 0:
            return "ranking has no entries: its depth is 0"
        listed = indices >= 0
        outside = (indices < -1) | (indices >= self.gallery_size)
        if outside.any():
            probe = int(np.argmax(outside.any(axis=1)))
            entry = int(indices[probe][outside[probe]][0])
            return (
                f"ranking of probe {probe} contains gallery item {entry}, but the gallery has "
                f"{self.gallery_size} items"
            )
        if (listed[:, 1:] & ~listed[:, :-1]).any():
            return "ranking has -1 inside a list: -1 may only pad the end"
        rows = np.sort(indices, axis=1)
        twice = ((rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)).any(axis=1)
        if twice.any():
            return f"ranking of probe {int(np.argmax(twice))} contains a gallery item twice"
        rising = (~(scores[:, 1:] < scores[:, :-1]) & listed[:, 1:]).any(axis=1)
        if rising.any() or np.isnan(scores[listed]).any():
            turned = nearly_always_rise(np.diff(scores, axis=1)[listed[:, 1:]])
            hint = "; they rise, as distances do: write minus the distance as score" if turned else ""
            return f"ranking scores of probe {int(np.argmax(rising))} do not strictly decrease{hint}"
        found = self.positions
        if found is not None and (
            len(found.offsets) != len(self) + 1
            or ((found.indices < 0) | (found.indices >= self.gallery_size)).any()
            or not found.has_valid_ranks(self.gallery_size)
        ):
            return "match positions do not fit the lists; the file is damaged: run again"
        return None


def nearly_always_rise(steps: NDArray[Any]) -> bool:
    """Return whether scores, from each to the next of its list, nearly always rise, as distances do.

    Args:
        steps: the differences, any shape; those that are 0 say nothing.
    """
    return bool((steps > 0).sum() > 0.9 * (steps != 0).sum())
