"""`Positions`: the ranks of each probe's matches in its full list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Positions:
    """The ranks, in each probe's full list, of the gallery items with the probe's identity (its matches).

    This is all that CMC, AP and INP need under any protocol, and it is small. The entries of probe p are
    `offsets[p]:offsets[p + 1]`.

    Attributes:
        offsets: (P + 1,) int64.
        indices: (T,) int32 or int64 into the gallery.
        ranks: (T,) int64, zero-based, junk not counted; -1 if the list ends before the item.
        within: (T, K) float64 or None. Single-gallery-shot only: the probability that at most k other
            identities (k = 0 .. K - 1) rank ahead of the item when one image of each is drawn.
    """

    offsets: NDArray[np.int64]
    indices: NDArray[Any]
    ranks: NDArray[np.int64]
    within: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Raise `InputError` unless the arrays are consistent."""
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
            raise InputError("match positions are inconsistent; the file is damaged: run again")

    @property
    def probes(self) -> NDArray[np.int64]:
        """(T,) int64, the probe of each entry."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def has_valid_ranks(self, gallery_size: int) -> bool:
        """Return whether all ranks are below `gallery_size` and no probe has two matches at one rank."""
        listed = self.ranks >= 0
        probes, ranks = self.probes[listed], self.ranks[listed]
        order = np.lexsort((ranks, probes))
        probes, ranks = probes[order], ranks[order]
        twice = (probes[1:] == probes[:-1]) & (ranks[1:] == ranks[:-1])
        return bool((ranks < gallery_size).all() and not twice.any())

    @classmethod
    def concatenate(cls, parts: Sequence[Positions]) -> Positions:
        """Join the positions of consecutive batches of probes."""
        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        within = [part.within for part in parts if part.within is not None]
        return cls(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate([part.indices for part in parts]),
            np.concatenate([part.ranks for part in parts]),
            np.concatenate(within) if len(within) == len(parts) else None,
        )
