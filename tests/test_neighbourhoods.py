"""Neighbourhoods that a query returned, re-ranked from their vectors alone; and databases that return them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import ROOT, features
from hypothesis import given, settings
from hypothesis import strategies as st

import blurrerank as br

RECIPES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/vector-databases.md").read_text(), re.DOTALL)


def candidates(seed, longest=20, same=False):
    """Features, and lists of gallery rows in any order, padded with -1."""
    arrays, random = features(seed), np.random.default_rng(seed)
    lists = np.full((len(arrays["probe"]), longest), -1)
    for row in lists:
        count = longest if same else random.integers(1, longest + 1)
        row[:count] = random.permutation(len(arrays["gallery"]))[:count]
    return arrays, lists


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["lbr", "cosine", "lbr:topn=5", "superglobal"]), st.booleans())
def test_lists_are_those_of_candidates(seed, method, same):
    arrays, lists = candidates(seed, same=same)
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    expected = br.rerank(data, method, candidates=lists, depth=lists.shape[1])
    neighbours = [arrays["gallery"][row[row >= 0]] for row in lists]
    found = br.rerank_neighbourhoods(arrays["probe"], neighbours, method)
    width = expected.indices.shape[1]
    order = found.order
    assert ((order >= 0) == (lists[:, : order.shape[1]] >= 0)).all()
    rows = np.where(order >= 0, np.take_along_axis(lists, order.clip(0), axis=1), -1)
    # Candidates that are equal are told apart by their row in the gallery there, by their place here.
    np.testing.assert_array_equal(rows[:, :width], expected.indices)
    np.testing.assert_allclose(found.scores[:, :width], expected.scores, atol=1e-6)


def test_each_probe_is_treated_by_itself():
    arrays, lists = candidates(3, same=True)
    neighbours = arrays["gallery"][lists]
    together = br.rerank_neighbourhoods(arrays["probe"], torch.from_numpy(neighbours), topn=8)
    for row in range(len(lists)):
        alone = br.rerank_neighbourhoods(arrays["probe"][row], neighbours[row], topn=8)
        np.testing.assert_array_equal(alone.order[0], together.order[row])
        np.testing.assert_array_equal(alone.scores[0], together.scores[row])


@pytest.mark.parametrize("method", ["k-reciprocal-online:k1=5:k2=3:pool=10", "gnn:k1=6:k2=3"])
def test_a_graph_ranker_takes_the_neighbourhood_for_the_gallery(method):
    arrays, lists = candidates(4)
    neighbours = [arrays["gallery"][row[row >= 0]] for row in lists]
    found = br.rerank_neighbourhoods(arrays["probe"], neighbours, method)
    for row, rows in enumerate(neighbours):
        data = br.FeatureSet.from_arrays(arrays["probe"][row : row + 1], rows)
        expected = br.rerank(data, method, online=True, depth=len(rows))
        np.testing.assert_array_equal(found.order[row, : len(rows)], expected.indices[0])
        assert (found.order[row, len(rows) :] == -1).all()


def test_cameras_reach_the_method():
    arrays, lists = candidates(5, longest=40, same=True)
    cams = arrays["gallery_cams"][lists]
    one = br.rerank_neighbourhoods(
        arrays["probe"],
        arrays["gallery"][lists],
        "camera-graph",
        probe_cams=arrays["probe_cams"],
        neighbour_cams=cams,
        ki=2,
        ko=3,
    )
    probe = br.Side(arrays["probe"][:1], cams=arrays["probe_cams"][:1])
    gallery = br.Side(arrays["gallery"][lists[0]], cams=cams[0])
    expected = br.rerank(br.FeatureSet(probe, gallery), "camera-graph", online=True, ki=2, ko=3, depth=40)
    np.testing.assert_array_equal(one.order[0], expected.indices[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "k-reciprocal"}, "method k-reciprocal scores the whole gallery"),
        ({"method": "center+gnn"}, "a neighbourhood is only a part of it: use gnn"),
        ({"method": "camera-graph"}, "cameras: method camera-graph needs them"),
        ({"probes": np.ones((2, 7))}, "the neighbours of probe 0 have shape (4, 8): expected (n, 7)"),
        ({"probes": np.ones((3, 8))}, "neighbours were given for 2 probes, but there are 3 probes"),
        ({"probes": np.zeros((2, 8))}, "probe 0 is all zero"),
        ({"probes": np.ones((2, 8), dtype=int)}, "probes are int64: expected floats"),
        ({"probes": np.ones((1, 2, 8))}, "probes have shape (1, 2, 8): expected (P, D)"),
        ({"neighbours": 3.0}, "neighbours are not arrays"),
        ({"neighbours": [np.ones((4, 8)), np.ones((0, 8))]}, "probe 1 have shape (0, 8)"),
        ({"neighbours": [np.ones((4, 8)), np.full((3, 8), np.nan)]}, "neighbour 0 of probe 1"),
        (
            {"method": "camera-graph", "probe_cams": [1, 2], "neighbour_cams": [[1, 2], [3, 4]]},
            "cameras do not match the probes and neighbours",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(change, said):
    given = {"probes": np.ones((2, 8)), "neighbours": np.ones((2, 4, 8))} | change
    with pytest.raises(br.BlurrerankError) as error:
        br.rerank_neighbourhoods(**given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def recipe(text):
    return next(block for block in RECIPES if text in block)


@pytest.mark.parametrize(
    ("package", "text", "change"),
    [
        ("lancedb", "lancedb.connect", ("gallery.lance", "gallery.lance")),
        # The same database in memory: on the disk it takes half a minute to fill.
        ("qdrant_client", "QdrantClient(", ('path="gallery.qdrant"', '":memory:"')),
    ],
)
def test_lists_from_a_database_are_those_of_candidates(package, text, change, tmp_path, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    every = br.load(ROOT / "examples/omniglot.h5")
    some = slice(0, len(every.probe), 5)
    features, ids, cams = (getattr(every.probe, name)[:][some] for name in ("features", "ids", "cams"))
    data = br.FeatureSet(br.Side(features, ids, cams), every.gallery)
    known = {
        "np": np,
        "br": br,
        "probe": features.astype(np.float32),
        "gallery": every.gallery.features[:].astype(np.float32),
    }
    exec(recipe(text).replace(*change), known)
    rows = np.stack(known["rows"])
    expected = br.rerank(data, "lbr", candidates=rows, topn=50, sigma=0.1, depth=100)
    # A database may keep vectors that are normalised already, which rounds them once more.
    differ = known["lists"] != expected.indices
    assert differ.mean() < 1e-3
    np.testing.assert_allclose(known["found"].scores, expected.scores, atol=2e-6)
    # It is worth it: mAP of the first hundred, before and after.
    cosine = br.rerank(data, "cosine", candidates=rows, depth=100)
    with pytest.warns(br.BlurrerankWarning, match="the shortest list ends at rank 100"):
        before, after = (br.evaluate(ranking, data).mAP for ranking in (cosine, expected))
    assert after > before + 0.03
