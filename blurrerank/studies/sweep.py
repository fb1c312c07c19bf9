"""Local blurring over a grid of neighbourhood sizes and temperatures, from one search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..compute.compute import Compute
from ..data.checks import check_count, check_sigma
from ..data.features import FeatureSet
from ..engine.request import Request
from ..engine.runs import Measurement
from ..errors import InputError, ParameterError
from ..evaluation.match_finder import MatchFinder
from ..evaluation.metrics import MEANS, measure, warn_about
from ..methods.cosine import Cosine
from ..methods.lbr import LocalBlurring
from .many import locate_each

_OTHER = {"digest": "other features", "labels_digest": "other ids or cameras"}

Setting = tuple[int, float]
"""topn and sigma."""


@dataclass(frozen=True)
class Sweep:
    """What local blurring gives at each setting.

    Attributes:
        digest: `FeatureSet.digest()` of the features.
        labels_digest: `FeatureSet.labels_digest()` of the same.
        protocol: by which it was measured.
        ap: the kind of average precision.
        probes: all probes.
        valid_probes: those with a match, over which the means are.
        cosine: mean -> value without re-ranking.
        rows: setting -> mean -> value.
    """

    digest: str
    labels_digest: str
    protocol: str
    ap: str
    probes: int
    valid_probes: int
    cosine: Mapping[str, float]
    rows: Mapping[Setting, Mapping[str, float]] = field(default_factory=dict)

    def best(self) -> dict[str, Setting]:
        """For each mean the setting where it is highest; of equal ones the smaller topn, then sigma."""
        return {
            name: min(self.rows, key=lambda setting: (-self.rows[setting][name], setting)) for name in MEANS
        }


def sweep(
    data: FeatureSet,
    topns: Sequence[int],
    sigmas: Sequence[float],
    measurement: Measurement,
    compute: Compute,
    known: Sweep | None = None,
) -> Sweep:
    """Measure local blurring at every pair of `topns` and `sigmas`.

    The gallery is searched once, and the similarities within a neighbourhood are computed once for all sigmas.

    Args:
        data: features with ids.
        topns: sizes of the neighbourhood; capped at the gallery.
        sigmas: temperatures, above 0.
        measurement: how lists are measured.
        compute: how.
        known: an earlier sweep of the same features: what it holds is kept and not measured again.

    Returns:
        Every setting asked for or known, in order.

    Raises:
        InputError: without ids or any match, or if `known` is of other features, labels or metrics.
        ParameterError: for a parameter outside its range.
    """
    rules = measurement.rules
    if not topns or not sigmas:
        raise ParameterError("a sweep needs at least one topn and one sigma")
    for topn in topns:
        check_count("topn", topn)
    for sigma in sigmas:
        check_sigma(sigma)
    if not data.has_ids:
        raise InputError(f"{data.lacking('ids')}: settings cannot be compared without metrics")
    made_from = {
        "digest": data.digest(),
        "labels_digest": data.labels_digest(),
        "protocol": measurement.protocol,
        "ap": measurement.ap,
    }
    for name, value in made_from.items():
        if known is not None and getattr(known, name) != value:
            other = _OTHER.get(name) or f"{name} {getattr(known, name)}"
            raise InputError(f"the output file has a sweep of {other}: choose another name for this one")
    wanted = {(min(topn, len(data.gallery)), float(sigma)) for topn in topns for sigma in sigmas}
    missing = sorted(wanted - set(known.rows if known else ()))
    if known is not None and not missing:
        return known
    finder = MatchFinder(data, single_shot=rules.single_shot, device=compute.device, memory=compute.memory)
    methods = [Cosine(1), *(LocalBlurring(topn, sigma) for topn, sigma in missing)]
    measured = {
        method: measure(positions, data, rules, ap=measurement.ap)
        for method, positions in locate_each(data, methods, Request(), finder, compute)
    }
    cosine = measured.pop(methods[0])
    warn_about(cosine, data)
    if not cosine.valid_probes:
        raise InputError("no probe has a match in the gallery: settings cannot be compared without metrics")
    rows = dict(known.rows if known else {})
    rows |= {(topn, sigma): measured[LocalBlurring(topn, sigma)].means() for topn, sigma in missing}
    return Sweep(
        **made_from,
        probes=len(data.probe),
        valid_probes=cosine.valid_probes,
        cosine=cosine.means(),
        rows=dict(sorted(rows.items())),
    )
