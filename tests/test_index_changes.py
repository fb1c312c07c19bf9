"""An index that grows and shrinks gives the answers of one that is built anew."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from conftest import features
from hypothesis import given, settings
from hypothesis import strategies as st
from test_index import SMALL, check_same_file, contents, same, side

import blurrerank as br
from blurrerank.index.gallery_index import GalleryIndex

METHODS = {"k-reciprocal-online": SMALL, "gnn": {}, "camera-graph": {}}


def rows_of(arrays, rows):
    return br.Side(
        arrays["gallery"][rows], *(arrays[f"gallery_{name}"][rows] for name in ("ids", "cams", "names"))
    )


@settings(max_examples=12, deadline=None)
@given(st.data(), st.sampled_from(list(METHODS)))
def test_any_sequence_of_changes_gives_what_building_at_once_gives(tmp_path_factory, data, method):
    folder, params = tmp_path_factory.mktemp("changes"), METHODS[method]
    arrays = features(seed=data.draw(st.integers(0, 99)), gallery=60)
    outside = list(range(60))
    first = data.draw(st.integers(10, 50))
    inside, outside = outside[:first], outside[first:]
    br.build_index(rows_of(arrays, inside), folder / "i.h5", method, **params)
    for _ in range(data.draw(st.integers(1, 4))):
        if outside and data.draw(st.booleans()):
            new, outside = outside[:7], outside[7:]
            br.build_index(rows_of(arrays, new), folder / "i.h5", append=True)
            inside += new
        elif len(inside) > 4:
            count = data.draw(st.integers(1, len(inside) - 3))
            gone = data.draw(st.sets(st.integers(0, len(inside) - 1), min_size=1, max_size=count))
            if data.draw(st.booleans()):
                br.remove_from_index(folder / "i.h5", rows=sorted(gone))
            else:
                names = [arrays["gallery_names"][inside[row]] for row in gone]
                br.remove_from_index(folder / "i.h5", names=names)
            outside += [inside[row] for row in gone]
            inside = [item for row, item in enumerate(inside) if row not in gone]
        anew = br.build_index(rows_of(arrays, inside), folder / "anew.h5", method, force=True, **params)
        check_same_file(folder / "i.h5", folder / "anew.h5")
        probe = br.Side(arrays["probe"], cams=arrays["probe_cams"])
        same(GalleryIndex.open(folder / "i.h5").rerank(probe), anew.rerank(probe))


@pytest.mark.parametrize("change", ["append", "remove"])
def test_what_steps_know_stays_as_it_was(change, tmp_path):
    arrays = features(gallery=120)
    method, first = "center+camera-graph:ki=3:ko=4", np.arange(90)
    br.build_index(rows_of(arrays, first), tmp_path / "i.h5", method)
    before = contents(tmp_path / "i.h5")
    if change == "append":
        br.build_index(rows_of(arrays, np.arange(90, 120)), tmp_path / "i.h5", append=True)
    else:
        br.remove_from_index(tmp_path / "i.h5", rows=range(80, 90))
    after = contents(tmp_path / "i.h5")
    for name in ("steps/0/means", "steps/0/cams"):
        np.testing.assert_array_equal(before[name], after[name])
    # Features of the new items are those that the steps of before give.
    means = dict(zip(before["steps/0/cams"].tolist(), before["steps/0/means"], strict=True))
    unit = arrays["gallery"] / np.linalg.norm(arrays["gallery"], axis=1, keepdims=True)
    centred = unit - [means[cam] for cam in arrays["gallery_cams"].tolist()]
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    left = range(120) if change == "append" else range(80)
    np.testing.assert_allclose(after["features"], centred[left], atol=1e-6)
    index = GalleryIndex.open(tmp_path / "i.h5")
    found = index.rerank(br.Side(arrays["probe"], cams=arrays["probe_cams"]))
    assert found.gallery_size == len(left)


def test_readers_go_on_with_the_index_that_they_have_open(tmp_path):
    arrays = features()
    index = br.build_index(side(arrays), tmp_path / "i.h5", **SMALL)
    expected, wrong = index.rerank(arrays["probe"]), []
    stop = threading.Event()

    def read():
        while not stop.is_set():
            found = index.rerank(arrays["probe"])
            if not (found.indices == expected.indices).all():
                wrong.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    for row in (59, 0, 30):
        br.remove_from_index(tmp_path / "i.h5", rows=[row])
    stop.set()
    reader.join()
    assert not wrong
    assert len(GalleryIndex.open(tmp_path / "i.h5")) == 57


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({}, "there is nothing to remove: give rows, names or tracks"),
        ({"rows": [60]}, "i.h5 has no row 60: it has 60 items, counted from 0"),
        ({"rows": [-1]}, "i.h5 has no row -1: it has 60 items, counted from 0"),
        ({"rows": range(60)}, "i.h5: delete the file instead"),
        ({"names": ["g001", "nobody"]}, "i.h5 has no item called 'nobody'; nothing was removed"),
        ({"rows": [True, False]}, "rows are bool (2,): pass a list of row numbers"),
        ({"rows": [2.0]}, "rows are float64 (1,): pass a list of row numbers"),
        ({"rows": [[1, 2]]}, "rows are int64 (1, 2): pass a list of row numbers"),
        ({"names": "g001"}, "names is a single string: pass a list of names"),
        (
            {"names": ["a", "b"]},
            "i.h5 has no item called 'a', nor 1 others that are named; nothing was removed",
        ),
        ({"rows": [1], "memory": 10}, "a memory budget of 10 bytes is too small"),
    ],
)
def test_what_cannot_be_removed_is_told(named, said, tmp_path):
    br.build_index(side(features()), tmp_path / "i.h5", **SMALL)
    before = (tmp_path / "i.h5").read_bytes()
    with pytest.raises(br.BlurrerankError) as error:
        br.remove_from_index(tmp_path / "i.h5", **named)
    assert said in str(error.value)
    assert (tmp_path / "i.h5").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["i.h5"]


@pytest.mark.parametrize("ann", [None, "hnsw"])
@pytest.mark.parametrize("kind", [int, str])
def test_tracks_are_kept_and_removed(kind, ann, tmp_path):
    arrays = features()
    tracks = np.array([kind(row // 5) for row in range(60)], dtype=np.int64 if kind is int else object)

    def some(rows):
        return br.Side(arrays["gallery"][rows], tracks=tracks[rows])

    br.build_index(some(slice(0, 50)), tmp_path / "i.h5", ann=ann, **SMALL)
    br.build_index(some(slice(50, 60)), tmp_path / "i.h5", append=True)
    np.testing.assert_array_equal(GalleryIndex.open(tmp_path / "i.h5").gallery.tracks, tracks)
    left = br.remove_from_index(tmp_path / "i.h5", tracks=["3", "11"])
    stays = [row for row in range(60) if row // 5 not in (3, 11)]
    np.testing.assert_array_equal(left.gallery.tracks, tracks[stays])
    assert left.gallery.digest() == some(stays).digest()
    with pytest.raises(br.InputError, match="has no track '3'; nothing was removed"):
        br.remove_from_index(tmp_path / "i.h5", tracks=["3"])
    with pytest.raises(br.InputError, match=r"has tracks and .* has none"):
        br.build_index(arrays["probe"], tmp_path / "i.h5", append=True)


def test_an_index_without_names_says_so(tmp_path):
    br.build_index(features()["gallery"], tmp_path / "i.h5", **SMALL)
    with pytest.raises(br.InputError, match="has no names: remove items by row"):
        br.remove_from_index(tmp_path / "i.h5", names=["g001"])


def test_on_the_command_line(cli, write, tmp_path):
    assert cli("index", write(), "-o", "i.h5")[0] == 0
    code, out, err = cli("index", "-o", "i.h5", "--remove", "3,50-58,17")
    assert (code, out, err) == (0, "", "wrote i.h5: 49 gallery items are left\n")
    (tmp_path / "names.txt").write_text("g000\ng001\n\n")
    code, _, err = cli("index", "-o", "i.h5", "--remove-names", tmp_path / "names.txt")
    assert (code, err) == (0, "wrote i.h5: 47 gallery items are left\n")
    code, _, err = cli("index", "-o", "i.h5", "--remove", "3,0-99999999999")
    assert (code, err) == (1, "error: i.h5 has no row 47: it has 47 items, counted from 0\n")
    code, _, err = cli("index", "-o", "i.h5", "--remove-names", "missing.txt")
    assert (code, err) == (1, "error: missing.txt: No such file or directory\n")
    (tmp_path / "tracks.txt").write_text("7")
    code, _, err = cli("index", "-o", "i.h5", "--remove-tracks", tmp_path / "tracks.txt")
    assert (code, err) == (1, "error: i.h5 has no tracks: remove items by row\n")
    names = GalleryIndex.open("i.h5").gallery.names
    assert "g003" not in names
    assert names[0] == "g002"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["-o", "i.h5", "--remove", "a"],
            "--remove takes row numbers and ranges such as 3,17,100-199, not 'a'",
        ),
        (
            ["-o", "i.h5", "--remove", "3-x"],
            "--remove takes row numbers and ranges such as 3,17,100-199, not '3-x'",
        ),
        (["-o", "i.h5", "--remove", "5,7-3"], "--remove 7-3 goes backwards: write 3-7"),
        (["--remove", "3"], "--remove needs the index: name it with -o"),
        (["FEATS", "-o", "i.h5", "--remove", "3"], "--remove only removes items: leave GALLERY out"),
        (["-o", "i.h5", "--remove", "3", "--k1", "3"], "--remove only removes items: leave k1 out"),
        (["-o", "i.h5"], "Missing argument 'GALLERY'"),
    ],
)
def test_wrong_use_is_one_line(arguments, said, cli, write):
    path = write()
    assert cli("index", path, "-o", "i.h5")[0] == 0
    code, _, err = cli("index", *(path if word == "FEATS" else word for word in arguments))
    assert code == 2
    assert said in err.splitlines()[-1]
