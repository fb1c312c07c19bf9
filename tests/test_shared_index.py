"""One index for several rankers: each answers as from an index of its own."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from conftest import features
from test_index import SMALL, check_same_file, same
from test_index_changes import rows_of

import blurrerank as br
from blurrerank.index.gallery_index import GalleryIndex

K_RECIPROCAL = "k-reciprocal-online:" + ":".join(f"{name}={value}" for name, value in SMALL.items())
RANKERS = [K_RECIPROCAL, "gnn", "camera-graph:ki=3:ko=4"]


def probes(arrays):
    return br.Side(arrays["probe"], cams=arrays["probe_cams"])


@pytest.mark.parametrize(
    ("first", "ann", "steps"),
    [
        *((0, None, ""), (1, None, "center+"), (2, None, "")),
        *((0, "hnsw", "center+"), (1, "hnsw", ""), (2, "hnsw", "center+")),
    ],
)
def test_each_answers_as_from_its_own(first, ann, steps, tmp_path):
    arrays = features(gallery=120)
    gallery = rows_of(arrays, np.arange(100))
    names = [steps + name for name in (RANKERS[first], *RANKERS[:first], *RANKERS[first + 1 :])]
    path = tmp_path / "i.h5"
    index = br.build_index(gallery, path, names[0], also=names[1:], ann=ann, effort=ann and 99)
    for name in names:
        own = br.build_index(gallery, tmp_path / "own.h5", name, ann=ann, effort=ann and 99, force=True)
        method = own.method.name
        same(index.rerank(probes(arrays), method=method), own.rerank(probes(arrays)))
    same(index.rerank(probes(arrays)), index.rerank(probes(arrays), method=names[0]))
    # It grows and shrinks as one.
    br.build_index(rows_of(arrays, np.arange(100, 120)), path, append=True)
    changed = br.remove_from_index(path, rows=[3, 119])
    for name in names:
        own = tmp_path / "own.h5"
        br.build_index(gallery, own, name, ann=ann, effort=ann and 99, force=True)
        br.build_index(rows_of(arrays, np.arange(100, 120)), own, append=True)
        alone = br.remove_from_index(own, rows=[3, 119])
        same(changed.rerank(probes(arrays), method=alone.method.name), alone.rerank(probes(arrays)))
    if ann and not steps:
        br.compact_index(path)
        left = rows_of(arrays, [row for row in range(119) if row != 3])
        br.build_index(left, tmp_path / "anew.h5", names[0], also=names[1:], ann=ann, effort=99)
        check_same_file(path, tmp_path / "anew.h5")


def test_one_looks_at_no_more_for_others(tmp_path):
    """With little effort not all items are candidates: each has nearly those of an index of its own."""
    arrays = features(gallery=400, dim=16)
    gallery = rows_of(arrays, np.arange(400))
    index = br.build_index(gallery, tmp_path / "i.h5", RANKERS[0], also=RANKERS[1:], ann="hnsw", effort=20)
    for name in RANKERS:
        own = br.build_index(gallery, tmp_path / "own.h5", name, ann="hnsw", effort=20, force=True)
        found, alone = index.rerank(probes(arrays), method=own.method.name), own.rerank(probes(arrays))
        shared = [len(np.intersect1d(*lists)) / 50 for lists in zip(found.indices, alone.indices, strict=True)]
        assert np.mean(shared) > 0.9


def test_an_interrupted_build_goes_on(tmp_path):
    arrays = features(gallery=100)
    how = {"also": RANKERS[1:], "checkpoint_seconds": 0.0}

    class Stopped(Exception):
        pass

    def stop(done, total):
        if done > 50:
            raise Stopped

    gallery = rows_of(arrays, np.arange(100))
    memory = 128 * 8 * 40
    with pytest.raises(Stopped):
        br.build_index(gallery, tmp_path / "i.h5", RANKERS[0], progress=stop, memory=memory, **how)
    assert (tmp_path / "i.h5.partial").exists()
    br.build_index(gallery, tmp_path / "i.h5", RANKERS[0], memory=memory, **how)
    br.build_index(gallery, tmp_path / "once.h5", RANKERS[0], **how)
    check_same_file(tmp_path / "i.h5", tmp_path / "once.h5")


@pytest.mark.parametrize(
    ("method", "also", "said"),
    [
        ("gnn", ["gnn:k1=9"], "gnn is named twice, and an index can serve it only once: name it once"),
        ("gnn", ["lbr"], "method lbr cannot be indexed"),
        ("gnn", ["center+camera-graph"], "cannot share an index with gnn: it must have no feature steps"),
        ("center+gnn", ["camera-graph"], "it must begin with center, and with its parameters"),
        ("center+gnn", ["center:shrink=0+camera-graph"], "it must begin with center, and with its parameters"),
        ("gnn", ["nope"], "nope"),
    ],
)
def test_what_cannot_share_is_told(method, also, said, tmp_path):
    with pytest.raises(br.ParameterError, match=said.replace("+", r"\+")):
        br.build_index(rows_of(features(), np.arange(60)), tmp_path / "i.h5", method, also=also)
    assert not list(tmp_path.iterdir())


def test_a_method_that_it_was_not_built_for(tmp_path):
    index = br.build_index(rows_of(features(), np.arange(60)), tmp_path / "i.h5", "gnn", also=[K_RECIPROCAL])
    with pytest.raises(br.ParameterError, match="was built for gnn and k-reciprocal-online, not camera-graph"):
        index.method_for("camera-graph")
    with pytest.raises(br.ParameterError, match="was built with k1 6, not 7"):
        index.method_for("k-reciprocal-online", k1=7)
    assert index.method_for("k-reciprocal-online", lambda_value=0.5).lambda_value == 0.5
    assert index.method_for("k-reciprocal-online").k1 == 6


def test_damage_is_told(tmp_path):
    path = tmp_path / "i.h5"
    br.build_index(rows_of(features(), np.arange(60)), path, "gnn", also=[K_RECIPROCAL])
    with h5py.File(path, "r+") as file:
        file.attrs["also"] = np.bytes_(b"[]")
    with pytest.raises(br.InputError, match="its attributes have another checksum"):
        GalleryIndex.open(path)


def test_on_the_command_line(cli, write, tmp_path):
    feats = write()
    assert cli("index", feats, "-o", "i.h5", "--method", "gnn", "--also", "camera-graph")[2] == (
        "wrote i.h5: 60 gallery items x 8, for gnn and camera-graph\n"
    )
    assert "and camera-graph" in cli("info", "i.h5")[1].splitlines()
    code, _, err = cli("run", feats, "--index", "i.h5", "--method", "camera-graph", "-o", "r.h5")
    assert (code, err) == (0, "wrote r.h5: 12 lists of 50\n")
    with h5py.File(tmp_path / "r.h5") as file:
        assert file.attrs["method"] in ("camera-graph", b"camera-graph")
    code, _, err = cli("index", feats, "-o", "i.h5", "--append", "--also", "gnn")
    assert (code, err.splitlines()[-1][:50]) == (2, "error: --append keeps the methods of the index: le")
