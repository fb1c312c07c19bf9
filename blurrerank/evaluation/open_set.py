"""Open-set metrics: probes whose identity the gallery lacks, and thresholds that tell them apart.

A probe is known if it has a match in the gallery under the protocol, and unknown otherwise; one with id -1 is
left out. Its score s is that of the first item of its list that the protocol counts, -inf where there is none.
It is accepted at a threshold t if s >= t, and rejected otherwise.

    AUROC     probability that a known probe scores above an unknown one, where equal scores count half
    TPR(t)    share of the known probes that are accepted
    FPR(t)    share of the unknown probes that are accepted; as an identification rate it is called FPIR
    FNIR(t)   share of the known probes that are rejected, or whose first counted item has another identity
    BAKS(t)   mean, over the identities of known probes, of the share of their probes that are accepted with a
              first counted item of the right identity
    BAUS(t)   mean, over the identities of unknown probes, of the share of their probes that are rejected

At a limit f the threshold is the smallest float32 number with FPR(t) <= f.

Sources: FPIR and FNIR, at rank 1, from ISO/IEC 19795-1; BAKS and BAUS from AnimalCLEF 2025 and
wildlife-datasets, where a probe below the threshold is called a new individual.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.features import FeatureSet
from ..data.labels import DISTRACTOR, JUNK
from ..data.ranking import Ranking
from ..errors import BlurrerankWarning, ParameterError
from .metrics import dropped_codes, has_match
from .protocols import Protocol

FPR_LIMITS = (0.01, 0.1)
IDENTITY_RANKS = (1, 5, 10)

# Entries of lists that are looked at together.
_ENTRIES = 1 << 22


@dataclass(frozen=True, eq=False)
class FirstItems:
    """The first item of each probe's list that a protocol counts.

    Attributes:
        scores: (P,) float32, -inf where a list has no such item.
        right: (P,) bool, whether it has the probe's identity.
        known: (P,) bool, whether the probe has a match in the gallery.
        unknown: (P,) bool, whether it has none; a probe with id -1 is neither.
        identity_rank: (P,) float64, rank from 1 of the probe's identity among the distinct identities of the
            list, each distractor being one; infinity if it is not listed, NaN of a probe that is not known.
        places: (P,) int64, its place in the list, from 0; -1 where a list has no such item.
    """

    scores: NDArray[np.float32]
    right: NDArray[np.bool_]
    known: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    identity_rank: NDArray[np.float64]
    places: NDArray[np.int64]


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold does, as fractions; NaN where there are no probes of a kind.

    Attributes:
        limit: the FPR that the threshold was chosen for; None if it was given.
        threshold: the score from which a probe is accepted.
        tpr, fpr, fnir, baks, baus: as in the module's docstring.
    """

    limit: float | None
    threshold: float
    tpr: float
    fpr: float
    fnir: float
    baks: float
    baus: float


@dataclass(frozen=True, eq=False)
class OpenSetMetrics:
    """Open-set metrics of a ranking, as fractions; NaN where there are no probes of a kind.

    Attributes:
        known, unknown: number of probes with and without a match in the gallery.
        known_identities, unknown_identities: how many identities these have; id 0 counts as one.
        auroc: of the score of the first counted item, known against unknown probes.
        balanced_accuracy: mean, over the identities of known probes, of the share of their probes whose first
            counted item is right.
        identity_top: k -> share of the known probes whose identity is among the first k distinct identities of
            their list.
        points: one for each of `FPR_LIMITS`, then one for the given threshold, if there is one.
        protocol: name of the protocol.
        first: what all of this was computed from, for each probe.
    """

    known: int
    unknown: int
    known_identities: int
    unknown_identities: int
    auroc: float
    balanced_accuracy: float
    identity_top: Mapping[int, float]
    points: tuple[OperatingPoint, ...]
    protocol: str
    first: FirstItems = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """Return everything but the values of single probes, ready for JSON (NaN as None)."""
        return {
            "known": self.known,
            "unknown": self.unknown,
            "known_identities": self.known_identities,
            "unknown_identities": self.unknown_identities,
            "auroc": _or_none(self.auroc),
            "balanced_accuracy": _or_none(self.balanced_accuracy),
            **{f"identity_top{k}": _or_none(share) for k, share in self.identity_top.items()},
            "points": [{name: _or_none(value) for name, value in asdict(one).items()} for one in self.points],
            "protocol": self.protocol,
        }


def find_first_items(ranking: Ranking, data: FeatureSet, protocol: Protocol) -> FirstItems:
    """Find the first item of each list that the protocol counts; `data` must have ids."""
    assert data.probe.ids is not None
    assert data.gallery.ids is not None
    ids, codes = data.gallery.ids, dropped_codes(data, protocol)
    known = has_match(data, protocol.name)
    scores = np.full(len(ranking), -np.inf, dtype=np.float32)
    right = np.zeros(len(ranking), dtype=bool)
    identity_rank = np.where(known, np.inf, np.nan)
    places = np.full(len(ranking), -1, dtype=np.int64)
    step = max(1, _ENTRIES // ranking.depth)
    for start in range(0, len(ranking), step):
        rows = slice(start, start + step)
        items, own = np.maximum(ranking.indices[rows], 0), data.probe.ids[rows, None]
        listed = ids[items]
        same = (listed == own) & (own > DISTRACTOR)
        counted = (ranking.indices[rows] >= 0) & (listed != JUNK)
        if codes is not None:
            counted &= ~(same & (codes[1][items] == codes[0][rows, None]))
        found, place = counted.any(axis=1), counted.argmax(axis=1)[:, None]
        scores[rows][found] = np.take_along_axis(ranking.scores[rows], place, axis=1)[found, 0]
        places[rows][found] = place[found, 0]
        right[rows] = found & np.take_along_axis(same, place, axis=1)[:, 0]
        matches = same & counted
        for row in np.flatnonzero(known[rows] & matches.any(axis=1)):
            end = matches[row].argmax()
            ahead = listed[row, :end][counted[row, :end]]
            people = ahead > DISTRACTOR
            identity_rank[start + row] = 1 + len(np.unique(ahead[people])) + np.count_nonzero(~people)
    return FirstItems(scores, right, known, ~known & (data.probe.ids != JUNK), identity_rank, places)


def measure_open_set(
    ranking: Ranking, data: FeatureSet, protocol: Protocol, *, threshold: float | None = None
) -> OpenSetMetrics:
    """Compute the open-set metrics of a ranking; the module's docstring defines them.

    Args:
        ranking: of the probes of `data`.
        data: with ids on both sides.
        protocol: says which items to drop.
        threshold: also measure at this score.

    Raises:
        ParameterError: for a threshold that is not a finite number.
    """
    if threshold is not None and not np.isfinite(threshold):
        raise ParameterError(f"threshold {threshold} is not a finite number: give a score of the lists")
    first = find_first_items(ranking, data, protocol)
    assert data.probe.ids is not None
    ids, known, unknown = data.probe.ids, first.known, first.unknown
    points = [_point(first, ids, limit, _threshold(first.scores[unknown], limit)) for limit in FPR_LIMITS]
    if threshold is not None:
        points.append(_point(first, ids, None, threshold))
    return OpenSetMetrics(
        known=int(known.sum()),
        unknown=int(unknown.sum()),
        known_identities=len(np.unique(ids[known])),
        unknown_identities=len(np.unique(ids[unknown])),
        auroc=_auroc(first.scores[known], first.scores[unknown]),
        balanced_accuracy=_balanced(first.right[known], ids[known]),
        identity_top={k: _mean(first.identity_rank[known] <= k) for k in IDENTITY_RANKS},
        points=tuple(points),
        protocol=protocol.name,
        first=first,
    )


def warn_about_open_set(metrics: OpenSetMetrics) -> None:
    """Issue a `BlurrerankWarning` where there are no probes of a kind, or lists end before any item counts."""
    if not metrics.unknown:
        _warn(
            "no probe is unknown, since each has a match in the gallery: there is no AUROC, and no threshold "
            "for an FPR; take identities out of the gallery"
        )
    if not metrics.known:
        _warn("no probe is known, since none has a match in the gallery: there is no AUROC, TPR or FNIR")
    lost = int(np.isneginf(metrics.first.scores[metrics.first.known | metrics.first.unknown]).sum())
    if lost:
        _warn(
            f"{lost} probes have no item that counts in their lists, and are rejected at any threshold: write "
            "deeper lists"
        )


def _warn(message: str) -> None:
    warnings.warn(message, BlurrerankWarning, stacklevel=4)


def _threshold(unknown: NDArray[np.float32], limit: float) -> float:
    """The smallest float32 that at most a share `limit` of the scores reach; NaN without scores."""
    if not len(unknown):
        return np.nan
    shares = np.arange(len(unknown) + 1) / len(unknown)
    accepted = int(np.searchsorted(shares, limit, side="right")) - 1
    # The best of the scores that must not reach it; there is one, as limits are below 1.
    best = np.sort(unknown)[len(unknown) - 1 - accepted]
    return float(np.nextafter(best, np.float32(np.inf)))


def _point(first: FirstItems, ids: NDArray[np.int64], limit: float | None, threshold: float) -> OperatingPoint:
    if np.isnan(threshold):
        return OperatingPoint(limit, *[np.nan] * 6)
    accepted = first.scores >= np.float32(threshold)
    known, unknown = first.known, first.unknown
    return OperatingPoint(
        limit,
        threshold,
        tpr=_mean(accepted[known]),
        fpr=_mean(accepted[unknown]),
        fnir=_mean(~(accepted & first.right)[known]),
        baks=_balanced((accepted & first.right)[known], ids[known]),
        baus=_balanced(~accepted[unknown], ids[unknown]),
    )


def _auroc(known: NDArray[np.float32], unknown: NDArray[np.float32]) -> float:
    """The area under the ROC curve, from the number of unknown scores below and at each known one."""
    if not len(known) or not len(unknown):
        return np.nan
    ordered = np.sort(unknown)
    below, up_to = (np.searchsorted(ordered, known, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(unknown))


def _balanced(values: NDArray[np.bool_], ids: NDArray[np.int64]) -> float:
    """The mean over identities of the mean of each one's values."""
    if not len(ids):
        return np.nan
    _, number, counts = np.unique(ids, return_inverse=True, return_counts=True)
    return float((np.bincount(number, weights=values) / counts).mean())


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else np.nan


def _or_none(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else value
