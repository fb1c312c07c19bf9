"""Lists that came from elsewhere, an approximate index or a vector database, checked."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import BlurrerankWarning, InputError


@dataclass(frozen=True, eq=False)
class GivenLists:
    """The gallery items that each probe may be answered with, in any order.

    Attributes:
        indices: (P, R) integers, rows of the gallery; -1 pads lists that end early. Kept as int64.
        gallery_size: how many items the gallery has.
        source: where they came from, as messages and files name it.

    Raises:
        InputError: on construction, for another shape or dtype, an index outside the gallery or twice in a
            list, -1 before the end of a list, or no candidate at all; names the probe.
    """

    indices: NDArray[np.int64]
    gallery_size: int
    source: str = "candidates"

    def __post_init__(self) -> None:
        """Refuse what are no lists; cut off columns that only pad."""
        found = self._as_array(self.indices)
        problem = self._problem(found)
        if problem:
            raise InputError(f"{self.source}{problem}")
        longest = int((found >= 0).sum(axis=1).max())
        object.__setattr__(self, "indices", found[:, :longest].astype(np.int64))

    @classmethod
    def of(
        cls,
        lists: GivenLists | ArrayLike | torch.Tensor,
        probes: int,
        gallery: int,
        source: str = "candidates",
    ) -> GivenLists:
        """Lists for so many probes and gallery items, checked.

        Args:
            lists: (P, R) integers, as the class has them, or lists that are checked already.
            probes: P.
            gallery: how many items the gallery has.
            source: where they came from.

        Raises:
            InputError: as the class, and for another number of lists than of probes.
        """
        found = lists if isinstance(lists, cls) else cls(lists, gallery, source)  # type: ignore[arg-type]
        if len(found) != probes:
            raise InputError(
                f"{found.source} has {len(found)} lists and there are {probes} probes: give one list for each, "
                "in their order"
            )
        if found.gallery_size != gallery:
            raise InputError(
                f"{found.source} is of {found.gallery_size} gallery items and the gallery has {gallery}: they "
                "do not belong together"
            )
        return found

    def __len__(self) -> int:
        return int(self.indices.shape[0])

    def __repr__(self) -> str:
        return f"GivenLists({len(self)} lists of {self.shortest} to {self.depth}, {self.source})"

    @property
    def depth(self) -> int:
        """R, the length of the longest list."""
        return int(self.indices.shape[1])

    @property
    def shortest(self) -> int:
        """The length of the shortest list."""
        return int((self.indices >= 0).sum(axis=1).min())

    @property
    def complete(self) -> bool:
        """Whether every list holds the whole gallery, so that nothing is unknown."""
        return self.shortest == self.gallery_size

    def digest(self) -> str:
        """SHA-256 of the lists, whatever they came from."""
        return hashlib.sha256(np.ascontiguousarray(self.indices).data).hexdigest()

    def warn_about(self) -> None:
        """Warn, with `BlurrerankWarning`, of probes that have no candidates."""
        empty = int((self.indices[:, 0] < 0).sum())
        if empty:
            warnings.warn(
                f"{self.source}: {empty} of {len(self)} probes have no candidates, and their lists stay empty",
                BlurrerankWarning,
                stacklevel=3,
            )

    def _as_array(self, lists: Any) -> NDArray[Any]:
        if isinstance(lists, torch.Tensor):
            return lists.detach().cpu().numpy()
        try:
            return np.asarray(lists)
        except ValueError:
            raise InputError(
                f"{self.source} is no table: pad shorter lists with -1 at the end, to one length"
            ) from None

    def _problem(self, lists: NDArray[Any]) -> str | None:
        if lists.ndim != 2:
            return f" has shape {lists.shape}: expected (probes, candidates)"
        if lists.dtype.kind not in "iu":
            hint = ", not distances" if lists.dtype.kind == "f" else ""
            return f" is {lists.dtype}: expected integers, the rows of gallery items{hint}"
        outside = (lists < -1) | (lists >= self.gallery_size)
        if outside.any():
            probe = int(np.argmax(outside.any(axis=1)))
            entry = int(lists[probe][outside[probe]][0])
            return (
                f": the list of probe {probe} names gallery item {entry}, and there are {self.gallery_size}: "
                "count rows from 0, and pad lists that end early with -1"
            )
        listed = lists >= 0
        if not listed.any():
            return " holds no candidates: at least one list must have an item"
        inside = listed[:, 1:] & ~listed[:, :-1]
        if inside.any():
            probe = int(np.argmax(inside.any(axis=1)))
            return (
                f": the list of probe {probe} goes on after -1 (at place {int(np.argmax(inside[probe])) + 1}): "
                "-1 may only pad the end"
            )
        rows = np.sort(lists, axis=1)
        twice = (rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)
        if twice.any():
            probe = int(np.argmax(twice.any(axis=1)))
            entry = int(rows[probe, 1:][twice[probe]][0])
            return f": the list of probe {probe} names gallery item {entry} twice: leave one out"
        return None
