"""Significance test and confidence intervals for means over probes, and for differences of two rankings.

Sources: paired randomisation test, Fisher, The Design of Experiments, 1935; its use for average precision,
Smucker, Allan, Carterette, "A Comparison of Statistical Significance Tests for Information Retrieval
Evaluation", CIKM 2007; counting the observed outcome in a sampled test, Phipson, Smyth, "Permutation P-values
Should Never Be Zero", 2010, arXiv:1603.05766; percentile bootstrap, Efron, Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13; resampling clusters of dependent observations, Davison, Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .metrics import Metrics

# float64 values drawn at a time.
_DRAWN = 1 << 21

# Smaller differences of AP come from summing the same terms in another order.
_EQUAL = 1e-9


@dataclass(frozen=True)
class Comparison:
    """The difference between rankings A and B, from the average precision of each probe.

    Attributes:
        difference: mAP of A minus mAP of B, over `probes`.
        p_value: two-sided; never 0.
        low: lower end of the 95 % confidence interval of the difference.
        high: upper end of the interval.
        probes: number of probes that have a match in both; all values here are computed over these.
        better: number of probes with a higher AP in A.
        equal: number of probes with the same AP in both.
        worse: number of probes with a lower AP in A.
        resamples: maximum number of outcomes drawn for the test, and number of bootstrap samples.
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
        """Return all fields, ready for JSON."""
        return asdict(self)


def compare(a: Metrics, b: Metrics, *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Test the difference between two mAPs on the same probes.

    With d_i the difference of the AP of probe i, n the number of probes and s_i signs:

        p = share of all s in {-1, 1}^n with |sum_i s_i d_i| >= |sum_i d_i|

    If there are more than `resamples` such outcomes, `resamples` of them are drawn and the observed one is
    added: p = (1 + number drawn that reach it) / (1 + resamples). The interval goes from the 2.5th to the
    97.5th percentile of the mean of d over `resamples` bootstrap samples of n probes.

    Both assume that probes are independent. Probes of one identity are not, because they share their matches: p
    is too small and the interval too narrow where identities have many probes each. Neither says anything about
    other training runs or other data sets.

    Args:
        a: metrics of one ranking, with `ap` (P,) float64.
        b: metrics of another ranking of the same probes, in the same order.
        resamples: number of outcomes and of bootstrap samples to draw.
        seed: seed of the draws.

    Raises:
        InputError: if the metrics differ in protocol, kind of AP, number of probes or depth, or if fewer than
            two probes have a match in both.

    Examples:
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
            raise InputError(
                f"metrics with {what} {one} and {other} cannot be compared: measure both rankings the same way"
            )
    if a.depth != b.depth:
        one, other = ("the whole gallery" if some is None else f"rank {some}" for some in (a.depth, b.depth))
        depth = min(some for some in (a.depth, b.depth) if some is not None)
        raise InputError(
            f"metrics to {one} and to {other} cannot be compared, because unlisted matches count as missed: "
            f"give both lists the same depth, as with `blurrerank run --depth {depth} -o lists.trec`"
        )
    return compare_ap(a.ap, b.ap, resamples=resamples, seed=seed)


def gains(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (P,) float64, AP of each probe in A minus its AP in B, 0 where they differ only by rounding.

    Args:
        a: (P,) float64, NaN for a probe without a match.
        b: (P,) float64, NaN likewise.
    """
    found = a - b
    found[np.abs(found) < _EQUAL] = 0
    return found


def compare_ap(
    a: NDArray[np.float64], b: NDArray[np.float64], *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare as `compare` does, from (P,) average precisions, NaN for a probe without a match."""
    from scipy import stats

    gain = gains(a, b)
    gain = gain[~np.isnan(gain)]
    if len(gain) < 2:
        raise InputError(f"{len(gain)} probes have a match in both rankings: a comparison needs at least two")
    random = np.random.default_rng(seed)
    # Signs of zero differences do not matter; leaving them out may make the test exhaustive.
    decided = gain[gain != 0]
    p_value = 1.0  # also for a single difference, which is as large with either sign
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


@dataclass(frozen=True)
class Interval:
    """A mean over probes, and the 95 % confidence interval that comes of resampling identities.

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


def intervals_over_identities(
    sums: NDArray[np.float64], counts: NDArray[np.int64], *, resamples: int = 10_000, seed: int = 0
) -> list[Interval]:
    """Return the mean over probes of each of M values, with intervals from resampled identities.

    Probes of one identity share their matches, so that they are drawn together: with s_i the sum over the n_i
    probes of identity i and w_i how often it is among I identities drawn with replacement, an interval goes
    from the 2.5th to the 97.5th percentile of sum_i w_i s_i / sum_i w_i n_i. All M have the same draws.

    Args:
        sums: (I, M) float64, the sums of the values over each identity's probes.
        counts: (I,) int64, the number of these probes, at least 1.
        resamples: number of bootstrap samples.
        seed: seed of the draws.

    Examples:
        >>> intervals_over_identities(np.array([[1.0], [2.0]]), np.array([2, 2]))
        [Interval(value=0.75, low=0.5, high=1.0)]
    """
    identities = len(counts)
    random, drawn = np.random.default_rng(seed), []
    step = max(1, _DRAWN // identities)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = random.multinomial(identities, np.full(identities, 1 / identities), size=size)
        drawn.append((weights @ sums) / (weights @ counts)[:, None])
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5], axis=0)
    values = sums.sum(axis=0) / counts.sum()
    return [Interval(*map(float, ends)) for ends in zip(values, low, high, strict=True)]
