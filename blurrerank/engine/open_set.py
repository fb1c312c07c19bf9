"""Open-set metrics of a ranking, and the calibration of its scores: what `br` has of both."""

from __future__ import annotations

import warnings

import numpy as np

from ..data.arguments import check_ranking
from ..data.features import FeatureSet
from ..data.ranking import Ranking
from ..errors import BlurrerankWarning, InputError
from ..evaluation.open_set import OpenSetMetrics, find_first_items, measure_open_set, warn_about_open_set
from ..evaluation.protocols import get_protocol
from ..evaluation.score_calibration import ScoreCalibration, check_can_fit, fit_numbers
from .evaluate import check_labelled, check_made_from


def evaluate_open_set(
    ranking: Ranking, data: FeatureSet, *, protocol: str = "market1501", threshold: float | None = None
) -> OpenSetMetrics:
    """Measure how well scores tell probes with a match in the gallery from probes without one.

    `evaluation/open_set.py` defines the metrics. They are to the depth of the lists.

    Args:
        ranking: of the probes of `data`.
        data: features with ids, and cameras if the protocol is to use them.
        protocol: as in `evaluate`.
        threshold: also measure at this score.

    Raises:
        InputError: if ranking and data do not belong together, or there are no ids.
        ParameterError: for an unknown protocol, or a threshold that is not finite.
    """
    rules = get_protocol(protocol)
    _check(ranking, data)
    metrics = measure_open_set(ranking, data, rules, threshold=threshold)
    warn_about_open_set(metrics)
    return metrics


def calibrate(
    ranking: Ranking, data: FeatureSet, *, by: str = "isotonic", protocol: str = "market1501"
) -> ScoreCalibration:
    """Fit the probability that the first counted item of a list is right, as a function of its score.

    Probes without a match in the gallery count as wrong; those with id -1, and those whose lists have no
    counted item, are left out. A `BlurrerankWarning` says how many lists begin with an item that does not
    count: rejection judges each list by its first item, whatever that is.

    Args:
        ranking: of the probes of `data`, which should not be those that the calibration is for.
        data: features with ids, and cameras if the protocol is to use them.
        by: `isotonic` or `logistic`; `evaluation/score_calibration.py` says what these are.
        protocol: as in `evaluate`.

    Raises:
        InputError: if ranking and data do not belong together, there are no ids, the ranking does not say by
            which method it was made, or its first items are all right or all wrong.
        ParameterError: for an unknown protocol or kind.
        BlurrerankError: if scikit-learn is not installed.
    """
    rules = get_protocol(protocol)
    check_can_fit(by)
    _check(ranking, data)
    if ranking.method == "unknown":
        raise InputError(
            f"{ranking.source} does not say by which method it was made, and scores of two methods differ: "
            "calibrate a native file (.h5), as `run` writes it"
        )
    first = find_first_items(ranking, data, rules)
    used = (first.known | first.unknown) & np.isfinite(first.scores)
    right = first.right[used]
    if not right.any() or right.all():
        raise InputError(
            f"the first items of all {len(right)} lists are {'right' if right.any() else 'wrong'}: take more "
            "probes, of identities that the gallery has and of others"
        )
    skipped = int((first.places[used] > 0).sum())
    if skipped:
        warnings.warn(
            f"{skipped} of {len(right)} lists begin with an item that protocol {protocol} drops, so a later "
            "item was used. --reject uses the first item, so probabilities of such lists will be too high "
            "or too low: remove the probes' own images from the gallery first",
            BlurrerankWarning,
            stacklevel=2,
        )
    return ScoreCalibration(
        kind=by,
        numbers=fit_numbers(by, first.scores[used], right),
        method=ranking.method,
        params=dict(ranking.params),
        setting=ranking.setting,
        dim=data.dim,
        gallery_size=ranking.gallery_size,
        protocol=protocol,
        probes=len(right),
        right=int(right.sum()),
    )


def _check(ranking: Ranking, data: FeatureSet) -> None:
    check_ranking(ranking)
    check_labelled(data)
    check_made_from(ranking, data)
