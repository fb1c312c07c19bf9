"""`GivenLists`: candidate lists from an external source, such as an approximate index or a vector database."""

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
    """The candidate gallery items of each probe, in any order.

    Attributes:
        indices: (P, R) integers, gallery rows; -1 pads shorter lists at the end. Stored as int64.
        gallery_size: number of gallery items.
        source: where the lists came from, for messages and files.

    Raises:
        InputError: on construction, for a wrong shape or dtype, an index outside the gallery or twice in a
            list, -1 before the end of a list, or no candidates at all; names the probe.
    """

    indices: NDArray[np.int64]
    gallery_size: int
    source: str = "candidates"

    def __post_init__(self) -> None:
        """Validate the lists and drop columns of padding only."""
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
        """Return validated lists for `probes` probes and `gallery` gallery items.

        Args:
            lists: (P, R) integers as in `indices`, or a `GivenLists`.
            probes: P, the number of probes.
            gallery: number of gallery items.
            source: where the lists came from.

        Raises:
            InputError: as on construction, and if the lists are for another number of probes or gallery items.
        """
        found = lists if isinstance(lists, cls) else cls(lists, gallery, source)  # type: ignore[arg-type]
        if len(found) != probes:
            raise InputError(
                f"{found.source} has {len(found)} lists for {probes} probes: give one list per probe, in probe "
                "order"
            )
        if found.gallery_size != gallery:
            raise InputError(
                f"{found.source} was made for {found.gallery_size} gallery items, but the gallery has "
                f"{gallery}: use lists made for this gallery"
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
        """Whether every list contains the whole gallery."""
        return self.shortest == self.gallery_size

    def of_probes(self, queries: torch.Tensor, start: int) -> torch.Tensor:
        """Return the lists of consecutive probes, (p, R) int64 on their device; -1 past the end.

        Args:
            queries: (p, D) float32, the probes' unit rows.
            start: the first probe.
        """
        return torch.from_numpy(self.indices[start : start + len(queries)]).to(queries.device)

    def digest(self) -> str:
        """Return the SHA-256 of `indices`; `source` is not part of it."""
        return hashlib.sha256(np.ascontiguousarray(self.indices).data).hexdigest()

    def warn_about(self) -> None:
        """Issue a `BlurrerankWarning` if any probe has no candidates."""
        empty = int((self.indices[:, 0] < 0).sum())
        if empty:
            warnings.warn(
                f"{self.source}: {empty} of {len(self)} probes have no candidates; their lists stay empty",
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
                f"{self.source} has lists of different lengths: pad the shorter ones with -1 at the end"
            ) from None

    def _problem(self, lists: NDArray[Any]) -> str | None:
        if lists.ndim != 2:
            return f" has shape {lists.shape}: expected (probes, candidates)"
        if lists.dtype.kind not in "iu":
            hint = ", not distances" if lists.dtype.kind == "f" else ""
            return f" has dtype {lists.dtype}: expected integers, gallery row numbers{hint}"
        outside = (lists < -1) | (lists >= self.gallery_size)
        if outside.any():
            probe = int(np.argmax(outside.any(axis=1)))
            entry = int(lists[probe][outside[probe]][0])
            return (
                f": the list of probe {probe} contains gallery item {entry}, but the gallery has "
                f"{self.gallery_size} items: count rows from 0, and pad shorter lists with -1"
            )
        listed = lists >= 0
        if not listed.any():
            return " has no candidates: at least one list must have an item"
        inside = listed[:, 1:] & ~listed[:, :-1]
        if inside.any():
            probe = int(np.argmax(inside.any(axis=1)))
            return (
                f": the list of probe {probe} continues after -1 (at position "
                f"{int(np.argmax(inside[probe])) + 1}): -1 may only pad the end"
            )
        rows = np.sort(lists, axis=1)
        twice = (rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)
        if twice.any():
            probe = int(np.argmax(twice.any(axis=1)))
            entry = int(rows[probe, 1:][twice[probe]][0])
            return f": the list of probe {probe} contains gallery item {entry} twice: remove one"
        return None
