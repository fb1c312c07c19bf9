"""Similarities and distances in the place of features give what features would have given."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from conftest import features
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

import blurrerank as br

KINDS = {
    "similarity": lambda cosine: cosine,
    "distance": lambda cosine: np.sqrt(np.maximum(2 - 2 * cosine, 0)),
    "squared-distance": lambda cosine: 2 - 2 * cosine,
    "cosine-distance": lambda cosine: 1 - cosine,
}
SUITED = ["cosine", "lbr", "k-reciprocal", "k-reciprocal-fastreid", "gnn", "ecn", "ca-jaccard", "camera-graph"]


@pytest.fixture
def arrays():
    return features(probes=15, gallery=70)


def matrices(arrays, kind="similarity"):
    """Of the features of both sides: (P, G), (P, P) and (G, G)."""
    probe, gallery = (
        values / np.linalg.norm(values.astype(float), axis=1, keepdims=True)
        for values in (arrays["probe"], arrays["gallery"])
    )
    pairs = (probe @ gallery.T, probe @ probe.T, gallery @ gallery.T)
    return [KINDS[kind](one) for one in pairs]


def labels(arrays):
    return {name: values for name, values in arrays.items() if name.endswith(("_ids", "_cams"))}


def similarity_set(arrays, kind="similarity", make=np.asarray, **changes):
    between, among_probes, among_gallery = map(make, matrices(arrays, kind))
    given = {"among_probes": among_probes, "among_gallery": among_gallery, **labels(arrays), **changes}
    return br.SimilaritySet.from_matrices(between, kind=kind, **given)


def same_lists(found, wanted):
    """Two rankings agree but for items whose scores differ by less than rounding."""
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    for mine, other, scores in zip(found.indices, wanted.indices, wanted.scores, strict=True):
        for place in np.flatnonzero(mine != other):
            assert abs(scores[place] - scores[list(other).index(mine[place])]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [*SUITED, "lbr:probe_in_graph=true", "lbr:cosine=true:steps=3"])
def test_methods_give_what_they_give_of_features(method, kind, arrays):
    wanted = br.rerank(br.FeatureSet.from_arrays(**arrays), method, depth=30)
    same_lists(br.rerank(similarity_set(arrays, kind), method, depth=30), wanted)


@pytest.mark.parametrize("method", ["camera-graph", "gnn", "lbr", "cosine"])
def test_online_they_do_without_similarities_among_probes(method, arrays):
    data = similarity_set(arrays, among_probes=None)
    wanted = br.rerank(br.FeatureSet.from_arrays(**arrays), method, depth=30, online=True)
    same_lists(br.rerank(data, method, depth=30, online=True), wanted)


@pytest.mark.parametrize(
    "make", [torch.from_numpy, lambda x: torch.from_numpy(x).float(), lambda x: x.astype("f4")]
)
def test_tensors_and_float32_do_as_well(make, arrays):
    same_lists(br.rerank(similarity_set(arrays, make=make)), br.rerank(similarity_set(arrays)))


def test_metrics_are_those_of_the_features(arrays):
    data, plain = similarity_set(arrays), br.FeatureSet.from_arrays(**arrays)
    wanted = br.evaluate(br.rerank(plain, "cosine"), plain)
    assert br.evaluate(data).summary() == pytest.approx(wanted.summary())
    ranking = br.rerank(data, "k-reciprocal")
    wanted = br.evaluate(br.rerank(plain, "k-reciprocal"), plain)
    assert br.evaluate(ranking, data).mAP == pytest.approx(wanted.mAP, abs=1e-6)


@pytest.mark.parametrize("memory", [1 << 20, 16 << 20, None])
def test_a_small_budget_gives_the_same(memory, arrays):
    for method in ("lbr", "camera-graph", "k-reciprocal"):
        found, wanted = (br.rerank(similarity_set(arrays), method, memory=size) for size in (memory, None))
        assert np.array_equal(found.indices, wanted.indices)
        assert np.array_equal(found.scores, wanted.scores)


@settings(max_examples=60, deadline=None)
@given(any_array(np.float32, (4, 9), elements=st.floats(-1, 1, width=32)))
def test_the_order_is_that_of_the_values_and_ties_go_to_the_lower_index(values):
    found = br.rerank(br.SimilaritySet.from_matrices(values), "cosine", depth=9)
    assert found.indices.tolist() == np.argsort(-values, axis=1, kind="stable").tolist()


def test_the_row_of_an_image_counts_where_similarities_are_not_symmetric(arrays):
    between, among_probes, among_gallery = matrices(arrays)
    skewed = among_gallery.copy()
    skewed[3, 60] = 0.999  # item 3 finds 60 near, and 60 does not find 3 near
    data = br.SimilaritySet.from_matrices(between, among_probes=among_probes, among_gallery=skewed)
    from blurrerank.graph.given import graph_of_similarities
    from blurrerank.graph.neighbour_graph import ListSizes
    from blurrerank.search.given_similarities import SimilarityRows
    from blurrerank.search.rows import RowBudget

    images = SimilarityRows(data, torch.device("cpu"), RowBudget(1000, 1 << 20), together=True)
    graph = graph_of_similarities(images, ListSizes(1))
    assert graph.lists[15 + 3].tolist() == [15 + 3, 15 + 60]
    whole = np.block([[among_probes, between], [between.T, skewed]])
    np.fill_diagonal(whole, -np.inf)
    assert graph.lists[:, 1].tolist() == whole.argmax(axis=1).tolist()


REFUSED = {
    "a method of features": ({}, "superglobal", "superglobal needs features"),
    "a step": ({}, "center+cosine", "center needs features"),
    "auto": ({}, "auto", "auto needs features"),
    "no similarities among the gallery": (
        {"among_gallery": None},
        "lbr",
        "among gallery items, which are missing",
    ),
    "none among probes": ({"among_probes": None}, "k-reciprocal", "among probes, which are missing"),
    "no cameras": ({"gallery_cams": None}, "camera-graph", "no cameras"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said(case, arrays):
    changes, method, words = REFUSED[case]
    with pytest.raises(br.BlurrerankError, match=words):
        br.rerank(similarity_set(arrays, **changes), method)


def test_invalid_matrices_are_refused(arrays):
    between, among_probes, among_gallery = matrices(arrays)
    holed = between.copy()
    holed[2, 3] = np.nan
    for matrix, more, words in (
        (holed, {}, "nan at row 2, column 3"),
        (
            between,
            {"among_probes": among_gallery},
            "70 x 70, but the labels and other matrices imply 15 x 15",
        ),
        (between, {"among_gallery": 1 - among_gallery}, "among_gallery holds distances"),
        (between, {"kind": "distance"}, "values below 0"),
        (abs(between), {"kind": "distance", "among_gallery": abs(among_gallery)}, "holds similarities"),
        (between, {"kind": "angle"}, "use similarity or distance"),
        (between, {"probe_ids": [1]}, "ids"),
        (between, {"probe_id": [1]}, "probe_id is not a label"),
        (between[0], {}, "expected a matrix"),
        (between.astype(str), {}, "expected numbers"),
    ):
        with pytest.raises(br.BlurrerankError, match=words):
            br.SimilaritySet.from_matrices(matrix, **more)
    counts = br.SimilaritySet.from_matrices(
        between * 500, among_probes=among_probes * 500, among_gallery=among_gallery
    )
    with pytest.raises(br.InputError, match="divide all of them by the largest"):
        br.rerank(counts, "k-reciprocal")
    assert len(br.rerank(counts, "cosine")) == 15


def written(arrays, form, names, kind="distance"):
    """A file of matrices and labels as other programs write it."""
    found = dict(zip(names, matrices(arrays, kind), strict=False))
    found |= {"q_pids": arrays["probe_ids"], "g_pids": arrays["gallery_ids"]}
    found |= {"q_camids": arrays["probe_cams"], "g_camids": arrays["gallery_cams"]}
    name = f"dists.{form}"
    if form == "npz":
        np.savez(name, **found)
    elif form == "mat":
        scipy.io.savemat(name, found)
    elif form == "pt":
        torch.save({key: torch.from_numpy(np.asarray(values)) for key, values in found.items()}, name)
    else:
        with h5py.File(name, "w") as file:
            file.update(found)
    return name


@pytest.mark.parametrize("form", ["npz", "mat", "pt", "h5"])
@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("q_g_dist", "q_q_dist", "g_g_dist"), "distance"),
        (("query_gallery_sim", "query_query_sim", "gallery_gallery_sim"), "similarity"),
        (("distmat",), "distance"),
        (("scores", "qq", "gg"), "similarity"),
    ],
)
def test_files_of_matrices_are_read_by_their_names(form, names, kind, arrays, cli):
    name = written(arrays, form, names, kind)
    plain = br.FeatureSet.from_arrays(**arrays)
    wanted = br.evaluate(br.rerank(plain, "cosine"), plain).mAP
    told = json.loads(cli("eval", name, "--json")[1])
    assert told["mAP"] == pytest.approx(wanted, abs=1e-5)
    method = "cosine" if len(names) == 1 else "k-reciprocal"
    found = json.loads(cli("run", name, "--method", method, "--json", "-o", "out.h5")[1])
    wanted = br.evaluate(br.rerank(plain, method), plain).mAP
    assert found["after"]["mAP"] == pytest.approx(wanted, abs=1e-5)
    again = json.loads(cli("eval", "out.h5", name, "--json")[1])
    assert again["mAP"] == pytest.approx(wanted, abs=1e-5)


def test_a_matrix_beside_features_is_measured_as_a_ranking(arrays, cli):
    plain = br.FeatureSet.from_arrays(**arrays)
    br.save_features(plain, "feats.h5")
    wanted = br.evaluate(br.rerank(plain, "cosine"), plain).mAP
    np.save("distmat.npy", matrices(arrays, "distance")[0])
    np.save("sims.npy", matrices(arrays)[0].astype(np.float16))
    np.save("result.npy", matrices(arrays, "distance")[0])
    np.savez("more.npz", distmat=matrices(arrays, "distance")[0], other=np.eye(3))
    for name, options in (
        ("distmat.npy", ()),
        ("sims.npy", ()),
        ("result.npy", ("--matrix", "distance")),
        ("more.npz", ()),
    ):
        told = json.loads(cli("eval", name, "feats.h5", "--json", *options)[1])
        assert told["mAP"] == pytest.approx(wanted, abs=2e-3 if name == "sims.npy" else 1e-6)
    code, _, said = cli("eval", "result.npy", "feats.h5")
    assert (code, "it may hold distances or similarities: say it with --matrix" in said) == (1, True)
    np.save("wrong.npy", np.eye(5))
    assert "expected one array of 15 x 70" in cli("eval", "wrong.npy", "feats.h5")[2]


@pytest.mark.parametrize(
    "command", [("info",), ("index", "-o", "i.h5"), ("sweep",), ("bench",), ("convert", "o.h5")]
)
def test_commands_that_need_features_say_so(command, arrays, cli):
    name = written(arrays, "npz", ("q_g_dist", "q_q_dist", "g_g_dist"))
    code, _, said = cli(command[0], name, *command[1:])
    assert code == 1
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("named", [True, False])
def test_a_set_compared_with_itself_is_measured_without_its_own_images(named):
    arrays = features(gallery=40)
    rows = arrays["gallery"] / np.linalg.norm(arrays["gallery"], axis=1, keepdims=True)
    rows, ids = rows[4:], arrays["gallery_ids"][4:]  # without junk and distractors
    same = {f"{side}_ids": ids for side in ("probe", "gallery")}
    names = {f"{side}_names": arrays["gallery_names"][4:] for side in ("probe", "gallery")} if named else {}
    data = br.SimilaritySet.from_matrices(rows @ rows.T, **same, **names)
    with pytest.warns(br.BlurrerankWarning, match="measure with protocol leave-one-out|drops only junk"):
        br.evaluate(data)
    plain = br.FeatureSet.from_arrays(rows, rows, **same)
    wanted = br.evaluate(br.rerank(plain, "cosine"), plain, protocol="leave-one-out")
    assert wanted.mAP < 1
    assert br.evaluate(data, protocol="leave-one-out").mAP == pytest.approx(wanted.mAP, abs=1e-6)


def test_without_cameras_sets_of_two_sides_have_no_own_images(arrays):
    data = similarity_set(arrays, probe_cams=None, gallery_cams=None)
    with pytest.warns(br.BlurrerankWarning, match="drops only junk"):
        assert 0 < br.evaluate(data).mAP < 1


def test_messages_name_the_fields_of_the_file(arrays, cli):
    between, among_probes, among_gallery = matrices(arrays, "distance")
    sides = {"q_pids": arrays["probe_ids"], "g_pids": arrays["gallery_ids"]}
    np.savez("turned.npz", q_g_dist=between.T, **sides)
    assert (
        "q_g_dist is 70 x 15, and there are 15 probes and 70 gallery items: transpose it"
        in cli("eval", "turned.npz")[2]
    )
    np.savez("plain.npz", q_g=between, q_q=among_probes, g_g=among_gallery, **sides)
    said = cli("eval", "plain.npz")[2]
    assert "q_q holds distances" in said
    assert "--matrix" in said
    between[2, 3] = np.nan
    np.savez("holed.npz", q_g_dist=between, **sides)
    assert "q_g_dist is nan at row 2, column 3" in cli("eval", "holed.npz")[2]
    np.save("turned.npy", matrices(arrays)[0].T)
    br.save_features(br.FeatureSet.from_arrays(**arrays), "feats.h5")
    assert "transpose it" in cli("eval", "turned.npy", "feats.h5")[2]
    np.savez("labels.npz", **sides)
    assert "put a matrix such as distmat into the same file" in cli("eval", "turned.npy", "labels.npz")[2]
    assert "auto needs features" in cli("run", "plain.npz", "--matrix", "distance", "--method", "auto")[2]


def test_a_damaged_archive_is_a_damaged_ranking(arrays, cli):
    br.save_features(br.FeatureSet.from_arrays(**arrays), "feats.h5")
    cli("run", "feats.h5", "-q", "-o", "lists.npz")
    whole = Path("lists.npz").read_bytes()
    for damaged in (whole.replace(b"PK\x01\x02", b"PK\x01\x09"), whole[:-30], b"PK\x03\x04"):
        Path("lists.npz").write_bytes(damaged)
        code, _, said = cli("eval", "lists.npz", "feats.h5")
        assert (code, said.count("\n")) == (1, 1)
        assert said.startswith("error: lists.npz is not a readable ranking archive")
