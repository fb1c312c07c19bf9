"""Tracklets: averages before anything else, image-to-track search, multi-query, and files of tracks."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from conftest import features
from counting import quiet
from hypothesis import given
from hypothesis import strategies as st

import blurrerank as br
from blurrerank.files.foreign import import_features


def tracked(seed=0, probes=12, gallery=60, text=False):
    """Arrays with tracks: of each identity and camera, some."""
    arrays = features(seed, probes, gallery)
    rng = np.random.default_rng(seed)
    for side in ("probe", "gallery"):
        parts = zip(arrays[f"{side}_ids"], arrays[f"{side}_cams"], strict=True)
        tracks = [f"{identity}c{camera}t{rng.integers(3)}" for identity, camera in parts]
        numbers = {name: 7 * number for number, name in enumerate(sorted(set(tracks)))}
        arrays[f"{side}_tracks"] = np.array(
            tracks if text else [numbers[name] for name in tracks], object if text else int
        )
    return arrays


def averaged(arrays, side):
    """Means and labels by a loop over the tracks in the order of their first images."""
    rows: dict[object, list[int]] = {}
    for row, track in enumerate(arrays[f"{side}_tracks"].tolist()):
        rows.setdefault(track, []).append(row)
    means = np.stack([arrays[side][some].astype(float).mean(axis=0) for some in rows.values()])
    first = [some[0] for some in rows.values()]
    return means, arrays[f"{side}_ids"][first], arrays[f"{side}_cams"][first], [str(track) for track in rows]


@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 30), st.integers(5, 90))
def test_an_average_stands_for_each_track(seed, text, probes, gallery):
    arrays = tracked(seed, probes, gallery, text)
    data = br.FeatureSet.from_arrays(**arrays).by_track()
    for name in ("probe", "gallery"):
        side, (means, ids, cams, names) = getattr(data, name), averaged(arrays, name)
        np.testing.assert_allclose(side.features, means, rtol=1e-5, atol=1e-6)
        assert (side.ids.tolist(), side.cams.tolist()) == (ids.tolist(), cams.tolist())
        assert side.names.tolist() == names


def test_only_sides_with_tracks_or_those_that_are_named_are_averaged():
    arrays = tracked()
    data = br.FeatureSet.from_arrays(**arrays)
    assert len(data.by_track("gallery").probe) == len(data.probe)
    assert len(data.by_track("probe").gallery) == len(data.gallery)
    del arrays["probe_tracks"]
    data = br.FeatureSet.from_arrays(**arrays)
    assert len(data.by_track().probe) == len(data.probe)
    with pytest.raises(br.InputError, match="probe has no tracks"):
        data.by_track("probe")
    del arrays["gallery_tracks"]
    with pytest.raises(br.InputError, match="neither side has tracks"):
        br.FeatureSet.from_arrays(**arrays).by_track()


@pytest.mark.parametrize(("kind", "word"), [("ids", "identities"), ("cams", "cameras")])
def test_images_of_one_track_have_one_identity_and_camera(kind, word):
    arrays = features()
    arrays["gallery_tracks"] = np.array([f"t{row}" for row in range(60)], object)
    arrays["gallery_tracks"][[10, 20]] = "mixed"
    arrays["gallery_ids"][[10, 20]] = 3
    arrays["gallery_cams"][[10, 20]] = 1
    arrays[f"gallery_{kind}"][20] = 2
    with pytest.raises(br.InputError, match=f"track mixed has images of {word} . and 2 .row 20"):
        br.FeatureSet.from_arrays(**arrays).by_track()


@given(st.integers(0, 10_000), st.integers(6, 90))
def test_image_to_track_search_takes_the_best_image_of_a_track(seed, gallery):
    arrays = tracked(seed, gallery=gallery)
    data = br.FeatureSet.from_arrays(**arrays)
    ranking = br.rerank(data, "cosine", depth=gallery).by_track(data.gallery)
    # The same by the largest similarity of each track.
    probe, items = (
        arrays[side] / np.linalg.norm(arrays[side], axis=1, keepdims=True) for side in ("probe", "gallery")
    )
    tracks = [str(track) for track in arrays["gallery_tracks"].tolist()]
    _, ids, cams, names = averaged(arrays, "gallery")
    members = [[row for row, track in enumerate(tracks) if track == name] for name in names]
    best = np.stack([(probe @ items[rows].T).max(axis=1) for rows in members], axis=1)
    wanted = br.SimilaritySet.from_matrices(
        best, probe_ids=arrays["probe_ids"], gallery_ids=ids, probe_cams=arrays["probe_cams"], gallery_cams=cams
    )
    whole = br.FeatureSet(data.probe, data.by_track("gallery").gallery)
    assert ranking.gallery_size == len(names)
    assert ranking.depth == len(names)
    np.testing.assert_allclose(ranking.scores, -np.sort(-best, axis=1), atol=1e-5)
    with quiet():
        found, expected = br.evaluate(ranking, whole).mAP, br.evaluate(wanted).mAP
    assert found == pytest.approx(expected, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("text", [True, False])
def test_native_files_keep_tracks(text, tmp_path):
    data = br.FeatureSet.from_arrays(**tracked(text=text))
    br.save_features(data, tmp_path / "feats.h5")
    again = br.load(tmp_path / "feats.h5")
    for name in ("probe", "gallery"):
        assert getattr(again, name).tracks.tolist() == getattr(data, name).tracks.tolist()
    assert again.by_track().digest() == data.by_track().digest()
    with h5py.File(tmp_path / "feats.h5", "a") as file:
        del file["gallery/tracks"]
        file["gallery/tracks"] = [1, 2]
    with pytest.raises(br.InputError, match=r"tracks has shape \(2,\): expected \(60,\)"):
        br.load(tmp_path / "feats.h5")


def test_other_tools_name_tracks_too(tmp_path):
    arrays = tracked()
    names = {"probe": "q", "gallery": "g"}
    found = {f"{word}f": arrays[side] for side, word in names.items()}
    for side, word in names.items():
        found |= {f"{word}_pids": arrays[f"{side}_ids"], f"{word}_camids": arrays[f"{side}_cams"]}
        found[f"{word}_tracks"] = arrays[f"{side}_tracks"]
    np.savez(tmp_path / "dump.npz", **found)
    data = import_features(tmp_path / "dump.npz").data
    assert data.gallery.tracks.tolist() == arrays["gallery_tracks"].tolist()


def test_run_and_eval_work_by_track(cli):
    arrays = tracked(text=True)
    del arrays["probe_tracks"]
    data = br.FeatureSet.from_arrays(**arrays)
    br.save_features(data, "feats.h5")
    told = json.loads(cli("run", "feats.h5", "--by", "track", "--topn", "10", "--json", "-o", "tracks.h5")[1])
    whole = data.by_track()
    wanted = br.evaluate(br.rerank(whole, topn=10), whole).mAP
    assert told["after"]["mAP"] == pytest.approx(wanted)
    # A ranking of tracks, and one of images: each is measured as what it is.
    measured = [json.loads(cli("eval", "tracks.h5", "feats.h5", "--by", "track", "--json")[1])["mAP"]]
    assert measured == [pytest.approx(wanted)]
    for name in ("images.h5", "images.trec", "images.csv"):
        cli("run", "feats.h5", "--method", "cosine", "--depth", "all", "-q", "-o", name)
        told = json.loads(cli("eval", name, "feats.h5", "--by", "track", "--json")[1])
        ranking = br.rerank(data, "cosine", depth=60).by_track(data.gallery)
        assert told["mAP"] == pytest.approx(br.evaluate(ranking, br.FeatureSet(data.probe, whole.gallery)).mAP)
    unit = [arrays[one] / np.linalg.norm(arrays[one], axis=1, keepdims=True) for one in ("probe", "gallery")]
    np.save("sims.npy", unit[0] @ unit[1].T)
    again = json.loads(cli("eval", "sims.npy", "feats.h5", "--by", "track", "--json")[1])
    assert again["mAP"] == pytest.approx(told["mAP"], abs=1e-4)
    assert json.loads(cli("info", "feats.h5", "--json")[1])["gallery"]["tracks"] == len(whole.gallery)
    assert cli("run", "tracks.h5", "--by", "track")[0] == 1


def test_multi_query_is_probes_by_track():
    arrays = features(probes=24)
    arrays["probe_tracks"] = np.array(
        [f"{one}_{other}" for one, other in zip(arrays["probe_ids"], arrays["probe_cams"], strict=True)], object
    )
    data = br.FeatureSet.from_arrays(**arrays).by_track()
    assert len(data.probe) == len(set(arrays["probe_tracks"]))
    for row, name in enumerate(data.probe.names):
        some = arrays["probe"][arrays["probe_tracks"] == name]
        np.testing.assert_allclose(data.probe.features[row], some.mean(axis=0), rtol=1e-5, atol=1e-6)
