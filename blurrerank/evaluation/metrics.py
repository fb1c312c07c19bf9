"""CMC, average precision and inverse negative penalty, from the ranks of the matches.

Sources: AP and CMC as in the Market-1501 protocol (Zheng et al., "Scalable Person Re-identification: A
Benchmark", ICCV 2015); INP from Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook",
TPAMI 2021, arXiv:2001.04193.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.features import FeatureSet
from ..data.labels import DISTRACTOR, JUNK
from ..data.positions import Positions
from ..data.side import Side
from ..errors import BlurrerankWarning, ParameterError
from .match_finder import MAX_RANK
from .own_images import count_own, image_codes
from .protocols import Protocol, get_protocol

AP_KINDS = ("plain", "trapezoid")
CMC_RANKS = (1, 5, 10, 20)
MEANS = ("mAP", "mINP", *(f"rank{rank}" for rank in CMC_RANKS))
"""Keys of `Metrics.means()`."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """Retrieval metrics of a ranking, as fractions; means are over the probes that have a match.

    Attributes:
        mAP: mean average precision; NaN if no probe has a match, like all means here.
        mINP: mean inverse negative penalty.
        cmc: (K,) cumulative match curve; `cmc[k - 1]` is rank-k.
        valid_probes: number of probes that have a match in the gallery; the means are over these.
        probes: number of all probes.
        protocol: name of the protocol.
        ap_kind: `plain` or `trapezoid`.
        depth: None if measured over the whole gallery; otherwise the length of the shortest list. Unlisted
            matches then count as missed.
        ap: (P,) average precision of each probe, NaN without a match.
        inp: (P,) inverse negative penalty of each probe, NaN without a match.
        first_match: (P,) rank, from 1, of each probe's first match; infinity if it is not listed, NaN without a
            match.
    """

    mAP: float
    mINP: float
    cmc: NDArray[np.float64]
    valid_probes: int
    probes: int
    protocol: str
    ap_kind: str
    depth: int | None
    ap: NDArray[np.float64]
    inp: NDArray[np.float64]
    first_match: NDArray[np.float64]

    def __repr__(self) -> str:
        means = ", ".join(f"{name}={value:.4f}" for name, value in self.means().items())
        return f"Metrics({means}, {self.valid_probes} valid of {self.probes} probes, {self.protocol})"

    def rank(self, k: int) -> float:
        """Return rank-k: the share of valid probes with a match among the first k, for k from 1 to 50.

        Raises:
            ParameterError: for any other k.
        """
        if not 1 <= k <= len(self.cmc):
            raise ParameterError(f"rank-{k} is not measured: the curve goes from 1 to {len(self.cmc)}")
        return float(self.cmc[k - 1])

    def means(self) -> dict[str, float]:
        """Return mAP, mINP and rank-k for each of `CMC_RANKS`, with the keys `MEANS`."""
        return dict(zip(MEANS, (self.mAP, self.mINP, *map(self.rank, CMC_RANKS)), strict=True))

    def summary(self) -> dict[str, Any]:
        """Return the means, the number of probes and the settings, ready for JSON (NaN as None)."""
        return {
            **{name: None if np.isnan(value) else value for name, value in self.means().items()},
            "valid_probes": self.valid_probes,
            "probes": self.probes,
            "protocol": self.protocol,
            "ap": self.ap_kind,
            "depth": self.depth,
        }


@dataclass(frozen=True, eq=False)
class ProbeValues:
    """What the metrics are the means of: a value for each probe, NaN for one without a match.

    Attributes:
        ap: (P,) float64 average precision.
        inp: (P,) float64 inverse negative penalty.
        curve: (P, K) float64, whether a match is among the first k; single-shot, how probably.
        first_match: (P,) float64 rank of the first match, infinity if it is not listed.
    """

    ap: NDArray[np.float64]
    inp: NDArray[np.float64]
    curve: NDArray[np.float64]
    first_match: NDArray[np.float64]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(P,) bool, the probes that have a match."""
        return ~np.isnan(self.ap)

    def table(self) -> NDArray[np.float64]:
        """Return (P, M) float64, whose means over the valid probes are `MEANS`, in that order."""
        ranks = np.array(CMC_RANKS) - 1
        return np.column_stack([self.ap, self.inp, self.curve[:, ranks]])


def check_ap(ap: str) -> None:
    """Raise `ParameterError` unless `ap` is one of `AP_KINDS`."""
    if ap not in AP_KINDS:
        raise ParameterError(f"AP {ap!r} is not known: use {' or '.join(AP_KINDS)}")


def measure(
    positions: Positions,
    data: FeatureSet,
    protocol: Protocol,
    *,
    ap: str = "plain",
    depth: int | None = None,
) -> Metrics:
    """Compute the metrics of a ranking from the positions of its matches.

    With r_1 < ... < r_m the ranks (from 1) of a probe's m matches after the protocol has dropped items:

        AP (plain)      = 1/m sum_i  i / r_i
        AP (trapezoid)  = 1/m sum_i  (i / r_i + (i - 1) / (r_i - 1)) / 2, where 0 / 0 is 1
        INP             = m / r_m
        rank-k          = 1 if r_1 <= k; single-shot: its expectation over the draws

    Args:
        positions: the ranks of the matches of all probes of `data`.
        data: the labels.
        protocol: says which items to drop.
        ap: `plain` (torchreid, fast-reid) or `trapezoid` (Market-1501 toolbox).
        depth: depth of the lists that the positions were found in, if they do not cover the whole gallery.

    Raises:
        ParameterError: for an unknown kind of AP.
    """
    values = measure_probes(positions, data, protocol, ap=ap)
    valid = values.valid
    return Metrics(
        mAP=_mean(values.ap[valid]),
        mINP=_mean(values.inp[valid]),
        cmc=values.curve[valid].mean(axis=0) if valid.any() else np.full(MAX_RANK, np.nan),
        valid_probes=int(valid.sum()),
        probes=len(data.probe),
        protocol=protocol.name,
        ap_kind=ap,
        depth=depth,
        ap=values.ap,
        inp=values.inp,
        first_match=values.first_match,
    )


def measure_probes(
    positions: Positions, data: FeatureSet, protocol: Protocol, *, ap: str = "plain"
) -> ProbeValues:
    """Compute for each probe what `measure` averages; arguments and errors as there."""
    check_ap(ap)
    probes, owner = len(data.probe), positions.probes
    ranks = np.where(positions.ranks < 0, np.inf, positions.ranks + 1.0)
    order = np.lexsort((ranks, owner))
    owner, ranks = owner[order], ranks[order]
    dropped = _find_dropped(positions, data, protocol)[order]

    # Subtract the dropped items ahead of each match from its rank.
    starts = positions.offsets[:-1]
    ranks = ranks - _running_sums(dropped, owner, starts)
    owner, ranks = owner[~dropped], ranks[~dropped]
    matches = np.bincount(owner, minlength=probes)
    starts = np.concatenate([[0], np.cumsum(matches)[:-1]])
    hits = _running_sums(np.ones(len(owner)), owner, starts)

    precision = hits / ranks
    if ap == "trapezoid":
        before = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
        precision = (precision + before) / 2

    valid = matches > 0
    # Dividing by NaN gives NaN for invalid probes, without a NumPy warning.
    number = np.where(valid, matches, np.nan)
    last, first = np.full(probes, np.nan), np.full(probes, np.nan)
    last[valid] = ranks[(starts + matches - 1)[valid]]
    first[valid] = ranks[starts[valid]]
    average = np.bincount(owner, weights=precision, minlength=probes) / number
    inp = number / last

    reached = first[:, None] <= np.arange(1, MAX_RANK + 1)
    curve = np.where(valid[:, None], reached, np.nan)
    if protocol.single_shot:
        assert positions.within is not None
        within = positions.within[order][~dropped]
        drawn = np.zeros((probes, MAX_RANK))
        np.add.at(drawn, owner, within)
        curve = drawn / number[:, None]

    return ProbeValues(average, inp, curve, first)


def _find_dropped(positions: Positions, data: FeatureSet, protocol: Protocol) -> NDArray[np.bool_]:
    """Return which entries of `positions` the protocol drops."""
    codes = dropped_codes(data, protocol)
    if codes is None:
        return np.zeros(len(positions.ranks), dtype=bool)
    same: NDArray[np.bool_] = codes[0][positions.probes] == codes[1][positions.indices]
    return same


def dropped_codes(data: FeatureSet, protocol: Protocol) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Return (P,) and (G,) int64; a protocol drops items of the probe's identity where these are equal.

    None if it drops none.
    """
    if protocol.drops == "image":
        return image_codes(data)
    if protocol.drops is None or data.probe.cams is None or data.gallery.cams is None:
        return None
    return data.probe.cams, data.gallery.cams


def _running_sums(
    values: NDArray[Any], owner: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the sum of `values` up to and including each entry, within its owner."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    running: NDArray[np.float64] = total[1:] - total[starts[owner]]
    return running


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def valid_probes(data: FeatureSet, protocol: str) -> int:
    """Count the probes that have a match in the gallery under `protocol`; `data` must have ids."""
    return int(has_match(data, protocol).sum())


def has_match(data: FeatureSet, protocol: str) -> NDArray[np.bool_]:
    """Return (P,) bool, the probes that have a match in the gallery under `protocol`; `data` must have ids."""
    assert data.probe.ids is not None
    assert data.gallery.ids is not None
    same_camera = np.zeros(len(data.probe), dtype=np.int64)
    codes = dropped_codes(data, get_protocol(protocol))
    if codes is not None:
        both = np.stack([np.concatenate([data.probe.ids, data.gallery.ids]), np.concatenate(codes)], axis=1)
        _, pair = np.unique(both, axis=0, return_inverse=True)
        pair = pair.ravel()
        same_camera = np.bincount(pair[len(data.probe) :], minlength=pair.max() + 1)[pair[: len(data.probe)]]
    ids, counts = np.unique(data.gallery.ids, return_counts=True)
    place = np.searchsorted(ids, data.probe.ids).clip(max=len(ids) - 1)
    matches = np.where((ids[place] == data.probe.ids) & (data.probe.ids > DISTRACTOR), counts[place], 0)
    found: NDArray[np.bool_] = matches > same_camera
    return found


def distinct_cameras(side: Side) -> NDArray[np.int64]:
    """Return the distinct cameras of a side, ascending, without those of junk; `side` must have cameras."""
    assert side.cams is not None
    return np.unique(side.cams if side.ids is None else side.cams[side.ids != JUNK])


def suspicious_labels(data: FeatureSet, protocol: Protocol, valid_probes: int) -> list[str]:
    """Return warnings about labels that probably make the metrics misleading, one line each."""
    found = []
    kept = protocol.drops == "image" or dropped_codes(data, protocol) is None
    one_camera = not kept and len(np.union1d(distinct_cameras(data.probe), distinct_cameras(data.gallery))) == 1
    own = count_own(data) if (kept or one_camera) and _is_held(data) else 0
    if protocol.drops == "image" and not own and _is_held(data):
        found.append(
            f"no probe is in the gallery, by name or by equal features: protocol {protocol.name} drops no image"
        )
    if own and kept and protocol.drops != "image":
        found.append(
            f"{own} of {len(data.probe)} probes are in the gallery too, and protocol {protocol.name} lets each "
            "find itself: measure with protocol leave-one-out"
        )
    if protocol.drops == "camera":
        if data.probe.cams is None or data.gallery.cams is None:
            found.append(f"{data.lacking('cams')}: protocol {protocol.name} drops only junk")
        elif one_camera:
            found.append(
                f"all images have the same camera, so protocol {protocol.name} drops every match: if there is "
                f"only one camera, measure with protocol {'leave-one-out' if own else 'plain'}"
            )
    nobody = int(np.count_nonzero(data.probe.ids == DISTRACTOR))
    if nobody:
        found.append(
            f"{nobody} probes have id 0, which marks distractors: they count as having no match; "
            "number identities from 1"
        )
    if not valid_probes:
        found.append("no probe has a match in the gallery: there is nothing to measure")
    return found


def _is_held(data: FeatureSet) -> bool:
    """Whether it takes no pass over a file to tell images apart."""
    sides = (data.probe, data.gallery)
    named = all(side.names is not None for side in sides)
    return named or all(isinstance(side.features, np.ndarray | torch.Tensor) for side in sides)


def warn_about(metrics: Metrics, data: FeatureSet) -> None:
    """Issue a `BlurrerankWarning` for each of `suspicious_labels`, and for lists shorter than the gallery."""
    found = suspicious_labels(data, get_protocol(metrics.protocol), metrics.valid_probes)
    if metrics.depth is not None:
        found.append(
            f"the shortest list ends at rank {metrics.depth} of {len(data.gallery)}: "
            "matches that are not listed count as missed"
        )
    for message in found:
        warnings.warn(message, BlurrerankWarning, stacklevel=3)
