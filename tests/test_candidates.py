"""Lists from elsewhere and from FAISS: the same lists as a search where they hold the same, and no pretence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, features, shell, sides
from forks import forked
from hypothesis import given
from hypothesis import strategies as st

import blurrerank as br
from blurrerank import reference
from blurrerank.cli.candidates import _FACTORY
from blurrerank.data.given_lists import GivenLists
from blurrerank.search import approximate
from blurrerank.search.exact import Query, search
from blurrerank.search.given import listed_scores
from blurrerank.search.rows import UnitRows

SIMILAR = features(seed=5, probes=30, gallery=200, dim=16)


def random_lists(rng, probes, gallery, width, ragged=True):
    """Random items; some lists end early, and the first not at once."""
    lists = np.stack([rng.permutation(gallery)[:width] for _ in range(probes)])
    if ragged:
        lengths = rng.integers(0, lists.shape[1] + 1, probes)
        lengths[0] = max(1, lengths[0])
        lists[np.arange(lists.shape[1]) >= lengths[:, None]] = -1
    return lists


def write_ibin(path, lists, distances=False, header=None):
    tail = np.zeros(lists.shape, "<f4").tobytes() if distances else b""
    path.write_bytes(np.array(header or lists.shape, "<u4").tobytes() + lists.astype("<i4").tobytes() + tail)


def write_neighbors(path, lists):
    with h5py.File(path, "w") as file:
        file["neighbors"] = lists
        file["distances"] = np.zeros(lists.shape, np.float32)


WRITERS = {
    "lists.ibin": write_ibin,
    "lists.bin": write_ibin,
    "ground-truth.ibin": lambda path, lists: write_ibin(path, lists, distances=True),
    "ann.hdf5": write_neighbors,
    "plain.npz": lambda path, lists: np.savez(path, indices=lists),
    "compressed.npz": lambda path, lists: np.savez_compressed(path, neighbors=lists, distances=lists * 0.5),
    "lists.npy": lambda path, lists: np.save(path, lists.astype(np.uint32)),
}


@pytest.mark.parametrize("name", [*WRITERS, *(f"own.{form}" for form in ("h5", "trec", "jsonl", "csv", "npz"))])
def test_the_exact_best_in_any_format_give_the_list_of_a_search(name, cli, write):
    write(**SIMILAR)
    assert cli("run", "feats.h5", "--topn", 20, "-o", "exact.npz")[0] == 0
    if name in WRITERS:
        cosine = br.rerank(br.load("feats.h5"), "cosine", topn=20).indices
        WRITERS[name](Path(name), cosine[:, ::-1])
    else:
        assert cli("run", "feats.h5", "--topn", 20, "-o", name)[0] == 0
    code, out, err = cli("run", "feats.h5", "--topn", 20, "-o", "found.npz", "--candidates", name)
    assert code == 0
    assert "shortest list 20; means" in out
    assert "warning: the shortest list ends at rank 20 of 200: matches that are not listed" in err
    with np.load("exact.npz") as exact, np.load("found.npz") as found:
        np.testing.assert_array_equal(found["indices"], exact["indices"])
        np.testing.assert_allclose(found["scores"], exact["scores"], atol=1e-5)


@pytest.mark.parametrize("form", ["h5", "trec", "jsonl", "csv", "npz"])
@pytest.mark.parametrize("ragged", [False, True])
def test_lists_are_written_in_every_format_and_read_again(form, ragged, cli, write):
    write(**SIMILAR)
    data = br.load("feats.h5")
    given_lists = random_lists(np.random.default_rng(1), 30, 200, 12, ragged)
    np.save("lists.npy", given_lists)
    code, _, err = cli("run", "feats.h5", "--candidates", "lists.npy", "-o", f"out.{form}")
    assert code == 0
    assert "note: topn 50 is capped at the longest list's 12 items" in err
    expected = br.rerank(data, candidates=given_lists)
    found = br.read_ranking(f"out.{form}", data)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert (np.sort(found.indices, axis=1) == np.sort(given_lists, axis=1)).all()


@pytest.mark.parametrize("form", ["jsonl", "csv", "trec"])
def test_text_without_an_ending_tells_what_it_is(form, cli, write):
    write(**SIMILAR)
    assert cli("run", "feats.h5", "-o", f"lists.{form}", "--topn", 9)[0] == 0
    Path("lists").write_bytes(b"\xef\xbb\xbf" + Path(f"lists.{form}").read_bytes())
    assert cli("run", "feats.h5", "--candidates", "lists", "-o", "found.jsonl", "--topn", 9)[0] == 0
    data = br.load("feats.h5")
    expected, found = br.read_ranking(f"lists.{form}", data), br.read_ranking("found.jsonl", data)
    np.testing.assert_array_equal(found.indices, expected.indices)


def test_candidates_from_standard_input(write, tmp_path):
    """Text and binary, by a pipe; and what is wrong with them is said of standard input."""
    write(**SIMILAR)
    data = br.load(tmp_path / "feats.h5")
    lists = random_lists(np.random.default_rng(13), 30, 200, 9, ragged=False)
    write_ibin(tmp_path / "lists", lists)
    expected = br.rerank(data, candidates=lists)
    br.save_ranking(expected, data, tmp_path / "lists.npz")
    run = f"{sys.executable} -m blurrerank run feats.h5 -q"
    command = f"cat lists.npz | {run} --candidates - -o one.npz"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    text, binary = ((tmp_path / name).read_bytes() for name in ("lists", "lists.npz"))

    def fed(given, *options):
        run = ("run", "feats.h5", "-q", "--candidates", "-", *options)
        return forked(*run, cwd=tmp_path, input=given, text=False)

    assert fed(text, "-o", "other.npz").returncode == 0
    (tmp_path / "third.npz").write_bytes(fed(text, "-o", "-", "--format", "npz").stdout)
    refused = [fed(given, "-o", "none.npz") for given in (text[:100], binary[:500])]
    assert [one.returncode for one in refused] == [1, 1]
    first, second = (one.stderr.decode() for one in refused)
    assert first.count("\n") == second.count("\n") == 1
    assert first.startswith("error: standard input has an unrecognised format: expected a native")
    assert second.startswith("error: standard input is not a readable NumPy archive:")
    for name in ("one.npz", "other.npz", "third.npz"):
        found = br.read_ranking(tmp_path / name, data)
        np.testing.assert_array_equal(found.indices, expected.indices)
        assert found.candidates == "standard input"


@given(
    sides(),
    st.integers(1, 100),
    st.integers(1, 100),
    st.integers(0, 2**32),
    st.booleans(),
    st.fixed_dictionaries({}, optional={"probe_in_graph": st.booleans(), "steps": st.integers(1, 2)}),
)
def test_any_lists_are_blurred_as_the_reference_does(arrays, width, topn, seed, ragged, switches):
    probe, gallery = arrays
    lists = random_lists(np.random.default_rng(seed), len(probe), len(gallery), width, ragged)
    data = br.FeatureSet.from_arrays(probe, gallery)
    if (lists[:, 0] < 0).any():
        with pytest.warns(br.BlurrerankWarning, match="probes have no candidates"):
            ranking = br.rerank(data, topn=topn, depth=1000, candidates=lists, **switches)
    else:
        ranking = br.rerank(data, topn=topn, depth=1000, candidates=lists, **switches)
    queries, items = reference.unit_rows(probe), reference.unit_rows(gallery)
    for p, query in enumerate(queries):
        listed = lists[p][lists[p] >= 0]
        found = ranking.indices[p][ranking.indices[p] >= 0]
        assert sorted(found) == sorted(listed)
        assert (ranking.scores[p, len(listed) :] == -np.inf).all()
        if not len(listed):
            continue
        head, tail = found[:topn], found[topn:]
        cosines = items @ query
        assert not len(tail) or cosines[tail].max() < cosines[head].min() + 1e-5
        assert (np.diff(cosines[tail]) < 1e-5).all()
        blurred = reference.blurred_similarity(query, items[head], 0.1, **switches)
        assert (np.diff(blurred) < 1e-5).all()
        np.testing.assert_allclose(ranking.scores[p, : len(head)], blurred, atol=1e-5)


@pytest.mark.parametrize("memory", [None, 700_000])
def test_copies_of_a_row_tie_and_the_lower_index_wins(memory):
    rng = np.random.default_rng(2)
    probe, rows = rng.standard_normal((5, 299)), rng.standard_normal((30, 299)).astype(np.float32)
    data = br.FeatureSet.from_arrays(probe, np.tile(rows, (15, 1)))
    lists = np.stack([rng.permutation(450)[:90] for _ in range(5)])
    lists[0, 60:] = lists[3, 7:] = -1
    for method in ("cosine", "lbr"):
        ranking = br.rerank(data, method, topn=20, depth=90, candidates=lists, memory=memory)
        for listed in ranking.indices:
            for row in range(30):
                copies = listed[(listed >= 0) & (listed % 30 == row)]
                assert list(copies) == sorted(copies)


def test_a_gallery_read_again_for_each_batch_gives_the_same_lists(threads):
    """A budget that cannot hold the gallery; and any number of threads."""
    rng = np.random.default_rng(3)
    probe, gallery = rng.standard_normal((40, 64)), rng.standard_normal((3000, 64)).astype(np.float16)
    data = br.FeatureSet.from_arrays(probe, gallery)
    lists = random_lists(rng, 40, 3000, 30)
    lists[:, 0] = np.where(lists[:, 0] < 0, 7, lists[:, 0])
    roomy, tight = (br.rerank(data, topn=20, candidates=lists, memory=memory) for memory in (None, 400_000))
    threads(2)
    other = br.rerank(data, topn=20, candidates=lists, block=100)
    for ranking in (tight, other):
        np.testing.assert_array_equal(ranking.indices, roomy.indices)
        np.testing.assert_array_equal(ranking.scores, roomy.scores)


def plain_metrics(data, lists):
    """mAP, mINP and rank-1, with market1501's rules, of lists that end: what is not listed is missed."""
    ap, inp, first = [], [], []
    for p, listed in enumerate(lists):
        same = data.gallery.ids == data.probe.ids[p]
        dropped = (data.gallery.ids == -1) | (same & (data.gallery.cams == data.probe.cams[p]))
        matches = int((same & ~dropped).sum())
        kept = [item for item in listed if item >= 0 and not dropped[item]]
        ranks = [rank for rank, item in enumerate(kept, start=1) if same[item]]
        if matches:
            ap.append(sum(hit / rank for hit, rank in enumerate(ranks, start=1)) / matches)
            inp.append(matches / ranks[-1] if len(ranks) == matches else 0.0)
            first.append(ranks[:1] == [1])
    return [np.mean(values) for values in (ap, inp, first)]


@pytest.mark.parametrize("form", ["h5", "npz"])
def test_metrics_are_of_the_lists_and_eval_completes_nothing(form, cli, write):
    write(**SIMILAR)
    data = br.load("feats.h5")
    lists = random_lists(np.random.default_rng(4), 30, 200, 60)
    np.save("lists.npy", lists)
    output = f"out.{form}"
    arguments = ("run", "feats.h5", "--topn", 15, "--candidates", "lists.npy", "--depth", "all", "--json")
    code, out, err = cli(*arguments, "-o", output)
    told = json.loads(out)
    shortest = int((lists >= 0).sum(axis=1).min())
    assert code == 0
    assert (told["candidates"], told["search"], told["depth"]) == ("lists.npy", None, 60)
    assert (told["shortest_list"], told["longest_list"]) == (shortest, 60)
    if shortest == 0:
        assert "probes have no candidates; their lists stay empty" in err
    for stage, method in (("before", "cosine"), ("after", "lbr")):
        if shortest == 0:
            with pytest.warns(br.BlurrerankWarning):
                ranking = br.rerank(data, method, topn=15, depth=60, candidates=lists)
        assert told[stage]["depth"] == shortest
        assert [told[stage][name] for name in ("mAP", "mINP", "rank1")] == pytest.approx(
            plain_metrics(data, ranking.indices)
        )
    assert f"warning: the shortest list ends at rank {shortest} of 200" in err
    # Nor does anything that reads the file later.
    found = br.read_ranking(output, data)
    assert (found.candidates, found.cosine_tail, found.positions) == ("lists.npy", False, None)
    code, out, err = cli("eval", output, "feats.h5", "--json")
    assert json.loads(out)["mAP"] == pytest.approx(told["after"]["mAP"])
    assert json.loads(out)["depth"] == shortest
    # With less of the lists written than was re-ranked, the head is not made again by a search.
    cut = f"cut.{form}"
    assert cli(*arguments[:-2], 5, "--json", "-o", cut)[0] == 0
    metrics = json.loads(cli("eval", cut, "feats.h5", "--json")[1])
    assert metrics["mAP"] == pytest.approx(plain_metrics(data, ranking.indices[:, :5])[0])


def test_complete_lists_are_exact():
    data = br.FeatureSet.from_arrays(**SIMILAR)
    rng = np.random.default_rng(6)
    lists = np.stack([rng.permutation(200) for _ in range(30)])
    for protocol in ("market1501", "cuhk03"):
        for depth in (3, 200):
            exact = br.evaluate(br.rerank(data, topn=20), data, protocol=protocol)
            found = br.rerank(data, topn=20, depth=depth, candidates=lists)
            if protocol == "cuhk03" and depth == 3:
                # Which images are drawn ahead was not kept, and three of a list are not the whole.
                with pytest.warns(br.BlurrerankWarning, match="ends at rank 3 of 200"):
                    assert br.evaluate(found, data, protocol=protocol).depth == 3
                continue
            measured = br.evaluate(found, data, protocol=protocol)
            assert measured.depth is None
            assert measured.means() == pytest.approx(exact.means())


def test_complete_lists_are_exact_on_the_command_line(cli, write):
    write(**SIMILAR)
    assert cli("run", "feats.h5", "-o", "all.trec", "--depth", "all")[0] == 0
    plain = json.loads(cli("run", "feats.h5", "-o", "exact.h5", "--json")[1])
    code, out, err = cli("run", "feats.h5", "-o", "found.h5", "--candidates", "all.trec", "--json")
    assert (code, err) == (0, "wrote found.h5: 30 lists of 50\n")
    assert json.loads(out)["after"] == pytest.approx(plain["after"])
    assert json.loads(out)["before"] == pytest.approx(plain["before"])
    assert json.loads(cli("eval", "found.h5", "feats.h5", "--json")[1])["depth"] is None


@pytest.mark.parametrize("protocol", ["market1501", "cuhk03", "plain"])
def test_a_run_and_eval_agree_under_every_protocol(protocol, cli, write):
    write(**SIMILAR)
    np.save("lists.npy", random_lists(np.random.default_rng(4), 30, 200, 60, ragged=False))
    arguments = ("--protocol", protocol, "--json")
    told = json.loads(cli("run", "feats.h5", "--candidates", "lists.npy", "--depth", "all", *arguments)[1])
    again = json.loads(cli("eval", "feats.lbr.ranking.h5", "feats.h5", *arguments)[1])
    assert {name: again[name] for name in told["after"]} == pytest.approx(told["after"])


def test_the_library_takes_arrays_tensors_and_lists_of_lists():
    data = br.FeatureSet.from_arrays(**SIMILAR)
    lists = random_lists(np.random.default_rng(8), 30, 200, 10, ragged=False)
    expected = br.rerank(data, candidates=lists)
    frozen = lists.astype(">i8")
    frozen.flags.writeable = False
    for same in (
        lists.tolist(),
        torch.from_numpy(lists),
        lists.astype(np.uint64),
        frozen,
        np.pad(lists, ((0, 0), (0, 3)), constant_values=-1),
    ):
        found = br.rerank(data, candidates=same)
        np.testing.assert_array_equal(found.indices, expected.indices)
        assert found.depth == 10
    assert (expected.candidates, expected.reranked_depth) == ("candidates", 10)
    checked = GivenLists(lists, 200, "my index")
    assert br.rerank(data, candidates=checked, depth=4).candidates == "my index"
    assert repr(checked) == "GivenLists(30 lists of 10 to 10, my index)"
    with pytest.raises(br.ParameterError, match="depth must be a whole number of at least 1"):
        br.rerank(data, candidates=lists, depth=0)


WRONG = {
    "shape": (np.arange(30), r"candidates has shape \(30,\): expected \(probes, candidates\)"),
    "ragged": ([[1], [2, 3]], "candidates has lists of different lengths: pad the shorter ones with -1"),
    "floats": (
        np.ones((30, 2)),
        "candidates has dtype float64: expected integers, gallery row numbers, not dis",
    ),
    "booleans": (np.ones((30, 2), bool), "candidates has dtype bool: expected integers"),
    "too few": (
        np.array([[0]] * 29),
        "candidates has 29 lists for 30 probes: give one list per probe",
    ),
    "nothing": (np.zeros((30, 0), int), "candidates has no candidates"),
    "only padding": (np.full((30, 3), -1), "candidates has no candidates"),
    "outside": (
        np.array([[0, 1]] * 9 + [[5, 200]] * 21),
        "candidates: the list of probe 9 contains gallery item 200, but the gallery has 200 items: "
        "count rows from 0",
    ),
    "negative": (
        np.array([[0, -2]] * 30),
        "candidates: the list of probe 0 contains gallery item -2, but the gallery",
    ),
    "unsigned": (
        np.array([[0, 2**64 - 1]] * 30, np.uint64),
        "the list of probe 0 contains gallery item 18446744073709551615",
    ),
    "inside": (
        np.array([[4, 5, -1]] * 3 + [[0, -1, 3]] * 27),
        r"candidates: the list of probe 3 continues after -1 \(at position 2\): -1 may only pad the end",
    ),
    "twice": (
        np.array([[4, 5, -1, -1]] * 3 + [[0, 9, 3, 9]] * 27),
        "candidates: the list of probe 3 contains gallery item 9 twice: remove one",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_are_no_lists(case):
    lists, said = WRONG[case]
    data = br.FeatureSet.from_arrays(**SIMILAR)
    with pytest.raises(br.InputError, match=said):
        br.rerank(data, candidates=lists)


def test_lists_of_another_gallery():
    data = br.FeatureSet.from_arrays(**SIMILAR)
    with pytest.raises(br.InputError, match="x was made for 500 gallery items, but the gallery has 200"):
        br.rerank(data, candidates=GivenLists(np.zeros((30, 1), int), 500, "x"))


LISTS = np.tile(np.arange(4), (30, 1))


def hdf5(**datasets):
    def write(path):
        with h5py.File(path, "w") as file:
            for name, value in datasets.items():
                file[name] = value

    return write


def other_gallery(path):
    rows = features(probes=30, gallery=150, dim=16)
    data = br.FeatureSet.from_arrays(rows["probe"], rows["gallery"])
    br.save_ranking(br.rerank(data, topn=5), data, path)


BROKEN = {
    "none.npz": (lambda path: None, "none.npz: no such file"),
    "folder": (lambda path: path.mkdir(), "folder is a folder: name a file in it"),
    "empty.ibin": (lambda path: path.touch(), "empty.ibin is empty: expected a native ranking, .npz"),
    "short.ibin": (
        lambda path: path.write_bytes(b"\1\0\0"),
        "short.ibin is 3 bytes long: expected an .ibin header of two uint32",
    ),
    "cut.ibin": (
        lambda path: path.write_bytes(np.array([30, 4], "<u4").tobytes() + bytes(470)),
        "cut.ibin is 478 bytes long, but its header says 30 lists of 4: expected 488 bytes, or 968 with dist",
    ),
    "long.ibin": (
        lambda path: path.write_bytes(np.array([30, 4], "<u4").tobytes() + bytes(481)),
        "long.ibin is 489 bytes long, but its header says",
    ),
    "zero.ibin": (
        lambda path: path.write_bytes(bytes(8)),
        "zero.ibin is 8 bytes long, but its header says 0 lists of 0",
    ),
    "huge.ibin": (
        lambda path: path.write_bytes(b"\xff" * 20),
        "huge.ibin is 20 bytes long, but its header says 4294967295 lists of 4294967295",
    ),
    "few.ibin": (lambda path: write_ibin(path, LISTS[:7]), "few.ibin has 7 lists for 30 probes"),
    "outside.ibin": (
        lambda path: write_ibin(path, LISTS + 197),
        "outside.ibin: the list of probe 0 contains gallery item 200, but the gallery has 200 items: "
        "count rows from 0",
    ),
    "twice.ibin": (
        lambda path: write_ibin(path, LISTS * 0),
        "twice.ibin: the list of probe 0 contains gallery item 0 twice: remove one",
    ),
    "inside.ibin": (
        lambda path: write_ibin(path, LISTS - 1),
        "inside.ibin: the list of probe 0 continues after -1 (at position 1)",
    ),
    "float.hdf5": (
        hdf5(neighbors=LISTS * 0.5),
        "float.hdf5::/neighbors has dtype float64: expected integers, gallery row numbers, not distances",
    ),
    "flat.hdf5": (hdf5(neighbors=LISTS[0]), "flat.hdf5::/neighbors has shape (4,): expected (probes, candid"),
    "other.hdf5": (
        hdf5(train=LISTS, test=LISTS),
        "other.hdf5 is an HDF5 file with test, train: expected a blurrerank-ranking file, or neighbors as ann-",
    ),
    "group.hdf5": (hdf5(**{"neighbors/x": LISTS}), "group.hdf5 is an HDF5 file with neighbors: expected"),
    "gallery.h5": (
        other_gallery,
        "gallery.h5 ranks 30 probes x 150 gallery items, but the features are 30 x 200: use the features it",
    ),
    "gallery.npz": (other_gallery, "gallery.npz ranks 30 probes x 150 gallery items, but the features are"),
    "names.npz": (
        lambda path: np.savez(path, a=LISTS, b=LISTS),
        "names.npz contains a, b: expected indices (prob",
    ),
    "floats.npz": (
        lambda path: np.savez(path, indices=LISTS * 1.0),
        "floats.npz::indices has dtype float64: expected integers",
    ),
    "objects.npz": (
        lambda path: np.savez(path, indices=np.array([[1], [2, 3]], object)),
        "objects.npz is not a readable NumPy archive: Object arrays cannot be loaded",
    ),
    "cut.npz": (lambda path: path.write_bytes(b"PK\3\4abc"), "cut.npz is not a readable NumPy archive:"),
    "cut.npy": (lambda path: path.write_bytes(b"\x93NUMPY\1\0"), "cut.npy is not a readable NumPy array:"),
    "binary": (
        lambda path: path.write_bytes(b"\0\1\2\3" * 9),
        "binary has an unrecognised format: exp",
    ),
    "bad.trec": (
        lambda path: path.write_text("0 Q0 1 1 1 x\n0 Q0 1000 1 1 x\n"),
        "bad.trec line 2: '1000' is not a gallery name or row number below 200",
    ),
    "twice.trec": (
        lambda path: path.write_text("3 Q0 1 1 1 x\n3 Q0 1 1 1 x\n"),
        "twice.trec: ranking of probe 3 contains a gallery item twice",
    ),
    "text.run": (lambda path: path.write_text("hello\n"), "text.run line 1 is not a TREC run entry: expected"),
    "a.jsonl": (lambda path: path.write_text('{"probe": 1}\n'), 'a.jsonl line 1: expected {"probe": row, "ind'),
    "a.csv": (lambda path: path.write_text("a,b\n1,2\n"), "a.csv has no column 'gallery': expected probe,rank"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_line_and_exit_1(name, cli, write):
    make, said = BROKEN[name]
    write(**SIMILAR)
    make(Path(name))
    code, out, err = cli("run", "feats.h5", "--candidates", name)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert not Path("feats.lbr.ranking.h5").exists()


@pytest.mark.parametrize("name", ["ann.hdf5", "own.h5", "own.npz", "compressed.npz"])
def test_damaged_containers(name, cli, write):
    write(**SIMILAR)
    if name in WRITERS:
        WRITERS[name](Path(name), LISTS)
    else:
        assert cli("run", "feats.h5", "-o", name)[0] == 0
    whole = Path(name).read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 20):
        Path(name).write_bytes(whole[:size])
        code, out, err = cli("run", "feats.h5", "--candidates", name)
        assert (code, out) == (1, "")
        assert err.startswith(f"error: {name} is ")
        assert err.count("\n") == 1
        assert "internal" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--candidates", "x.npz", "--method", "k-reciprocal"),
            "method k-reciprocal scores the whole gallery",
        ),
        (
            ("--search", "faiss", "--method", "k-reciprocal-online"),
            "method k-reciprocal-online scores the whole",
        ),
        (
            ("--candidates", "x.npz", "--search", "faiss"),
            "--candidates and --search are two sources of lists",
        ),
        (
            ("--candidates", "x.npz", "--search", "exact"),
            "--candidates and --search are two sources of lists",
        ),
        (("--candidates", "x.npz", "--nprobe", 2), "--nprobe configures FAISS: add --search faiss"),
        (("--index-factory", "Flat"), "--index-factory configures FAISS: add --search faiss"),
        (("--search", "exact", "--index-factory", "Flat"), "--index-factory configures FAISS: add --search"),
        (
            ("--search", "faiss", "--index", "x.h5"),
            "an index has its own search: leave --search faiss out",
        ),
        (("--search", "nearly"), "Invalid value for '--search'"),
        (("--search", "faiss", "--nprobe", 0), "Invalid value for '--nprobe'"),
        (
            ("--candidates", "x.npz", "-o", "x.npz"),
            "x.npz is named twice, as an output and as another input or output",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(arguments, said, cli, write):
    code, out, err = cli("run", write(), *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_candidates_with_an_index(cli, write):
    write(**SIMILAR)
    assert cli("index", "feats.h5", "-o", "gallery.index.h5", "-q")[0] == 0
    np.save("lists.npy", random_lists(np.random.default_rng(9), 30, 200, 30, ragged=False))
    assert cli("run", "feats.h5", "--candidates", "lists.npy", "-o", "one.csv")[0] == 0
    arguments = ("--index", "gallery.index.h5", "--candidates", "lists.npy")
    assert cli("run", "feats.h5", *arguments, "-o", "other.csv")[0] == 0
    assert Path("one.csv").read_bytes() == Path("other.csv").read_bytes()
    code, _, err = cli("run", "-", *arguments)
    assert (code, err.split(",")[0]) == (2, "error: --candidates are lists for probes in a file")


def test_the_choice_shown_in_the_help_is_the_default():
    assert _FACTORY == approximate.DEFAULT_FACTORY


def test_help_and_exact_search_import_no_faiss(write):
    code = (
        "import sys\nfrom blurrerank.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert 'faiss' not in sys.modules"
    )
    feats = write()
    for arguments, also in ((["run", "--help"], "\nassert 'torch' not in sys.modules"), (["run", feats], "")):
        command = [sys.executable, "-c", code + also, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=feats.parent, timeout=120)
        assert done.returncode == 0, done.stderr


def test_without_faiss_one_line_says_how_to_get_it(write, tmp_path):
    write()
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub/faiss.py").write_text("raise ImportError('No module named faiss')\n")
    path = os.pathsep.join([str(tmp_path / "stub"), str(ROOT)])
    done = shell("run", "feats.h5", "--search", "faiss", cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'error: FAISS is not installed: pip install "blurrerank[faiss]"\n'


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss", reason="the extra blurrerank[faiss] is not installed")


def test_a_flat_index_finds_what_exact_search_finds(faiss, write, tmp_path):
    """In a process of its own, with two OpenMP runtimes at work, and however many threads they have."""
    write(**SIMILAR)
    for arguments in (("-o", "exact.npz"), ("-o", "1.npz", "--threads", 1), ("-o", "2.npz", "--threads", 2)):
        flat = ("--search", "faiss", "--index-factory", "Flat") if "--threads" in arguments else ()
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        done = shell("run", "feats.h5", *flat, *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        if flat:
            told = "faiss Flat: recall@50 1.0000 against exact search (all 30 probes)\n"
            assert done.stderr.startswith(told)
            assert "the shortest list ends at rank 50 of 200" in done.stderr
    with np.load(tmp_path / "exact.npz") as exact, np.load(tmp_path / "1.npz") as found:
        np.testing.assert_array_equal(found["indices"], exact["indices"])
        np.testing.assert_allclose(found["scores"], exact["scores"], atol=1e-5)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


@pytest.mark.parametrize("nprobe", [None, 1, 3, 8])
def test_recall_is_what_an_independent_count_says(nprobe, faiss, cli, write):
    write(**SIMILAR)
    arguments = ("--search", "faiss", "--index-factory", "IVF8,Flat", "--topn", 10, "--depth", 40)
    nprobes = () if nprobe is None else ("--nprobe", nprobe)
    metrics = ("--metrics", "m.json")
    code, out, err = cli("run", "feats.h5", *arguments, *nprobes, *metrics, "--json", "-o", "found.npz")
    assert code == 0
    told = json.loads(out)
    assert told == json.loads(Path("m.json").read_text())
    name = "faiss IVF8,Flat" + (f" nprobe {nprobe}" if nprobe else "")
    assert (told["search"], told["index_factory"], told["nprobe"]) == ("faiss", "IVF8,Flat", nprobe)
    assert (told["candidates"], told["recall_at"], told["recall_probes"]) == (name, 10, 30)
    exact = reference.unit_rows(SIMILAR["probe"]) @ reference.unit_rows(SIMILAR["gallery"]).T
    with np.load("found.npz") as found:
        shares = [
            np.isin(np.argsort(-similarities)[:10], listed).mean()
            for similarities, listed in zip(exact, found["indices"], strict=True)
        ]
        assert json.loads(str(found["info"]))["candidates"] == name
    assert told["recall"] == pytest.approx(np.mean(shares))
    assert (told["recall"] == 1) == (nprobe == 8)
    assert ("raise --nprobe" in err) == (told["recall"] < 0.9)
    assert f"{name}: recall@10 {np.mean(shares):.4f} against exact search (all 30 probes)\n" in err


def test_recall_on_some_of_the_probes_says_so(faiss, cli, write, monkeypatch):
    monkeypatch.setattr(approximate, "RECALL_PROBES", 7)
    write(**SIMILAR)
    arguments = ("--search", "faiss", "--index-factory", "IVF8,Flat", "--topn", 10, "--json")
    _, out, err = cli("run", "feats.h5", *arguments, "-o", "found.npz")
    assert "against exact search (7 of 30 probes)\n" in err
    exact = reference.unit_rows(SIMILAR["probe"]) @ reference.unit_rows(SIMILAR["gallery"]).T
    chosen = [0, 4, 9, 14, 19, 24, 29]
    with np.load("found.npz") as found:
        shares = [np.isin(np.argsort(-exact[p])[:10], found["indices"][p]).mean() for p in chosen]
    assert json.loads(out)["recall"] == pytest.approx(np.mean(shares))


def test_recall_counts_equal_items_as_equal():
    """Which of many copies a list holds does not matter; how many of them, does; more than n are no more."""
    rng = np.random.default_rng(10)
    rows = rng.standard_normal((3, 23))
    gallery = rows[np.arange(300) % 3]
    data = br.FeatureSet.from_arrays(rows[:1] + 0.01, gallery)
    copies = rng.permutation(np.arange(0, 300, 3))[None]
    for held, value in ((10, 1.0), (30, 1.0), (5, 0.5), (1, 0.1)):
        lists = np.concatenate([copies[:, :held], [[1, 2, 4, 5]]], axis=1)
        found = br.recall(data, GivenLists(lists, 300), 10)
        assert (found.value, found.topn, found.probes) == (pytest.approx(value), 10, 1)
    assert br.recall(data, GivenLists(copies, 300), 1000).value == pytest.approx(1 / 3)


def test_ragged_lists_of_an_index_are_written_as_they_are(faiss):
    data = br.FeatureSet.from_arrays(**SIMILAR)
    lists = br.faiss_candidates(data, 50, index_factory="IVF16,Flat")
    assert lists.shortest < lists.depth <= 50
    ranking = br.rerank(data, topn=50, candidates=lists)
    assert ((ranking.indices >= 0).sum(axis=1) == (lists.indices >= 0).sum(axis=1)).all()
    assert (ranking.candidates, ranking.cosine_tail) == ("faiss IVF16,Flat", False)


def test_faiss_leaves_the_threads_of_others_alone(faiss, threads):
    data = br.FeatureSet.from_arrays(**SIMILAR)
    seen = []
    threads(2)
    before = faiss.omp_get_max_threads()
    br.faiss_candidates(
        data, 5, index_factory="Flat", progress=lambda *_: seen.append(faiss.omp_get_max_threads())
    )
    assert set(seen) == {2}
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "IVF1024,Flat",
            "index factory 'IVF1024,Flat' cannot be trained on 200 of 200 gallery items: it needs one for each "
            "of its clusters; use fewer, such as IVF5,Flat, or Flat",
        ),
        ("Magic", "index factory 'Magic' is not known to FAISS: use one such as Flat"),
        ("IVF99999999999,Flat", "index factory 'IVF99999999999,Flat' is not known to FAISS"),
        ("", "index factory '' is not known to FAISS"),
        ("PQ3", "index factory 'PQ3': FAISS says: The dimension of the vector (d) should be a multiple of"),
        ("IDMap,Flat", "index factory 'IDMap,Flat': FAISS says: add does not make sense"),
        ("IVF0,Flat", "index factory 'IVF0,Flat': FAISS says:"),
        ("HNSW0", "index factory 'HNSW0' asks for 0 links: give a number of links, such as HNSW32"),
        ("PCA8,NSG0", "index factory 'PCA8,NSG0' asks for 0 links"),
    ],
)
def test_factory_strings_that_do_not_work(spec, said, faiss, cli, write):
    code, out, err = cli("run", write(**SIMILAR), "--search", "faiss", "--index-factory", spec)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert not Path("feats.lbr.ranking.h5").exists()


def test_nprobe_is_for_ivf(faiss, cli, write):
    arguments = ("--search", "faiss", "--index-factory", "Flat", "--nprobe", 3)
    assert cli("run", write(), *arguments)[0::2] == (
        2,
        "error: index factory 'Flat' has no nprobe, which is for IVF indexes: leave it out\n",
    )
    data = br.FeatureSet.from_arrays(**SIMILAR)
    for wrong in ({"nprobe": 0}, {"topn": 0}):
        with pytest.raises(br.ParameterError, match="must be a whole number of at least 1, not 0"):
            br.faiss_candidates(data, **{"topn": 5, "index_factory": "IVF4,Flat"} | wrong)


def test_an_index_fed_by_blocks_finds_the_same(faiss):
    rng = np.random.default_rng(11)
    probe, gallery = rng.standard_normal((40, 64)), rng.standard_normal((3000, 64)).astype(np.float16)
    data = br.FeatureSet.from_arrays(probe, gallery)
    roomy, tight = (
        br.faiss_candidates(data, 20, index_factory="Flat", memory=memory) for memory in (None, 400_000)
    )
    np.testing.assert_array_equal(np.sort(roomy.indices), np.sort(tight.indices))
    assert br.recall(data, tight, 20, memory=600_000).value == 1
    # Trained on the rows that fit the budget.
    lists = br.faiss_candidates(data, 20, index_factory="IVF8,Flat", nprobe=8, memory=400_000)
    assert br.recall(data, lists, 20).value == 1


def test_a_pair_s_score_is_its_own():
    """Neither what else is listed nor where it stands changes a bit of it; and it is that of the search."""
    rng = np.random.default_rng(12)
    data = br.FeatureSet.from_arrays(rng.standard_normal((6, 300)), rng.standard_normal((500, 300)))
    cpu = torch.device("cpu")
    gallery = UnitRows(data.gallery, device=cpu, block=64, resident=True)
    probe = UnitRows(data.probe, device=cpu, block=6, resident=False)
    whole = listed_scores(probe.rows(0, 6), torch.arange(500).expand(6, -1), gallery)
    for p in range(6):
        for item in (0, 17, 499):
            alone = listed_scores(probe.rows(p, p + 1), torch.tensor([[item]]), gallery)
            assert alone.item() == whole[p, item].item()
    batch = next(search(probe, gallery, Query(500, batch=6)))
    assert torch.equal(batch.candidates.scores, whole.gather(1, batch.candidates.indices))


def test_real_features(market_subset):
    lists = br.rerank(market_subset, "cosine", topn=30).indices
    exact, found = br.rerank(market_subset, topn=30), br.rerank(market_subset, topn=30, candidates=lists)
    np.testing.assert_array_equal(found.indices, exact.indices)


def test_lists_of_other_features_are_told(cli, write):
    """They may be right, if the images are the same: of another model, say."""
    feats = write()
    other = write("other.h5", gallery=features(seed=1)["gallery"])
    for name in ("lists.h5", "lists.npz"):
        assert cli("run", other, "--method", "cosine", "-o", name)[0] == 0
        code, _, err = cli("run", feats, "--candidates", name, "--force", "-o", "out.h5")
        assert code == 0
        assert f"warning: {name} was made from other features: its lists are valid only if" in err
        assert "other features" not in cli("run", other, "--candidates", name, "--force", "-o", "out.h5")[2]
