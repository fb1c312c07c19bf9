"""k-reciprocal-online: the oracle of its definition, and that no probe's answer depends on another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ROOT, check_lists, exact_sides, features, sides
from hypothesis import given
from hypothesis import strategies as st

import blurrerank as br
from blurrerank import reference

METHOD = "k-reciprocal-online"


def params(blur):
    return st.fixed_dictionaries(
        {"pool": st.integers(30, 60), "blur": blur},
        optional={
            "sigma": st.sampled_from([0.03, 0.1, 1.0]),
            "k1": st.integers(1, 30),
            "k2": st.integers(1, 20),
            "lambda_value": st.sampled_from([0.0, 0.2, 0.7, 1.0]),
        },
    )


def rerank(probe, gallery, **how):
    return br.rerank(br.FeatureSet.from_arrays(probe, gallery), METHOD, depth=len(gallery), **how)


def same(one, other):
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_array_equal(one.scores, other.scores)


def check_against_reference(probe, gallery, settings, **how):
    scores = reference.k_reciprocal_online(probe, gallery, **settings)
    assert np.isfinite(scores).all()
    ranking = rerank(probe, gallery, **settings, **how)
    order = np.argsort(-scores, axis=1, kind="stable")
    check_lists(ranking.indices, ranking.scores, order, np.take_along_axis(scores, order, axis=1))


@given(sides(), params(st.integers(1, 20)))
def test_any_set_equals_the_reference(arrays, settings):
    check_against_reference(*arrays, settings)


@given(exact_sides(), params(st.just(1)))
def test_ties_and_duplicates_equal_the_reference(arrays, settings):
    """Without blurring, which would round equal similarities apart."""
    check_against_reference(*arrays, settings)


@given(exact_sides(), st.integers(1, 5))
def test_short_lists_equal_the_reference(arrays, number):
    """Lists that are full before the last block of a gallery that is cut in blocks of 45."""
    settings = {"pool": number, "k1": number, "k2": number, "blur": 1}
    check_against_reference(*arrays, settings, memory=1 << 18)


@pytest.mark.parametrize("rows", range(1, 9))
def test_galleries_as_small_as_a_list_equal_the_reference(rows):
    """With fewer than k1 others, as many, and more."""
    rng = np.random.default_rng(rows)
    arrays = [rng.standard_normal((count, 3)).astype(np.float32) for count in (20, rows)]
    check_against_reference(*arrays, {"k1": 4, "k2": 3, "blur": 2})


def test_real_features_equal_the_reference():
    data = br.load(ROOT / "examples/omniglot.h5")
    some = slice(0, 60)
    gallery = np.asarray(data.gallery.features[:])[:1500]
    check_against_reference(np.asarray(data.probe.features[:])[some], gallery, {})


@given(sides(), params(st.integers(1, 20)), st.integers(1, 90))
def test_blocks_and_memory_change_nothing(arrays, settings, block):
    """In the least memory, where each step works on a few entries at a time and rows are read again."""
    same(rerank(*arrays, **settings, block=block, memory=1 << 18), rerank(*arrays, **settings))


@given(sides(), params(st.integers(1, 20)), st.randoms())
def test_a_probe_is_answered_alone_as_with_others(arrays, settings, random):
    probe, gallery = arrays
    together = rerank(probe, gallery, **settings)
    order = random.sample(range(len(probe)), len(probe))
    mixed = rerank(probe[order], gallery, **settings)
    np.testing.assert_array_equal(mixed.indices, together.indices[order])
    np.testing.assert_array_equal(mixed.scores, together.scores[order])
    alone = rerank(probe[:1], gallery, **settings)
    np.testing.assert_array_equal(alone.indices[0], together.indices[0])
    np.testing.assert_array_equal(alone.scores[0], together.scores[0])


def test_threads_change_nothing(threads):
    data = br.load(ROOT / "examples/omniglot.h5")
    found = []
    for count in (1, 2):
        threads(count)
        found.append(br.rerank(data, METHOD))
    same(*found)


def test_two_items():
    """By hand: both are in both encodings, and the probe stands on the first."""
    gallery = np.array([[1.0, 0.0], [0.6, 0.8]])
    found = rerank(gallery[:1], gallery, blur=1, k2=1)
    # All three encodings are one half for each of the two: the overlap is 1, and so is J.
    assert found.indices.tolist() == [[0, 1]]
    np.testing.assert_allclose(found.scores, [[0.8 + 0.2, 0.8 + 0.2 * np.exp(-0.4 / 0.1)]], atol=1e-6)


def test_a_probe_that_nobody_has_near_is_ranked_by_those_it_has():
    """Its own encoding is empty; k2 = 1 leaves cosine, k2 = 2 the encoding of its nearest."""
    rng = np.random.default_rng(0)
    gallery = np.concatenate([rng.standard_normal((5, 8)) * 0.05 + np.eye(8)[i] for i in range(4)])
    probe = np.eye(8)[:1] + 1.5 * np.eye(8)[7:]
    cosine = br.rerank(br.FeatureSet.from_arrays(probe, gallery), "cosine", topn=20)
    np.testing.assert_array_equal(rerank(probe, gallery, k1=4, k2=1).indices, cosine.indices)
    found = rerank(probe, gallery, k1=4, k2=2, lambda_value=0.2)
    assert set(found.indices[0, :5].tolist()) == set(range(5))
    assert found.scores[0, 0] > 0.2 + 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k1": 0}, "k1 must be a whole number of at least 1, not 0"),
        ({"blur": 1.5}, "blur must be a whole number of at least 1, not 1.5"),
        ({"pool": True}, "pool must be a whole number of at least 1, not True"),
        ({"sigma": 0.01}, "sigma must be at least 0.025, not 0.01"),
        ({"sigma": float("nan")}, "sigma must be a finite number above 0 (at least 1e-30), not nan"),
        ({"lambda_value": 1.1}, "lambda must be a number from 0 to 1, not 1.1"),
        ({"k1": 51}, "pool 50 must be at least 51: k1, k2 - 1 and blur - 1 neighbours come from it"),
        (
            {"pool": 20, "k2": 30},
            "pool 20 must be at least 29: k1, k2 - 1 and blur - 1 neighbours come from it",
        ),
    ],
)
def test_parameters_out_of_range_are_refused(settings, message):
    with pytest.raises(br.ParameterError) as error:
        rerank(np.eye(3), np.eye(3), **settings)
    assert str(error.value) == message


@pytest.mark.parametrize("rows", [1, 2, 3, 30])
def test_all_rows_equal(rows):
    row = np.random.default_rng(3).standard_normal((1, 24)).astype(np.float32)
    ranking = rerank(row.repeat(2, 0), row.repeat(rows, 0), k1=5)
    assert np.isfinite(ranking.scores).all()
    assert (np.sort(ranking.indices, axis=1) == np.arange(rows)).all()


def test_progress_goes_up_to_all_items_and_probes():
    arrays = features()
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    told = []
    br.rerank(data, METHOD, memory=1 << 18, depth=5, progress=lambda *numbers: told.append(numbers))
    assert {total for _, total in told} == {60 + 12}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert done[-1] == 72


def halves(data: br.FeatureSet) -> list[br.FeatureSet]:
    """Two test sets with no identity in common; half of the junk and distractors each."""
    people = np.random.default_rng(7).permutation(np.unique(data.gallery.ids[data.gallery.ids > 0]))
    nobody = np.flatnonzero(data.gallery.ids <= 0)
    found = []
    for half in (0, 1):
        sides = []
        for side in (data.probe, data.gallery):
            rows = np.isin(side.ids, people[half::2])
            if side is data.gallery:
                rows[nobody[half::2]] = True
            features = np.asarray(side.features[:])[rows]
            sides.append(br.Side(features, side.ids[rows], side.cams[rows]))
        found.append(br.FeatureSet(*sides))
    return found


def test_it_is_as_good_as_docs_say(shared):
    """The goals on the shared set, and on the half that parameters were not chosen on."""
    data = br.load(shared / "data/omniglot.h5")
    found = br.evaluate(br.rerank(data, METHOD), data)
    assert found.mAP >= 0.805
    assert found.rank(1) >= 0.848
    held_out = halves(data)[1]
    ours, batch, cosine = (
        br.evaluate(br.rerank(held_out, name), held_out) for name in (METHOD, "k-reciprocal", "cosine")
    )
    assert ours.mAP > batch.mAP + 0.005
    assert ours.rank(1) > max(batch.rank(1), cosine.rank(1))


def test_it_costs_no_rank_1_on_another_real_set(market_subset):
    """A hundred probes and 86 gallery images of Market-1501, where 7 probes have a match: it says little."""
    data = market_subset
    found, cosine = (br.evaluate(br.rerank(data, name), data) for name in (METHOD, "cosine"))
    assert found.valid_probes == 7
    assert found.rank(1) >= cosine.rank(1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_same_lists():
    data = br.load(ROOT / "examples/omniglot.h5")
    here, there = (br.rerank(data, METHOD, device=device, depth=200) for device in ("cpu", "cuda"))
    check_lists(there.indices, there.scores, here.indices, here.scores)
