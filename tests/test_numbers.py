"""Numbers at the edge of what formats can hold: finite, equal to the reference in float64, or a named error.

`make numbers CASES=10000 SEED=0` runs so many cases, CI fewer. An item may stand in another place than in the
reference where scores there differ by less than the tolerance, 1e-5.
"""

from __future__ import annotations

import os
import re
from contextlib import nullcontext

import counting
import numpy as np
import pytest
from conftest import alike, check_lists, exact_sides, sides, spread
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import blurrerank as br
from blurrerank import reference

# Clusters of rows that differ by a thousandth are among the cases.
pytestmark = pytest.mark.filterwarnings("ignore:features are nearly equal .*rounding affects")

CASES, SEED = int(os.environ.get("CASES", 1000)), int(os.environ.get("SEED", 0))

# What a float32 cosine may be off: a few units in the last place.
COSINE_ERROR = 4e-7
SCALES = {
    np.float16: [1.0, 2.0**-14, 2.0**-20, 60000.0],
    np.float32: [1.0, 1e-20, 1e-38, 1e-42, 1e19, 1e30, 3e37],
    np.float64: [1.0, 1e-300, 1e-310, 1e-50, 1e39, 1e200, 1e300],
}


def share(part: float):
    """Settings for a share of all cases."""
    return settings(
        max_examples=max(1, round(CASES * part)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def shapes(draw):
    """Probes, gallery and dimensions: small, but for one that is large."""
    kind = draw(st.sampled_from(["small"] * 12 + ["one"] * 3 + ["wide", "long"]))
    if kind == "one":
        return (*draw(st.sampled_from([(1, 1), (1, 5), (3, 1)])), draw(st.integers(1, 9)))
    if kind == "wide":
        return draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.sampled_from([1000, 20_000, 100_000]))
    if kind == "long":
        return 1, draw(st.sampled_from([500, 2000, 2100])), draw(st.integers(1, 4))
    return draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(st.sampled_from([1, 2, 3, 8, 33, 128]))


@st.composite
def rows(draw, count, dim, dtype):
    """(count, dim) of a dtype, each row of some size of its own."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.standard_normal((count, dim))
    for kind in draw(
        st.sets(st.sampled_from(["clusters", "twice", "opposite", "sparse", "constant", "signs"]))
    ):
        some = rng.random(count) < 0.5
        if kind == "clusters":
            values[some] = values[0] + draw(st.sampled_from([0, 1e-7, 1e-3, 0.1])) * values[some]
        elif kind == "twice":
            values[some] = values[rng.integers(0, count, some.sum())]
        elif kind == "opposite":
            values[some] = -values[rng.integers(0, count, some.sum())]
        elif kind == "sparse":
            values[some] *= rng.random((some.sum(), dim)) < 0.1
        elif kind == "constant":
            values[some] = 1.0
        else:
            values[some] = np.sign(values[some])
    scales = draw(st.lists(st.sampled_from(SCALES[dtype]), min_size=1, max_size=3))
    largest = np.abs(values).max(axis=1, keepdims=True)
    values = values / np.where(largest == 0, 1, largest) * rng.choice(scales, (count, 1))
    return values.astype(dtype)


@st.composite
def sets(draw):
    probes, gallery, dim = draw(shapes())
    probe, items = (draw(rows(count, dim, draw(st.sampled_from(list(SCALES))))) for count in (probes, gallery))
    if draw(st.integers(0, 30)) == 0:
        items[draw(st.integers(0, gallery - 1)), draw(st.integers(0, dim - 1))] = draw(
            st.sampled_from([np.nan, np.inf, -np.inf])
        )
    return probe, items


def unit(values):
    """Unit rows in float64, whatever their size."""
    values = values.astype(np.float64)
    values = values / np.abs(values).max(axis=1, keepdims=True)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def has_direction(values):
    return bool(np.isfinite(values).all() and (values != 0).any(axis=1).all())


HOW = st.fixed_dictionaries(
    {"precision": st.sampled_from(["float32", "bfloat16"])},
    optional={"block": st.integers(1, 50), "memory": st.sampled_from([4 << 20, 64 << 20])},
)
TOPN = st.one_of(st.integers(1, 12), st.sampled_from([50, 150, 2000]))
SIGMA = st.one_of(st.sampled_from([1e-4, 1e-3, 0.02, 0.1, 1.0, 1e4]), st.floats(1e-4, 1e4))
SWITCHES = st.fixed_dictionaries(
    {},
    optional={
        "probe_in_graph": st.just(True),
        "cosine": st.just(True),
        "steps": st.integers(1, 3),
    },
)


def ranked(probe, items, *arguments, **options):
    """The ranking, or None where the input must be refused and is."""
    if has_direction(probe) and has_direction(items):
        data = br.FeatureSet.from_arrays(probe, items)
        try:
            return br.rerank(data, *arguments, **options)
        except br.ParameterError as error:
            told = re.search("is too small for one probe: raise it to ([0-9,]+) bytes", str(error))
            assert told is not None
            enough = int(told[1].replace(",", ""))
            # Some 48 bytes for each pair of 2,000 items, in float64, and eight times that in a budget.
            assert options["memory"] < enough < 8 * 49 * 2001**2
            return br.rerank(data, *arguments, **options | {"memory": enough})
    with pytest.raises(br.InputError) as error:
        br.FeatureSet.from_arrays(probe, items)
    assert "NaN or infinity" in str(error.value) or "is all zero" in str(error.value)
    assert "\n" not in str(error.value)
    return None


def check_form(ranking, gallery, depth):
    """Finite, strictly decreasing, every item once at the most."""
    assert ranking.indices.shape == ranking.scores.shape
    assert ranking.indices.shape[1] == min(depth, gallery)
    assert np.isfinite(ranking.scores).all()
    assert (np.diff(ranking.scores.astype(np.float64), axis=1) < 0).all()
    assert all(
        len(set(row)) == len(row) and 0 <= min(row) <= max(row) < gallery for row in ranking.indices.tolist()
    )


@seed(SEED)
@share(0.5)
@given(sets(), TOPN, SIGMA, SWITCHES, HOW)
def test_local_blurring(arrays, topn, sigma, switches, how):
    counting.add(f"numbers, seed {SEED}: local blurring")
    probe, items = arrays
    ranking = ranked(probe, items, topn=topn, sigma=sigma, **switches, **how)
    if ranking is None:
        return
    check_form(ranking, len(items), topn)
    queries, nodes = unit(probe), unit(items)
    for query, head, scores in zip(queries, ranking.indices, ranking.scores, strict=True):
        cosines = nodes @ query
        inside = np.isin(np.arange(len(nodes)), head)
        assert inside.all() or cosines[~inside].max() < cosines[inside].min() + 1e-5
        expected = reference.blurred_similarity(query, nodes[head], sigma, **switches)
        # Ties are pulled apart by one unit in the last place each.
        tolerance = 1e-5 + len(head) * 1.2e-7
        if switches.get("cosine") and shortest(query, nodes[head], sigma, switches) < 1e-3:
            continue  # what cancels out points nowhere, and has no direction to compare
        np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)
        assert (np.diff(expected) < 1e-5).all()


def shortest(query, nodes, sigma, switches):
    """The least norm of blurred features."""
    number = len(nodes)
    if switches.get("probe_in_graph"):
        nodes = np.vstack([nodes, query])
    logits = nodes @ nodes.T / sigma
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    transition = weights / weights.sum(axis=1, keepdims=True)
    blurred = np.linalg.matrix_power(transition, switches.get("steps", 1)) @ nodes
    return np.linalg.norm(blurred, axis=1)[:number].min()


@seed(SEED)
@share(0.25)
@given(sets(), TOPN, HOW)
def test_cosine(arrays, topn, how):
    counting.add(f"numbers, seed {SEED}: cosine")
    probe, items = arrays
    ranking = ranked(probe, items, "cosine", topn=topn, **how)
    if ranking is None:
        return
    check_form(ranking, len(items), topn)
    expected = np.take_along_axis(unit(probe) @ unit(items).T, ranking.indices.astype(np.int64), axis=1)
    tolerance = 1e-5 + ranking.indices.shape[1] * 1.2e-7
    np.testing.assert_allclose(ranking.scores, expected, rtol=0, atol=tolerance)
    assert (np.diff(expected, axis=1) < 1e-5).all()
    best = -np.sort(-(unit(probe) @ unit(items).T), axis=1)[:, : expected.shape[1]]
    np.testing.assert_allclose(np.sort(expected, axis=1)[:, ::-1], best, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [2048, 20_000, 100_000, 1_000_000])
def test_a_row_is_as_similar_to_itself_as_can_be(dim):
    """Equal entries are the worst for a sum: all rounding goes one way."""
    found = br.rerank(br.FeatureSet.from_arrays(np.full((1, dim), 0.1), np.full((1, dim), 3.0)), "cosine")
    assert found.scores[0, 0] == pytest.approx(1, abs=3e-6)


POWERS = {np.float16: (-9, 14), np.float32: (-120, 120), np.float64: (-1000, 1000)}


@st.composite
def scaled(draw, arrays):
    """The same directions, exactly: each row times a power of two."""
    found = []
    for values in arrays:
        dtype = draw(st.sampled_from(list(POWERS) if (np.abs(values) == 1).all() else [np.float32, np.float64]))
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        powers = rng.integers(*POWERS[dtype], (len(values), 1))
        found.append(np.ldexp(values.astype(np.float64), powers).astype(dtype))
    return arrays, found


PARAMS = {
    "k-reciprocal": st.fixed_dictionaries(
        {},
        optional={
            "k1": st.integers(1, 90),
            "k2": st.integers(1, 30),
            "lambda_value": st.sampled_from([0.0, 0.3, 1.0]),
            "base_distance": st.sampled_from(["squared", "squared-twice"]),
        },
    ),
    "k-reciprocal-online": st.fixed_dictionaries(
        {"pool": st.integers(16, 90)},
        optional={
            "sigma": st.sampled_from([0.025, 0.1, 1e4]),
            "lambda_value": st.sampled_from([0.0, 0.2, 1.0]),
            "blur": st.integers(1, 17),
        },
    ),
}


def apart(probe, items):
    """Whether no two images are nearly as near to a third."""
    images = unit(np.vstack([probe, items]))
    return bool((np.diff(np.sort(images @ images.T, axis=1), axis=1) > COSINE_ERROR).all())


@pytest.mark.parametrize("method", PARAMS)
@pytest.mark.parametrize("kind", [exact_sides, sides], ids=["ties", "clusters"])
def test_methods_that_give_everything_new_scores(method, kind):
    """The size of a row means nothing, and where its direction is exact, not in the last bit."""

    @seed(SEED)
    @share(0.0625)
    @given(st.data())
    def check(data):
        counting.add(f"numbers, seed {SEED}: {method}")
        plain, extreme = data.draw(scaled(data.draw(kind())))
        params = data.draw(PARAMS[method])
        depth = len(plain[1])
        if method == "k-reciprocal" and 2e-6 < spread(*plain) < 1.1e-4:
            if 8e-6 < spread(*plain) < 0.9e-4:  # and not where rounding decides
                with pytest.raises(br.InputError, match="features are nearly equal"):
                    br.rerank(br.FeatureSet.from_arrays(*extreme), method, depth=depth, **params)
            return
        with alike(*plain) if method == "k-reciprocal" else nullcontext(1e-5) as tolerance:
            found = br.rerank(br.FeatureSet.from_arrays(*extreme), method, depth=depth, **params)
        check_form(found, depth, depth)
        if kind is exact_sides:
            expected = br.rerank(br.FeatureSet.from_arrays(*plain), method, depth=depth, **params)
            np.testing.assert_array_equal(found.indices, expected.indices)
            np.testing.assert_array_equal(found.scores, expected.scores)
        if method != "k-reciprocal" or (kind is sides and not apart(*plain)):
            return  # neighbours that float32 cannot tell apart: one more or less changes a whole encoding
        final = reference.k_reciprocal(*plain, **params)
        order = np.argsort(final, axis=1, kind="stable")
        expected = -np.take_along_axis(final, order, axis=1)
        check_lists(found.indices, found.scores, order, expected, tolerance)

    check()


@st.composite
def labels(draw):
    count, gallery = draw(st.integers(1, 5)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low = draw(st.sampled_from([-1, 0, 1]))
    people = draw(st.integers(1, 6))
    return (
        np.stack([rng.permutation(gallery) for _ in range(count)]),
        rng.integers(1, people + 1, count),
        rng.integers(low, people + 1, gallery),
        rng.integers(0, 3, count),
        rng.integers(0, 3, gallery),
    )


@seed(SEED)
@share(0.25)
@given(
    labels(), st.sampled_from(["market1501", "plain"]), st.sampled_from(["plain", "trapezoid"]), st.booleans()
)
def test_metrics(arrays, protocol, ap, has_cams):
    counting.add(f"numbers, seed {SEED}: metrics")
    lists, probe_ids, gallery_ids, probe_cams, gallery_cams = arrays
    cams = {"probe_cams": probe_cams, "gallery_cams": gallery_cams} if has_cams else {}
    probes, gallery = lists.shape
    rng = np.random.default_rng(0)
    data = br.FeatureSet.from_arrays(
        rng.standard_normal((probes, 3)),
        rng.standard_normal((gallery, 3)),
        probe_ids=probe_ids,
        gallery_ids=gallery_ids,
        **cams,
    )
    scores = np.tile(-np.arange(gallery, dtype=np.float32), (probes, 1))
    ranking = br.Ranking(lists, scores, gallery_size=gallery)
    expected = reference.evaluate(lists, probe_ids, gallery_ids, *cams.values(), protocol=protocol)
    measured = [expected["ap_trapezoid" if ap == "trapezoid" else "ap"], expected["inp"]]
    with counting.quiet():
        found = br.evaluate(ranking, data, protocol=protocol, ap=ap)
    np.testing.assert_allclose(found.ap, measured[0], rtol=1e-12)
    np.testing.assert_allclose(found.inp, measured[1], rtol=1e-12)
    valid = ~np.isnan(expected["ap"])
    assert found.summary()["valid_probes"] == valid.sum()
    if valid.any():
        np.testing.assert_allclose(found.cmc, expected["cmc"][valid].mean(axis=0), rtol=1e-12)
