"""Compare a ranking with the cosine search of the same features, or with another, for `report` and `plot`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compute.compute import Progress
from ..data.arguments import check_features, check_ranking
from ..data.checks import check_count
from ..data.features import FeatureSet
from ..data.labels import DISTRACTOR, JUNK
from ..data.ranking import Ranking
from ..engine.evaluate import check_made_from, evaluate
from ..engine.rerank import rerank
from ..errors import BlurrerankWarning
from ..evaluation.metrics import Metrics, check_ap, dropped_codes
from ..evaluation.protocols import Protocol, get_protocol
from ..evaluation.significance import gains
from ..methods import label_of

UNKNOWN, RIGHT, WRONG, IS_JUNK, DROPPED = range(5)
"""Kinds of a listed item: unknown or not listed; same identity; other identity; junk; same identity and camera,
which the protocol drops."""

SEARCHED = 1000
"""How far ranks by cosine similarity are looked for, at most, where metrics need no more."""


@dataclass(frozen=True, eq=False)
class BeforeAfter:
    """A ranking compared with the cosine search of the same features, or with another ranking of them.

    Attributes:
        ranking: the ranking, which is what comes after.
        reference: what it is compared with, which is what comes before.
        data: the ranked features.
        protocol: name of the evaluation protocol.
        ap_kind: `plain` or `trapezoid`.
        before: (P, S) gallery rows of the reference, best first; -1 pads.
        after: (P, S) gallery rows of the ranking, likewise.
        kinds_before: (P, S) uint8, the kind of each item of `before`, from `kinds_of`.
        kinds_after: (P, S) uint8, the kind of each item of `after`.
        ranks_before: (P, S) int32, the rank that each item of `after` has in the reference, from `ranks_in`.
        ranks_after: (P, S) int32, the rank that each item of `before` has in the ranking.
        metrics_before: metrics of the reference, to the same depth as the ranking; None without ids.
        metrics_after: metrics of the ranking; None without ids.
        change: (P,) float64, AP after minus AP before, 0 where they differ only by rounding, NaN for a probe
            without a match; None without ids.
    """

    ranking: Ranking
    reference: Ranking
    data: FeatureSet
    protocol: str
    ap_kind: str
    before: NDArray[Any]
    after: NDArray[Any]
    kinds_before: NDArray[np.uint8]
    kinds_after: NDArray[np.uint8]
    ranks_before: NDArray[np.int32]
    ranks_after: NDArray[np.int32]
    metrics_before: Metrics | None
    metrics_after: Metrics | None
    change: NDArray[np.float64] | None

    @property
    def measured(self) -> tuple[Metrics, Metrics] | None:
        """Metrics before and after; None without ids."""
        if self.metrics_before is None or self.metrics_after is None:
            return None
        return self.metrics_before, self.metrics_after

    def counts(self) -> dict[str, int]:
        """Count the probes that are `better`, `equal`, `worse`, or have `no match`; empty without ids."""
        if self.change is None:
            return {}
        return {
            "better": int((self.change > 0).sum()),
            "equal": int((self.change == 0).sum()),
            "worse": int((self.change < 0).sum()),
            "no match": int(np.isnan(self.change).sum()),
        }

    def sorted_change(self) -> NDArray[np.float64]:
        """Return (V,) changes of AP of the probes with a match, largest gain first; empty without ids."""
        change = np.zeros(0) if self.change is None else self.change
        return -np.sort(-change[~np.isnan(change)])

    def by_change(self) -> NDArray[np.int64]:
        """Return (P,) probe indices, largest absolute change first, no match last; in order without ids."""
        if self.change is None:
            return np.arange(len(self.before))
        return np.argsort(-np.abs(self.change), kind="stable")  # NaN sorts last

    def caveats(self) -> list[str]:
        """Return notes needed to interpret the numbers, one sentence each."""
        found = [
            f"The lists of {label_of(one.method, one.params)} were made from candidates ({one.candidates}), "
            "not from a search of the whole gallery."
            for one in (self.reference, self.ranking)
            if one.candidates is not None
        ]
        if self.metrics_after is None:
            found.append(f"{_sentence(self.data.lacking('ids'))}: lists can be shown, but not measured.")
        elif self.metrics_after.depth is not None:
            found.append(
                f"Both are measured to the depth of the lists (the shortest ends at rank "
                f"{self.metrics_after.depth} of {len(self.data.gallery)}): unlisted matches count as missed."
            )
        if get_protocol(self.protocol).drops == "camera" and self.data.has_ids and not self.data.has_cams:
            found.append(f"{_sentence(self.data.lacking('cams'))}: protocol {self.protocol} drops only junk.")
        return found


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def before_and_after(
    *,
    ranking: Ranking,
    data: FeatureSet,
    against: Ranking | None = None,
    protocol: str = "market1501",
    ap: str = "plain",
    shown: int = 10,
    device: str = "auto",
    memory: int | None = None,
    progress: Progress | None = None,
) -> BeforeAfter:
    """Measure a ranking and what it is compared with, and return the heads of both.

    If one of them can only be measured to its depth (see `evaluate`), both are: each list is cut where the
    shorter of the probe's two lists ends.

    Args:
        ranking: a ranking of the probes of `data`.
        data: the features; without ids on both sides nothing is measured.
        against: another ranking of the same probes; by default the exact cosine search of `data`, to the depth
            of the ranking, but not beyond `SEARCHED` unless metrics need it.
        protocol: `market1501`, `cuhk03`, `leave-one-out` or `plain`.
        ap: `plain` or `trapezoid`.
        shown: number of items to return of each list, at most the lesser depth of the two.
        device: device for the similarities.
        memory: memory budget in bytes for the similarities.
        progress: called with (images done, images in all) during the search.

    Raises:
        InputError: if a ranking was not made from `data`.
        ParameterError: for an unknown protocol or kind of AP, or `shown` below 1.
    """
    rules = get_protocol(protocol)
    check_ap(ap)
    check_count("shown", shown)
    check_ranking(ranking)
    check_features(data)
    check_made_from(ranking, data)
    if against is not None:
        check_ranking(against)
        check_made_from(against, data)
    before, after, change = None, None, None
    measured: dict[str, Any] = {"protocol": protocol, "ap": ap, "device": device, "memory": memory}
    if data.has_ids:
        after = evaluate(ranking, data, **measured)
    reference = against
    if reference is None:
        depth = ranking.depth
        if after is None or after.depth is None:  # otherwise both lists are cut at one length
            depth = min(depth, max(shown, SEARCHED))
        reference = rerank(data, "cosine", depth=depth, device=device, memory=memory, progress=progress)
    if after is not None:
        with warnings.catch_warnings():
            # The ranking has already caused the warnings about these labels.
            warnings.simplefilter("ignore", BlurrerankWarning)
            before = evaluate(reference, data, **measured)
            if after.depth is not None or before.depth is not None:
                listed = (ranking.indices >= 0).sum(axis=1), (reference.indices >= 0).sum(axis=1)
                before, after = (
                    evaluate(_cut(one, np.minimum(*listed)), data, **measured) for one in (reference, ranking)
                )
        change = gains(after.ap, before.ap)
    shown = min(shown, ranking.depth, reference.depth)
    first, last = reference.indices[:, :shown], ranking.indices[:, :shown]
    return BeforeAfter(
        ranking,
        reference,
        data,
        protocol,
        ap,
        before=first,
        after=last,
        kinds_before=kinds_of(first, data, rules),
        kinds_after=kinds_of(last, data, rules),
        ranks_before=ranks_in(reference, last),
        ranks_after=ranks_in(ranking, first),
        metrics_before=before,
        metrics_after=after,
        change=change,
    )


def _cut(ranking: Ranking, lengths: NDArray[np.int64]) -> Ranking:
    """Return lists of the given lengths, of which nothing is known beyond: as if made from candidates."""
    within = np.arange(ranking.depth) < lengths[:, None]
    return replace(
        ranking,
        indices=np.where(within, ranking.indices, -1),
        candidates=f"{ranking.method}, cut",
        cosine_tail=False,
        positions=None,
    )


def ranks_in(ranking: Ranking, items: NDArray[Any]) -> NDArray[np.int32]:
    """Return the rank that each item has in the list of its probe.

    Args:
        ranking: the lists.
        items: (P, S) gallery rows, -1 pads.

    Returns:
        (P, S) int32: the rank, from 1; minus the length of the list for an item beyond it; 0 for padding.
    """
    found = np.zeros(items.shape, dtype=np.int32)
    ranks = np.zeros(ranking.gallery_size, dtype=np.int32)
    for probe, wanted in enumerate(items):
        listed = ranking.indices[probe][ranking.indices[probe] >= 0]
        ranks[listed] = np.arange(1, len(listed) + 1)
        found[probe] = np.where(ranks[wanted] > 0, ranks[wanted], -len(listed))
        ranks[listed] = 0
    found[items < 0] = 0
    return found


def kinds_of(lists: NDArray[Any], data: FeatureSet, protocol: Protocol) -> NDArray[np.uint8]:
    """Return the kind of each listed item.

    Args:
        lists: (P, S) gallery rows, -1 past the end of a list.
        data: the labels; without ids on both sides all kinds are `UNKNOWN`.
        protocol: says which items are dropped.

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
    codes = dropped_codes(data, protocol)
    if codes is not None:
        kinds[same & (codes[1][items] == codes[0][:, None])] = DROPPED
    kinds[ids == JUNK] = IS_JUNK
    kinds[lists < 0] = UNKNOWN
    return kinds
