"""Metrics against reference.py, which walks down whole lists."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import features
from hypothesis import given
from hypothesis import strategies as st

import blurrerank as br
from blurrerank import reference


@st.composite
def labelled(draw, most_people=5, most_gallery=40):
    """Features with ties, few identities and cameras, junk, distractors, probes of nobody."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    probes, gallery = draw(st.integers(1, 6)), draw(st.integers(1, most_gallery))
    people, cameras = draw(st.integers(1, most_people)), draw(st.integers(2, 4))
    arrays = {
        "probe": rng.integers(-2, 3, (probes, 3)) + 0.5,
        "gallery": rng.integers(-2, 3, (gallery, 3)) + 0.5,
        "probe_ids": rng.integers(-1, people + 2, probes),
        "gallery_ids": rng.integers(-1, people + 1, gallery),
    }
    if draw(st.booleans()):
        arrays |= {
            "probe_cams": rng.integers(0, cameras, probes),
            "gallery_cams": rng.integers(0, cameras, gallery),
        }
    return arrays


def labels(arrays):
    return tuple(arrays.get(name) for name in ("probe_ids", "gallery_ids", "probe_cams", "gallery_cams"))


def check(metrics, expected, ap):
    np.testing.assert_allclose(metrics.ap, expected["ap" if ap == "plain" else "ap_trapezoid"], rtol=1e-9)
    np.testing.assert_allclose(metrics.inp, expected["inp"], rtol=1e-9)
    valid = ~np.isnan(expected["ap"])
    assert (metrics.valid_probes, metrics.probes) == (valid.sum(), len(valid))
    if not valid.any():
        assert np.isnan([metrics.mAP, metrics.mINP, metrics.rank(1), metrics.rank(50)]).all()
        return
    assert metrics.mAP == pytest.approx(np.nanmean(metrics.ap))
    assert metrics.mINP == pytest.approx(np.nanmean(expected["inp"]))
    np.testing.assert_allclose(metrics.cmc, np.nanmean(expected["cmc"], axis=0), atol=1e-9)
    if metrics.protocol != "cuhk03":
        first = np.where(valid, 1 + np.sum(expected["cmc"] == 0, axis=1), np.nan)
        near = ~(first > 50)
        np.testing.assert_array_equal(metrics.first_match[near], first[near])


@pytest.mark.filterwarnings("ignore::blurrerank.BlurrerankWarning")
@pytest.mark.parametrize("protocol", ["market1501", "plain"])
@given(labelled(), st.sampled_from(["plain", "trapezoid"]), st.integers(1, 50))
def test_every_way_to_know_the_positions_gives_the_metrics_of_the_whole_list(protocol, arrays, ap, topn):
    data = br.FeatureSet.from_arrays(**arrays)
    for method in ("cosine", "lbr"):
        whole = br.rerank(data, method, topn=topn, depth=len(data.gallery))
        expected = reference.evaluate(whole.indices, *labels(arrays), protocol=protocol)
        head = br.rerank(data, method, topn=topn)
        for ranking in (whole, head):
            metrics = br.evaluate(ranking, data, protocol=protocol, ap=ap)
            assert metrics.depth is None
            check(metrics, expected, ap)


@pytest.mark.filterwarnings("ignore::blurrerank.BlurrerankWarning")
@given(labelled(most_people=3, most_gallery=12), st.integers(1, 12))
def test_single_gallery_shot_is_the_mean_over_every_draw(arrays, topn):
    data = br.FeatureSet.from_arrays(**arrays)
    whole = br.rerank(data, topn=topn, depth=len(data.gallery))
    expected = reference.evaluate(whole.indices, *labels(arrays), protocol="cuhk03")
    for ranking in (whole, br.rerank(data, topn=topn)):
        check(br.evaluate(ranking, data, protocol="cuhk03"), expected, "plain")


@pytest.mark.filterwarnings("ignore::blurrerank.BlurrerankWarning")
@given(labelled(), st.integers(1, 10))
def test_lists_that_end_early_miss_what_they_do_not_list(arrays, depth):
    data = br.FeatureSet.from_arrays(**arrays)
    whole = br.rerank(data, "cosine", topn=len(data.gallery))
    depth = min(depth, len(data.gallery))
    cut = br.Ranking(whole.indices[:, :depth], whole.scores[:, :depth], gallery_size=len(data.gallery))
    metrics = br.evaluate(cut, data)
    trapezoid = br.evaluate(cut, data, ap="trapezoid")
    full = reference.evaluate(whole.indices, *labels(arrays))
    assert metrics.depth == (None if depth == len(data.gallery) else depth)
    assert metrics.valid_probes == (~np.isnan(full["ap"])).sum()
    valid = ~np.isnan(full["ap"])
    assert (metrics.ap[valid] <= full["ap"][valid] + 1e-12).all()
    for p in np.flatnonzero(valid):
        listed = _matches(data, p, cut.indices[p])
        everywhere = _matches(data, p, whole.indices[p])
        found = [(i + 1) / rank for i, rank in enumerate(listed)]
        before = [i / (rank - 1) if rank > 1 else 1.0 for i, rank in enumerate(listed)]
        assert metrics.ap[p] == pytest.approx(sum(found) / len(everywhere))
        assert trapezoid.ap[p] == pytest.approx((sum(found) + sum(before)) / 2 / len(everywhere))
        assert metrics.inp[p] == pytest.approx(
            len(listed) / listed[-1] if len(listed) == len(everywhere) else 0
        )


@pytest.mark.filterwarnings("ignore::blurrerank.BlurrerankWarning")
@given(labelled(most_people=3, most_gallery=12), st.integers(1, 12))
def test_single_shot_on_lists_that_end_early_is_right_up_to_their_end(arrays, depth):
    """Whatever is listed stands where it stands in the whole list; what is not listed is never found."""
    data = br.FeatureSet.from_arrays(**arrays)
    whole = br.rerank(data, "cosine", topn=len(data.gallery))
    depth = min(depth, len(data.gallery))
    cut = br.Ranking(whole.indices[:, :depth], whole.scores[:, :depth], gallery_size=len(data.gallery))
    metrics = br.evaluate(cut, data, protocol="cuhk03")
    # An oracle of its own: unlisted images moved behind endlessly many strangers.
    strangers = np.zeros(60, dtype=int)
    ids = np.concatenate([data.gallery.ids, strangers])
    cams = None if data.gallery.cams is None else np.concatenate([data.gallery.cams, strangers])
    rest = whole.indices[:, depth:]
    between = np.tile(len(data.gallery) + np.arange(60), (len(rest), 1))
    order = np.concatenate([cut.indices, between, rest], axis=1)
    expected = reference.evaluate(order, data.probe.ids, ids, data.probe.cams, cams, protocol="cuhk03")
    valid = ~np.isnan(expected["ap"])
    if valid.any():
        np.testing.assert_allclose(metrics.cmc, expected["cmc"][valid].mean(axis=0), atol=1e-9)


@pytest.mark.filterwarnings("ignore::blurrerank.BlurrerankWarning")
@given(labelled(), st.sampled_from(["market1501", "cuhk03", "plain"]))
def test_valid_probes_are_known_without_a_ranking(arrays, protocol):
    from blurrerank.evaluation.metrics import valid_probes

    data = br.FeatureSet.from_arrays(**arrays)
    expected = br.evaluate(br.rerank(data), data, protocol=protocol).valid_probes
    assert valid_probes(data, protocol) == expected


@pytest.mark.parametrize("protocol", ["market1501", "cuhk03"])
def test_a_ranking_shorter_than_its_head_is_measured_whole_all_the_same(protocol):
    data = br.FeatureSet.from_arrays(**features())
    short, whole = br.rerank(data, topn=20, depth=3), br.rerank(data, topn=20, depth=60)
    measured = br.evaluate(short, data, protocol=protocol)
    assert measured.depth is None
    np.testing.assert_allclose(measured.ap, br.evaluate(whole, data, protocol=protocol).ap)
    np.testing.assert_allclose(measured.cmc, br.evaluate(whole, data, protocol=protocol).cmc)


def test_what_is_not_in_the_head_stands_behind_it():
    """A head that differs at its end, as near ties may between devices: no two items share a rank."""
    data = br.FeatureSet.from_arrays(
        [[1.0, 0.0]], [[1.0, 0.1], [1.0, 0.2], [1.0, 0.3]], probe_ids=[1], gallery_ids=[2, 1, 2]
    )
    head = np.array([[0, 2]]), np.array([[2, 1]], dtype=np.float32)
    ranking = br.Ranking(*head, gallery_size=3, reranked_depth=2, cosine_tail=True)
    assert br.evaluate(ranking, data, protocol="plain").first_match.tolist() == [3]


def test_ranks_that_are_not_measured_are_refused():
    data = br.FeatureSet.from_arrays(**features())
    metrics = br.evaluate(br.rerank(data), data)
    for k in (0, -1, 51):
        with pytest.raises(br.ParameterError, match=f"rank-{k} is not measured: the curve goes from 1 to 50"):
            metrics.rank(k)


def _matches(data, p, order):
    """Ranks from 1 of the matches of probe p, counting only what protocol market1501 keeps."""
    ids, cams = data.gallery.ids[order], None if data.gallery.cams is None else data.gallery.cams[order]
    kept = ids != -1
    if cams is not None:
        kept &= (ids != data.probe.ids[p]) | (cams != data.probe.cams[p])
    return 1 + np.flatnonzero(ids[kept] == data.probe.ids[p])


def test_a_hand_made_example():
    """Matches at ranks 2 and 4 once the same camera (rank 2) and junk (rank 4) are gone."""
    order = [3, 0, 1, 4, 5, 2]
    ids = np.array([7, 7, 7, 9, -1, 0])
    cams = np.array([1, 2, 2, 2, 2, 2])
    arrays = {"probe": np.eye(1, 2), "gallery": np.ones((6, 2))}
    data = br.FeatureSet.from_arrays(
        **arrays, probe_ids=[7], gallery_ids=ids, probe_cams=[1], gallery_cams=cams
    )
    scores = np.linspace(1, 0, 6, dtype=np.float32)[None]
    metrics = br.evaluate(br.Ranking(np.array([order]), scores, gallery_size=6), data)
    assert metrics.ap[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert metrics.inp[0] == pytest.approx(2 / 4)
    assert [metrics.rank(k) for k in (1, 2, 5)] == [0, 1, 1]
    assert metrics.first_match[0] == 2
    trapezoid = br.evaluate(br.Ranking(np.array([order]), scores, gallery_size=6), data, ap="trapezoid")
    assert trapezoid.ap[0] == pytest.approx(((1 / 2 + 0 / 1) / 2 + (2 / 4 + 1 / 3) / 2) / 2)


def test_single_shot_counts_each_identity_once():
    """One image of a stranger with two, both ahead of the match or one of them: rank-1 is 0, or a half."""
    data = br.FeatureSet.from_arrays(
        np.ones((1, 1)),
        np.ones((3, 1)),
        probe_ids=[1],
        gallery_ids=[2, 1, 2],
        probe_cams=[0],
        gallery_cams=[1, 1, 1],
    )
    scores = np.array([[3, 2, 1]], dtype=np.float32)
    for order, rank1 in (([0, 1, 2], 0.5), ([0, 2, 1], 0.0), ([1, 0, 2], 1.0)):
        ranking = br.Ranking(np.array([order]), scores, gallery_size=3)
        metrics = br.evaluate(ranking, data, protocol="cuhk03")
        assert [metrics.rank(1), metrics.rank(2)] == [rank1, 1.0]
        # The average precision uses every image.
        assert metrics.mAP == br.evaluate(ranking, data).mAP


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"probe_cams": None}, "the probes have no cameras: protocol market1501 drops only junk"),
        ({"probe_cams": np.ones(12, int), "gallery_cams": np.ones(60, int)}, "all images have the same camera"),
        ({"probe_ids": np.zeros(12, int)}, "12 probes have id 0, which marks distractors"),
        ({"probe_ids": np.full(12, 99)}, "no probe has a match in the gallery"),
    ],
)
def test_data_that_cannot_be_meant_is_warned_about(changes, said):
    data = br.FeatureSet.from_arrays(**(features() | changes))
    with pytest.warns(br.BlurrerankWarning) as caught:
        br.evaluate(br.rerank(data), data)
    assert any(said in str(warning.message) for warning in caught)


def test_no_cameras_drop_nothing_but_junk():
    data = br.FeatureSet.from_arrays(**(features() | {"gallery_cams": None}))
    ranking = br.rerank(data)
    with pytest.warns(br.BlurrerankWarning, match="no cameras"):
        without = br.evaluate(ranking, data)
    plain = br.evaluate(ranking, data, protocol="plain")
    np.testing.assert_array_equal(without.ap, plain.ap)


def test_rankings_of_other_data_are_refused():
    data = br.FeatureSet.from_arrays(**features())
    ranking = br.rerank(data)
    with pytest.raises(br.InputError, match="made from other features"):
        br.evaluate(ranking, br.FeatureSet.from_arrays(**features(seed=1)))
    with pytest.raises(br.InputError, match="12 probes x 60 gallery items, but the features are 12 x 59"):
        br.evaluate(ranking, br.FeatureSet.from_arrays(**features(gallery=59)))
    with pytest.raises(br.InputError, match="no ids"):
        br.evaluate(ranking, br.FeatureSet.from_arrays(data.probe.features, data.gallery.features))
    for options in ({"protocol": "mars"}, {"ap": "integral"}):
        with pytest.raises(br.ParameterError, match="is not known: use"):
            br.evaluate(ranking, data, **options)


def test_labels_may_change_after_the_ranking_was_made():
    arrays = features()
    ranking = br.rerank(br.FeatureSet.from_arrays(**arrays))
    arrays["probe_ids"] = np.roll(arrays["probe_ids"], 1)
    data = br.FeatureSet.from_arrays(**arrays)
    whole = br.rerank(data, depth=60)
    expected = reference.evaluate(whole.indices, *labels(arrays))
    np.testing.assert_allclose(br.evaluate(ranking, data).ap, expected["ap"])


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_strictly_decreasing_keeps_the_order_and_touches_ties_alone(values):
    from blurrerank.data.sort_keys import strictly_decreasing

    scores = -np.sort(-np.array([values], dtype=np.float32))
    lowered = strictly_decreasing(scores)
    assert (np.diff(lowered) < 0).all()
    for place, (before, after) in enumerate(itertools.zip_longest(scores[0], lowered[0])):
        if place == 0 or scores[0][place - 1] > before:
            assert after == before
        assert before - after <= 1e-5
    assert np.array_equal(np.argsort(-lowered[0]), np.arange(len(values)))
