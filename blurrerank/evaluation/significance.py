"""Whether one ranking is better than another, or the probes merely happened to suit it.

Sources: the paired randomisation test is Fisher's, The Design of Experiments, 1935; that it suits average
precision, Smucker, Allan, Carterette, "A Comparison of Statistical Significance Tests for Information
Retrieval Evaluation", CIKM 2007; that a drawn test counts what was seen itself, Phipson, Smyth, "Permutation
P-values Should Never Be Zero", 2010, arXiv:1603.05766; the percentile bootstrap, Efron, Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .metrics import Metrics

# Values drawn at a time, as float64.
_DRAWN = 1 << 21

# Sums of the same terms in another order: no change of AP.
_EQUAL = 1e-9


@dataclass(frozen=True)
class Comparison:
    """How much better A is than B, by the average precision of each probe.

    Attributes:
        difference: mAP of A minus mAP of B, over `probes`.
        p_value: two-sided; never 0.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        probes: those that have a match in both; all figures here are of these.
        better: probes with a higher AP in A.
        equal: probes with the same AP in both.
        worse: probes with a lower AP in A.
        resamples: how many outcomes were drawn, at most, and how many samples for the interval.
    """

    difference: float
    p_value: float
    low: float
    high: float
    probes: int
    better: int
    equal: int
    worse: int
    resamples: int

    def summary(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)


def compare(a: Metrics, b: Metrics, *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Test the difference of two mAPs on the same probes.

    With d_i the difference of the AP of probe i, n the number of probes and s_i signs:

        p = share of all s in {-1, 1}^n with |sum_i s_i d_i| >= |sum_i d_i|

    If there are more than `resamples` such outcomes, so many are drawn, and the one that was seen counts as one
    more: p = (1 + how many reach it) / (1 + resamples). The interval is that of the means of d over `resamples`
    samples of n probes with replacement, from the 2.5th to the 97.5th percentile.

    Both assume that probes are independent of each other. Probes of one identity are not: they share their
    matches, so that p is too small and the interval too narrow where identities have many probes each. Neither
    says anything of other training runs or other data sets.

    Args:
        a: of one ranking, its `ap` (P,) float64.
        b: of another ranking of the same probes, in the same order.
        resamples: how many to draw.
        seed: of the draws.

    Raises:
        InputError: for metrics of another protocol, kind of AP, number of probes or depth, or if fewer than
            two probes have a match in both.

    >>> import blurrerank as br
    >>> data = br.load("examples/omniglot.h5")
    >>> lbr, cosine = (br.evaluate(br.rerank(data, method), data) for method in ("lbr", "cosine"))
    >>> found = compare(lbr, cosine)
    >>> found.difference > 0.04, found.p_value < 0.001, found.probes
    (True, True, 780)
    >>> compare(lbr, lbr).p_value
    1.0
    """
    for what, one, other in (
        ("protocol", a.protocol, b.protocol),
        ("AP kind", a.ap_kind, b.ap_kind),
        ("number of probes", a.probes, b.probes),
    ):
        if one != other:
            raise InputError(f"metrics of {what} {one} do not compare with those of {other}: measure alike")
    if a.depth != b.depth:
        one, other = ("the whole gallery" if some is None else f"rank {some}" for some in (a.depth, b.depth))
        depth = min(some for some in (a.depth, b.depth) if some is not None)
        raise InputError(
            f"metrics to {one} do not compare with metrics to {other}, where other matches count as missed: "
            f"give both lists one depth, as `blurrerank run --depth {depth} -o lists.trec` does"
        )
    return compare_ap(a.ap, b.ap, resamples=resamples, seed=seed)


def gains(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) average precision of each probe in A less that in B, 0 where these differ by rounding alone.

    Args:
        a: (P,) float64, NaN for a probe without a match.
        b: (P,) likewise.
    """
    found = a - b
    found[np.abs(found) < _EQUAL] = 0
    return found


def compare_ap(
    a: NDArray[np.float64], b: NDArray[np.float64], *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """`compare`, from average precisions (P,), NaN for a probe without a match."""
    from scipy import stats

    gain = gains(a, b)
    gain = gain[~np.isnan(gain)]
    if len(gain) < 2:
        raise InputError(f"{len(gain)} probes have a match in both rankings: a comparison takes two or more")
    random = np.random.default_rng(seed)
    # A difference of 0 has no sign to change; without them fewer outcomes are all of them.
    decided = gain[gain != 0]
    p_value = 1.0  # of one difference too, which is as large with either sign
    if len(decided) > 1:
        p_value = stats.permutation_test(
            (decided,),
            lambda signed, axis: np.abs(signed.sum(axis=axis)),
            permutation_type="samples",
            alternative="greater",
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _DRAWN // len(decided)),
            random_state=random,
        ).pvalue
    interval = stats.bootstrap(
        (gain,),
        np.mean,
        method="percentile",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _DRAWN // len(gain)),
        random_state=random,
    ).confidence_interval
    return Comparison(
        difference=float(gain.mean()),
        p_value=float(p_value),
        low=float(interval.low),
        high=float(interval.high),
        probes=len(gain),
        better=int((gain > 0).sum()),
        equal=int((gain == 0).sum()),
        worse=int((gain < 0).sum()),
        resamples=resamples,
    )
