"""Fusion of rankings, against sums made item by item."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import features
from hypothesis import given
from hypothesis import strategies as st

import blurrerank as br

SIZE = 12


def ranking(lists, scores=None):
    """A ranking of items out of `SIZE`, padded where lists end."""
    width = max(map(len, lists))
    indices = np.full((len(lists), width), -1, np.int32)
    values = np.full((len(lists), width), -np.inf, np.float32)
    for row, items in enumerate(lists):
        indices[row, : len(items)] = items
        values[row, : len(items)] = -np.arange(len(items)) if scores is None else scores[row]
    return br.Ranking(indices, values, gallery_size=SIZE)


def data_of(probes):
    rng = np.random.default_rng(0)
    return br.FeatureSet.from_arrays(rng.standard_normal((probes, 3)), rng.standard_normal((SIZE, 3)))


permuted = st.permutations(range(SIZE)).flatmap(
    lambda items: st.integers(1, SIZE).map(lambda count: list(items)[:count])
)


def by_hand(lists, weights, gain):
    """One probe's items, best first, from the gain of (weight, place, length) in each list."""
    sums: dict[int, float] = {}
    for items, weight in zip(lists, weights, strict=True):
        for place, item in enumerate(items):
            sums[item] = sums.get(item, 0.0) + gain(weight, place, len(items))
    return sorted(sums.items(), key=lambda pair: (-pair[1], pair[0]))


@given(st.lists(permuted, min_size=2, max_size=4), st.data())
def test_reciprocal_ranks_are_summed(lists, draw):
    weights = draw.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=len(lists), max_size=len(lists)))
    k = draw.draw(st.sampled_from([1, 10, 60]))
    found = br.fuse([ranking([one]) for one in lists], data_of(1), k=k, weights=weights, depth=SIZE)
    wanted = by_hand(lists, weights, lambda weight, place, _: weight / (k + 1 + place))
    items = [item for item in found.indices[0].tolist() if item >= 0]
    assert sorted(items) == sorted(item for item, _ in wanted)
    scores = dict(wanted)
    # Sums in another order differ in the last bit: the same but for what is equal to that.
    assert [scores[item] for item in items] == pytest.approx([score for _, score in wanted], abs=1e-12)
    np.testing.assert_allclose(found.scores[0, : len(items)], [score for _, score in wanted], rtol=1e-6)


@given(st.lists(permuted, min_size=2, max_size=3))
def test_scores_are_scaled_within_each_list(lists):
    found = br.fuse([ranking([one]) for one in lists], data_of(1), by="mean", depth=SIZE)
    wanted = by_hand(
        lists,
        [1.0] * len(lists),
        lambda _, place, length: 1.0 if length == 1 else 1 - place / (length - 1),
    )
    items = [item for item in found.indices[0].tolist() if item >= 0]
    scores = {item: score / len(lists) for item, score in wanted}
    assert [scores[item] for item in items] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-9)


def test_ties_go_to_the_lower_index_and_lists_end_where_nothing_is_listed():
    found = br.fuse([ranking([[3, 1], [5]]), ranking([[1, 3], [5, 2]])], data_of(2), depth=5)
    assert found.indices.tolist() == [[1, 3, -1, -1, -1], [5, 2, -1, -1, -1]]
    assert br.fuse([ranking([[3, 1]]), ranking([[1, 3, 4]])], data_of(1)).depth == 3


def test_similarities_count_as_complete_rankings():
    data, rng = data_of(3), np.random.default_rng(1)
    values = rng.random((3, SIZE)).astype(np.float32)
    lists = [np.argsort(-row, kind="stable").tolist() for row in values]
    first = ranking([[1, 2], [3], [4, 0]])
    matrix = br.SimilaritySet.from_matrices(values)
    for by in ("reciprocal-rank", "mean"):
        wanted = br.fuse([first, ranking(lists, [np.sort(row)[::-1] for row in values])], data, by=by)
        assert br.fuse([first, matrix], data, by=by).indices.tolist() == wanted.indices.tolist()


def test_fusion_of_one_ranking_with_itself_is_that_ranking():
    data = br.FeatureSet.from_arrays(**features())
    one = br.rerank(data, "k-reciprocal", depth=60)
    for by in ("reciprocal-rank", "mean"):
        assert br.fuse([one, one], data, by=by).indices.tolist() == one.indices.tolist()


def test_what_cannot_be_fused_is_said():
    data = data_of(1)
    good = ranking([[1, 2]])
    for rankings, options, words in (
        ([good], {}, "at least two rankings"),
        ([good, good], {"by": "sum"}, "use reciprocal-rank or mean"),
        ([good, good], {"weights": [1]}, "1 numbers for 2 rankings"),
        ([good, good], {"weights": [1, 0]}, "a weight must be a number above 0"),
        ([good, good], {"k": float("nan")}, "k must be a number above 0"),
        ([good, good], {"depth": 0}, "depth must be"),
        ([good, ranking([[1], [2]])], {}, "ranks 2 probes x 12"),
    ):
        with pytest.raises(br.BlurrerankError, match=words):
            br.fuse(rankings, data, **options)


def test_the_command_fuses_files_of_any_kind_and_models(cli):
    arrays = features(probes=20, gallery=80)
    data = br.FeatureSet.from_arrays(**arrays)
    br.save_features(data, "feats.h5")
    other = arrays | {side: arrays[side][:, :5] for side in ("probe", "gallery")}
    br.save_features(br.FeatureSet.from_arrays(**other), "other.h5")
    cli("run", "feats.h5", "--depth", "all", "-q", "-o", "a.h5")
    cli("run", "other.h5", "--depth", "40", "--method", "k-reciprocal", "-q", "-o", "b.trec")
    cli("run", "other.h5", "--method", "gnn", "--depth", "all", "-q", "-o", "c.h5")
    probe, gallery = (
        arrays[side] / np.linalg.norm(arrays[side], axis=1, keepdims=True) for side in other if "_" not in side
    )
    np.save("distmat.npy", 1 - probe @ gallery.T)
    code, out, err = cli(
        "fuse", "a.h5", "b.trec", "c.h5", "distmat.npy", "feats.h5", "--matrix", "cosine-distance"
    )
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[4:]] == [
        "a.h5",
        "b.trec,",
        "c.h5",
        "distmat.npy",
        "fusion",
    ]
    matrix = br.SimilaritySet.from_matrices(1 - probe @ gallery.T, kind="cosine-distance")
    rankings = [br.read_ranking(name, data) for name in ("a.h5", "b.trec", "c.h5")]
    wanted = br.fuse([*rankings, matrix], data)
    found = br.read_ranking("feats.fused.h5", data)
    assert np.array_equal(found.indices, wanted.indices)
    assert found.params["weights"] == "1, 1, 1, 1"
    told = json.loads(cli("eval", "feats.fused.h5", "feats.h5", "--json")[1])
    assert told["mAP"] == pytest.approx(br.evaluate(wanted, data).mAP)
    assert "exists" in cli("fuse", "a.h5", "c.h5", "feats.h5")[2]
    assert cli("fuse", "a.h5", "c.h5", "feats.h5", "--weights", "1,x")[0] == 2
