"""The gallery index: the answers it gives, built in any number of pieces, and refused where it is not sound."""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from conftest import ROOT, features, shell
from forks import forked
from hypothesis import given, settings
from hypothesis import strategies as st

import blurrerank as br

FEATS = ROOT / "examples/omniglot.h5"
SMALL = {"k1": 6, "k2": 3, "blur": 4, "pool": 20}


def side(arrays, start=0, stop=None, name="gallery"):
    labels = (arrays[f"{name}_{label}"][start:stop] for label in ("ids", "cams", "names"))
    return br.Side(arrays[name][start:stop], *labels, label=name)


def contents(path):
    """Every dataset and attribute but for checks of versions."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
        found.update(file.attrs)
    return found


def check_same_file(one, other):
    one, other = contents(one), contents(other)
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def same(one, other):
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_array_equal(one.scores, other.scores)


@pytest.fixture(scope="module")
def data():
    return br.load(FEATS)


@pytest.fixture(scope="module")
def path(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "gallery.index.h5"
    br.build_index(data.gallery, path)
    return path


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("k-reciprocal-online", {}),
        ("k-reciprocal-online", {"lambda_value": 0.5}),
        ("lbr", {}),
        ("lbr", {"topn": 20, "sigma": 0.2}),
        ("cosine", {"topn": 70}),
    ],
)
def test_lists_through_an_index_are_those_without(data, path, method, params):
    index = br.GalleryIndex.open(path)
    without = br.rerank(data, method, **params)
    through = index.rerank(data.probe, method=method, **params)
    same(through, without)
    assert through.digest == without.digest
    assert through.params == without.params
    assert br.evaluate(through, data).mAP == br.evaluate(without, data).mAP


@pytest.mark.parametrize("method", ["k-reciprocal-online", "lbr"])
def test_one_probe_is_answered_as_many(data, path, method):
    index = br.GalleryIndex.open(path)
    together = index.rerank(data.probe, topn=30, method=method)
    for row in (0, 7, 411, 779):
        alone = index.rerank(np.asarray(data.probe.features[row]), topn=30, method=method)
        np.testing.assert_array_equal(alone.indices[0], together.indices[row])
        np.testing.assert_array_equal(alone.scores[0], together.scores[row])


def test_float16_features_give_the_lists_of_float16_features(tmp_path):
    arrays = features(gallery=120)
    gallery = br.Side(arrays["gallery"].astype(np.float16))
    index = br.build_index(gallery, tmp_path / "i.h5", **SMALL)
    without = br.FeatureSet(br.Side(arrays["probe"]), gallery)
    same(index.rerank(arrays["probe"], topn=9), br.rerank(without, "k-reciprocal-online", depth=9, **SMALL))
    same(index.rerank(arrays["probe"], topn=9, method="lbr"), br.rerank(without, "lbr", topn=9))


def test_threads_read_one_index(data, path):
    index = br.GalleryIndex.open(path)
    probes = np.asarray(data.probe.features[:80])
    together = index.rerank(probes)
    answers: dict[int, br.Ranking] = {}

    def ask(rows):
        for row in rows:
            answers[row] = index.rerank(probes[row])

    workers = [threading.Thread(target=ask, args=(range(start, 80, 4),)) for start in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for row in range(80):
        np.testing.assert_array_equal(answers[row].indices[0], together.indices[row])
        np.testing.assert_array_equal(answers[row].scores[0], together.scores[row])


def test_processes_read_one_index(data, path, tmp_path):
    """At the same time, one of them while the file is replaced under it."""
    copy = shutil.copy(path, tmp_path / "copy.h5")
    index = br.GalleryIndex.open(copy)
    asked = [
        subprocess.Popen(
            [sys.executable, "-m", "blurrerank", "run", "--index", copy, "-", "--depth", "5"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
        for _ in range(2)
    ]
    rows = [json.dumps(row.tolist()) + "\n" for row in np.asarray(data.probe.features[:4])]
    expected = index.rerank(np.asarray(data.probe.features[:4]), topn=5)
    answers = []
    for number, row in enumerate(rows):
        for process in asked:
            process.stdin.write(row)
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 60)[0], "no answer while the next probe is due"
            answers.append((number, json.loads(process.stdout.readline())))
        if number == 1:
            br.build_index(br.Side(np.eye(30, index.dim)), copy, force=True)
    for process in asked:
        process.stdin.close()
        assert process.wait(60) == 0
        process.stdout.close()
    for number, answer in answers:
        assert answer["probe"] == number
        assert answer["indices"] == expected.indices[number].tolist()
        assert np.float32(answer["scores"]).tolist() == expected.scores[number].tolist()
    same(index.rerank(np.asarray(data.probe.features[:4]), topn=5), expected)


# Three indexes each time, and no more than 177 cases there are.
@settings(max_examples=25)
@given(st.integers(1, 59), st.sampled_from([None, 1 << 16, 1 << 18]))
def test_appending_gives_what_building_at_once_gives(tmp_path_factory, cut, memory):
    folder = tmp_path_factory.mktemp("append")
    arrays = features()
    br.build_index(side(arrays), folder / "whole.h5", **SMALL)
    br.build_index(side(arrays, 0, cut), folder / "grown.h5", memory=memory, **SMALL)
    br.build_index(side(arrays, cut), folder / "grown.h5", append=True, memory=memory)
    check_same_file(folder / "grown.h5", folder / "whole.h5")


def test_appending_real_features_twice(data, path, tmp_path):
    whole = data.gallery
    cuts = [0, 1000, 3500, len(whole)]
    for start, stop in pairwise(cuts):
        part = br.Side(whole.features[start:stop], whole.ids[start:stop], whole.cams[start:stop])
        br.build_index(part, tmp_path / "grown.h5", append=start > 0)
    bare = br.Side(whole.features, whole.ids, whole.cams)
    br.build_index(bare, tmp_path / "whole.h5")
    check_same_file(tmp_path / "grown.h5", tmp_path / "whole.h5")
    with h5py.File(path) as named:
        assert named["names"][0].decode() == whole.names[0]


class Interrupt:
    """Progress that stops the work when so much of it is done."""

    def __init__(self, share):
        self.share, self.told = share, []

    def __call__(self, done, total):
        self.told.append(done)
        if done >= self.share * total:
            raise KeyboardInterrupt


@pytest.mark.parametrize("append", [False, True])
def test_an_interrupted_build_goes_on(tmp_path, append):
    arrays = features(gallery=300)
    # Memory for blocks of 64 rows.
    how = {"memory": 1 << 19, "checkpoint_seconds": 0, **SMALL}
    path = tmp_path / "i.h5"
    if append:
        br.build_index(side(arrays, 0, 100), path, **SMALL)
        before = contents(path)
    with pytest.raises(KeyboardInterrupt):
        br.build_index(side(arrays, 100 * append), path, append=append, progress=Interrupt(0.6), **how)
    assert path.with_name("i.h5.partial").exists()
    if append:
        for name, values in contents(path).items():
            np.testing.assert_array_equal(values, before[name])
    else:
        assert not path.exists()
    told = Interrupt(2)
    br.build_index(side(arrays, 100 * append), path, append=append, progress=told, **how)
    assert told.told[0] > 300 * 0.3, "it went on, and did not start over"
    assert [file.name for file in tmp_path.iterdir()] == ["i.h5"]
    br.build_index(side(arrays), tmp_path / "whole.h5", **SMALL)
    check_same_file(path, tmp_path / "whole.h5")


def test_a_killed_build_goes_on_when_it_is_started_again(tmp_path, write):
    """Through the command line, with SIGKILL: whatever is left, the next run completes the index."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6000, 64)).astype(np.float32)
    feats = write(gallery=rows, gallery_ids=None, gallery_cams=None, gallery_names=None)
    command = [sys.executable, "-c", _BUILD, str(feats), "i.h5"]
    killed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / "i.h5.partial").exists()
    assert not (tmp_path / "i.h5").exists()
    done = shell("index", feats, "-o", "i.h5", "-q", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "i.h5.partial").exists()
    shell("index", feats, "-o", "whole.h5", cwd=tmp_path)
    check_same_file(tmp_path / "i.h5", tmp_path / "whole.h5")


_BUILD = """
import os, signal, sys
import blurrerank as br
from blurrerank.files import load_side
def progress(done, total):
    if os.path.exists(sys.argv[2] + ".partial"):
        os.kill(os.getpid(), signal.SIGKILL)
br.build_index(load_side(sys.argv[1], "gallery"), sys.argv[2], progress=progress, checkpoint_seconds=0)
"""


def test_appending_does_not_start_over(tmp_path):
    arrays, path = features(gallery=300), tmp_path / "i.h5"
    br.build_index(side(arrays, 0, 200), path, **SMALL)
    told = Interrupt(2)
    br.build_index(side(arrays, 200), path, append=True, progress=told, memory=1 << 19)
    assert told.told[0] > 200 * 200 // 300


def test_an_interrupted_replacement_goes_on(tmp_path):
    arrays, path = features(gallery=300), tmp_path / "i.h5"
    how = {"force": True, "memory": 1 << 19, "checkpoint_seconds": 0, **SMALL}
    br.build_index(side(arrays, 0, 100), path, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        br.build_index(side(arrays), path, progress=Interrupt(0.6), **how)
    assert len(br.GalleryIndex.open(path)) == 100
    told = Interrupt(2)
    br.build_index(side(arrays), path, progress=told, **how)
    assert told.told[0] > 300 * 0.3
    br.build_index(side(arrays), tmp_path / "whole.h5", **SMALL)
    check_same_file(path, tmp_path / "whole.h5")


def test_something_left_of_a_complete_index_keeps_nobody_from_appending(tmp_path):
    """As after a crash between the index and the removal of what was left."""
    arrays, path = features(gallery=90), tmp_path / "i.h5"
    br.build_index(side(arrays, 0, 60), path, **SMALL)
    how = {"checkpoint_seconds": 0, "memory": 1 << 16, **SMALL}
    with pytest.raises(KeyboardInterrupt):
        br.build_index(side(arrays, 0, 60), tmp_path / "j.h5", progress=Interrupt(0.5), **how)
    (tmp_path / "j.h5.partial").rename(tmp_path / "i.h5.partial")
    br.build_index(side(arrays, 60), path, append=True)
    assert [file.name for file in tmp_path.iterdir()] == ["i.h5"]


def test_rows_that_are_there_already_are_told(tmp_path):
    arrays, path = features(gallery=90), tmp_path / "i.h5"
    br.build_index(side(arrays, 0, 60), path, **SMALL)
    with pytest.warns(
        br.BlurrerankWarning, match="10 of 40 rows of gallery are in .*; they are in the index twice now"
    ):
        br.build_index(side(arrays, 50), path, append=True)
    assert len(br.GalleryIndex.open(path)) == 100


def test_an_index_answers_with_its_own_parameters_alone(data, path):
    index = br.GalleryIndex.open(path)
    with pytest.raises(br.ParameterError, match="was built with k1 15, not 9"):
        br.rerank(index.features(data.probe), "k-reciprocal-online", k1=9)
    with pytest.raises(
        br.ParameterError, match="looks at all probes together, which an index does not support"
    ):
        index.rerank(data.probe, method="k-reciprocal")
    for method in ("k-reciprocal", "gnn"):  # what the index knows is no encoding of theirs
        found, expected = (br.rerank(some, method) for some in (index.features(data.probe), data))
        np.testing.assert_array_equal(found.indices, expected.indices)
    with pytest.raises(br.ParameterError, match="topn must be a whole number of at least 1, not 0"):
        index.rerank(data.probe, topn=0)


def test_what_is_no_gallery_is_refused(data, tmp_path):
    with pytest.raises(br.InputError, match="a FeatureSet has two sides: pass its gallery"):
        br.build_index(data, tmp_path / "i.h5")
    with pytest.raises(br.InputError, match="gallery is not an array"):
        br.build_index([[1.0], [2.0, 3.0]], tmp_path / "i.h5")
    assert len(br.build_index(np.eye(5), tmp_path / "i.h5")) == 5


def test_an_interruption_says_how_to_go_on(cli, write, monkeypatch):
    """An index that takes less than a minute leaves nothing; here something is left."""
    feats = write(gallery=np.random.default_rng(0).standard_normal((60, 8)))
    with pytest.raises(KeyboardInterrupt):
        br.build_index(
            br.Side(h5py.File(feats)["gallery/features"][()]),
            "i.h5",
            checkpoint_seconds=0,
            progress=Interrupt(0.5),
            memory=1 << 16,
        )

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("blurrerank.index.encoding.find_graph", interrupted)
        code, _, err = cli("index", feats, "-o", "i.h5")
        note = "note: partial results are kept in i.h5.partial; run the same command again to continue"
        assert (code, err.split("\n")) == (130, [note, "error: interrupted", ""])
    assert cli("index", feats, "-o", "i.h5")[0] == 0
    assert not Path("i.h5.partial").exists()


def test_two_that_append_at_a_time_do_not_lose_each_other_s_items(tmp_path):
    arrays, path = features(gallery=90), tmp_path / "i.h5"
    br.build_index(side(arrays, 0, 30), path, **SMALL)
    refused = []

    def meanwhile(done, total):
        if not refused:
            with pytest.raises(br.OutputError) as error:
                br.build_index(side(arrays, 30, 60), path, append=True)
            refused.append(str(error.value))

    br.build_index(side(arrays, 30, 60), path, append=True, progress=meanwhile)
    assert refused == [f"{path} is being written by another process: wait for it, or choose another name"]
    br.build_index(side(arrays, 60), path, append=True)
    br.build_index(side(arrays), tmp_path / "whole.h5", **SMALL)
    check_same_file(path, tmp_path / "whole.h5")


def test_an_index_that_is_replaced_while_it_grows_is_not_lost(tmp_path):
    """By a program that knows nothing of our locks."""
    arrays, path = features(gallery=90), tmp_path / "i.h5"
    br.build_index(side(arrays, 0, 30), path, **SMALL)
    br.build_index(side(arrays, 0, 40), tmp_path / "other.h5", **SMALL)

    def meanwhile(done, total):
        if (tmp_path / "other.h5").exists():
            (tmp_path / "other.h5").replace(path)

    with pytest.raises(br.OutputError, match="was written by another process meanwhile"):
        br.build_index(side(arrays, 60), path, append=True, progress=meanwhile)
    assert len(br.GalleryIndex.open(path)) == 40
    assert [file.name for file in tmp_path.iterdir()] == ["i.h5"]


def test_what_is_left_of_another_build_is_refused(tmp_path):
    arrays, path = features(gallery=300), tmp_path / "i.h5"
    how = {"memory": 1 << 19, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        br.build_index(side(arrays), path, progress=Interrupt(0.6), **how, **SMALL)
    left = f"{path}.partial is a partial build of an index"
    ask = "finish that one, or delete the file to start over"
    with pytest.raises(br.InputError) as error:
        br.build_index(side(arrays, 0, 200), path, **SMALL)
    assert str(error.value) == f"{left} of other features, cameras or parameters: {ask}"
    with pytest.raises(br.InputError) as error:
        br.build_index(side(arrays), path, **SMALL | {"pool": 21})
    assert str(error.value) == f"{left} with pool 20, not 21: {ask}"
    path.with_name("i.h5.partial").write_bytes(b"rubbish")
    with pytest.raises(br.InputError) as error:
        br.build_index(side(arrays), path, **SMALL)
    why = f"{path}.partial is not an HDF5 file; it is a partial build of an index: delete it to start over"
    assert str(error.value) == why
    br.build_index(side(arrays), path, force=True, **SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["i.h5"]


@pytest.mark.parametrize("other", ["gallery", "camera_images"])
def test_what_is_left_of_a_build_with_other_cameras_is_refused(other, tmp_path):
    arrays, path = features(gallery=300), tmp_path / "i.h5"
    gallery = side(arrays)
    earlier = br.Side(arrays["probe"], cams=arrays["probe_cams"] + 70, label="earlier")
    method = "center+camera-graph"
    how = {"memory": 1 << 19, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        br.build_index(gallery, path, method, camera_images=earlier, progress=Interrupt(0.6), **how)
    assert path.with_name("i.h5.partial").exists()
    changed = {"gallery": gallery, "camera_images": earlier}
    shifted = changed[other].cams.copy()
    shifted[0] += 1
    changed[other] = replace(changed[other], cams=shifted)
    with pytest.raises(
        br.InputError, match="is a partial build of an index of other features, cameras or parameters"
    ):
        br.build_index(changed["gallery"], path, method, camera_images=changed["camera_images"])
    told = Interrupt(2)
    br.build_index(gallery, path, method, camera_images=earlier, progress=told, **how)
    assert told.told[0] > 300 * 0.3, "the same goes on"


def spoil_features(file):
    file["features"][3, 2] += 0.25


def spoil_encodings(file):
    file["encoded/inverted/columns"][0] = 7 if file["encoded/inverted/columns"][0] != 7 else 8


def spoil_digest(file):
    file.attrs["digest"] = "0" * 64


def spoil_names(file):
    file["names"][3] = "somebody else"


def spoil_params(file):
    file.attrs["params"] = file.attrs["params"].replace(b'"k2": 3', b'"k2": 2')


def spoil_size(file):
    del file["encoded/reach"]
    file["encoded/reach"] = np.zeros(5, np.float32)


def spoil_layout(file):
    reach = file["encoded/reach"][()]
    del file["encoded/reach"]
    file.create_dataset("encoded/reach", data=reach, chunks=(5,))


def put(value, place=(0, 0)):
    def change(values):
        values[place[: values.ndim]] = value

    return change


def scale(values):
    values *= 2


NO_INDEX = "has values that are invalid in an index"
FALSE = [
    ("features", put(np.nan), "features has rows that are not normalised"),
    ("features", put(np.inf), "features has rows that are not normalised"),
    ("features", scale, "features has rows that are not normalised"),
    ("ids", put(-2), f"ids {NO_INDEX}"),
    ("neighbours/lists", put(60, (0, 1)), f"neighbours/lists {NO_INDEX}"),
    ("neighbours/lists", put(-1, (0, 1)), f"neighbours/lists {NO_INDEX}"),
    ("neighbours/similarities", put(np.nan), f"neighbours/similarities {NO_INDEX}"),
    ("encoded/group", put(60), f"encoded/group {NO_INDEX}"),
    ("encoded/group", put(-1), f"encoded/group {NO_INDEX}"),
    ("encoded/blur", put(np.nan), f"encoded/blur {NO_INDEX}"),
    ("encoded/blur", put(1e7), f"encoded/blur {NO_INDEX}"),
    ("encoded/reach", put(np.nan), f"encoded/reach {NO_INDEX}"),
    *(
        (f"encoded/{part}/{name}", put(value, place), f"encoded/{part}/{name} {NO_INDEX}")
        for part in ("halves", "encodings", "inverted")
        for name, value, place in (
            ("columns", 60, (0,)),
            ("columns", -1, (0,)),
            ("weights", -1, (0,)),
            ("weights", (1 << 30) + 1, (0,)),
            ("offsets", 1, (0,)),
            ("offsets", 0, (30,)),
        )
    ),
    ("encoded/encodings/weights", put(1 << 30, (slice(3),)), "encodings weigh more than they can"),
    ("encoded/inverted/weights", put(1 << 30, (slice(3),)), "encodings weigh more than they can"),
]


@pytest.mark.parametrize(("name", "change", "why"), FALSE)
def test_an_index_with_impossible_values_is_refused(name, change, why, tmp_path, write, cli):
    """Their checksum is right: anybody can compute it."""
    br.build_index(side(features()), tmp_path / "i.h5", **SMALL)
    with h5py.File("i.h5", "r+") as file:
        values = file[name][()]
        change(values)
        file[name][...] = values
        file[name].attrs["crc32"] = zlib.crc32(values.data)
    code, out, err = cli("run", "--index", "i.h5", write())
    assert (code, out) == (1, "")
    assert err == f"error: i.h5 is a damaged blurrerank-index file: {why}; build it again\n"


def state(path, method, params):
    """Let an index say that it is of another method; the checksum is right."""
    with h5py.File(path, "r+") as file:
        digest = file.attrs["digest"].decode()
        file.attrs["method"], file.attrs["params"] = np.bytes_(method), np.bytes_(params)
        file.attrs["crc32"] = zlib.crc32(f"{method} {params} {digest}".encode())


CHAIN = "center+whiten+pvg+camera-graph"
FALSE_STEPS = [
    ("steps/0/cams", put(99), f"steps/0/cams {NO_INDEX}"),
    ("steps/0/means", put(np.nan), f"steps/0/means {NO_INDEX}"),
    ("steps/0/deviations", put(0), f"steps/0/deviations {NO_INDEX}"),
    ("steps/1/axes", put(np.inf), f"steps/1/axes {NO_INDEX}"),
    ("steps/1/deviations", put(-1), f"steps/1/deviations {NO_INDEX}"),
    ("steps/2/matrices", put(np.nan, (0, 0, 0)), f"steps/2/matrices {NO_INDEX}"),
    ("steps/2/means", np.transpose, "steps/2/means is float32 (8, 3)"),
    ("steps/2/cams", lambda cams: cams.astype(np.int32), "steps/2/cams is int32 (3,)"),
    ("steps/1/centre", lambda values: values[:-1], "steps/1/centre is float64 (7,)"),
    ("steps/1", None, "it has no steps/1/axes"),
    ("steps/0/cams", lambda cams: cams[:0], "steps/0/cams is empty"),
    ("cams", None, "it has no cams, which center+whiten+pvg+camera-graph needs"),
    ("neighbours/within", None, "its neighbour lists are shorter than those of camera-graph"),
    ("encoded/rows/offsets", lambda values: values[:-1], "encoded/rows/offsets is int64 (60,)"),
]


@pytest.mark.parametrize(("name", "change", "why"), FALSE_STEPS)
def test_an_index_whose_steps_know_impossible_things_is_refused(name, change, why, tmp_path, write, cli):
    br.build_index(side(features()), tmp_path / "i.h5", CHAIN)
    with h5py.File("i.h5", "r+") as file:
        values = None if change is None else file[name][()]
        del file[name]
        if change is not None:
            changed = change(values)
            file[name] = np.ascontiguousarray(values if changed is None else changed)
            file[name].attrs["crc32"] = zlib.crc32(file[name][()].data)
    code, out, err = cli("run", "--index", "i.h5", write())
    assert (code, out) == (1, "")
    assert err == f"error: i.h5 is a damaged blurrerank-index file: {why}; build it again\n"


@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        (
            "camera-graph",
            "[]",
            "i.h5 is a damaged blurrerank-index file: its params are no JSON object; build it",
        ),
        ("camera-graph", "[" * 10_000, "i.h5 is a damaged blurrerank-index file: "),
        ("camera-graph", '{"ki": 2', "i.h5 is a damaged blurrerank-index file: "),
        ("camera-graph", '{"kk": 2}', "i.h5: method camera-graph has no parameter 'kk'"),
        ("camera-graph", '{"ki": [1]}', "i.h5: ki must be "),
        ("elsewhere", "{}", "i.h5: method 'elsewhere' is not known"),
        ("lbr", "{}", "i.h5: method lbr cannot be indexed"),
        (
            "center+camera-graph",
            '{"ki": 4, "ko": 6}',
            "i.h5 is a damaged blurrerank-index file: it has no steps/0/cams",
        ),
        (
            "k-reciprocal-online",
            "{}",
            "i.h5 is a damaged blurrerank-index file: its neighbour lists are shorter",
        ),
    ],
)
def test_an_index_that_names_another_method_is_refused(method, params, said, tmp_path, write, cli):
    br.build_index(side(features()), tmp_path / "i.h5", "camera-graph", ki=4, ko=6)
    state(tmp_path / "i.h5", method, params)
    code, out, err = cli("run", "--index", "i.h5", write())
    assert (code, out) == (1, "")
    assert err.startswith("error: i.h5"), err
    assert said in err
    assert err.count("\n") == 1


def test_an_index_with_the_encodings_of_another_method_is_refused(tmp_path):
    br.build_index(side(features()), tmp_path / "i.h5", "gnn", k1=20)
    state(tmp_path / "i.h5", "k-reciprocal-online", '{"pool": 15}')
    with pytest.raises(
        br.InputError, match="its encodings are not those of k-reciprocal-online; build it again"
    ):
        br.GalleryIndex.open(tmp_path / "i.h5")


def lose(file):
    del file["neighbours/lists"]


def from_the_future(file):
    file.attrs["format_version"] = 2


def of_no_version(file):
    file.attrs["format_version"] = "a"


def of_another_kind(file):
    file.attrs["format"] = "blurrerank-ranking"


SPOILED = {
    spoil_features: "features does not match its checksum",
    spoil_encodings: "encoded/inverted/columns does not match its checksum",
    spoil_digest: "its attributes have another checksum than when they were written",
    spoil_names: "names do not match their checksum",
    spoil_params: "its attributes have another checksum than when they were written",
    spoil_size: "encoded/reach is float32 (5,)",
    spoil_layout: "encoded/reach is not stored contiguously",
    lose: "it has no neighbours/lists",
}
NOT_AN_INDEX = {
    from_the_future: "has format_version 2: this program reads 1",
    of_no_version: "has format_version a: this program reads 1",
    of_another_kind: "is a blurrerank-ranking file: expected a blurrerank-index file, "
    "as written by `blurrerank index`",
}


@pytest.mark.parametrize("spoil", [*SPOILED, *NOT_AN_INDEX], ids=lambda spoil: spoil.__name__)
def test_a_spoiled_index_is_refused(spoil, tmp_path, write, cli):
    br.build_index(side(features()), tmp_path / "i.h5", **SMALL)
    with h5py.File("i.h5", "r+") as file:
        spoil(file)
    code, out, err = cli("run", "--index", "i.h5", write())
    damaged = "is a damaged blurrerank-index file"
    said = NOT_AN_INDEX.get(spoil) or f"{damaged}: {SPOILED[spoil]}; build it again"
    assert (code, out, err) == (1, "", f"error: i.h5 {said}\n")


def test_a_truncated_or_foreign_index_is_refused(tmp_path, write, cli):
    br.build_index(side(features()), tmp_path / "i.h5", **SMALL)
    feats = write()
    whole = (tmp_path / "i.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    assert cli("run", "--index", "cut.h5", feats)[2] == (
        "error: cut.h5 is a truncated HDF5 file: copy or write it again\n"
    )
    kind = "is an HDF5 file: expected a blurrerank-index file, as written by `blurrerank index`"
    assert cli("run", "--index", feats, feats)[2] == f"error: {feats} {kind}\n"
    assert cli("run", "--index", "no.h5", feats)[2] == "error: no.h5: no such file\n"
    other = write(
        "other.h5", probe=np.ones((3, 9), np.float32), probe_ids=None, probe_cams=None, probe_names=None
    )
    assert cli("run", "--index", "i.h5", other)[2] == (
        f"error: {other}::/probe has 9 dimensions and i.h5 has 8: both must come from the same model\n"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"gallery": np.ones((9, 7), np.float32)},
            "more.h5::/gallery has 7 dimensions and i.h5 has 8: both must",
        ),
        ({"gallery_ids": None}, "i.h5 has ids and more.h5::/gallery has none: they cannot be joined"),
        ({}, "every row of more.h5::/gallery is in i.h5 already: there is nothing to append"),
    ],
)
def test_what_cannot_be_appended_is_refused(changes, said, cli, write):
    assert cli("index", write(), "-o", "i.h5")[0] == 0
    before = Path("i.h5").read_bytes()
    if "gallery" in changes:
        changes |= {"gallery_ids": np.arange(9), "gallery_cams": None, "gallery_names": None}
    write("more.h5", **changes)
    code, _, err = cli("index", "more.h5", "-o", "i.h5", "--append")
    assert code == 1
    assert err.startswith(f"error: {said}")
    assert Path("i.h5").read_bytes() == before


def test_parameters_of_the_index_hold(cli, write):
    feats = write()
    assert cli("index", feats, "-o", "i.h5", "--k1", 7, "--k2", 2) == (
        0,
        "",
        "wrote i.h5: 60 gallery items x 8, for k-reciprocal-online:k1=7:k2=2\n",
    )
    refusal = "error: i.h5 was built with k1 7, not 9: leave it out or build another\n"
    assert cli("run", "--index", "i.h5", feats, "--k1", 9) == (2, "", refusal)
    assert cli("index", feats, "-o", "i.h5", "--append", "--k1", 9) == (2, "", refusal)
    code, out, _ = cli("run", "--index", "i.h5", feats, "--k1", 7, "--lambda", 0.6, "--json")
    assert code == 0
    assert json.loads(out)["params"] == {
        "pool": 50,
        "blur": 8,
        "sigma": 0.1,
        "k1": 7,
        "k2": 2,
        "lambda_value": 0.6,
    }
    index = br.GalleryIndex.open("i.h5")
    with pytest.raises(br.ParameterError, match=r"i\.h5 was built with blur 8, not 3"):
        index.rerank(np.ones(8), blur=3)
    # Without an index nothing holds; the same parameters give the same lists.
    data = br.load(feats)
    same(index.rerank(data.probe), br.rerank(data, "k-reciprocal-online", k1=7, k2=2))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("index", "feats.h5", "-o", "i.h5"), 1, "i.h5 exists: pass --force"),
        (
            ("index", "feats.h5", "-o", "i.h5", "--force", "--append"),
            2,
            "--append adds to the index and --force",
        ),
        (("index", "feats.h5", "-o", "feats.h5", "--force"), 2, "feats.h5 is named twice"),
        (
            ("index", "feats.h5", "-o", "nan.h5", "--force"),
            1,
            "nan.h5 exists and is not an index, so it is not replaced",
        ),
        (
            ("index", "feats.h5", "-o", "-"),
            2,
            "an index cannot be written to standard output: name a file with -o",
        ),
        (
            ("run", "--index", "i.h5", "feats.h5", "--method", "k-reciprocal"),
            2,
            "method k-reciprocal looks at all",
        ),
        (("run", "i.h5"), 1, "i.h5 is an index: pass it to `run` with --index"),
        (("index", "feats.h5", "-o", "j.h5", "--append"), 1, "j.h5: no such file"),
        (("index", "feats.h5", "-o", "j.h5", "--k1", "80"), 2, "pool 50 must be at least 80"),
        (("index", "nan.h5", "-o", "j.h5"), 1, "nan.h5::/gallery/features has NaN or infinity in row 7"),
        (("run", "feats.h5", "--index", "i.h5", "--gallery", "feats.h5"), 2, "--index and --gallery both name"),
        (("run", "feats.h5", "--index", "i.h5", "-o", "i.h5", "--force"), 2, "i.h5 is named twice"),
        (
            ("run", "feats.h5", "--index", "i.h5", "--topn", "5"),
            2,
            "--topn is not an option of method k-reciprocal-on",
        ),
        (("run", "-"), 2, "- reads probes from standard input, which needs --index"),
        (
            ("run", "-", "--index", "i.h5", "-o", "x.h5"),
            2,
            "probes from standard input are answered on standard",
        ),
        (("bench", "feats.h5", "--index", "i.h5", "--reference"), 2, "--reference cannot be used with --index"),
    ],
)
def test_wrong_use_is_one_line(arguments, code, said, cli, write):
    write()
    bad = features()["gallery"]
    bad[7, 1] = np.nan
    write("nan.h5", gallery=bad)
    cli("index", "feats.h5", "-o", "i.h5")
    found = cli(*arguments)
    assert found[:2] == (code, "")
    assert found[2].startswith(f"error: {said}")
    assert found[2].count("\n") == 1


def test_a_run_with_an_index_measures_as_one_without(cli, write):
    feats = write()
    probes = write("probes.h5", gallery=None, gallery_ids=None, gallery_cams=None, gallery_names=None)
    assert cli("index", feats, "-o", "i.h5")[0] == 0
    for method in ("lbr", "k-reciprocal-online", "cosine"):
        through = json.loads(
            cli("run", "--index", "i.h5", probes, "--method", method, "--json", "-o", "t.h5")[1]
        )
        without = json.loads(cli("run", feats, "--method", method, "--json", "-o", "w.h5")[1])
        assert through | {"output": 0} == without | {"output": 0}
        # The index has names, cameras and ids of the gallery; the file is measured with the features.
        assert json.loads(cli("eval", "t.h5", feats, "--json")[1])["mAP"] == through["after"]["mAP"]
        for file in ("t.h5", "w.h5"):
            Path(file).unlink()
    default = json.loads(cli("run", "--index", "i.h5", probes, "--json")[1])
    assert default["method"] == "k-reciprocal-online"


def answers(index, lines, *options):
    done = shell("run", "--index", index, "-", "--depth", 3, *options, input=lines)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_json_lines_are_answered_one_by_one(tmp_path):
    arrays = features()
    index = br.build_index(side(arrays), tmp_path / "i.h5", **SMALL)
    rows = [row.tolist() for row in arrays["probe"]]
    rows[2] = [1e300 * value for value in rows[2]]
    lines = [json.dumps(rows[0]), "", json.dumps({"features": rows[1], "name": "Zoë"}), json.dumps(rows[2])]
    code, found, err = answers(index.path, "\n".join(lines))
    assert (code, err) == (0, "")
    expected = index.rerank(arrays["probe"][:3], topn=3)
    assert [one.get("name") for one in found] == [None, "Zoë", None]
    for number, one in enumerate(found):
        assert one["probe"] == number
        assert one["indices"] == expected.indices[number].tolist()
        assert one["names"] == arrays["gallery_names"][expected.indices[number]].tolist()
        assert np.float32(one["scores"]).tolist() == expected.scores[number].tolist()
    code, by_lbr, _ = answers(index.path, lines[0], "--method", "lbr", "--topn", 30)
    assert (
        by_lbr[0]["indices"] == index.rerank(arrays["probe"][0], method="lbr", topn=30).indices[0, :3].tolist()
    )


def test_a_line_that_is_no_probe_is_answered_with_the_reason(tmp_path):
    arrays = features()
    index = br.build_index(side(arrays), tmp_path / "i.h5", **SMALL)
    good = json.dumps(arrays["probe"][0].tolist())
    strings = json.dumps(["1"] * 8)
    bad = ["nonsense", "[1, 2]", '{"name": "x"}', "[[1]]", strings, "[0, 0, 0, 0, 0, 0, 0, 0]", "7"]
    bad += [json.dumps([float("nan")] * 8), '{"features": [1, 2, 3, 4, 5, 6, 7, 8], "name": 3}']
    bad += ['{"features": [1, 2, 3, 4, 5, 6, 7, 8], "name": "\\ud800"}', "[" * 60000]
    code, found, err = answers(index.path, "\n".join([good, *bad, good]))
    assert code == 1
    assert err == f"error: {len(bad)} of {len(bad) + 2} lines were not valid probes: their answers say why\n"
    assert [one["probe"] for one in found] == list(range(len(bad) + 2))
    assert found[0]["indices"] == found[-1]["indices"]
    expected = 'expected [number, ...] or {"features": [number, ...], "name": "...", "cam": 1}'
    problems = [one["error"] for one in found[1:-1]]
    assert (
        problems[0]
        == problems[2]
        == problems[3]
        == problems[4]
        == problems[6]
        == problems[8]
        == problems[9]
        == problems[10]
        == expected
    )
    assert problems[1] == f"probe 2 has 2 dimensions and {index.path} has 8: both must come from the same model"
    assert problems[5] == "probe 6/features is all zero in row 0: such a row has no direction; remove it"
    assert "has NaN or infinity" in problems[7]


def npy(*arrays):
    stream = io.BytesIO()
    for array in arrays:
        np.save(stream, array)
    return stream.getvalue()


def ask_npy(index, data, start=forked):
    done = start("run", "--index", index, "-", "--depth", 3, input=data, cwd=index.parent, text=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_npy_rows_are_answered_one_by_one(tmp_path, dtype):
    arrays = features()
    index = br.build_index(side(arrays), tmp_path / "i.h5", **SMALL)
    probe = arrays["probe"].astype(dtype)
    asked = npy(probe[:2], probe[2], probe[3:4].T.copy().T, probe[4:6])
    code, found, err = ask_npy(index.path, asked, shell if dtype == "<f4" else forked)
    assert (code, err) == (0, "")
    expected = index.rerank(probe[:6].astype(dtype[1:]), topn=3)
    assert [one["indices"] for one in found] == expected.indices.tolist()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (npy(np.ones((2, 8)))[:-3], "standard input ends in row 1 of an array of 2"),
        (npy(np.ones((2, 8))).replace(b"}", b" "), "standard input has an invalid .npy header"),
        (npy(np.ones((2, 8))) + b"more", "standard input has an invalid .npy header"),
        (npy(np.ones((2, 8), int)), "standard input has an array of int64 (2, 8): expected rows of floats"),
        (npy(np.ones((2, 8, 1))), "standard input has an array of float64 (2, 8, 1): expected rows of floats"),
        (npy(np.asfortranarray(np.ones((2, 8)))), "standard input has an array in Fortran order"),
        (npy(np.ones((2, 9))), "standard input has rows of 9 numbers: expected 8"),
        (
            npy(np.ones((2, 8))).replace(b"(2, 8), }     ", b"(2, 8000000), }"),
            "standard input has rows of 8000000",
        ),
    ],
)
def test_a_stream_of_npy_that_cannot_be_read_on_ends_with_the_reason(data, said, tmp_path):
    index = br.build_index(side(features()), tmp_path / "i.h5", **SMALL)
    code, _, err = ask_npy(index.path, data)
    assert code == 1
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_a_line_without_an_end_is_not_kept(tmp_path):
    index = br.build_index(side(features()), tmp_path / "i.h5", **SMALL)
    good = json.dumps(features()["probe"][0].tolist())
    code, found, _ = answers(index.path, "\n".join([good, "1" * 5_000_000, good, "[" + " " * 100_000]))
    assert code == 1
    assert [one.get("error") for one in found] == [
        None,
        "longer than 66,048 bytes: expected 8 numbers and a name",
        None,
        "longer than 66,048 bytes: expected 8 numbers and a name",
    ]
    assert found[0]["indices"] == found[2]["indices"]


def test_index_takes_the_options_of_its_method():
    from dataclasses import fields

    from blurrerank.cli.index import index
    from blurrerank.cli.method_options import given_parameters
    from blurrerank.methods import create

    with click.Context(index) as context:
        names = given_parameters({option.name: 1 for option in index.get_params(context)})
    assert {field.name for field in fields(create("k-reciprocal-online"))} <= set(names)


def test_bench_times_probes_against_an_index(cli, write):
    feats = write()
    assert cli("index", feats, "-o", "i.h5")[0] == 0
    code, out, _ = cli("bench", feats, "--index", "i.h5", "--json")
    assert code == 0
    told = json.loads(out)
    assert [row["method"] for row in told] == ["cosine", "lbr", "k-reciprocal-online"]
    for row in told:
        assert row["alone"] == 300
        assert row["together"] == 12
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert min(row["search_us"], row["rerank_us"]) > 0
    code, out, _ = cli(
        "bench", feats, "--index", "i.h5", "--methods", "lbr:topn=7,k-reciprocal-online:lambda=0.9"
    )
    assert code == 0
    assert out.startswith("60 gallery items x 8; ")
    assert "lbr (topn 7, sigma 0.1)" in out
    assert "lambda 0.9" in out


def test_bench_times_the_own_method_of_an_index_by_default(cli, write):
    feats = write()
    for method, expected in (
        ("gnn", ["cosine", "lbr", "gnn"]),
        ("center+camera-graph", ["center+cosine", "center+lbr", "center+camera-graph"]),
        ("whiten:ridge=2+gnn:k1=9", ["whiten+cosine", "whiten+lbr", "whiten+gnn"]),
    ):
        assert cli("index", feats, "-o", "i.h5", "--method", method, "--force")[0] == 0
        code, out, err = cli("bench", feats, "--index", "i.h5", "--json", "--repeats", 1)
        assert code == 0, err
        assert [row["method"] for row in json.loads(out)] == expected


def test_an_index_is_not_added_to_by_another_method(tmp_path):
    arrays, path = features(gallery=60), tmp_path / "i.h5"
    br.build_index(side(arrays, 0, 40), path, "gnn")
    with pytest.raises(br.ParameterError, match=r"i\.h5 was built for gnn, not k-reciprocal-online"):
        br.build_index(side(arrays, 40), path, "k-reciprocal-online", append=True)


def test_a_step_that_looks_at_no_camera_knows_none(tmp_path, cli):
    br.build_index(side(features()), tmp_path / "i.h5", "center:by=gallery+gnn")
    code, out, _ = cli("info", "i.h5")
    assert (code, "further cameras" in out) == (0, False)
    with h5py.File("i.h5", "r+") as file:
        file["steps/1/means"] = np.zeros(3)
    with pytest.raises(br.InputError, match="it has more feature steps than center"):
        br.GalleryIndex.open(tmp_path / "i.h5")


def test_camera_images_of_an_index_that_change_nothing_are_warned_of(tmp_path):
    data, _ = camera_set()
    again = br.Side(data.gallery.features[:9], cams=data.gallery.cams[:9], label="again")
    with pytest.warns(br.BlurrerankWarning, match="again has no effect: the gallery has images of all of its"):
        br.build_index(data.gallery, tmp_path / "i.h5", "center+camera-graph", camera_images=again)


def test_a_camera_that_nothing_is_known_of_is_told_of_once(tmp_path):
    data, _ = camera_set()
    index = br.build_index(data.gallery, tmp_path / "i.h5", "center+camera-graph")
    rows = [json.dumps({"features": row.tolist(), "cam": 9}) for row in data.probe.features[:3]]
    rows.append(json.dumps({"features": data.probe.features[0].tolist(), "cam": 11}))
    code, found, err = answers(index.path, "\n".join(rows))
    assert (code, len(found)) == (0, 4)
    assert [line.partition(":")[2].partition(";")[0] for line in err.splitlines()] == [
        f" camera {cam} has no images in the gallery: the probe is left unchanged" for cam in (9, 11)
    ]


def test_memory_of_an_index_is_shared(path):
    """Features are the pages of the file, not a copy."""
    index = br.GalleryIndex.open(path)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here to look at memory")
    address = index.gallery.features.data_ptr()
    for line in maps.read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            assert line.endswith(str(path))
            return
    raise AssertionError("features are in no mapping")


CHAINS = (
    *("gnn", "camera-graph:ki=4:ko=6", "center+camera-graph", "center:shrink=0+k-reciprocal-online:pool=20"),
    "center+pvg+gnn:k1=9",
)


def camera_set(other=False):
    """Probes of a camera that the gallery lacks, a gallery, and earlier images of the probes' camera."""
    arrays = features(seed=5, probes=30, gallery=140, dim=64)
    arrays["probe_cams"][:] = 9
    data = br.FeatureSet(side(arrays, 0, 20, "probe"), side(arrays))
    return data, br.Side(arrays["probe"][20:], cams=arrays["probe_cams"][20:], label="earlier")


@pytest.mark.parametrize("method", CHAINS)
def test_an_index_of_any_online_chain_answers_as_the_chain_does(method, tmp_path):
    data, earlier = camera_set()
    known = {"camera_images": earlier} if "center" in method else {}
    br.build_index(data.gallery, tmp_path / "i.h5", method, **known)
    index = br.GalleryIndex.open(tmp_path / "i.h5")
    expected = br.rerank(data, method, online=True, depth=30, **known)
    found = index.rerank(data.probe, topn=30)
    same(found, expected)
    assert (found.method, found.params) == (expected.method, expected.params)
    alone = index.rerank(br.Side(data.probe.features[3:4], cams=data.probe.cams[3:4]), topn=30)
    np.testing.assert_array_equal(alone.indices[0], found.indices[3])
    if known:
        steps = method.rpartition("+")[0]
        same(
            index.rerank(data.probe, method=f"{steps}+lbr"),
            br.rerank(data, f"{steps}+lbr", online=True, **known),
        )
        with pytest.raises(br.ParameterError, match="so it cannot serve lbr: use center"):
            index.rerank(data.probe, method="lbr")
        with pytest.raises(br.ParameterError, match="has features transformed by center"):
            br.rerank(index.features(data.probe), "lbr", online=True)
        with pytest.raises(br.ParameterError, match="an index ranks each probe by itself: pass online=True"):
            br.rerank(index.features(data.probe), index.method.name, **index.method.params())
        with pytest.raises(br.InputError, match="has no cameras: method center needs them"):
            index.rerank(data.probe.features)


@pytest.mark.parametrize("method", CHAINS[:2])
def test_an_index_of_another_ranker_grows(method, tmp_path):
    arrays = features(seed=5, gallery=90)
    br.build_index(side(arrays, 0, 50), tmp_path / "grown.h5", method)
    br.build_index(side(arrays, 50), tmp_path / "grown.h5", append=True)
    br.build_index(side(arrays), tmp_path / "whole.h5", method)
    check_same_file(tmp_path / "grown.h5", tmp_path / "whole.h5")


def test_what_no_index_holds_is_refused(tmp_path):
    data, earlier = camera_set()
    for method, why in (
        ("k-reciprocal", "cannot be indexed: use a graph ranker that works online"),
        ("lbr", "cannot be indexed: use a graph ranker that works online"),
        ("dba+gnn", "dba averages images with their neighbours"),
    ):
        with pytest.raises(br.ParameterError, match=why):
            br.build_index(data.gallery, tmp_path / "i.h5", method)
    with pytest.raises(br.ParameterError, match="gnn does not use camera images"):
        br.build_index(data.gallery, tmp_path / "i.h5", "gnn", camera_images=earlier)
    with pytest.raises(br.InputError, match="gallery has no cameras: method camera-graph needs them; choose"):
        br.build_index(data.gallery.features, tmp_path / "i.h5", "camera-graph")


def test_an_index_with_cameras_on_the_command_line(cli, write):
    data, earlier = camera_set()
    br.save_features(data, "feats.h5")
    br.save_features(br.FeatureSet(earlier, data.gallery), "earlier.h5")
    chain = "center+camera-graph"
    code, out, err = cli(
        "index", "feats.h5", "-o", "i.h5", "--method", chain, "--camera-images", "earlier.h5", "--ki", 4
    )
    assert (code, out, err) == (0, "", "wrote i.h5: 140 gallery items x 64, for center+camera-graph:ki=4\n")
    code, by_index, err = cli("run", "--index", "i.h5", "feats.h5", "-o", "by_index.h5", "--lambda", 0.5)
    assert code == 0, err
    assert "center+cosine" in by_index
    run = (
        "run",
        "feats.h5",
        "--method",
        chain,
        "--online",
        "--camera-images",
        "earlier.h5",
        "--ki",
        4,
        "--lambda",
        0.5,
    )
    code, by_features, err = cli(*run, "-o", "by_features.h5")
    assert code == 0, err
    assert by_index.splitlines()[-1] == by_features.splitlines()[-1]
    same(br.read_ranking("by_index.h5", data), br.read_ranking("by_features.h5", data))
    rows = [
        json.dumps({"features": row.tolist(), "cam": 9, "name": str(number)})
        for number, row in enumerate(data.probe.features[:3])
    ]
    code, found, err = answers(
        Path("i.h5").resolve(), "\n".join([*rows, json.dumps([1.0] * 64)]), "--lambda", 0.5
    )
    assert code == 1
    lists = br.read_ranking("by_index.h5", data).indices
    assert [one["indices"] for one in found[:3]] == lists[:3, : len(found[0]["indices"])].tolist()
    assert found[3]["error"] == "probe 3 has no cam: method center+camera-graph needs cameras"
    spelt = [{"features": data.probe.features[0].tolist(), "cam": cam} for cam in (9.0, "9", 9.5, True, 1e300)]
    code, again, err = answers(Path("i.h5").resolve(), "\n".join(map(json.dumps, spelt)), "--lambda", 0.5)
    for number in (0, 1):
        expected = {key: value for key, value in found[0].items() if key != "name"}
        assert again[number] == expected | {"probe": number}
    assert [one["error"] for one in again[2:]] == [
        f"cam must be a whole number or text, not {cam}" for cam in ("9.5", "true", "1e+300")
    ]
    code, out, _ = cli("info", "i.h5")
    assert (code, "for center+camera-graph:ki=4" in out) == (0, True), out
    assert "cameras known from --camera-images: 9\n" in out
    assert json.loads(cli("info", "i.h5", "--json")[1])["further_cameras"] == [9]
    preset = ("index", "feats.h5", "--method", chain, "--preset", "two-cameras")
    assert cli(*preset, "-o", "p.h5")[0] == 0
    assert json.loads(cli("info", "p.h5", "--json")[1])["params"]["camera-graph.rounds"] == 3
    assert "further cameras" not in cli("info", "p.h5")[1]
    assert "method camera-graph has no preset 'elsewhere'" in cli(*preset[:-1], "elsewhere", "-o", "q.h5")[2]
    np.save("lists.npy", np.zeros((20, 5), int))
    code, _, err = cli("run", "--index", "i.h5", "feats.h5", "--candidates", "lists.npy", "-o", "o.h5")
    assert (code, "the features of i.h5 were transformed, so candidates" in err) == (2, True), err
    code, _, err = cli("run", "--index", "i.h5", "feats.h5", "--camera-images", "earlier.h5", "-o", "o.h5")
    assert (code, err) == (
        2,
        "error: an index takes camera images only when it is built: see `blurrerank index --camera-images`\n",
    )
