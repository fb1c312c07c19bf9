"""Kinds of dumps that were once misread: each is read as it is meant, or refused by name."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import pickle
from pathlib import Path

import h5py
import numpy as np
import pandas
import pytest
import torch
from conftest import features, shell

import blurrerank as br
from blurrerank.compat import re_ranking
from blurrerank.data.numbering import number_of, numbered
from blurrerank.files.foreign import import_features


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def arrays():
    return features(probes=12, gallery=40, dim=7)


def rows(values, separator=",", *, header=None, first=None):
    """A table as text; `first` is what stands before each row."""
    lines = [] if header is None else [separator.join(map(str, header))]
    for number, row in enumerate(np.reshape(values, (len(values), -1)).tolist()):
        lines.append(separator.join(map(str, [*([] if first is None else [first(number)]), *row])))
    return "\n".join(lines) + "\n"


NAMES = [f"f{place}" for place in range(7)]
TABLES = {
    "bare": {},
    "columns counted": {"header": range(7)},
    "columns counted from 1": {"header": range(1, 8)},
    "pandas with its index": {"header": ["", *range(7)], "first": str},
    "columns counted behind an index": {"header": ["index", *range(7)], "first": str},
    "columns named": {"header": NAMES},
    "columns named, with an index": {"header": ["Unnamed: 0", *NAMES], "first": str},
    "rows counted": {"first": str},
    "rows counted from 1": {"first": lambda number: str(number + 1)},
    "names": {"first": lambda number: f"img{number}.jpg"},
    "names in a column": {"header": ["name", *NAMES], "first": lambda number: f"img{number}.jpg"},
    "tabs": {"separator": "\t"},
    "semicolons": {"separator": ";", "header": NAMES},
    "blanks, as np.savetxt": {"separator": " "},
    "blanks under a heading": {"separator": " ", "header": ["#", *NAMES]},
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_text_have_their_rows(kind, arrays):
    for name, side in (("query.txt", "probe"), ("gallery.txt", "gallery")):
        Path(name).write_text(rows(arrays[side], **TABLES[kind]))
    data = import_features("query.txt", "gallery.txt").data
    np.testing.assert_allclose(data.probe.features, arrays["probe"], rtol=1e-6)
    np.testing.assert_allclose(data.gallery.features, arrays["gallery"], rtol=1e-6)
    assert (data.gallery.names is not None) == ("names" in kind)


@pytest.mark.parametrize("header", [None, "counted", "index"])
def test_folders_of_tables_have_as_many_labels_as_rows(header, arrays):
    for side, folder in (("probe", "query"), ("gallery", "test")):
        Path("ecn", folder).mkdir(parents=True)
        kinds = {"features": arrays[side], "labels": arrays[f"{side}_ids"], "cameras": arrays[f"{side}_cams"]}
        for name, values in kinds.items():
            width = 7 if name == "features" else 1
            settings = {
                None: {},
                "counted": {"header": range(width)},
                "index": {"header": ["", *range(width)], "first": str},
            }[header]
            Path("ecn", folder, f"{name}.csv").write_text(rows(values, **settings))
    data = import_features("ecn").data
    assert data.gallery.ids.tolist() == arrays["gallery_ids"].tolist()
    assert data.probe.cams.tolist() == arrays["probe_cams"].tolist()
    np.testing.assert_allclose(data.probe.features, arrays["probe"], rtol=1e-6)


def test_a_table_of_features_and_labels(arrays):
    for name, side in (("query.csv", "probe"), ("gallery.csv", "gallery")):
        table = np.column_stack(
            [arrays[f"{side}_ids"], arrays[f"{side}_cams"], arrays[side].astype(np.float64)]
        )
        Path(name).write_text(rows(table, header=["pid", "camid", *NAMES]))
    found = import_features("query.csv", "gallery.csv")
    assert found.data.gallery.ids.tolist() == arrays["gallery_ids"].tolist()
    assert found.data.probe.cams.tolist() == arrays["probe_cams"].tolist()
    assert "query.csv: features are the columns f0 to f6" in found.notes
    Path("query.csv").write_text(rows(arrays["probe"][:, :6], header=[*NAMES[:3], *NAMES[4:]]))
    with pytest.raises(br.InputError, match=r"query\.csv has columns f0 to f6, but no f3"):
        import_features("query.csv", "gallery.csv")


def records(arrays, side):
    labels = zip(arrays[f"{side}_ids"].tolist(), arrays[f"{side}_cams"].tolist(), strict=True)
    return [
        {"name": f"{row}.jpg", "features": values.tolist(), "id": identity, "cam": cam}
        for row, (values, (identity, cam)) in enumerate(zip(arrays[side], labels, strict=True))
    ]


@pytest.mark.parametrize("kind", ["lines", "records", "arrays", "fields"])
def test_json_is_read(kind, arrays):
    for name, side in (("query.json", "probe"), ("gallery.json", "gallery")):
        found = records(arrays, side)
        text = {
            "lines": "\n".join(map(json.dumps, found)),
            "records": json.dumps(found),
            "arrays": json.dumps(arrays[side].tolist()),
            "fields": json.dumps({"feats": arrays[side].tolist(), "pids": arrays[f"{side}_ids"].tolist()}),
        }[kind]
        Path(name).write_text(text)
    data = import_features("query.json", "gallery.json").data
    np.testing.assert_allclose(data.gallery.features, arrays["gallery"], rtol=1e-6)
    if kind != "arrays":
        assert data.gallery.ids.tolist() == arrays["gallery_ids"].tolist()


@pytest.mark.parametrize("kind", ["parquet", "feather", "safetensors", "fvecs"])
def test_other_containers_are_read(kind, arrays):
    for name, side in (("query", "probe"), ("gallery", "gallery")):
        values, path = arrays[side].astype(np.float32), f"{name}.{kind}"
        if kind in ("parquet", "feather"):
            pyarrow = pytest.importorskip("pyarrow")
            module = pytest.importorskip(f"pyarrow.{kind}")
            table = pyarrow.table({"feats": list(values), "pid": arrays[f"{side}_ids"]})
            (module.write_table if kind == "parquet" else module.write_feather)(table, path)
        elif kind == "safetensors":
            ids = arrays[f"{side}_ids"].astype("<i8")
            head = json.dumps(
                {
                    "feats": {"dtype": "F32", "shape": list(values.shape), "data_offsets": [0, values.nbytes]},
                    "pids": {
                        "dtype": "I64",
                        "shape": [len(ids)],
                        "data_offsets": [values.nbytes, values.nbytes + ids.nbytes],
                    },
                }
            ).encode()
            Path(path).write_bytes(len(head).to_bytes(8, "little") + head + values.tobytes() + ids.tobytes())
        else:
            lengths = np.full((len(values), 1), 7, "<i4").view("<f4")
            np.hstack([lengths, values]).tofile(path)
    data = import_features(f"query.{kind}", f"gallery.{kind}").data
    np.testing.assert_array_equal(data.gallery.features[:], arrays["gallery"].astype(np.float32))
    if kind != "fvecs":
        assert data.gallery.ids.tolist() == arrays["gallery_ids"].tolist()


@pytest.mark.parametrize("ending", ["trec", "csv", "jsonl"])
@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_scores_that_rise_with_the_rank_are_refused(ending, rising, first, arrays):
    data = br.FeatureSet.from_arrays(**arrays)
    ranking = br.rerank(data, "cosine", depth=5)
    scores = 1 - ranking.scores if rising else ranking.scores
    with open(f"lists.{ending}", "w") as file:
        if ending == "csv":
            file.write("probe,rank,gallery,score\n")
        for probe, (items, values) in enumerate(zip(ranking.indices.tolist(), scores.tolist(), strict=True)):
            if ending == "jsonl":
                file.write(json.dumps({"probe": probe, "indices": items, "scores": values}) + "\n")
            for place, (item, value) in enumerate(zip(items, values, strict=True), start=first):
                if ending == "csv":
                    file.write(f"{probe},{place},{item},{value}\n")
                elif ending == "trec":
                    file.write(f"{data.probe.names[probe]} Q0 {data.gallery.names[item]} {place} {value} x\n")
    if not rising:
        np.testing.assert_array_equal(br.read_ranking(f"lists.{ending}", data).indices, ranking.indices)
        return
    with pytest.raises(br.InputError, match="has scores that rise with the rank, as distances do"):
        br.read_ranking(f"lists.{ending}", data)
    # As candidates they are sets.
    found = br.rerank(data, "lbr", candidates=br.read_candidates(f"lists.{ending}", data))
    assert sorted(found.indices[0].tolist()) == sorted(ranking.indices[0].tolist())


def test_ranks_that_are_all_0_say_nothing(arrays):
    data = br.FeatureSet.from_arrays(**arrays)
    name = data.probe.names[0]
    lines = [f"{name} Q0 {data.gallery.names[item]} 0 {item} x\n" for item in range(3)]
    Path("l.trec").write_text("".join(lines))
    assert br.read_ranking("l.trec", data).indices[0].tolist() == [2, 1, 0]


@pytest.mark.parametrize("fields", ["labels of both", "query alone", "labels of test"])
def test_train_and_test_beside_a_query_are_no_ann_benchmarks(fields, arrays):
    train = np.ones((5, 7), np.float32)
    dump = {"train": train, "query": arrays["probe"], "test": arrays["gallery"]}
    if fields != "query alone":
        dump["test_label"] = arrays["gallery_ids"]
    if fields == "labels of both":
        dump["query_label"] = arrays["probe_ids"]
    np.savez("market.npz", **dump)
    with h5py.File("market.h5", "w") as file:
        for name, values in dump.items():
            file[name] = values
    for path in ("market.npz", "market.h5"):
        found = import_features(path)
        np.testing.assert_array_equal(found.data.gallery.features[:], arrays["gallery"])
        assert "ignored: train" in found.notes


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["1", "01", "2"], [2, 1, 3]),
        (["0001", "00-1", "0002"], [1, -1, 2]),
        (["lynx", "0", "-1"], [1, 0, -1]),
        (["7.0", "12.0", "-1.0"], [7, 12, -1]),
        (["+3", "003", "b"], [1, 2, 3]),
        (["1.0", "1", "2"], [1, 1, 2]),
    ],
)
def test_text_ids_become_numbers(texts, numbers):
    found = numbered([np.array(texts, dtype=object)], keep=(-1, 0))
    assert found.labels[0].tolist() == numbers


def test_numbers_that_are_written_otherwise():
    written = ["0012", "00-1", "3.", "-1", "c1", "", "1e3", "9" * 200]
    assert [number_of(text) for text in written] == [12, -1, 3, -1, None, None, None, None]


@pytest.mark.parametrize("nobody", ["unknown", "", "nan", "Unidentified"])
def test_images_of_nobody_are_told(nobody, arrays):
    ids = {
        side: [nobody if i == 1 else f"cat {i}" for i in arrays[f"{side}_ids"]] for side in ("probe", "gallery")
    }
    settings = {"probe_ids": ids["probe"], "gallery_ids": ids["gallery"]}
    with pytest.warns(br.BlurrerankWarning, match=f"images have id '{nobody}', which counts as one"):
        br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"], **settings)


def test_text_ids_have_one_numbering_over_both_sides(arrays, tmp_path):
    ids = {side: [f"cat {i:03}" for i in arrays[f"{side}_ids"]] for side in ("probe", "gallery")}
    data = br.FeatureSet.from_arrays(
        arrays["probe"], arrays["gallery"], probe_ids=ids["probe"], gallery_ids=ids["gallery"]
    )
    same = np.equal.outer(arrays["probe_ids"], arrays["gallery_ids"])
    np.testing.assert_array_equal(np.equal.outer(data.probe.ids, data.gallery.ids), same)
    with h5py.File("text.h5", "w") as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"], file[f"{side}/ids"] = arrays[side], ids[side]
    assert br.load("text.h5").gallery.ids.tolist() == data.gallery.ids.tolist()


WORDS = {
    "probe": ("query", {"features": "feats", "ids": "pids", "cams": "camids", "names": "image_names"}),
    "gallery": ("gallery", {"features": "features", "ids": "labels", "cams": "cam_id", "names": "img_paths"}),
}


@pytest.mark.parametrize("words", [("query", "gallery"), ("probe", "gallery"), ("query", "test")])
def test_other_words_in_native_files(words, arrays, cli):
    with h5py.File("words.h5", "w") as file:
        for group, side in zip(words, ("probe", "gallery"), strict=True):
            for kind, name in WORDS[side][1].items():
                key = side if kind == "features" else f"{side}_{kind}"
                values = [str(one) for one in arrays[key]] if kind == "names" else arrays[key]
                file[f"{group}/{name}"] = values
    data = br.load("words.h5")
    for kind in ("ids", "cams"):
        assert getattr(data.gallery, kind).tolist() == arrays[f"gallery_{kind}"].tolist()
    assert data.probe.names.tolist() == list(arrays["probe_names"])
    assert cli("run", "words.h5")[0] == cli("info", "words.h5")[0] == 0


def test_labels_that_are_none_and_features_that_lie(arrays):
    with h5py.File("odd.h5", "w") as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"] = arrays[side].T
            file[f"{side}/ids"] = arrays[f"{side}_ids"][None]
            file[f"{side}/cams"] = h5py.Empty("i8")
            file[f"{side}/names"] = np.empty(0, "S1")
    with pytest.warns(br.BlurrerankWarning, match="it is read as transposed"):
        data = br.load("odd.h5")
    np.testing.assert_array_equal(data.gallery.features[:], arrays["gallery"])
    assert data.gallery.cams is None
    assert data.gallery.names is None


def test_a_table_in_the_place_of_a_group_is_named(arrays):
    with h5py.File("table.h5", "w") as file:
        file["gallery/features"] = arrays["gallery"]
        file["probe"] = np.zeros(3, dtype=[("features", "f4", (7,)), ("ids", "i8")])
    with pytest.raises(br.InputError, match="probe is no group: write its columns as datasets"):
        br.load("table.h5")


@pytest.mark.parametrize(
    "names", [("qf", "gf", "q_pids", "g_pids"), ("query", "gallery", "query_id", "gallery_id")]
)
@pytest.mark.parametrize("ending", ["npy", "pt", "txt"])
def test_a_file_for_each_field(names, ending, arrays):
    values = (arrays["probe"], arrays["gallery"], arrays["probe_ids"], arrays["gallery_ids"])
    for name, one in zip(names, values, strict=True):
        if ending == "npy":
            np.save(f"{name}.npy", one)
        elif ending == "pt":
            torch.save(torch.from_numpy(one), f"{name}.pt")
        else:
            np.savetxt(f"{name}.txt", one)
    data = import_features(*(f"{name}.{ending}" for name in names)).data
    np.testing.assert_allclose(data.gallery.features[:], arrays["gallery"], rtol=1e-6)
    assert data.probe.ids.tolist() == arrays["probe_ids"].tolist()


def test_objects_in_files_of_numpy(arrays, cli):
    fields = {"qf": arrays["probe"], "gf": arrays["gallery"]}
    np.save("dict.npy", fields)
    with pytest.raises(br.InputError, match=r"dict\.npy holds Python objects"):
        import_features("dict.npy")
    found = import_features("dict.npy", allow_pickle=True).data
    np.testing.assert_array_equal(found.gallery.features, arrays["gallery"])
    rows = np.empty(12, dtype=object)
    rows[:] = list(arrays["probe"])
    np.save("query.npy", rows)
    np.save("gallery.npy", arrays["gallery"])
    found = import_features("query.npy", "gallery.npy", allow_pickle=True).data
    np.testing.assert_array_equal(found.probe.features, arrays["probe"])
    np.savez("config.npz", **fields, config={"model": "r50"})
    assert "not read: config (Python objects" in import_features("config.npz").notes[0]


SCHEMES = {
    "Market-1501": lambda identity, cam, row: f"{identity:04}_c{cam}s1_{row:06}_00.jpg",
    "DukeMTMC": lambda identity, cam, row: f"{identity:04}_c{cam}_f{row:07}.jpg",
    "VeRi-776": lambda identity, cam, row: f"{identity:04}_c{cam:03}_{row:08}_0.jpg",
    "MARS": lambda identity, cam, row: f"{identity:04}C{cam}T{row:04}F001.jpg",
    "MSMT17": lambda identity, cam, row: f"{identity:04}_{row:03}_{cam:02}_0303morning_0015_0.jpg",
    "Celeb-reID": lambda identity, cam, row: f"{identity}_{row}_0.jpg",
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_names_say_identities(scheme, arrays):
    named = {}
    for name, side in (("query.pkl", "probe"), ("gallery.pkl", "gallery")):
        ids, cams = arrays[f"{side}_ids"].clip(1), arrays[f"{side}_cams"]
        names = [SCHEMES[scheme](i, c, row) for row, (i, c) in enumerate(zip(ids, cams, strict=True))]
        Path(name).write_bytes(pickle.dumps(dict(zip(names, arrays[side], strict=True))))
        named[side] = ids + (scheme == "MSMT17"), cams  # which counts from 0
    data = import_features("query.pkl", "gallery.pkl", allow_pickle=True).data
    assert data.gallery.ids.tolist() == named["gallery"][0].tolist()
    if scheme == "Celeb-reID":
        assert data.gallery.cams is None
    else:
        assert data.probe.cams.tolist() == named["probe"][1].tolist()


@pytest.mark.parametrize("name", [lambda row: row, lambda row: f"lynx {row}.png", lambda row: f"track/{row}"])
def test_names_that_say_nothing_are_no_ids(name, arrays):
    for file, side in (("query.pkl", "probe"), ("gallery.pkl", "gallery")):
        found = {name(row): values for row, values in enumerate(arrays[side])}
        Path(file).write_bytes(pickle.dumps(found))
    found = import_features("query.pkl", "gallery.pkl", allow_pickle=True)
    assert found.data.gallery.ids is None
    assert "no probe name says an identity" in found.doubts[0]


@pytest.mark.parametrize(
    "names", [("a_gallery_test", "a_query_test"), ("test", "query"), ("gallery", "probe_test")]
)
def test_names_of_files_that_say_test_too(names, arrays):
    for name, side in zip(names, ("gallery", "probe"), strict=True):
        torch.save({"feats": torch.from_numpy(arrays[side])}, f"{name}.pt")
    data = import_features(*(f"{name}.pt" for name in names)).data
    assert (len(data.probe), len(data.gallery)) == (12, 40)


SHAPES = {
    "(N, D, 1, 1)": lambda x: x[:, :, None, None],
    "(N, 1, D)": lambda x: x[:, None],
    "(N, 1, 1, D)": lambda x: x[:, None, None],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_axes_of_length_1_are_dropped(shape, arrays):
    probe, gallery = (SHAPES[shape](arrays[side]) for side in ("probe", "gallery"))
    np.savez("a.npz", qf=probe, gf=gallery)
    with h5py.File("n.h5", "w") as file:
        file["probe/features"], file["gallery/features"] = probe, gallery
    for data in (br.FeatureSet.from_arrays(probe, gallery), import_features("a.npz").data, br.load("n.h5")):
        np.testing.assert_array_equal(data.gallery.features[:], arrays["gallery"])
    expected = re_ranking(arrays["probe"], arrays["gallery"], 3, 2, 0.3)
    np.testing.assert_array_equal(re_ranking(probe, gallery, 3, 2, 0.3, MemorySave=True, Minibatch=9), expected)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda x: x[:, :6].reshape(-1, 3, 2), "use reshape"),
        (lambda x: [x[:5], x[5:]], "save torch.cat"),
        (
            lambda x: [np.tile(row, (1 + place % 3, 1)) for place, row in enumerate(x)],
            "of tracklets the mean of each",
        ),
    ],
)
def test_other_shapes_say_what_to_do(change, advice, arrays):
    Path("f.pkl").write_bytes(pickle.dumps({"qf": change(arrays["probe"]), "gf": change(arrays["gallery"])}))
    with pytest.raises(br.InputError, match=advice):
        import_features("f.pkl", allow_pickle=True)


def test_bfloat16_is_float32(arrays):
    sides = [torch.from_numpy(arrays[side]).bfloat16() for side in ("probe", "gallery")]
    data = br.FeatureSet.from_arrays(*sides)
    assert data.gallery.features.dtype == torch.float32
    torch.save({"qf": sides[0], "gf": sides[1]}, "f.pt")
    np.testing.assert_array_equal(import_features("f.pt").data.gallery.features, data.gallery.features.numpy())


def test_containers_of_python_in_pickles(arrays):
    vectors = collections.defaultdict(list)
    vectors.update(qf=torch.from_numpy(arrays["probe"]), gf=arrays["gallery"])
    vectors["gallery_path"] = [pathlib.PurePosixPath(f"a/{row}.jpg") for row in range(40)]
    Path("d.pkl").write_bytes(pickle.dumps(vectors))
    torch.save(vectors, "d.pt")
    for path in ("d.pkl", "d.pt"):
        data = import_features(path, allow_pickle=True).data
        np.testing.assert_array_equal(data.probe.features, arrays["probe"])
        assert data.gallery.names[3] == "a/3.jpg"


@pytest.mark.parametrize("change", [lambda s: -s, lambda s: s, lambda s: 0.5 - s])
def test_similarities_are_no_distances(change):
    draw = np.random.default_rng(0)
    q, g = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in draw.normal(size=(2, 9, 16)))
    with pytest.raises(br.InputError, match="so these are not distances"):
        re_ranking(change(q @ g.T), change(q @ q.T), change(g @ g.T))
    assert re_ranking(1 - q @ g.T, 1 - q @ q.T, 1 - g @ g.T).shape == (9, 9)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("cameras", ["none", "one"])
def test_probes_that_are_in_the_gallery_are_told_and_can_be_left_out(named, cameras, arrays, cli):
    rows, ids = arrays["gallery"], arrays["gallery_ids"].clip(1)
    cams = None if cameras == "none" else np.ones(40, int)
    names = np.array([f"{row}.jpg" for row in range(40)], dtype=object) if named else None
    data = br.FeatureSet(br.Side(rows, ids, cams, names), br.Side(rows, ids, cams, names))
    ranking = br.rerank(data, "cosine")
    with pytest.warns(br.BlurrerankWarning, match="40 of 40 probes are in the gallery too"):
        assert br.evaluate(ranking, data, protocol="plain").cmc[0] == 1
    found = br.evaluate(ranking, data, protocol="leave-one-out")
    # As if each image had a camera of its own.
    own = np.arange(40)
    alone = br.FeatureSet(br.Side(rows, ids, own), br.Side(rows, ids, own))
    expected = br.evaluate(br.rerank(alone, "cosine"), alone)
    assert found.summary() | {"protocol": 0} == expected.summary() | {"protocol": 0}
    br.save_features(data, "loo.h5")
    out = cli("info", "loo.h5")
    assert "leave-one-out" in out[1] + out[2]


@pytest.mark.parametrize("method", ["cosine", "lbr", "gnn", "superglobal", "k-reciprocal-online"])
def test_features_that_are_much_alike_are_told_of(method, cli):
    draw = np.random.default_rng(0)
    rows = (1 + 2e-4 * draw.normal(size=(60, 16))).astype(np.float32)
    data = br.FeatureSet.from_arrays(rows[:20], rows[20:])
    with pytest.warns(br.BlurrerankWarning, match=f"center:by=gallery[+]{method}, which subtracts"):
        br.rerank(data, method)
    br.rerank(data, f"center:by=gallery+{method}")  # without a warning
    br.save_features(data, "feats.h5")
    assert "features are nearly equal" in cli("run", "feats.h5", "--method", method, "-o", "out.h5")[2]
    chain = f"center:by=gallery+{method}"
    assert "nearly equal" not in cli("run", "feats.h5", "--method", chain, "-o", "other.h5")[2]


@pytest.mark.parametrize("header", ["id,0,1,2,3,4,5,6", "path,1,2,3,4,5,6,7"])
def test_counted_columns_behind_a_label(header, arrays):
    for name, side in (("query.csv", "probe"), ("gallery.csv", "gallery")):
        first = {"id": lambda row, side=side: str(arrays[f"{side}_ids"][row])}.get(
            header[:2], lambda row: f"{row}.jpg"
        )
        Path(name).write_text(rows(arrays[side], header=[header], first=first))
    data = import_features("query.csv", "gallery.csv").data
    np.testing.assert_allclose(data.gallery.features, arrays["gallery"], rtol=1e-6)
    assert (data.gallery.ids is not None) == header.startswith("id")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("id,f0,f1,f2\n1,.1,.2,\n2,.1,.2,.3\n", "has '' in row 0 of column f2: expected a number"),
        ("a0,a1,b0,b1\n1,2,3,4\n1,2,3,5\n", "has columns a... and b..., equally many of each"),
        ("7,.1,.2\n9,.3,.4\n7,.5,.6\n", "begins with a column of whole numbers"),
        ("0.1,0.2,\n0.3,0.4,\n", "its first line has numbers and empty cells"),
        ("label,id,f0,f1\n1,2,.1,.2\n1,2,.1,.3\n", "label and id could both be the ids"),
    ],
)
def test_tables_that_could_be_misread_are_refused(text, why, arrays):
    Path("query.csv").write_text(text)
    np.save("gallery.npy", arrays["gallery"][:, :3])
    with pytest.raises(br.InputError) as error:
        import_features("query.csv", "gallery.npy")
    assert why in str(error.value)


def test_names_with_underscores_are_no_numbers(arrays):
    for name, side in (("query.txt", "probe"), ("gallery.txt", "gallery")):
        Path(name).write_text(rows(arrays[side], " ", first=lambda row: f"{row:04}_02"))
    data = import_features("query.txt", "gallery.txt").data
    assert data.gallery.names[7] == "0007_02"
    np.testing.assert_allclose(data.gallery.features, arrays["gallery"], rtol=1e-6)


def test_a_list_of_features_comes_before_numbered_columns(arrays):
    for name, side in (("query.jsonl", "probe"), ("gallery.jsonl", "gallery")):
        found = [one | {"x1": 0.5, "y1": 1.5, "x2": 2.5, "y2": 3.5} for one in records(arrays, side)]
        Path(name).write_text("\n".join(map(json.dumps, found)))
    data = import_features("query.jsonl", "gallery.jsonl").data
    np.testing.assert_allclose(data.gallery.features, arrays["gallery"], rtol=1e-6)


def test_numbers_on_one_side_and_text_on_the_other(arrays):
    text = [f"{i:02}" if i > 0 else str(i) for i in arrays["gallery_ids"]]
    np.savez("a.npz", qf=arrays["probe"], gf=arrays["gallery"], q_pids=arrays["probe_ids"], g_pids=text)
    data = import_features("a.npz").data
    assert data.gallery.ids.tolist() == arrays["gallery_ids"].tolist()


def test_leave_one_out_says_when_it_drops_nothing(arrays):
    data = br.FeatureSet.from_arrays(**arrays)
    with pytest.warns(br.BlurrerankWarning, match="no probe is in the gallery"):
        br.evaluate(br.rerank(data, "cosine"), data, protocol="leave-one-out")


def test_pickles_change_nothing_here():
    import io

    from blurrerank.files.foreign.pickles import read_pickle

    change = b"cnumpy._core.numeric\n_frombuffer\n(N}(X\x0c\x00\x00\x00__defaults__Nutb0N."
    with pytest.raises(br.InputError, match="tries to change the unpickler"):
        read_pickle(io.BytesIO(b"\x80\x02" + change), "here")
    forged = b"cnumpy\nndarray\n(K\x01\x85cnumpy\ndtype\nX\x01\x00\x00\x00O\x85RC\x08AAAAAAAAtR."
    with pytest.raises(br.InputError, match="here is a damaged pickle"):
        read_pickle(io.BytesIO(b"\x80\x03" + forged), "here")


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("changed", ["probe", "gallery"])
def test_rankings_whose_names_are_not_those_of_the_features_are_refused(form, changed, arrays, cli):
    br.save_features(br.FeatureSet.from_arrays(**arrays), "feats.h5")
    assert cli("run", "feats.h5", "-q", "-o", f"lists.{form}")[0] == 0
    assert cli("eval", f"lists.{form}", "feats.h5")[0] == 0
    arrays[f"{changed}_names"] = arrays[f"{changed}_names"][::-1]
    br.save_features(br.FeatureSet.from_arrays(**arrays), "other.h5")
    code, _, said = cli("eval", f"lists.{form}", "other.h5")
    assert code == 1
    assert "pass the features that the ranking was made from" in said


@pytest.mark.parametrize("form", ["npz", "h5"])
def test_distances_in_binary_rankings_are_said_to_be_that(form, arrays, cli):
    br.save_features(br.FeatureSet.from_arrays(**arrays), "feats.h5")
    lists, scores = np.tile(np.arange(9, dtype=np.int32), (12, 1)), np.tile(np.arange(9, dtype="f4"), (12, 1))
    if form == "npz":
        np.savez("lists.npz", indices=lists, scores=scores)
    else:
        cli("run", "feats.h5", "-q", "--depth", "9", "-o", "lists.h5")
        with h5py.File("lists.h5", "a") as file:
            file["scores"][...] = scores
    assert "write minus the distance as score" in cli("eval", f"lists.{form}", "feats.h5")[2]


@pytest.mark.parametrize("texts", [["0001", "1"], ["cat", "dog"], ["ID-7", "-1"], ["grey seal 4", "-1"]])
@pytest.mark.parametrize("header", ["", "pid\n"])
def test_labels_that_are_text_may_have_files_of_their_own(texts, header, arrays):
    for side, word in (("probe", "q"), ("gallery", "g")):
        np.save(f"{word}f.npy", arrays[side])
        labels = [texts[number % 2] for number in arrays[f"{side}_ids"]]
        Path(f"{word}_pids.txt").write_text(header + "\n".join(labels) + "\n")
    data = import_features("qf.npy", "gf.npy", "q_pids.txt", "g_pids.txt").data
    wanted = arrays["gallery_ids"] % 2
    same = data.gallery.ids[:, None] == data.gallery.ids
    assert np.array_equal(same, wanted[:, None] == wanted)
    assert ("-1" in texts) == bool((data.gallery.ids == -1).any())


def test_transposed_native_features_without_labels_are_told_of(arrays, cli):
    with h5py.File("feats.h5", "w") as file:
        file["probe/features"], file["gallery/features"] = arrays["probe"].T, arrays["gallery"].T
    assert "they may be (D, N): transpose them" in cli("run", "feats.h5")[2]


def test_lists_in_the_cells_of_a_table_are_features(arrays):
    for side, name in (("probe", "query.csv"), ("gallery", "gallery.csv")):
        lists = [json.dumps(row) for row in arrays[side].tolist()]
        pandas.DataFrame({"pid": arrays[f"{side}_ids"], "feature": lists}).to_csv(name, index=False)
    data = import_features("query.csv", "gallery.csv").data
    np.testing.assert_allclose(data.gallery.features, arrays["gallery"], rtol=1e-6)
    assert data.gallery.ids.tolist() == arrays["gallery_ids"].tolist()
    Path("query.csv").write_text("pid,feature\n" + "1,[0.1 0.2 ... 0.3]\n" * 12)
    with pytest.raises(br.InputError, match=r"in row 0 of column feature: expected a list.*NumPy shortens"):
        import_features("query.csv", "gallery.csv")


@pytest.mark.parametrize("form", ["parquet", "feather"])
def test_tables_of_arrow_are_read_whatever_threads_there_are(form, arrays):
    for side, name in (("probe", "query"), ("gallery", "gallery")):
        table = pandas.DataFrame(arrays[side], columns=[f"f{place}" for place in range(7)])
        table["id"] = arrays[f"{side}_ids"]
        getattr(table, f"to_{form}")(f"{name}.{form}")
    done = shell(
        *("convert", f"query.{form}", f"gallery.{form}", "out.h5"), env=os.environ | {"OMP_NUM_THREADS": "8"}
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(br.load("out.h5").gallery.features, arrays["gallery"])


def test_rankings_of_numpy_may_be_float64_and_have_ties(arrays, cli):
    br.save_features(br.FeatureSet.from_arrays(**arrays), "feats.h5")
    lists = np.tile(np.arange(9, dtype=np.int64), (12, 1))
    np.savez("lists.npz", indices=lists, scores=np.tile([9, 8, 8, 7, 6, 5, 4, 3, 2.0], (12, 1)))
    assert cli("eval", "lists.npz", "feats.h5")[0] == 0
    np.savez("none.npz", indices=lists)
    assert "scores missing, it has indices" in cli("eval", "none.npz", "feats.h5")[2]


def test_info_counts_identities_that_are_text(arrays, cli):
    texts = {
        f"{side}_ids": np.array([f"id{one}" for one in arrays[f"{side}_ids"]]) for side in ("probe", "gallery")
    }
    with h5py.File("feats.h5", "w") as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"], file[f"{side}/ids"] = arrays[side], texts[f"{side}_ids"].astype("S")
    told = json.loads(cli("info", "feats.h5", "--json")[1])
    assert told["gallery"]["identities"] == len(set(texts["gallery_ids"].tolist()))
