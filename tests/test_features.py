"""FeatureSet: what it takes, and that it names every problem at once."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from conftest import features

import blurrerank as br
import blurrerank.files.features_h5
from blurrerank.files.guard import trying


def problems(**changes) -> list[str]:
    with pytest.raises(br.InputError) as error:
        br.FeatureSet.from_arrays(**(features() | changes))
    assert str(error.value) == "; ".join(error.value.problems)
    assert "\n" not in str(error.value)
    return error.value.problems


def spoiled(value, *rows):
    gallery = features()["gallery"].copy()
    gallery[list(rows)] = value
    return gallery


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"gallery": spoiled(np.nan, 7)},
            ["gallery/features has NaN or infinity in row 7: fix or remove them"],
        ),
        (
            {"gallery": spoiled(-np.inf, 1, 2, 3, 4, 50, 51)},
            ["gallery/features has NaN or infinity in 6 rows (1, 2, 3, 4, 50, ...): fix or remove them"],
        ),
        (
            {"gallery": spoiled(0, 3, 59)},
            ["gallery/features is all zero in 2 rows (3, 59): such a row has no direction; remove it"],
        ),
        (
            {"gallery": features(dim=7)["gallery"]},
            ["probe has 8 dimensions and gallery has 7: both must come from the same model"],
        ),
        (
            {"probe": np.ones(12)},
            ["probe/features has shape (12,): expected (rows, dimensions); for one image use reshape(1, -1)"],
        ),
        (
            {"probe": np.ones((0, 8)), "probe_ids": None, "probe_cams": None, "probe_names": None},
            ["probe/features is empty, shape (0, 8): at least one row and one dimension are needed"],
        ),
        (
            {"probe": np.ones((12, 8), int)},
            ["probe/features is int64: expected float16, float32 or float64 (use astype('float32'))"],
        ),
        ({"probe_ids": np.ones(11, int)}, ["probe/ids has shape (11,): expected (12,), one label per row"]),
        (
            {"probe_ids": np.ones((1, 12), int)},
            ["probe/ids has shape (1, 12): expected (12,), one label per row (use reshape(-1))"],
        ),
        (
            {"probe_ids": np.ones(12)},
            ["probe/ids is float64: expected integers (use astype('int64'))"],
        ),
        (
            {"probe_ids": np.array([7] * 11 + [2**64 - 1], np.uint64)},
            ["probe/ids has 18446744073709551615 in row 11: expected a value that fits int64"],
        ),
        (
            {"probe_cams": np.array([2**63] * 12, np.uint64)},
            ["probe/cams has 9223372036854775808 in row 0: expected a value that fits int64"],
        ),
        (
            {"probe_cams": np.array(list("abcdefghijkl"))},
            ["probe/cams is text: expected integers (number them from 1, the same in all files)"],
        ),
        (
            {"probe_ids": np.arange(12) - 5},
            ["probe/ids has -5 in row 0: expected -1 (junk), 0 (distractor) or more"],
        ),
        ({"probe_names": np.arange(12)}, ["probe/names is int64: expected strings"]),
        (
            {"probe_names": np.array([None] * 12)},
            ["probe/names has None in row 0: expected a string"],
        ),
    ],
)
def test_a_problem_is_named_with_side_and_row(changes, expected):
    assert problems(**changes) == expected


TO_ARRAYS = "expected a FeatureSet, not {}: pass br.FeatureSet.from_arrays(probe, gallery)"


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda q, g, data: br.rerank(q, g), TO_ARRAYS.format("an array")),
        (lambda q, g, data: br.rerank(torch.from_numpy(q)), TO_ARRAYS.format("a Tensor")),
        (lambda q, g, data: br.rerank((q, g)), TO_ARRAYS.format("a tuple")),
        (
            lambda q, g, data: br.rerank("feats.h5"),
            "expected a FeatureSet, not a path: pass br.load('feats.h5')",
        ),
        (
            lambda q, g, data: br.rerank(data, g),
            "a method is named by text, such as dba:k=4+lbr, not by ndarray",
        ),
        (
            lambda q, g, data: br.rerank(data, "center", camera_images=g),
            "camera_images must be a Side with cameras: br.Side(features, cams=cams)",
        ),
        (
            lambda q, g, data: br.evaluate(data, br.rerank(data)),
            "expected a Ranking, not a FeatureSet: pass the ranking first, then its features",
        ),
        (
            lambda q, g, data: br.evaluate("lists.h5", data),
            "expected a Ranking, not a path: pass br.read_ranking('lists.h5', data)",
        ),
        (
            lambda q, g, data: br.evaluate(np.zeros((12, 5), int), data),
            "expected a Ranking, not an array: br.rerank(data) makes one",
        ),
        (lambda q, g, data: br.save_features(g, "feats.h5"), TO_ARRAYS.format("an array")),
        (lambda q, g, data: br.estimate_neighbourhoods(g), TO_ARRAYS.format("an array")),
        (lambda q, g, data: br.tune(g, "lbr", {"topn": [10]}), TO_ARRAYS.format("an array")),
        (lambda q, g, data: br.read_ranking("lists.h5", g), TO_ARRAYS.format("an array")),
        (
            lambda q, g, data: br.save_ranking(br.rerank(data), "lists.h5", data),
            "expected a FeatureSet, not a path: pass br.load('lists.h5')",
        ),
        (
            lambda q, g, data: br.load(g),
            "expected a path, not ndarray: br.FeatureSet.from_arrays(probe, gallery) takes arrays",
        ),
        (
            lambda q, g, data: br.FeatureSet(q, g),
            "a FeatureSet consists of two Sides: for arrays, use br.FeatureSet.from_arrays(probe, gallery)",
        ),
        (
            lambda q, g, data: br.local_blurring("q.npy", g),
            "probe is the path 'q.npy': expected an array; br.load(path) reads files",
        ),
        (
            lambda q, g, data: br.neighbour_graph("feats.h5"),
            "images is the path 'feats.h5': expected an array; br.load(path) reads files",
        ),
        (
            lambda q, g, data: br.local_blurring(q, g[0]),
            "gallery/features has shape (8,): expected (rows, dimensions); for one image use reshape(1, -1)",
        ),
        (
            lambda q, g, data: br.neighbour_graph(g[0]),
            "images/features has shape (8,): expected (rows, dimensions); for one image use reshape(1, -1)",
        ),
    ],
)
def test_a_natural_mistake_is_answered_with_what_to_write_instead(mistake, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = features()
    with pytest.raises(br.BlurrerankError) as error:
        mistake(arrays["probe"], arrays["gallery"], br.FeatureSet.from_arrays(**arrays))
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_lists_of_different_lengths_are_no_array():
    with pytest.raises(br.InputError, match="probe is not an array: "):
        br.FeatureSet.from_arrays([[1.0, 2.0], [3.0]], np.eye(2))


def test_values_are_looked_at_in_every_block(monkeypatch):
    monkeypatch.setattr("blurrerank.data.side._SCAN_BYTES", 8 * 8 * 7)
    assert problems(gallery=spoiled(np.nan, 2, 31, 59)) == [
        "gallery/features has NaN or infinity in 3 rows (2, 31, 59): fix or remove them"
    ]


def test_nan_and_another_dimension_are_both_named():
    assert len(problems(gallery=np.full((60, 9), np.nan))) == 2


def test_every_problem_in_a_file_is_named_at_once(write):
    path = write(
        probe=np.ones((12, 8), int),
        probe_ids=np.ones(12),
        gallery_names=np.array([b"caf\xe9"] * 60),
        gallery=spoiled(0, 5),
    )
    with pytest.raises(br.InputError) as error:
        br.load(path)
    assert [problem.split("::")[1].split()[0] for problem in error.value.problems] == [
        "/gallery/names",
        "/probe/features",
        "/probe/ids",
        "/gallery/features",
    ]


def test_every_problem_is_named_at_once():
    found = problems(
        probe=np.zeros((12, 8)),
        gallery=spoiled(np.nan, 7),
        probe_ids=np.ones(3),
        gallery_cams=np.ones((60, 2), int),
    )
    assert [problem.split()[0] for problem in found] == [
        "probe/features",
        "probe/ids",
        "gallery/features",
        "gallery/cams",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tensors_arrays_and_files_are_the_same_features(dtype, tmp_path):
    arrays = features()
    tensors = {
        key: torch.from_numpy(value).to(dtype) if value.dtype == np.float32 else value
        for key, value in arrays.items()
    }
    data = br.FeatureSet.from_arrays(**tensors)
    br.save_features(data, tmp_path / "feats.h5", model="some-model")
    loaded = br.load(tmp_path / "feats.h5")
    assert loaded.provenance["model"] == "some-model"
    assert loaded.digest() == data.digest()
    assert loaded.labels_digest() == data.labels_digest()
    assert list(loaded.gallery.names) == list(arrays["gallery_names"])
    assert str(loaded.gallery.features.dtype) == str(dtype).removeprefix("torch.")
    np.testing.assert_array_equal(br.rerank(loaded).indices, br.rerank(data).indices)
    assert repr(loaded) == (
        f"FeatureSet(12 probes x 60 gallery x 8, {str(dtype).removeprefix('torch.')}, with ids, cams, names)"
    )


def test_the_native_file_is_as_the_format_says(tmp_path):
    br.save_features(br.FeatureSet.from_arrays(**features()), tmp_path / "feats.h5")
    with h5py.File(tmp_path / "feats.h5") as file:
        assert (file.attrs["format"], file.attrs["format_version"]) == ("blurrerank-features", 1)
        assert sorted(file["gallery"]) == ["cams", "features", "ids", "names"]
        assert h5py.check_string_dtype(file["gallery/names"].dtype).encoding == "utf-8"
    with pytest.raises(br.OutputError, match=r"feats.h5 exists: pass --force"):
        br.save_features(br.FeatureSet.from_arrays(**features()), tmp_path / "feats.h5")


def test_large_features_stay_on_disk_and_give_the_same_lists(write):
    path = write()
    on_disk, in_memory = br.load(path, memory=64), br.load(path)
    assert not isinstance(on_disk.gallery.features, np.ndarray)
    assert isinstance(in_memory.gallery.features, np.ndarray)
    assert on_disk.digest() == in_memory.digest()
    np.testing.assert_array_equal(br.rerank(on_disk).indices, br.rerank(in_memory).indices)


def test_groups_inside_a_file_and_sides_in_two_files(write, tmp_path):
    path = write()
    expected = br.rerank(br.load(path)).indices
    with h5py.File(path) as file, h5py.File(tmp_path / "deep.h5", "w") as deep:
        for side in ("probe", "gallery"):
            file.copy(side, deep, f"run 1/{side}")
            file.copy(side, deep, f"alone {side}")
    for address, gallery in (
        (f"{tmp_path}/deep.h5::/run 1", None),
        (f"{tmp_path}/deep.h5::run 1/", None),
        (path, f"{tmp_path}/deep.h5::/run 1"),
        (f"{tmp_path}/deep.h5::/alone probe", f"{tmp_path}/deep.h5::/alone gallery"),
    ):
        np.testing.assert_array_equal(br.rerank(br.load(address, gallery)).indices, expected)
    with pytest.raises(
        br.InputError, match=r"has no group /nowhere \(it has /alone gallery, /alone probe, /run 1\)"
    ):
        br.load(f"{tmp_path}/deep.h5::/nowhere")


def test_labels_of_any_integer_type_are_the_same_labels(write):
    plain = br.load(write())
    small = br.load(
        write("small.h5", **{key: features()[key].astype(np.int16) for key in ("probe_ids", "probe_cams")})
    )
    assert small.labels_digest() == plain.labels_digest()


@pytest.mark.parametrize("packed", [None, "gzip", "lzf"])
def test_a_file_that_is_replaced_while_it_is_read_is_the_old_one(write, monkeypatch, packed):
    old = features()
    path = write("feats.h5", probe_names=None)
    other = write("other.h5", **features(seed=1, probes=3, gallery=5))
    with h5py.File(path, "r+") as file:
        names = [name + "-" * place for place, name in enumerate(old["probe_names"])]
        file.create_dataset("probe/names", data=names, chunks=packed and (5,), compression=packed)
    open_hdf5 = blurrerank.files.features_h5.open_hdf5

    def replaced(path):
        file = open_hdf5(path)
        if not trying():
            other.replace(path)
        return file

    monkeypatch.setattr(blurrerank.files.features_h5, "open_hdf5", replaced)
    data = br.load(path)
    assert data.probe.names.tolist() == names
    np.testing.assert_array_equal(data.gallery.features, old["gallery"])
