"""Rankings in files: ours and other tools'."""

from __future__ import annotations

import errno
import io
import itertools
import shutil

import h5py
import ir_measures
import numpy as np
import pytest
from conftest import features

import blurrerank as br

FORMATS = ("h5", "trec", "jsonl", "csv", "npz")


@pytest.fixture
def data():
    return br.FeatureSet.from_arrays(**features())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("named", [True, False])
def test_a_ranking_comes_back_as_it_was(form, named, tmp_path):
    arrays = features() if named else features() | {"probe_names": None, "gallery_names": None}
    data = br.FeatureSet.from_arrays(**arrays)
    ranking = br.rerank(data, topn=30)
    path = tmp_path / f"lists.{form}"
    br.save_ranking(ranking, data, path)
    back = br.read_ranking(path, data)
    np.testing.assert_array_equal(back.indices, ranking.indices)
    np.testing.assert_array_equal(back.scores, ranking.scores)
    with open(path, "rb") as stream:
        piped = br.read_ranking(stream, data, format=form)
    np.testing.assert_array_equal(piped.indices, ranking.indices)
    if form in ("h5", "npz"):
        assert (back.method, dict(back.params)) == ("lbr", dict(ranking.params))
        assert (back.reranked_depth, back.cosine_tail, back.digest) == (30, True, data.digest())
    assert [child.name for child in tmp_path.iterdir()] == [path.name], "a temporary file was left"


@pytest.mark.parametrize("form", FORMATS)
def test_an_existing_file_is_replaced_only_on_request(form, tmp_path, data):
    path = tmp_path / f"lists.{form}"
    path.write_text("precious")
    with pytest.raises(br.OutputError, match="exists: pass --force"):
        br.save_ranking(br.rerank(data), data, path)
    assert path.read_text() == "precious"
    br.save_ranking(br.rerank(data), data, path, force=True)
    assert br.read_ranking(path, data).depth == 50


def test_a_file_that_appears_meanwhile_is_not_lost(tmp_path):
    from blurrerank.files.targets import replacing

    with (
        pytest.raises(br.OutputError, match="written by another process meanwhile"),
        replacing(tmp_path / "out", force=False) as temporary,
    ):
        temporary.write_text("ours")
        (tmp_path / "out").write_text("theirs")
    assert [child.name for child in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "theirs"


def test_a_file_that_appears_before_the_lock_is_had_ends_a_run_before_its_work(tmp_path, monkeypatch):
    """It would be refused at the end otherwise, after hours."""
    from blurrerank.files import targets

    monkeypatch.setattr(targets, "_sweep", lambda *_, **__: (tmp_path / "out").write_text("theirs"))
    with pytest.raises(br.OutputError, match="exists"), targets.replacing(tmp_path / "out", force=False):
        raise AssertionError("the work began")
    assert [child.name for child in tmp_path.iterdir()] == ["out"]


def test_where_there_are_no_locks_the_later_wins_whole(tmp_path, monkeypatch):
    import fcntl

    from blurrerank.files.targets import replacing

    def flock(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    first, second, other = tmp_path / "out", tmp_path / "out", tmp_path / "other"
    with replacing(first, force=True) as earlier:
        earlier.write_text("earlier")
        with replacing(second, force=True) as later:
            later.write_text("la")
            with replacing(other, force=True) as elsewhere:
                elsewhere.write_text("other")
            with pytest.raises(br.InputError), replacing(first, force=True):
                raise br.InputError("over")
            with later.open("a") as file:
                file.write("ter")
        assert second.read_text() == "later"
    assert first.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_that_fails_leaves_nothing(form, tmp_path, data):
    from blurrerank.files import open_ranking

    with (
        pytest.raises(RuntimeError, match="halfway"),
        open_ranking(tmp_path / "lists", data, 50, format=form, method="lbr") as writer,
    ):
        ranking = br.rerank(data)
        writer.write(0, ranking.indices[:5], ranking.scores[:5])
        raise RuntimeError("halfway")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", ["market1501", "plain"])
def test_trec_output_measures_the_same_in_ir_measures(protocol, tmp_path, cli, write):
    """At --depth all, AP and the rest of what trec_eval's arithmetic says of the same judgements."""
    feats = write()
    code, _, _ = cli("run", feats, "-o", "lists.trec", "--depth", "all", "--topn", 20, "--protocol", protocol)
    assert code == 0
    data = br.load(feats)
    dropped = {
        (p, g)
        for p, g in itertools.product(range(len(data.probe)), range(len(data.gallery)))
        if data.gallery.ids[g] == -1
        or (
            protocol == "market1501"
            and data.gallery.ids[g] == data.probe.ids[p]
            and data.gallery.cams[g] == data.probe.cams[p]
        )
    }
    rows = {
        "p": {name: row for row, name in enumerate(data.probe.names)},
        "g": {name: row for row, name in enumerate(data.gallery.names)},
    }
    run = [
        entry
        for entry in ir_measures.read_trec_run("lists.trec")
        if (rows["p"][entry.query_id], rows["g"][entry.doc_id]) not in dropped
    ]
    qrels = [
        ir_measures.Qrel(data.probe.names[p], data.gallery.names[g], 1)
        for p, g in itertools.product(range(len(data.probe)), range(len(data.gallery)))
        if (p, g) not in dropped and data.gallery.ids[g] == data.probe.ids[p]
    ]
    assert len(run) == len(data.probe) * len(data.gallery) - len(dropped)
    wanted = [ir_measures.AP, *(ir_measures.Success @ k for k in (1, 5, 10, 20))]
    provider = ir_measures.providers.registry["pytrec_eval"]
    theirs = provider.calc_aggregate(wanted, qrels, run)
    ours = br.evaluate(br.read_ranking("lists.trec", data), data, protocol=protocol)
    assert ours.depth is None
    assert ours.mAP == pytest.approx(theirs[ir_measures.AP], abs=1e-9)
    for k in (1, 5, 10, 20):
        assert ours.rank(k) == pytest.approx(theirs[ir_measures.Success @ k], abs=1e-9)
    each = {metric.query_id: metric.value for metric in provider.iter_calc([ir_measures.AP], qrels, run)}
    np.testing.assert_allclose(ours.ap, [each[name] for name in data.probe.names], atol=1e-9)


def test_trec_scores_strictly_decrease_even_where_everything_ties(tmp_path):
    data = br.FeatureSet.from_arrays(np.ones((2, 3)), np.ones((40, 3)))
    br.save_ranking(br.rerank(data, depth=40), data, tmp_path / "lists.trec")
    entries = [line.split() for line in (tmp_path / "lists.trec").read_text().splitlines()]
    assert [entry[2] for entry in entries[:40]] == [str(row) for row in range(40)]
    assert [entry[3] for entry in entries[:40]] == [str(rank) for rank in range(1, 41)]
    scores = np.array([entry[4] for entry in entries], dtype=np.float32).reshape(2, 40)
    assert (np.diff(scores, axis=1) < 0).all()


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["a"] * 60, "they are not unique"),
        ([f"g {row}" for row in range(60)], "some are empty or have white"),
    ],
)
def test_names_that_cannot_identify_are_replaced_by_rows_and_said(names, why, tmp_path):
    data = br.FeatureSet.from_arrays(**(features() | {"gallery_names": np.array(names, dtype=object)}))
    ranking = br.rerank(data)
    with pytest.warns(br.BlurrerankWarning, match=why):
        br.save_ranking(ranking, data, tmp_path / "lists.trec")
    assert (tmp_path / "lists.trec").read_text().split()[:3] == ["p000", "Q0", str(ranking.indices[0, 0])]
    np.testing.assert_array_equal(br.read_ranking(tmp_path / "lists.trec", data).indices, ranking.indices)


def test_another_tool_s_trec_run_is_sorted_by_score(data):
    run = "\n".join(
        ["p000 Q0 g007 1 0.5 x", "p000 Q0 g003 9 2e0 x", "", "p001\tQ0\t59\t1\t-1\tx", "p000 Q0 g001 1 0.5 x"]
    )
    ranking = br.read_ranking(io.BytesIO(run.encode()), data, format="trec")
    assert ranking.indices[0].tolist() == [3, 1, 7], "by score, ties by lower gallery index"
    assert ranking.indices[1].tolist() == [59, -1, -1]
    assert (ranking.indices[2:] == -1).all()
    assert ranking.method == "unknown"


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        ("trec", "p000 Q0 g001 1 0.5 x\np000 Q0 g001", "line 2 is not a TREC run entry: expected 'probe Q0"),
        ("trec", "p000 Q0 g001 1 high x", "line 1 is not a TREC run entry"),
        ("trec", "p000 Q0 who 1 0.5 x", "line 1: 'who' is not a gallery name or row number below 60"),
        ("trec", "q Q0 g001 1 0.5 x", "line 1: 'q' is not a probe name or row number below 12"),
        ("trec", "p000 Q0 60 1 0.5 x", "'60' is not a gallery name or row number below 60"),
        ("trec", "", "has no entries"),
        ("trec", "p000 Q0 g001 1 nan x", "has a score that is not a number"),
        ("trec", "p000 Q0 g001 1 2 x\np000 Q0 g001 2 1 x", "ranking of probe 0 contains a gallery item twice"),
        ("trec", b"\xff\xfe", "is not utf-8 text"),
        ("jsonl", '{"probe": 0}', 'line 1: expected {"probe": row, "indices": [...], "scores": [...]}'),
        ("jsonl", "[]", "line 1: expected"),
        ("jsonl", "{", "line 1: expected"),
        ("jsonl", '{"probe": 0, "indices": [1, 2], "scores": [1]}', "line 1: expected"),
        ("jsonl", '{"probe": 0, "indices": [1.5], "scores": [1]}', "line 1: expected"),
        (
            "jsonl",
            '{"probe": 12, "indices": [1], "scores": [1]}',
            "line 1 refers to a row outside 12 probes x 60",
        ),
        (
            "jsonl",
            '{"probe": 0, "indices": [-1], "scores": [1]}',
            "line 1 refers to a row outside 12 probes x 60",
        ),
        ("csv", "probe,gallery\n0,1", "has no column 'score': expected probe,rank,gallery,score"),
        ("csv", "probe,gallery,score\n0,1,x", "line 2: expected probe,rank,gallery,score"),
        ("csv", "probe,gallery,score\n0,99,1", "line 2 refers to a row outside 12 probes x 60"),
        ("npz", b"PK\x03\x04 no", "is not a readable ranking archive"),
        ("npz", "", "is not a readable ranking archive"),
        ("jsonl", '{"probe": 0.7, "indices": [1], "scores": [1]}', "line 1: expected"),
        ("h5", "text", "is not an HDF5 file"),
    ],
)
def test_what_is_no_ranking_is_refused_in_one_line(form, text, said, tmp_path, data):
    path = tmp_path / f"lists.{form}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(br.InputError) as error:
        br.read_ranking(path, data)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_arrays_that_are_no_ranking_are_refused():
    good, scores = np.array([[2, 0, 1]]), np.array([[3, 2, 1]], dtype=np.float32)
    br.Ranking(good, scores, gallery_size=3)
    br.Ranking(np.array([[2, -1, -1]]), np.array([[1, -np.inf, -np.inf]], dtype=np.float32), gallery_size=3)
    for indices, values, said in (
        (good, scores[:, :2], "must have one shape"),
        (good[0], scores[0], "must have one shape"),
        (good.astype(float), scores, "expected int32 or int64 indices and float32 scores"),
        (good[:, :0], scores[:, :0], "its depth is 0"),
        (
            np.array([[2, 3, 1]]),
            scores,
            "ranking of probe 0 contains gallery item 3, but the gallery has 3 items",
        ),
        (np.array([[2, -2, 1]]), scores, "contains gallery item -2"),
        (np.array([[2, -1, 1]]), scores, "-1 inside a list"),
        (np.array([[2, 1, 2]]), scores, "ranking of probe 0 contains a gallery item twice"),
        (good, scores[:, ::-1], "ranking scores of probe 0 do not strictly decrease"),
        (good, scores * 0, "do not strictly decrease"),
        (good, scores * np.float32(np.nan), "do not strictly decrease"),
    ):
        with pytest.raises(br.InputError, match=said):
            br.Ranking(indices, values, gallery_size=3)


def test_the_native_file_holds_what_it_takes_to_measure_and_to_know_what_was_run(cli, write):
    feats = write()
    code, _, _ = cli("run", feats, "-o", "short.h5", "--topn", 20, "--depth", 3, "--sigma", 0.2)
    assert code == 0
    data = br.load(feats)
    expected = br.evaluate(br.rerank(data, topn=20, sigma=0.2), data)
    short = br.read_ranking("short.h5", data)
    assert short.depth == 3
    for ap in ("plain", "trapezoid"):
        measured = br.evaluate(short, data, ap=ap)
        assert measured.depth is None
        np.testing.assert_allclose(
            measured.ap, br.evaluate(br.rerank(data, topn=20, sigma=0.2), data, ap=ap).ap
        )
    with h5py.File("short.h5") as file:
        assert (file.attrs["format"], file.attrs["format_version"]) == ("blurrerank-ranking", 1)
        assert file.attrs["method"] == "lbr"
        assert '"sigma": 0.2' in file.attrs["params"]
        assert '"torch"' in file.attrs["versions"]
        assert file.attrs["digest"] == data.digest()
        assert file["indices"].shape == (12, 3)
        assert sorted(file["metrics"]) == ["after", "before"]
        assert file["metrics/after"].attrs["mAP"] == pytest.approx(expected.mAP)
        np.testing.assert_allclose(file["metrics/after/ap"], expected.ap)


def test_positions_found_with_other_labels_are_not_used(cli, write):
    assert cli("run", write(), "-o", "lists.h5", "--depth", 3)[0] == 0
    corrected = br.load(write("corrected.h5", probe_ids=np.roll(features()["probe_ids"], 1)))
    measured = br.evaluate(br.read_ranking("lists.h5", corrected), corrected)
    np.testing.assert_allclose(measured.ap, br.evaluate(br.rerank(corrected), corrected).ap)


def test_positions_that_contradict_themselves_are_refused(cli, write):
    feats = write()
    assert cli("run", feats, "-o", "lists.h5")[0] == 0
    data = br.load(feats)
    for name, spoil in (
        ("offsets", lambda values: values[:-1]),
        ("offsets", lambda values: values[::-1]),
        ("ranks", lambda values: values - 5),
        ("ranks", lambda values: values * 0),
        ("ranks", lambda values: values + 60),
        ("ranks", lambda values: values * 0 - 1),
        ("ranks", lambda values: values[::-1]),
        ("ranks", lambda values: values.astype(float)),
        ("indices", lambda values: values + 60),
        ("indices", lambda values: values[1:]),
        ("indices", lambda values: values * 0),
        ("indices", lambda values: (values + 1) % 60),
    ):
        shutil.copy("lists.h5", "spoiled.h5")
        with h5py.File("spoiled.h5", "r+") as file:
            values = file[f"positions/{name}"][()]
            del file[f"positions/{name}"]
            file[f"positions/{name}"] = spoil(values)
        with pytest.raises(
            br.InputError, match=r"^spoiled\.h5: match positions .* the file is damaged: run again$"
        ):
            br.read_ranking("spoiled.h5", data)


@pytest.mark.parametrize("method", ["cosine", "lbr", "k-reciprocal", "k-reciprocal-online"])
@pytest.mark.parametrize("options", [(), ("--memory", "700k"), ("--protocol", "cuhk03")])
def test_positions_agree_with_the_lists_however_deep_these_are(method, options, cli, write):
    feats = write()
    data = br.load(feats)
    for depth in (1, 7, 50, "all"):
        arguments = ("--method", method, "--depth", depth, *options)
        assert cli("run", feats, "-o", "lists.h5", "--force", *arguments)[0] == 0
        assert br.read_ranking("lists.h5", data).positions is not None


def test_what_is_wrong_with_a_ranking_names_its_file(cli, write):
    feats = write()
    others = write("others.h5", gallery=features(seed=1)["gallery"])
    for name in ("good.h5", "bad.h5"):
        assert cli("run", feats, "-o", name)[0] == 0
    code, _, err = cli("eval", "good.h5", others)
    assert (code, err) == (
        1,
        "error: good.h5 was made from other features: pass those it was made from, in the same dtype\n",
    )
    with h5py.File("bad.h5", "r+") as file:
        file.attrs["format_version"] = "1"
    code, _, err = cli("eval", "bad.h5", feats)
    assert (code, err) == (1, "error: bad.h5 has format_version '1': this program reads 1\n")
    with h5py.File("bad.h5", "r+") as file:
        file.attrs["format_version"] = 1
        file["indices"][0, 0] = 99
    code, _, err = cli("eval", "good.h5", "bad.h5", feats)
    assert (code, err) == (
        1,
        "error: bad.h5: ranking of probe 0 contains gallery item 99, but the gallery has 60 items\n",
    )


def test_numbers_for_names_are_never_taken_for_rows():
    arrays = features() | {"gallery_names": np.array([str(100 + row) for row in range(60)], dtype=object)}
    data = br.FeatureSet.from_arrays(**arrays)
    run = io.BytesIO(b"p000 Q0 103 1 0.5 x\n")
    assert br.read_ranking(run, data, format="trec").indices[0, 0] == 3
    with pytest.raises(br.InputError, match=r"line 1: '7' is not a gallery name$"):
        br.read_ranking(io.BytesIO(b"p000 Q0 7 1 0.5 x\n"), data, format="trec")


def test_scores_beyond_float32_keep_their_order(data):
    run = b"".join(
        f"p000 Q0 g{row:03} 1 {score} x\n".encode()
        for row, score in enumerate(("-1e40", "-1e39", "1e39", "inf", "-inf", "1e308"))
    )
    listed = br.read_ranking(io.BytesIO(run), data, format="trec")
    assert listed.indices[0].tolist() == [3, 5, 2, 1, 0, 4]
    assert np.isfinite(listed.scores[0]).all()


def test_a_byte_order_mark_is_no_part_of_the_text(data):
    for form, text in (("trec", "p000 Q0 g001 1 0.5 x"), ("csv", "probe,gallery,score\n0,1,0.5")):
        ranking = br.read_ranking(io.BytesIO(text.encode("utf-8-sig")), data, format=form)
        assert ranking.indices[0, 0] == 1
