"""Half of the identities to choose by, the other half to report on.

Identities with a match are drawn into two halves, each with all of its probes. The gallery stays whole for
both, so that every probe is ranked as in the full problem. What a setting gives that was chosen by a mean
over the probes of the first half is its mean over those of the second, which had no part in the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.features import FeatureSet
from ..errors import InputError
from ..evaluation.metrics import MEANS, has_match


@dataclass(frozen=True)
class Half:
    """How many identities and probes with a match a half has."""

    identities: int
    probes: int


@dataclass(frozen=True, eq=False)
class Halves:
    """Which half a probe is in.

    Attributes:
        tunes: (P,) bool, probes with a match in the tuning half.
        reports: (R,) int64, the probes with a match in the other half.
        identity: (R,) int64, which of the I identities of that half each of these has.
        tuning: the size of the tuning half.
    """

    tunes: NDArray[np.bool_]
    reports: NDArray[np.int64]
    identity: NDArray[np.int64]
    tuning: Half

    @classmethod
    def of(cls, data: FeatureSet, protocol: str, seed: int) -> Halves:
        """Draw half of the identities, rounded down, to tune on."""
        matched = has_match(data, protocol)
        assert data.probe.ids is not None
        ids = np.unique(data.probe.ids[matched])
        if len(ids) < 4:
            raise InputError(
                f"{len(ids)} identities have a match in the gallery: tuning needs at least two to choose on "
                "and two to report on"
            )
        drawn = np.random.default_rng(seed).permutation(ids)[: len(ids) // 2]
        tunes = matched & np.isin(data.probe.ids, drawn)
        reports = np.flatnonzero(matched & ~tunes)
        _, identity = np.unique(data.probe.ids[reports], return_inverse=True)
        return cls(tunes, reports, identity, Half(len(drawn), int(tunes.sum())))

    @property
    def counts(self) -> NDArray[np.int64]:
        """(I,) int64, the probes of each identity of the reporting half."""
        return np.bincount(self.identity)

    def means(self, table: NDArray[np.float64]) -> dict[str, float]:
        """Return the `MEANS` over the tuning half of (P, M) values."""
        return dict(zip(MEANS, map(float, table[self.tunes].mean(axis=0)), strict=True))

    def sums(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (I, M) sums over the probes of each identity of the reporting half."""
        found = np.zeros((len(self.counts), table.shape[1]))
        np.add.at(found, self.identity, table[self.reports])
        return found
