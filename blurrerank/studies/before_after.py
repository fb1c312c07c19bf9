"""A ranking beside the cosine search of the same features: the numbers that `report` and `plot` show."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compute.progress import Progress
from ..data.checks import check_count
from ..data.features import FeatureSet
from ..data.labels import DISTRACTOR, JUNK
from ..data.ranking import Ranking
from ..engine.pipeline import check_made_from, evaluate, rerank
from ..errors import BlurrerankWarning, InputError
from ..evaluation.metrics import Metrics, check_ap
from ..evaluation.protocols import Protocol, get_protocol
from ..evaluation.significance import gains
from .sweep import Sweep

UNKNOWN, RIGHT, WRONG, IS_JUNK, DROPPED = range(5)
"""What a listed item is to its probe: nothing is known or listed; its identity, another, junk, or its identity
under a camera that the protocol drops."""


@dataclass(frozen=True, eq=False)
class BeforeAfter:
    """A ranking and the cosine search of the same features.

    Attributes:
        ranking: what is compared.
        data: what was ranked.
        protocol: by which it was measured.
        ap_kind: `plain` or `trapezoid`.
        before: (P, S) gallery rows by cosine, best first; -1 pads.
        after: (P, S) likewise of the ranking.
        kinds_before: (P, S) uint8, what each item of `before` is to its probe, by `kinds_of`.
        kinds_after: likewise of `after`.
        metrics_before: of the cosine search, measured as deep as the ranking was; None without ids.
        metrics_after: of the ranking; None without ids.
        change: (P,) float64, AP after less AP before, 0 where they differ by rounding alone, NaN for a probe
            without a match; None without ids.
    """

    ranking: Ranking
    data: FeatureSet
    protocol: str
    ap_kind: str
    before: NDArray[Any]
    after: NDArray[Any]
    kinds_before: NDArray[np.uint8]
    kinds_after: NDArray[np.uint8]
    metrics_before: Metrics | None
    metrics_after: Metrics | None
    change: NDArray[np.float64] | None

    @property
    def measured(self) -> tuple[Metrics, Metrics] | None:
        """Metrics before and after, if there are ids."""
        if self.metrics_before is None or self.metrics_after is None:
            return None
        return self.metrics_before, self.metrics_after

    def counts(self) -> dict[str, int]:
        """How many probes are `better`, `equal`, `worse`, or without a match, `no match`; empty without ids."""
        if self.change is None:
            return {}
        return {
            "better": int((self.change > 0).sum()),
            "equal": int((self.change == 0).sum()),
            "worse": int((self.change < 0).sum()),
            "no match": int(np.isnan(self.change).sum()),
        }

    def sorted_change(self) -> NDArray[np.float64]:
        """(V,) the change of AP of each probe with a match, largest gain first; empty without ids."""
        change = np.zeros(0) if self.change is None else self.change
        return -np.sort(-change[~np.isnan(change)])

    def by_change(self) -> NDArray[np.int64]:
        """(P,) probes, those that changed most first, without a match last; in their order without ids."""
        if self.change is None:
            return np.arange(len(self.before))
        return np.argsort(-np.abs(self.change), kind="stable")  # NaN sorts last

    def caveats(self) -> list[str]:
        """What a reader must know to read the numbers rightly, a sentence each."""
        found = []
        if self.ranking.candidates is not None:
            found.append(
                f"The ranking was made from candidates ({self.ranking.candidates}), not from a search of the "
                "whole gallery. Before is the exact cosine search of the features."
            )
        if self.metrics_after is None:
            found.append(
                f"{_sentence(self.data.lacking('ids'))}: lists can be shown, and nothing can be measured."
            )
        elif self.metrics_after.depth is not None:
            found.append(
                f"Both are measured as deep as the ranking's lists go (the shortest ends at rank "
                f"{self.metrics_after.depth} of {len(self.data.gallery)}): a match that is not listed counts "
                "as missed."
            )
        if get_protocol(self.protocol).drops_same_camera and self.data.has_ids and not self.data.has_cams:
            found.append(f"{_sentence(self.data.lacking('cams'))}: protocol {self.protocol} drops only junk.")
        return found


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def before_and_after(
    *,
    ranking: Ranking,
    data: FeatureSet,
    protocol: str = "market1501",
    ap: str = "plain",
    shown: int = 10,
    device: str = "auto",
    memory: int | None = None,
    progress: Progress | None = None,
) -> BeforeAfter:
    """Measure a ranking and the exact cosine search of the same features, and take the heads of both.

    A ranking whose matches are known to its depth alone is measured to it (`evaluate`), and so is the cosine
    search then: each probe's list is cut where the ranking's ends.

    Args:
        ranking: of the probes of `data`.
        data: features; without ids on both sides nothing is measured.
        protocol: `market1501`, `cuhk03` or `plain`.
        ap: `plain` or `trapezoid`.
        shown: how many items of each list to take; capped at what the ranking has.
        device: where similarities are computed.
        memory: budget in bytes for the same.
        progress: called with (images done, images in all) for the search.

    Raises:
        InputError: if ranking and data do not belong together.
        ParameterError: for an unknown protocol or kind of AP, or `shown` below 1.
    """
    rules = get_protocol(protocol)
    check_ap(ap)
    check_count("shown", shown)
    check_made_from(ranking, data)
    measured = {"protocol": protocol, "ap": ap, "device": device, "memory": memory}
    after = evaluate(ranking, data, **measured) if data.has_ids else None  # type: ignore[arg-type]
    cut = after is not None and after.depth is not None
    shown = min(shown, ranking.depth)
    cosine = rerank(
        data,
        "cosine",
        depth=ranking.depth if cut else shown,
        device=device,
        memory=memory,
        progress=progress,
    )
    before, change = None, None
    if after is not None:
        if cut:
            # Known to the depth of its lists, as candidates are.
            within = np.where(ranking.indices >= 0, cosine.indices, -1)
            cosine = replace(cosine, indices=within, candidates="cosine search", cosine_tail=False)
        with warnings.catch_warnings():
            # What there is to say of these labels was said of the ranking.
            warnings.simplefilter("ignore", BlurrerankWarning)
            before = evaluate(cosine, data, **measured)  # type: ignore[arg-type]
        change = gains(after.ap, before.ap)
    first, last = cosine.indices[:, :shown], ranking.indices[:, :shown]
    return BeforeAfter(
        ranking,
        data,
        protocol,
        ap,
        before=first,
        after=last,
        kinds_before=kinds_of(first, data, rules),
        kinds_after=kinds_of(last, data, rules),
        metrics_before=before,
        metrics_after=after,
        change=change,
    )


def kinds_of(lists: NDArray[Any], data: FeatureSet, protocol: Protocol) -> NDArray[np.uint8]:
    """What each listed item is to its probe.

    Args:
        lists: (P, S) gallery rows, -1 past the end of a list.
        data: the labels; without ids on both sides everything is `UNKNOWN`.
        protocol: which items are dropped.

    Returns:
        (P, S) uint8 of `UNKNOWN`, `RIGHT`, `WRONG`, `IS_JUNK`, `DROPPED`.
    """
    kinds = np.full(lists.shape, UNKNOWN, dtype=np.uint8)
    if data.probe.ids is None or data.gallery.ids is None:
        return kinds
    mine, items = data.probe.ids[:, None], np.maximum(lists, 0)
    ids = data.gallery.ids[items]
    same = (ids == mine) & (mine > DISTRACTOR)
    kinds[:] = np.where(same, RIGHT, WRONG)
    if protocol.drops_same_camera and data.probe.cams is not None and data.gallery.cams is not None:
        kinds[same & (data.gallery.cams[items] == data.probe.cams[:, None])] = DROPPED
    kinds[ids == JUNK] = IS_JUNK
    kinds[lists < 0] = UNKNOWN
    return kinds


@dataclass(frozen=True, eq=False)
class Grid:
    """mAP of a sweep as a table.

    Attributes:
        topns: (C,) of the columns, ascending.
        sigmas: (R,) of the rows, ascending.
        values: (R, C) float64 mAP, NaN for a setting that was not measured.
        best: row and column of the best.
    """

    topns: list[int]
    sigmas: list[float]
    values: NDArray[np.float64]
    best: tuple[int, int]


def grid_of(sweep: Sweep, comparison: BeforeAfter) -> Grid:
    """The mAP of each setting of `sweep`, which must be of what `comparison` is of.

    Raises:
        InputError: if it is of other features, labels, protocol or AP, or holds no setting.
    """
    data = comparison.data
    if sweep.digest != data.digest() or sweep.labels_digest != data.labels_digest():
        what = "features" if sweep.digest != data.digest() else "ids or cameras"
        raise InputError(f"the sweep is of other {what}: pass one that was made from these")
    if (sweep.protocol, sweep.ap) != (comparison.protocol, comparison.ap_kind):
        raise InputError(
            f"the sweep is measured by protocol {sweep.protocol} and {sweep.ap} AP: pass "
            f"--protocol {sweep.protocol} --ap {sweep.ap}, or sweep again with those given here"
        )
    if not sweep.rows:
        raise InputError("the sweep holds no settings: run `blurrerank sweep` again")
    topns, sigmas = (sorted({setting[part] for setting in sweep.rows}) for part in (0, 1))
    values = np.full((len(sigmas), len(topns)), np.nan)
    for (topn, sigma), means in sweep.rows.items():
        values[sigmas.index(sigma), topns.index(int(topn))] = means["mAP"]
    topn, sigma = sweep.best()["mAP"]
    return Grid([int(n) for n in topns], sigmas, values, (sigmas.index(sigma), topns.index(topn)))
