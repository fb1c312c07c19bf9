"""Indexes that are searched approximately and were changed since they were encoded."""

from __future__ import annotations

import os
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, features
from hypothesis import given, settings
from hypothesis import strategies as st
from test_index import SMALL, check_same_file, same
from test_index_changes import rows_of

import blurrerank as br
from blurrerank.files.verified import was_verified
from blurrerank.index import index_h5, write_h5
from blurrerank.index.gallery_index import GalleryIndex
from blurrerank.index.index_files import base_of, is_changed

METHODS = {"k-reciprocal-online": SMALL, "gnn": {}, "camera-graph": {}, "center+camera-graph": {}}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def changed(folder, arrays, method="k-reciprocal-online", *, first=80, more=40, gone=(), kind="hnsw", **params):
    """An index of `first` items to which `more` are added, 20 at a time, and from which some are taken."""
    path = folder / "i.h5"
    br.build_index(rows_of(arrays, np.arange(first)), path, method, ann=kind, **(params or METHODS[method]))
    for start in range(first, first + more, 20):
        br.build_index(rows_of(arrays, np.arange(start, min(start + 20, first + more))), path, append=True)
    return br.remove_from_index(path, rows=gone) if len(gone) else GalleryIndex.open(path)


@settings(max_examples=12, deadline=None)
@given(st.data(), st.sampled_from(list(METHODS)), st.sampled_from(["hnsw", "ivf"]))
def test_any_sequence_of_changes(tmp_path_factory, data, method, kind):
    """What is there is found, what is gone is not, and compacting gives what building at once gives."""
    folder, params = tmp_path_factory.mktemp("changes"), METHODS[method]
    path, steps = folder / "i.h5", "center+" if method.startswith("center") else ""
    arrays = features(seed=data.draw(st.integers(0, 99)), gallery=90)
    first = data.draw(st.integers(20, 80))
    inside, outside = list(range(first)), list(range(first, 90))
    br.build_index(rows_of(arrays, inside), path, method, ann=kind, effort=99, **params)
    probe = br.Side(arrays["probe"], cams=arrays["probe_cams"])
    for _ in range(data.draw(st.integers(1, 4))):
        if outside and data.draw(st.booleans()):
            new, outside = outside[:7], outside[7:]
            br.build_index(rows_of(arrays, new), path, append=True)
            inside += new
        elif len(inside) > 20:
            gone = data.draw(st.sets(st.integers(0, len(inside) - 1), min_size=1, max_size=len(inside) - 15))
            if data.draw(st.booleans()):
                br.remove_from_index(path, rows=sorted(gone))
            else:
                br.remove_from_index(path, names=[arrays["gallery_names"][inside[row]] for row in gone])
            outside += [inside[row] for row in gone]
            inside = [item for row, item in enumerate(inside) if row not in gone]
        index, left = GalleryIndex.open(path), rows_of(arrays, inside)
        for name in ("ids", "cams", "names"):
            np.testing.assert_array_equal(getattr(index.gallery, name), getattr(left, name))
        assert index.gallery.digest() == left.digest()
        # All items are candidates here: the lists of cosine are those of a search of what is there.
        nearest = index.rerank(probe, method=f"{steps}cosine", topn=10)
        if not steps:
            expected = np.argsort(-unit(arrays["probe"]) @ unit(arrays["gallery"][inside]).T, kind="stable")
            np.testing.assert_array_equal(nearest.indices, expected[:, :10])
        found = index.rerank(probe, topn=len(inside))
        assert found.gallery_size == len(inside)
        assert [len(np.unique(row)) for row in found.indices] == [len(inside)] * len(arrays["probe"])
        alone = index.rerank(br.Side(arrays["probe"][3:4], cams=arrays["probe_cams"][3:4]), topn=len(inside))
        np.testing.assert_array_equal(alone.indices[0], found.indices[3])
        np.testing.assert_array_equal(alone.scores[0], found.scores[3])
    compacted = br.compact_index(path)
    assert compacted.drift is None
    assert not base_of(path).exists()
    if not steps:  # what these know stays as it was
        anew = br.build_index(
            rows_of(arrays, inside), folder / "anew.h5", method, ann=kind, effort=99, **params
        )
        check_same_file(path, folder / "anew.h5")
        same(compacted.rerank(probe), anew.rerank(probe))


def test_items_are_encoded_against_what_is_there(tmp_path):
    """gnn, dense: A of an added item is the mean of its neighbours', where those of before stay as they are."""
    arrays = features(gallery=70)
    base = br.build_index(rows_of(arrays, np.arange(60)), tmp_path / "i.h5", "gnn", ann="hnsw", effort=99)
    rows = base.gallery.encoded[0].rows.to_scipy(60).toarray()
    index = br.build_index(rows_of(arrays, np.arange(60, 70)), tmp_path / "i.h5", append=True)
    x = unit(arrays["gallery"].astype(np.float64))
    lists = np.argsort(-(x[60:] @ x.T), axis=1, kind="stable")
    method = base.method
    a = np.zeros((10, 70))
    np.put_along_axis(a, lists[:, : method.k1], 1, axis=1)
    every = np.zeros((70, 70))
    every[:60, :60] = rows
    for _ in range(2):
        every[60:] = unit(a)
        near = lists[:, : method.k2]
        shares = np.maximum(np.take_along_axis(x[60:] @ x.T, near, axis=1), 0) ** 2
        a = np.stack([share @ every[items] for share, items in zip(shares, near, strict=True)])
    found = index.gallery.encoded[0].rows.to_scipy(70).toarray()
    np.testing.assert_allclose(found[:60, :60], rows)
    np.testing.assert_allclose(found[60:], unit(a), atol=1e-5)


def test_items_are_encoded_by_camera_against_what_is_there(tmp_path):
    """Likewise camera-graph, after some items are gone: these are in no new list."""
    arrays, gone = features(gallery=90), np.arange(0, 40, 3)
    how = {"ki": 4, "ko": 5, "k2i": 3, "k2o": 2, "rounds": 2}
    br.build_index(
        rows_of(arrays, np.arange(80)), tmp_path / "i.h5", "camera-graph", ann="hnsw", effort=99, **how
    )
    base = br.remove_from_index(tmp_path / "i.h5", rows=gone)
    rows = base.stored.encoded[0].rows.to_scipy(80).toarray()
    index = br.build_index(rows_of(arrays, np.arange(80, 90)), tmp_path / "i.h5", append=True)
    x, cams = unit(arrays["gallery"].astype(np.float64)), arrays["gallery_cams"]
    cosine = x[80:] @ x.T
    cosine[:, gone] = -9
    own = cams[80:, None] == cams[None]

    def lists(within, across):
        """Of each added item, itself and its nearest of its camera, and the nearest of others."""
        found = []
        for item, (similar, alike) in enumerate(zip(cosine, own, strict=True)):
            near = np.argsort(-np.where(alike, similar, -9), kind="stable")
            others = np.argsort(-np.where(alike, -9, similar), kind="stable")
            assert near[0] == 80 + item
            found.append(np.concatenate([near[:within], others[:across]]))
        return np.array(found)

    a = np.zeros((10, 90))
    np.put_along_axis(a, lists(4, 5), 1, axis=1)
    every, near = np.zeros((90, 90)), lists(3, 2)
    every[:80, :80] = rows
    shares = np.maximum(np.take_along_axis(cosine, near, axis=1), 0) ** 2
    for _ in range(2):
        every[80:] = unit(a)
        a = np.stack([share @ every[items] for share, items in zip(shares, near, strict=True)])
    found = index.stored.encoded[0].rows.to_scipy(90).toarray()
    np.testing.assert_allclose(found[80:], unit(a), atol=1e-5)


def test_items_are_encoded_by_reciprocity_against_what_is_there(tmp_path):
    """Likewise k-reciprocal-online, by the definition, one item after another."""
    arrays, gone = features(gallery=100), np.arange(0, 30, 3)
    k1, k2, size, pool, sigma = 6, 3, 4, 20, 0.1
    br.build_index(rows_of(arrays, np.arange(90)), tmp_path / "i.h5", ann="hnsw", effort=99, **SMALL)
    before = br.remove_from_index(tmp_path / "i.h5", rows=gone).stored.encoded[0]
    index = br.build_index(rows_of(arrays, np.arange(90, 100)), tmp_path / "i.h5", append=True)
    after = index.stored.encoded[0]
    x = unit(arrays["gallery"].astype(np.float64))
    cosine = x[90:] @ x.T
    cosine[:, gone] = -9
    groups, blur = before.group.tolist(), before.blur.double().tolist()
    lists = {}
    for item in range(90, 100):
        order = np.argsort(-cosine[item - 90], kind="stable").tolist()
        order.remove(item)
        lists[item] = order[:pool]
        members = [item, *order[: size - 1]]
        shares = np.exp((x[members] @ x[item]) / sigma)
        shares /= shares.sum()
        groups.append(members)
        blur.append((shares / np.linalg.norm(shares @ x[members])).tolist())
    half, reach = round(k1 / 2), {k1: before.reach.tolist(), round(k1 / 2): before.reach.tolist()}
    near = {}
    for item, others in lists.items():
        to = {j: float(np.dot(blur[j], x[groups[j]] @ x[item])) for j in others}
        near[item] = sorted(to.items(), key=lambda pair: (-pair[1], pair[0]))
        for count in reach:
            reach[count].append(near[item][count - 1][1])

    def reciprocal(item, count):
        return {item, *(j for j, b in near[item][:count] if b > reach[count][j])}

    halves = {j: set(before.halves.rows(j, j + 1).columns.tolist()) for j in range(90)}
    halves |= {item: reciprocal(item, half) for item in near}
    encodings = np.zeros((100, 100))
    encodings[:90, :90] = before.encodings.to_scipy(90).toarray()
    for item in near:
        members = reciprocal(item, k1)
        grown = [halves[j] for j in members if 3 * len(halves[j] & members) > 2 * len(halves[j])]
        everyone = sorted(members.union(*grown))
        encodings[item, everyone] = 1 / len(everyone)
    expected = np.zeros((10, 100))
    for item, found in near.items():
        first = found[: k2 - 1]
        shares = [1, *(np.exp((b - first[0][1]) / sigma) for _, b in first)]
        expected[item - 90] = np.average(encodings[[item, *(j for j, _ in first)]], axis=0, weights=shares)
    added = after.added.transposed(100).rows(90, 100).to_scipy(100).toarray()
    np.testing.assert_allclose(added, expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_nearly_those_of_a_build(method, tmp_path):
    data = br.load(ROOT / "examples/omniglot.h5")
    gallery = data.gallery
    order = np.random.default_rng(0).permutation(len(gallery))
    arrays = {"gallery": gallery.features[:][order]}
    arrays |= {f"gallery_{name}": getattr(gallery, name)[order] for name in ("ids", "cams", "names")}
    most = len(order) * 9 // 10
    params = {} if method == "k-reciprocal-online" else METHODS[method]
    br.build_index(rows_of(arrays, np.arange(most)), tmp_path / "i.h5", method, ann="hnsw", **params)
    br.build_index(rows_of(arrays, np.arange(most, len(order))), tmp_path / "i.h5", append=True)
    gone = np.arange(0, len(order), 50)
    index = br.remove_from_index(tmp_path / "i.h5", rows=gone)
    drift = index.drift
    assert (drift.added, drift.removed) == (
        int((np.arange(most, len(order)) % 50 > 0).sum()),
        int((gone < most).sum()),
    )
    assert 0.1 < drift.stale / drift.encoded < 1
    probe = br.Side(data.probe.features[:][::7], data.probe.ids[::7], data.probe.cams[::7])

    def quality(index):
        found = index.rerank(probe, topn=256)
        listed = br.Ranking(found.indices, found.scores, gallery_size=len(index))
        with pytest.warns(br.BlurrerankWarning, match="the shortest list ends at rank 256"):
            return br.evaluate(listed, br.FeatureSet(probe, index.gallery)).mAP

    before = quality(index)
    after = quality(br.compact_index(tmp_path / "i.h5"))
    assert before == pytest.approx(after, abs=0.02)


def test_an_item_goes_and_comes_back(tmp_path):
    arrays = features(gallery=100)
    index = changed(tmp_path, arrays, first=100, more=0, gone=[7, 50])
    assert index.drift.removed == 2
    assert 0 < index.drift.stale <= 98
    back = br.build_index(rows_of(arrays, [50, 7]), tmp_path / "i.h5", append=True)
    assert (back.drift.added, back.drift.removed) == (2, 2)
    found = back.rerank(arrays["gallery"][[50, 7]], topn=1)
    assert found.indices[:, 0].tolist() == [98, 99]
    gone = br.remove_from_index(tmp_path / "i.h5", rows=[98, 99])
    assert (gone.drift.added, gone.drift.removed) == (0, 2)


def test_who_has_it_open_goes_on(tmp_path):
    arrays = features(gallery=100)
    index = changed(tmp_path, arrays, more=0)
    before = index.rerank(arrays["probe"])
    changed_once = br.build_index(rows_of(arrays, np.arange(80, 100)), tmp_path / "i.h5", append=True)
    once = changed_once.rerank(arrays["probe"])
    br.remove_from_index(tmp_path / "i.h5", rows=range(10))
    same(index.rerank(arrays["probe"]), before)
    same(changed_once.rerank(arrays["probe"]), once)
    br.compact_index(tmp_path / "i.h5")
    same(changed_once.rerank(arrays["probe"]), once)


def test_what_was_encoded_is_not_copied(tmp_path, monkeypatch):
    arrays = features(gallery=100)
    changed(tmp_path, arrays, more=0)
    large = (tmp_path / "i.h5").stat()
    changed_index = br.remove_from_index(tmp_path / "i.h5", rows=[3])
    assert (tmp_path / "i.h5.base").stat().st_ino == large.st_ino
    assert (tmp_path / "i.h5").stat().st_size < large.st_size
    assert was_verified(tmp_path / "i.h5.base")
    expected = changed_index.rerank(arrays["probe"])
    # Where there are no hard links, it is.
    (tmp_path / "other").mkdir()
    changed(tmp_path / "other", arrays, more=0)

    def none(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", none)
    copied = br.remove_from_index(tmp_path / "other/i.h5", rows=[3])
    same(copied.rerank(arrays["probe"]), expected)


@pytest.mark.parametrize("ann", [None, "ivf"])
def test_indexes_of_earlier_versions_are_changed(ann, tmp_path, monkeypatch):
    """They have the similarity to the farthest item too."""
    arrays, path = features(gallery=90), tmp_path / "i.h5"
    put_neighbours = write_h5.put_neighbours

    def as_before(file, near):
        put_neighbours(file, replace(near, lowest=torch.full((len(near),), -1.0)))

    with monkeypatch.context() as patched:
        patched.setattr(write_h5, "put_neighbours", as_before)
        br.build_index(rows_of(arrays, np.arange(70)), path, "gnn", ann=ann)
    with h5py.File(path) as file:
        assert "lowest" in file["neighbours"]
    br.build_index(rows_of(arrays, np.arange(70, 90)), path, append=True)
    br.remove_from_index(path, rows=[3, 80])
    left = br.compact_index(path)
    br.build_index(rows_of(arrays, np.setdiff1d(np.arange(90), [3, 80])), tmp_path / "new.h5", "gnn", ann=ann)
    probe = br.Side(arrays["probe"])
    same(left.rerank(probe), GalleryIndex.open(tmp_path / "new.h5").rerank(probe))


def test_a_file_of_somebody_else_is_not_replaced(tmp_path):
    arrays = features(gallery=100)
    changed(tmp_path, arrays, more=0)
    (tmp_path / "i.h5.base").write_text("mine")
    with pytest.raises(br.OutputError, match=r"i\.h5\.base exists, but .*i\.h5 needs this name"):
        br.remove_from_index(tmp_path / "i.h5", rows=[3])
    br.build_index(rows_of(arrays, np.arange(30)), tmp_path / "i.h5", force=True, **SMALL)
    assert (tmp_path / "i.h5.base").read_text() == "mine"
    assert len(GalleryIndex.open(tmp_path / "i.h5")) == 30


def test_what_an_index_was_encoded_with_is_not_changed(tmp_path):
    arrays = features(gallery=100)
    changed(tmp_path, arrays, more=0, gone=[1])
    before = (tmp_path / "i.h5.base").read_bytes()
    with pytest.raises(br.OutputError, match=r"i\.h5\.base belongs to .*i\.h5, which holds changes to it"):
        br.remove_from_index(tmp_path / "i.h5.base", rows=[3])
    with pytest.raises(br.OutputError, match=r"i\.h5\.base belongs to"):
        br.build_index(rows_of(arrays, np.arange(30)), tmp_path / "i.h5.base", force=True, **SMALL)
    assert (tmp_path / "i.h5.base").read_bytes() == before


def test_the_same_features_by_another_name_are_added(tmp_path):
    arrays = features(gallery=100)
    changed(tmp_path, arrays, more=0)
    again = rows_of(arrays, np.arange(3))
    with pytest.raises(br.InputError, match="there is nothing to append"):
        br.build_index(again, tmp_path / "i.h5", append=True)
    renamed = br.Side(again.features, again.ids, again.cams, np.array(["x", "y", "z"], dtype=object))
    with pytest.warns(br.BlurrerankWarning, match="the features of 3 of 3 rows .* are in .* already"):
        index = br.build_index(renamed, tmp_path / "i.h5", append=True)
    assert index.gallery.names[-3:].tolist() == ["x", "y", "z"]


def test_a_second_name_that_was_left_is_used_or_removed(tmp_path):
    """As by a process that is killed before the changes take the place of the index."""
    arrays = features(gallery=100)
    changed(tmp_path, arrays, more=0)
    os.link(tmp_path / "i.h5", tmp_path / "i.h5.base")
    assert len(br.remove_from_index(tmp_path / "i.h5", rows=[3])) == 79
    changed_to = br.compact_index(tmp_path / "i.h5")
    assert len(changed_to) == 79
    os.link(tmp_path / "i.h5", tmp_path / "i.h5.base")
    br.build_index(rows_of(arrays, np.arange(30)), tmp_path / "i.h5", force=True, **SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["i.h5"]


def test_an_index_that_is_compacted_while_it_is_opened(tmp_path, monkeypatch):
    arrays = features(gallery=100)
    changed(tmp_path, arrays, more=0, gone=[3])
    once = index_h5.files_of

    def compacting(path):
        found = once(path)
        monkeypatch.setattr(index_h5, "files_of", once)
        br.compact_index(tmp_path / "i.h5")
        return found

    monkeypatch.setattr(index_h5, "files_of", compacting)
    assert len(GalleryIndex.open(tmp_path / "i.h5")) == 79


def test_few_that_are_left_are_encoded_anew(tmp_path):
    arrays = features(gallery=100)
    left = changed(tmp_path, arrays, more=0, gone=range(70))
    assert left.drift is not None
    index = br.build_index(rows_of(arrays, np.arange(80, 100)), tmp_path / "i.h5", append=True)
    assert index.drift is None
    br.build_index(rows_of(arrays, np.arange(70, 100)), tmp_path / "anew.h5", ann="hnsw", **SMALL)
    check_same_file(tmp_path / "i.h5", tmp_path / "anew.h5")


def test_a_copy_may_be_read_by_those_who_could_read_the_index(tmp_path, monkeypatch):
    arrays = features(gallery=100)
    changed(tmp_path, arrays, more=0)
    (tmp_path / "i.h5").chmod(0o600)

    def none(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", none)
    br.remove_from_index(tmp_path / "i.h5", rows=[3])
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("i.h5", "i.h5.base")] == [0o600, 0o600]


def test_bench_of_an_index_from_which_items_were_removed(cli, write):
    feats = write(**features(gallery=100))
    assert cli("index", feats, "-o", "i.h5", "--ann", "hnsw")[0] == 0
    assert cli("index", "-o", "i.h5", "--remove", "3")[0] == 0
    code, out, _ = cli("bench", feats, "--index", "i.h5", "--effort", "20,99", "--repeats", 1, "-q")
    assert code == 0
    assert "all items" not in out
    assert "overlap" not in out


def test_a_link_to_an_index_is_changed_where_it_is(tmp_path):
    arrays = features(gallery=100)
    (tmp_path / "here").mkdir()
    changed(tmp_path / "here", arrays, more=0)
    (tmp_path / "link.h5").symlink_to("here/i.h5")
    br.build_index(rows_of(arrays, np.arange(80, 100)), tmp_path / "link.h5", append=True)
    assert sorted(file.name for file in (tmp_path / "here").iterdir()) == ["i.h5", "i.h5.base"]
    assert (tmp_path / "link.h5").is_symlink()
    assert len(GalleryIndex.open(tmp_path / "link.h5")) == 100


def test_a_new_index_in_its_place_leaves_nothing_behind(tmp_path):
    arrays = features(gallery=120)
    changed(tmp_path, arrays, gone=[1])
    br.build_index(rows_of(arrays, np.arange(30)), tmp_path / "i.h5", force=True, **SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["i.h5"]


def test_a_gallery_whose_lists_end_early_is_encoded_anew(tmp_path):
    arrays = features(gallery=60)
    br.build_index(rows_of(arrays, np.arange(15)), tmp_path / "i.h5", ann="hnsw", **SMALL)
    grown = br.build_index(rows_of(arrays, np.arange(15, 60)), tmp_path / "i.h5", append=True)
    assert grown.drift is None
    br.build_index(rows_of(arrays, np.arange(60)), tmp_path / "anew.h5", ann="hnsw", **SMALL)
    check_same_file(tmp_path / "i.h5", tmp_path / "anew.h5")


def test_all_that_is_left_can_be_looked_at_when_nothing_was_removed(tmp_path):
    arrays = features(gallery=120)
    index = changed(tmp_path, arrays)
    found = index.rerank(arrays["probe"], effort=120, topn=120)
    exact = index.rerank(arrays["probe"], exact=True, topn=120)
    np.testing.assert_allclose(found.scores, exact.scores, atol=3e-6)
    index = br.remove_from_index(tmp_path / "i.h5", rows=[3])
    with pytest.raises(br.ParameterError, match=r"items were removed from .*i\.h5 since it was encoded"):
        index.rerank(arrays["probe"], exact=True)
    nearest = index.rerank(arrays["probe"], method="cosine", exact=True, topn=119)
    assert nearest.indices.max() == 118


def damage(path, how):
    with h5py.File(path, "r+") as file:
        how(file)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda file: file["removed"].write_direct(np.array([999])), "removed does not match its checksum"),
        (
            lambda file: file.attrs.modify("stale", np.bytes_(b"1000000")),
            "its attributes have another checksum",
        ),
        (lambda file: file.attrs.modify("base", np.bytes_(b"1")), "is not the file that"),
        (
            lambda file: file.attrs.modify("method", np.bytes_(b"gnn")),
            "another checksum than when they were written",
        ),
        (lambda file: file.__delitem__("names"), "it has no names, and its base has"),
        (lambda file: file.__delitem__("encoded/rows"), "it has no encoded/rows"),
        (lambda file: file.attrs.modify("format_version", 9), "has format_version 9"),
    ],
)
def test_damaged_changes_are_told(how, said, tmp_path):
    changed(tmp_path, features(gallery=120), gone=[5])
    damage(tmp_path / "i.h5", how)
    with pytest.raises(br.InputError) as error:
        GalleryIndex.open(tmp_path / "i.h5")
    assert said in str(error.value)


def test_an_index_without_what_it_is_of(tmp_path):
    arrays = features(gallery=120)
    changed(tmp_path, arrays)
    base = tmp_path / "i.h5.base"
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(br.InputError, match=r"holds changes to .*i\.h5\.base, which is missing"):
        GalleryIndex.open(tmp_path / "i.h5")
    br.build_index(rows_of(arrays, np.arange(50)), tmp_path / "other.h5", ann="hnsw", **SMALL)
    (tmp_path / "other.h5").rename(base)
    with pytest.raises(br.InputError, match="is not the file that"):
        GalleryIndex.open(tmp_path / "i.h5")


def test_on_the_command_line(cli, write, tmp_path):
    feats = write()
    assert cli("index", feats, "-o", "i.h5", "--ann", "hnsw")[0] == 0
    assert cli("index", "-o", "i.h5", "--compact") == (
        0,
        "",
        "i.h5 is encoded as it is: there is nothing to compact\n",
    )
    code, out, err = cli("index", "-o", "i.h5", "--remove", "3,17")
    assert (code, out) == (0, "")
    lines = err.splitlines()
    assert lines[0] == "wrote i.h5: 58 gallery items are left"
    assert lines[1].startswith("0 items added and 2 removed since it was encoded; at least ")
    assert lines[1].endswith("of the other neighbour lists are out of date; --compact encodes it again")
    assert lines[1].removesuffix("; --compact encodes it again") in cli("info", "i.h5")[1].splitlines()
    assert is_changed(tmp_path / "i.h5")
    assert cli("info", "i.h5")[0] == 0
    assert cli("run", "--index", "i.h5", feats, "-o", "r.h5")[0] == 0
    assert cli("index", "-o", "i.h5", "--compact") == (0, "", "wrote i.h5: 58 gallery items\n")
    assert not is_changed(tmp_path / "i.h5")
    code, _, err = cli("index", "-o", "missing.h5", "--compact")
    assert (code, len(err.splitlines())) == (1, 1)
    code, _, err = cli("index", "-o", "i.h5", "--compact", "--remove", "3")
    assert (code, err.splitlines()[-1]) == (
        2,
        "error: --compact works on the whole index: leave --remove out",
    )
    code, _, err = cli("index", "-o", "i.h5", "--remove", "3", "--effort", "9")
    assert (code, err.splitlines()[-1]) == (
        2,
        "error: --remove only removes items: leave --effort out",
    )
