"""`blurrerank convert`: small files in the true layouts of other tools, and the traps in them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import pickletools
import re
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from conftest import features
from hypothesis import given
from hypothesis import strategies as st

import blurrerank as br
from blurrerank.files.foreign import import_features
from blurrerank.files.foreign.containers import open_file
from blurrerank.files.foreign.pickles import read_pickle

SIDES = {"probe": "query", "gallery": "gallery"}


def market_arrays() -> dict[str, np.ndarray]:
    """12 probes and 40 gallery images of 6 identities, with names as Market-1501 gives them."""
    made = features(probes=12, gallery=40, dim=7)
    for side in SIDES:
        made[f"{side}_names"] = np.array(
            [
                f"{identity:04}_c{camera}s1_{row:06}_00.jpg"
                if identity >= 0
                else f"-1_c{camera}s1_{row:06}_00.jpg"
                for row, (identity, camera) in enumerate(
                    zip(made[f"{side}_ids"], made[f"{side}_cams"], strict=True)
                )
            ],
            dtype=object,
        )
    return made


arrays = pytest.fixture(market_arrays, name="arrays")


@pytest.fixture
def convert(cli):
    """Convert files, or a dump of fields, to out.h5: what is told of it."""

    def convert(*files: object) -> str:
        code, out, err = cli("convert", *map(named, files), "out.h5", "--force")
        assert code == 0, err
        return out + err

    return convert


@pytest.fixture
def refused(cli):
    """Try to convert files, or a dump of fields: the one line that says why not."""

    def refused(*files: object, command: str = "convert") -> str:
        code, out, err = cli(command, *map(named, files), *(["refused.h5"] if command == "convert" else []))
        assert (code, out, len(err.splitlines())) == (1, "", 1), (code, out, err)
        return err

    return refused


def named(file: object) -> object:
    """The file, written if it is a dictionary of fields."""
    if isinstance(file, dict):
        np.savez("dump.npz", **file)
        return "dump.npz"
    return file


def pickled(**values: object) -> list[str]:
    """Arguments of `convert` for these pickles."""
    for name, value in values.items():
        Path(f"{name}.pkl").write_bytes(pickle.dumps(value))
    return [*(f"{name}.pkl" for name in values), "--allow-pickle"]


def joined(arrays: dict[str, np.ndarray], count: object) -> dict[str, object]:
    """All images in one list, probes first."""
    kinds = {"feats": "", "pids": "_ids", "camids": "_cams"}
    fields = {name: np.concatenate([arrays[f"{side}{kind}"] for side in SIDES]) for name, kind in kinds.items()}
    return fields | {"num_query": count}


def check(path: Path, arrays: dict[str, np.ndarray], *kinds: str, exact: bool = True) -> br.FeatureSet:
    """The native file at `path` holds the arrays, and of labels just those of `kinds`."""
    data = br.load(path)
    for side in SIDES:
        found = getattr(data, side)
        if exact:
            np.testing.assert_array_equal(found.features, arrays[side])
        else:
            np.testing.assert_allclose(found.features, arrays[side], rtol=1e-6)
        for kind in ("ids", "cams", "names"):
            if kind in kinds:
                np.testing.assert_array_equal(getattr(found, kind), arrays[f"{side}_{kind}"])
            else:
                assert getattr(found, kind) is None
    return data


def layumi(arrays: dict[str, np.ndarray], **changes) -> dict[str, np.ndarray]:
    fields = {}
    for side, word in SIDES.items():
        fields[f"{word}_f"] = arrays[side]
        fields[f"{word}_label"] = arrays[f"{side}_ids"].reshape(1, -1)
        fields[f"{word}_cam"] = arrays[f"{side}_cams"].reshape(1, -1)
    return fields | changes


def write_73(path: Path, fields: dict[str, np.ndarray]) -> None:
    """As MATLAB's `save -v7.3`: dimensions the other way round, text as numbers, cells as references."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in fields.items():
            if isinstance(value, list):
                cells = []
                for place, text in enumerate(value):
                    cell = file.create_dataset(
                        f"#refs#/{name}{place}", data=np.array([[ord(sign)] for sign in text], dtype=np.uint16)
                    )
                    cell.attrs["MATLAB_class"] = np.bytes_("char")
                    cells.append(cell.ref)
                item = file.create_dataset(
                    name, data=np.array([cells], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype
                )
                item.attrs["MATLAB_class"] = np.bytes_("cell")
            else:
                item = file.create_dataset(name, data=np.asarray(value).T)
                item.attrs["MATLAB_class"] = np.bytes_("single" if value.dtype == np.float32 else "double")
    with open(path, "r+b") as raw:
        raw.write(
            b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Sep 13 21:18:52 2021 HDF5 schema 1.00 ."
        )


# A way of writing for each tool: files in the folder, arguments of `convert`, which labels come, the source.


def layumi_v5(folder, arrays):
    paths = {f"{word}_path": list(arrays[f"{side}_names"]) for side, word in SIDES.items()}
    scipy.io.savemat(folder / "pytorch_result.mat", layumi(arrays, **paths))
    return ["pytorch_result.mat"], ("ids", "cams", "names"), "MATLAB v5, layumi's names"


def layumi_without_paths(folder, arrays):
    scipy.io.savemat(folder / "pytorch_result.mat", layumi(arrays))
    return ["pytorch_result.mat"], ("ids", "cams"), "MATLAB v5, layumi's names"


def layumi_v73(folder, arrays):
    """Of MATLAB itself: everything double, columns."""
    fields = {
        name: value.astype(np.float64).reshape(-1, 1) if "_f" not in name else value
        for name, value in layumi(arrays).items()
    }
    paths = {f"{word}_path": list(arrays[f"{side}_names"]) for side, word in SIDES.items()}
    write_73(folder / "result.mat", fields | paths)
    return ["result.mat"], ("ids", "cams", "names"), "MATLAB v7.3, layumi's names"


def sft_fields(arrays, side, rows=slice(None)):
    return {
        "feat": arrays[side][rows],
        "ids": arrays[f"{side}_ids"][rows].reshape(1, -1),
        "cam_ids": arrays[f"{side}_cams"][rows].reshape(1, -1),
        "imgs": np.array(list(arrays[f"{side}_names"][rows])),
    }


def sft_reid(folder, arrays):
    for side, word in SIDES.items():
        scipy.io.savemat(folder / f"{word}-resnet.mat", sft_fields(arrays, side))
    return ["query-resnet.mat", "gallery-resnet.mat"], ("ids", "cams", "names"), "MATLAB v5, SFT_REID"


def sft_reid_gallery_first(folder, arrays):
    files, kinds, told = sft_reid(folder, arrays)
    return files[::-1], kinds, told


def sft_reid_distractors(folder, arrays):
    files, kinds, told = sft_reid(folder, arrays)
    scipy.io.savemat(folder / files[1], sft_fields(arrays, "gallery", slice(30)))
    scipy.io.savemat(folder / "distractor0-resnet.mat", sft_fields(arrays, "gallery", slice(30, None)))
    return [*files, "distractor0-resnet.mat"], kinds, told


def zhong(folder, arrays, save=scipy.io.savemat, feature=None, label=None):
    """Features lie down, and each label has a file."""
    files = []
    for side, word in (("probe", "query"), ("gallery", "test")):
        save(folder / f"ResNet_IDE_{word}.mat", {feature or f"Hist_{word}": arrays[side].T})
        files.append(f"ResNet_IDE_{word}.mat")
        for kind, name in (("ids", "ID"), ("cams", "Cam")):
            values = arrays[f"{side}_{kind}"].reshape(-1, 1).astype(float)
            save(folder / f"{word}{name}.mat", {label or f"{word}{name.upper()}": values})
            files.append(f"{word}{name}.mat")
    return files, ("ids", "cams"), "MATLAB v5, Zhong's names"


def together(arrays):
    """All images in one array, others among them: the arrays, and the rows of probes, of gallery, of others."""
    rng = np.random.default_rng(3)
    order = rng.permutation(12 + 40 + 9)
    more = {"": rng.standard_normal((9, 7)).astype(np.float32), "_ids": np.full(9, 999)}
    more |= {"_cams": np.ones(9, int), "_names": np.array(["train.png"] * 9, dtype=object)}
    found = {}
    for kind, values in more.items():
        rows = np.concatenate([arrays[f"probe{kind}"], arrays[f"gallery{kind}"], values])
        found[kind] = np.empty_like(rows)
        found[kind][order] = rows
    return found, np.split(order, [12, 52])


def cuhk03(arrays, dtype=np.int64, shape=(-1, 1)):
    """The fields of CUHK03-NP without its features: lists of rows count from 1."""
    images, rows = together(arrays)
    fields = {"labels": images["_ids"], "camId": images["_cams"]}
    fields |= {f"{word}_idx": some + 1 for word, some in zip(("query", "gallery", "train"), rows, strict=True)}
    return {name: value.reshape(shape).astype(dtype) for name, value in fields.items()}


def zhong_cuhk03(folder, arrays):
    images, _ = together(arrays)
    scipy.io.savemat(
        folder / "cuhk03_new_protocol_config_labeled.mat",
        cuhk03(arrays) | {"filelist": images["_names"].reshape(-1, 1)},
    )
    scipy.io.savemat(folder / "feat.mat", {"feat": images[""].T})
    return (
        ["cuhk03_new_protocol_config_labeled.mat", "feat.mat"],
        ("ids", "cams", "names"),
        "MATLAB v5, CUHK03-NP",
    )


def gnn_reranking(folder, arrays):
    fields = {name: value.ravel() if value.shape[0] == 1 else value for name, value in layumi(arrays).items()}
    (folder / "market_88_test.pkl").write_bytes(pickle.dumps(fields))
    return ["market_88_test.pkl", "--allow-pickle"], ("ids", "cams"), "pickle, layumi's names"


def gcn_rerank(folder, arrays):
    for side, word in SIDES.items():
        rows = OrderedDict(zip(arrays[f"{side}_names"], arrays[side], strict=True))
        (folder / f"{word}.pkl").write_bytes(pickle.dumps(rows, protocol=2))
    return (
        ["query.pkl", "gallery.pkl", "--allow-pickle"],
        ("ids", "cams", "names"),
        "pickle, vectors by file name",
    )


def coincheung(folder, arrays):
    six = tuple(arrays[f"{side}{kind}"] for side in SIDES for kind in ("", "_ids", "_cams"))
    (folder / "embeds.pkl").write_bytes(pickle.dumps(six))
    return ["embeds.pkl", "--allow-pickle"], ("ids", "cams"), "pickle, by position, as CoinCheung's SFT-ReID"


def ecn(folder, arrays):
    for side, word in (("probe", "query"), ("gallery", "test")):
        (folder / "dump" / word).mkdir(parents=True)
        for name, kind, form in (
            ("features", "", "%.9g"),
            ("labels", "_ids", "%d"),
            ("cameras", "_cams", "%d"),
        ):
            np.savetxt(folder / "dump" / word / f"{name}.csv", arrays[f"{side}{kind}"], delimiter=",", fmt=form)
    return ["dump"], ("ids", "cams"), "folder of CSV files, ECN's names"


def ecn_two_folders(folder, arrays):
    ecn(folder, arrays)
    return ["dump/query", "dump/test"], ("ids", "cams"), "folder of CSV files, a file a side"


def torchreid_npz(folder, arrays):
    np.savez(folder / "feats.npz", **torchreid_fields(arrays))
    return ["feats.npz"], ("ids", "cams"), "NumPy archive, torchreid's names"


def torchreid_fields(arrays):
    fields = {}
    for side, letter in (("probe", "q"), ("gallery", "g")):
        fields |= {
            f"{letter}f": arrays[side],
            f"{letter}_pids": arrays[f"{side}_ids"],
            f"{letter}_camids": arrays[f"{side}_cams"],
        }
    return fields


def torchreid_pt(folder, arrays):
    """Tensors beside arrays and lists, also of NumPy's scalars, as its evaluation loop has them."""
    fields = torchreid_fields(arrays)
    fields |= {name: torch.from_numpy(fields[name]) for name in ("qf", "gf")}
    fields |= {"q_pids": fields["q_pids"].tolist(), "g_pids": list(fields["g_pids"])}
    torch.save(fields, folder / "feats.pt")
    return ["feats.pt"], ("ids", "cams"), "torch.save, torchreid's names"


def torchreid_old_pt(folder, arrays):
    torch.save(
        {name: torch.from_numpy(value) for name, value in torchreid_fields(arrays).items()},
        folder / "feats.pth",
        _use_new_zipfile_serialization=False,
    )
    return ["feats.pth"], ("ids", "cams"), "torch.save, torchreid's names"


def fastreid(folder, arrays):
    fields = {name: torch.as_tensor(value) for name, value in joined(arrays, 12).items()}
    torch.save(fields | {"num_query": 12}, folder / "out.pt")
    return ["out.pt"], ("ids", "cams"), "torch.save, one list of images"


def fastreid_npz(folder, arrays):
    np.savez(folder / "out.npz", **joined(arrays, 12))
    return ["out.npz"], ("ids", "cams"), "NumPy archive, one list of images"


def oml(folder, arrays):
    """Sequences stand for cameras here: within an identity they say what a probe ignores."""
    with open(folder / "df.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "path", "split", "is_query", "is_gallery", "category", "sequence"])
        for side, word in SIDES.items():
            for identity, camera, name in zip(
                *(arrays[f"{side}_{kind}"] for kind in ("ids", "cams", "names")), strict=True
            ):
                rows.writerow(
                    [identity, name, "validation", word == "query", word == "gallery", "shoe, left", camera]
                )
    np.save(folder / "features.npy", np.concatenate([arrays["probe"], arrays["gallery"]]))
    return ["df.csv", "features.npy"], ("ids", "cams", "names"), "CSV with a header and NumPy array, OML"


def ann_benchmarks(folder, arrays):
    with h5py.File(folder / "glove-angular.hdf5", "w") as file:
        file.attrs["distance"] = "angular"
        file["train"], file["test"] = arrays["gallery"], arrays["probe"]
        file["neighbors"], file["distances"] = np.zeros((12, 10), np.int32), np.zeros((12, 10), np.float32)
    return ["glove-angular.hdf5"], (), "HDF5, ann-benchmarks"


def fbin(folder, arrays):
    for name, side in (("queries", "probe"), ("base", "gallery")):
        with open(folder / f"{name}.fbin", "wb") as file:
            np.array(arrays[side].shape, dtype="<i4").tofile(file)
            arrays[side].astype("<f4").tofile(file)
    return ["queries.fbin", "base.fbin"], (), "vectors of float32, a file a side"


def npy(folder, arrays):
    np.save(folder / "probe.npy", arrays["probe"])
    np.save(folder / "gallery.npy", arrays["gallery"])
    return ["probe.npy", "gallery.npy"], (), "NumPy array, a file a side"


def csv_pair(folder, arrays):
    for side in SIDES:
        np.savetxt(folder / f"{side}.csv", arrays[side], delimiter=",", fmt="%.9g")
    return ["probe.csv", "gallery.csv"], (), "CSV without a header, a file a side"


TOOLS = (
    *(layumi_v5, layumi_without_paths, layumi_v73, sft_reid, sft_reid_gallery_first, sft_reid_distractors),
    *(zhong, zhong_cuhk03, gnn_reranking, gcn_rerank, coincheung, ecn, ecn_two_folders),
    *(torchreid_npz, torchreid_pt, torchreid_old_pt, fastreid, fastreid_npz),
    *(oml, ann_benchmarks, fbin, npy, csv_pair),
)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_what_a_tool_wrote_comes_out_as_it_was_and_run_reads_it_directly(tool, cli, tmp_path, arrays):
    files, kinds, source = tool(tmp_path, arrays)
    code, out, err = cli("convert", *files, "out.h5")
    assert code == 0, err
    assert out.splitlines()[0] == source
    data = check(tmp_path / "out.h5", arrays, *kinds, exact="csv" not in source.lower() or tool is oml)
    assert source in data.provenance["source"]
    assert "wrote out.h5: 12 probes x 40 gallery x 7" in err
    files = [name for name in files if name != "--allow-pickle"]
    if len(files) > 2:  # run takes one file, or one a side
        return
    sides = files[0], *(("--gallery", files[1]) if len(files) == 2 else ())
    code, _, err = cli("run", *sides, "--topn", 10, "-o", "direct.csv")
    if files[0].endswith(".pkl"):
        assert code == 1
        assert "is a pickle" in err
        assert "convert --allow-pickle" in err
        return
    assert code == 0, err
    assert f": {source}\n" in err
    assert cli("run", "out.h5", "--topn", 10, "-o", "converted.csv")[0] == 0
    assert (tmp_path / "direct.csv").read_bytes() == (tmp_path / "converted.csv").read_bytes()


@pytest.mark.parametrize("shape", [(-1, 1), (1, -1)], ids=["columns", "rows"])
@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_doubles_of_cuhk03_are_labels_not_features(version, shape, convert, refused, tmp_path, arrays):
    """MATLAB makes everything double, and gives labels two dimensions."""
    save = {"v5": scipy.io.savemat, "v7.3": write_73}[version]
    fields = cuhk03(arrays, np.float64, shape)
    save(tmp_path / "config.mat", fields)
    assert "there are 0: name its file too" in refused("config.mat")
    save(tmp_path / "config.mat", fields | {"width": np.full(61, 128.0).reshape(shape)})
    save(tmp_path / "feat.mat", {"feat": together(arrays)[0][""].T})
    assert f"MATLAB {version}, CUHK03-NP" in convert("config.mat", "feat.mat")
    check(tmp_path / "out.h5", arrays, "ids", "cams")


@pytest.mark.parametrize("save", [scipy.io.savemat, write_73])
def test_doubles_in_files_named_as_labels_are_labels(save, convert, tmp_path, arrays):
    """Zhong's files, each with a variable of the same name."""
    convert(*zhong(tmp_path, arrays, save, "feat", "x")[0])
    check(tmp_path / "out.h5", arrays, "ids", "cams")


def test_arrays_of_matlab_73_are_as_matlab_shows_them(convert, tmp_path, arrays):
    """HDF5 has their dimensions the other way round, and no labels are there to say so."""
    write_73(tmp_path / "bare.mat", {"query_f": arrays["probe"], "gallery_f": arrays["gallery"]})
    assert "transposed" not in convert("bare.mat")
    check(tmp_path / "out.h5", arrays)
    texts = np.array([["a", "bc", "d"], ["e", "f", "gh"]], dtype=object)
    with h5py.File(tmp_path / "more.mat", "w", userblock_size=512) as file:
        cells = np.empty((3, 2), dtype=h5py.ref_dtype)
        for place, text in np.ndenumerate(texts.T):
            cell = file.create_dataset(f"#refs#/{text}", data=np.array([[ord(sign)] for sign in text], "u2"))
            cell.attrs["MATLAB_class"] = np.bytes_("char")
            cells[place] = cell.ref
        file.create_dataset("cells", data=cells, dtype=h5py.ref_dtype).attrs["MATLAB_class"] = np.bytes_("cell")
        rows = np.array([[ord(sign) for sign in row] for row in ("first", "other")], "u2")
        file.create_dataset("rows", data=rows.T).attrs["MATLAB_class"] = np.bytes_("char")
    with open(tmp_path / "more.mat", "r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    found = open_file(tmp_path / "more.mat").fields
    assert found["cells"].shape == (2, 3)
    assert [str(cell[0]) for cell in found["cells"].ravel()] == texts.ravel().tolist()
    assert found["rows"].tolist() == ["first", "other"]


@pytest.mark.parametrize("tool", [oml, csv_pair])
def test_a_byte_order_mark_is_no_part_of_a_column_or_number(tool, convert, tmp_path, arrays):
    """As spreadsheets write it."""
    files, kinds, source = tool(tmp_path, arrays)
    for path in tmp_path.glob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert convert(*files).startswith(source)
    check(tmp_path / "out.h5", arrays, *kinds, exact=tool is oml)


def test_a_real_dump(cli, tmp_path, shared, market_subset):
    mat = shared / "data/layumi_market_subset.mat"
    code, out, err = cli("convert", mat, "market.h5")
    assert code == 0
    assert "100 x 1536 float32: query_f" in out
    assert "1, normalised" in out
    assert "flattened from 1 x 86" in out
    assert "93 of 100 probes have no match" in err
    data = br.load(tmp_path / "market.h5")
    for side in SIDES:
        for kind in ("features", "ids", "cams"):
            np.testing.assert_array_equal(
                getattr(getattr(data, side), kind), getattr(getattr(market_subset, side), kind)
            )
    # The identity and the camera stand in each name.
    for side in (data.probe, data.gallery):
        said = [Path(name).name.split("_") for name in side.names]
        assert [int(parts[0]) for parts in said] == side.ids.tolist()
        assert [int(parts[1][1]) - 1 for parts in said] == side.cams.tolist()
    assert cli("run", "market.h5")[0] == cli("run", mat)[0] == 0
    described = json.loads(cli("info", mat, "--json")[1])
    assert described["probe"]["features"] == [100, 1536]


def test_multi_query_averages_the_images_of_the_probe(convert, refused, arrays):
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.repeat(np.arange(11), 3))
    labels = {
        f"mquery_{word}": arrays[f"probe_{kind}"][rows] for word, kind in (("label", "ids"), ("cam", "cams"))
    }
    vectors = {"mquery_f": rng.standard_normal((33, 7)).astype(np.float32)}
    scipy.io.savemat("pytorch_result.mat", layumi(arrays))
    scipy.io.savemat("multi_query.mat", vectors | labels)
    assert "multi-query: each probe is the mean" in convert("pytorch_result.mat", "multi_query.mat")
    found = br.load("out.h5").probe.features
    key = list(zip(arrays["probe_ids"], arrays["probe_cams"], strict=True))
    for row in range(12):
        some = [vectors["mquery_f"][place] for place, of in enumerate(rows) if key[of] == key[row]]
        expected = np.mean(some, axis=0) if some else arrays["probe"][row]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)
    scipy.io.savemat("bare.mat", vectors)
    why = refused("pytorch_result.mat", "bare.mat")
    assert "multi-query needs mquery_f, mquery_label and mquery_cam: found only mquery_f" in why
    assert "also pass pytorch_result.mat" in refused("multi_query.mat")


def test_probes_without_images_for_multi_query_stay_and_are_told(convert, arrays):
    """Each probe is the only one of its identity, and some identities have no images there."""
    ids = 1 + np.arange(12)
    fields = layumi(arrays, query_label=ids, query_cam=np.ones(12, int))
    fields |= {"mquery_f": arrays["gallery"][:7], "mquery_label": ids[:7], "mquery_cam": np.ones(7, int)}
    assert "5 probes have no images for multi-query and keep their own features" in convert(fields)
    expected = np.concatenate([arrays["gallery"][:7], arrays["probe"][7:]])
    np.testing.assert_array_equal(br.load("out.h5").probe.features, expected)
    fields |= {"mquery_f": expected, "mquery_label": ids, "mquery_cam": np.ones(12, int)}
    assert "no images for multi-query" not in convert(fields)


def oml_table(labels, queries, galleries, **columns) -> list[str]:
    """A table of OML, and its features."""
    with open("df.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "is_query", "is_gallery", *columns])
        rows.writerows(zip(labels, queries, galleries, *columns.values(), strict=True))
    rng = np.random.default_rng(0)
    np.save("features.npy", rng.standard_normal((len(labels), 7)).astype(np.float32))
    return ["df.csv", "features.npy"]


def probes_first(labels, probes: int, **columns) -> list[str]:
    first = np.arange(len(labels)) < probes
    return oml_table(labels, first, ~first, **columns)


def labels_of_all(kind: str) -> list[int]:
    data = br.load("out.h5")
    return [*getattr(data.probe, kind), *getattr(data.gallery, kind)]


def test_oml_ignores_the_image_itself(convert, arrays):
    """Without sequences, images that are probe and gallery at once must not find themselves."""
    rows, ids = arrays["gallery"][4:], arrays["gallery_ids"][4:]
    oml_table(ids, [True] * 36, [True] * 36, path=[f"{row}.png" for row in range(36)])
    torch.save(torch.from_numpy(rows), "features.pt")
    assert "so that no image matches itself" in convert("df.csv", "features.pt")
    data = br.load("out.h5")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = unit.astype(np.float64) @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    found = br.evaluate(br.rerank(data, "cosine"), data)
    assert found.rank(1) == pytest.approx(np.mean(ids[cosine.argmax(axis=1)] == ids))


def test_oml_rows_of_other_splits_are_told(convert, refused, arrays):
    ids = [*arrays["gallery_ids"][4:], *arrays["gallery_ids"][4:9]]
    split = ["validation"] * 36 + ["train"] * 5
    flags = [["True"] * 10 + ["False"] * 26 + [""] * 5, ["False"] * 10 + ["True"] * 26 + [""] * 5]
    files = oml_table(ids, *flags, split=split)
    np.save("features.npy", arrays["gallery"][4:])
    assert "features cover only the 36 query or gallery rows, of 41" in convert(*files)
    np.testing.assert_array_equal(br.load("out.h5").gallery.features, arrays["gallery"][14:])
    np.save("features.npy", arrays["gallery"][:20])
    assert "has 20 rows and df.csv has 41" in refused(*files)


def test_oml_counts_from_0_and_a_probe_is_no_distractor(convert):
    labels = np.arange(30) % 5
    told = convert(*probes_first(labels, 10))
    assert "text converted to integers, 1 added to all non-negative ids" in told
    assert "id 0" not in told.replace("probes have id 0", "")
    assert labels_of_all("ids") == [*labels + 1]
    data = br.load("out.h5")
    assert br.evaluate(br.rerank(data, "cosine"), data, protocol="plain").valid_probes == 10
    # Junk stays junk, and where no probe has 0 it may mark distractors: means are the same either way.
    for some, expected in (
        ([0, 1, 2, -1, 0, 1], [1, 2, 3, -1, 1, 2]),
        ([1, 2, 3, -1, 0, 1], [1, 2, 3, -1, 0, 1]),
    ):
        assert ("1 added" in convert(*probes_first(some, 2))) == (some != expected)
        assert labels_of_all("ids") == expected


def test_oml_takes_what_pandas_wrote_for_nothing_as_no_sequence(convert):
    labels = [1, 1, 1, 1, 2, 2]
    told = convert(*probes_first(labels, 1, sequence=["3.0", "nan", "3.0", "nan", "NaN", "7.0"]))
    assert "sequence is nan in 3 rows: treated as empty" in told
    assert "holds several identities" not in told
    cams = labels_of_all("cams")
    assert [cams.index(camera) for camera in cams] == [0, 1, 0, 3, 4, 5]
    convert(*probes_first(labels, 1, sequence=["nan"] * 6))
    assert br.load("out.h5").probe.cams is None


def test_oml_images_without_a_sequence_are_of_none_together(convert):
    convert(*probes_first([1, 1, 1, 2, 2, 2], 2, sequence=["a", "", "a", "", "", "b"]))
    cams = labels_of_all("cams")
    assert [cams.index(camera) for camera in cams] == [0, 1, 0, 3, 4, 5]


# What is told: of dumps in these layouts


def as_layumi(arrays, **changes):
    return layumi(arrays) | changes


def as_cuhk03(arrays, **changes):
    return cuhk03(arrays) | changes | {"feat": together(arrays)[0][""].T}


def as_multi_query(arrays, **changes):
    fields = {"mquery_f": arrays["probe"][:3], "mquery_label": np.ones(3), "mquery_cam": np.ones(3)}
    return layumi(arrays) | fields | changes


def as_one_list(arrays, **changes):
    return joined(arrays, 12) | changes


def alone(arrays, **names):
    """Nothing but these sides, by other names."""
    return {name: arrays[side] for name, side in names.items()}


@pytest.mark.parametrize(
    ("probe", "gallery", "said"),
    [
        ([0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6], True),
        ([1, 2, 3, 4, 5, 6], [0, 1, 2, 3], True),
        ([0, 1, 2, 3, 4, 5], [1, 2, 3, 4], False),  # some are not in the gallery
        ([0, 1, 2], [1, 2], False),
        ([0, 1, 2], [0, 1, 2, 3], False),
        ([1, 2, 3], [2, 3, 4], False),
    ],
)
@pytest.mark.parametrize("junk", [-1, 0, 3])
def test_cameras_are_compared_without_those_of_junk(probe, gallery, said, junk, convert, arrays):
    """The first two of the gallery, and a probe, are junk under a camera of its own."""
    cams = {"probe": np.resize(probe, 12), "gallery": np.resize(gallery, 40)}
    ids = arrays["probe_ids"].copy()
    ids[3] = -1
    cams["probe"][3] = cams["gallery"][0] = cams["gallery"][1] = junk
    told = convert(layumi(arrays, query_cam=cams["probe"], gallery_cam=cams["gallery"], query_label=ids))
    assert (
        f"warning: cameras are {min(probe)} to {max(probe)} and {min(gallery)} to {max(gallery)}: if these are "
        "the same cameras, one side counts from 0 and the other from 1" in told
    ) == said


def test_junk_hides_neither_one_camera_nor_that_none_is_common(convert, arrays):
    """Names that do not parse give camera -1 on both sides."""
    ids = np.where(np.arange(12) == 3, -1, arrays["probe_ids"])
    for other, said in (
        (1, "all images have the same camera"),
        (2, "probes and gallery have no camera in common"),
    ):
        cams = {"query_cam": np.where(ids == -1, -1, 1)}
        cams["gallery_cam"] = np.where(arrays["gallery_ids"] == -1, -1, other)
        assert f"warning: {said}" in convert(layumi(arrays, query_label=ids, **cams))


def traps(arrays) -> dict[str, dict[str, np.ndarray]]:
    """Dumps with something that is probably not meant, by what is said of it."""
    few, cams = layumi(arrays), {f"{word}_cam": arrays[f"{side}_cams"] for side, word in SIDES.items()}
    turned = {"query": "gallery", "gallery": "query"}
    return {
        "there are no cameras": {name: value for name, value in few.items() if "_cam" not in name},
        "all images have the same camera": few | {name: value * 0 for name, value in cams.items()},
        "probes and gallery have no camera in common": few | {"query_cam": cams["query_cam"] + 10},
        "one side counts from 0 and the other from 1": few | {"query_cam": cams["query_cam"] - 1},
        "are 1 to 3 and 0 to 2": few | {"gallery_cam": cams["gallery_cam"] - 1},
        "3 of 12 probes have no match in the gallery": few
        | {"query_label": np.where(np.arange(12) < 3, 77, arrays["probe_ids"])},
        "are the sides swapped?": {
            f"{turned[word]}_{kind}": few[f"{word}_{kind}"] for word in turned for kind in ("f", "label", "cam")
        },
        "lists can be written but not measured": {name: few[name] for name in ("query_f", "gallery_f")},
    }


@pytest.mark.parametrize("said", traps(features()))
def test_info_and_convert_warn_of_the_same(said, cli, arrays):
    name = named(traps(arrays)[said])
    code, out, _ = cli("convert", name, "out.h5", "--json")
    assert code == 0
    expected = json.loads(out)["warnings"]
    assert any(said in line for line in expected)
    for file in (name, "out.h5"):
        assert json.loads(cli("info", file, "--json")[1])["warnings"] == expected
    assert f"warning: {expected[0]}" in cli("info", file)[1]


def test_nothing_is_said_of_a_sound_dump(convert, arrays):
    assert "warning: " not in convert(layumi(arrays))


def test_info_tells_the_doubts_of_reading(cli, arrays):
    fields = {name: value for name, value in layumi(arrays).items() if name != "gallery_cam"}
    for command in (("convert", "out.h5"), ("info",), ("run", "-o", "lists.csv")):
        code, out, err = cli(command[0], named(fields), *command[1:])
        assert code == 0, err
        assert "warning: cams exist only for the probes" in out + err


def test_labels_kept_as_lists_are_labels(convert, tmp_path, arrays):
    """A list of lists of text, which compares unequal to everything in an evaluation loop."""
    lists = [[str(identity)] for identity in arrays["probe_ids"]]
    told = convert(*pickled(dump=layumi(arrays, query_label=lists)))
    assert "flattened from 12 x 1, text converted to integers" in told
    check(tmp_path / "out.h5", arrays, "ids", "cams")


def test_float_labels_become_integers_and_it_is_told(convert, refused, tmp_path, arrays):
    fields = layumi(arrays, query_label=arrays["probe_ids"].astype(np.float64))
    assert "query_label, float64 converted to integers" in convert(fields)
    check(tmp_path / "out.h5", arrays, "ids", "cams")
    fields["query_label"][5] = 3.5
    assert "query_label has 3.5 in row 5: expected whole numbers that float64 holds exactly" in refused(fields)


def test_norms_are_told_and_kept(convert, arrays):
    """Also the one of PCB, and norms that differ are not called one norm."""
    unit = {side: arrays[side] / np.linalg.norm(arrays[side], axis=1, keepdims=True) for side in SIDES}
    unit["gallery"][17] *= 0.5
    fields = layumi(arrays, query_f=unit["probe"] * np.sqrt(6), gallery_f=unit["gallery"])
    told = convert(fields)
    assert "2.449, the square root of 6: perhaps 6 normalised parts" in told
    assert "0.5 to 1, not normalised" in told
    np.testing.assert_array_equal(br.load("out.h5").probe.features, fields["query_f"])


def test_names_may_have_folders_of_either_kind(convert, arrays):
    """A dump from Windows has backslashes; the identity is at the start of the last part."""
    rows = [
        {folder + name: row for name, row in zip(arrays[f"{side}_names"], arrays[side], strict=True)}
        for side, folder in (("probe", "data\\0009_c9\\"), ("gallery", "9999_c9/x/"))
    ]
    convert(*pickled(query=rows[0], gallery=rows[1]))
    data = br.load("out.h5")
    for side in SIDES:
        np.testing.assert_array_equal(getattr(data, side).ids, arrays[f"{side}_ids"])
        np.testing.assert_array_equal(getattr(data, side).cams, arrays[f"{side}_cams"])


def test_names_without_an_identity_become_distractors_and_it_is_told(convert, arrays):
    rows = {side: dict(zip(arrays[f"{side}_names"], arrays[side], strict=True)) for side in SIDES}
    told = convert(*pickled(query=rows["probe"], gallery={"Thumbs.db": arrays["gallery"][0]} | rows["gallery"]))
    assert "1 of 41 gallery names say no identity (Thumbs.db): their images are distractors, id 0" in told
    assert br.load("out.h5").gallery.ids.tolist() == [0, *arrays["gallery_ids"]]


@pytest.mark.parametrize(("distance", "said"), [("euclidean", True), ("angular", False), (None, False)])
def test_another_distance_than_the_angle_is_told(distance, said, convert, tmp_path, arrays):
    ann_benchmarks(tmp_path, arrays)
    with h5py.File("glove-angular.hdf5", "r+") as file:
        del file.attrs["distance"]
        if distance is not None:
            file.attrs["distance"] = distance
    told = convert("glove-angular.hdf5")
    assert ("its distance is euclidean, but blurrerank ranks by cosine similarity" in told) == said


def test_junk_and_distractors_keep_their_numbers_among_names(convert, refused, tmp_path, arrays):
    text = {side: np.array([f"dog {i}" if i > 0 else str(i) for i in arrays[f"{side}_ids"]]) for side in SIDES}
    told = convert(layumi(arrays, query_label=text["probe"], gallery_label=text["gallery"]))
    assert "6 text labels numbered from 1, except -1 and 0" in told
    check(tmp_path / "out.h5", arrays, "ids", "cams")
    # Padded to the width of the others, and one side with nothing but whole numbers.
    padded = {side: np.array([f"{i:04}" if i > -1 else "-1" for i in arrays[f"{side}_ids"]]) for side in SIDES}
    text["gallery"] = np.where(padded["gallery"] == "0003", "c3", padded["gallery"])
    told = convert(layumi(arrays, query_label=padded["probe"], gallery_label=text["gallery"]))
    assert "7 text labels numbered from 1, except -1 and 0000" in told
    expected = [*arrays["probe_ids"], *(7 if i == 3 else i for i in arrays["gallery_ids"])]
    assert labels_of_all("ids") == expected
    why = refused(layumi(arrays, query_label=text["probe"]))
    assert "query_label is text and gallery_label is numbers" in why


@pytest.mark.parametrize(
    ("layout", "label", "dtype", "value"),
    [(as_layumi, "gallery_label", "uint8", 255), (as_cuhk03, "labels", "uint16", 65535)],
)
def test_what_minus_one_becomes_without_a_sign_is_told_once(layout, label, dtype, value, convert, arrays):
    fields = layout(arrays)
    fields[label] = fields[label].astype(dtype)
    said = f"{label} is {dtype} and has {value} in 2 rows, which is -1 stored as unsigned"
    assert convert(fields).count(said) == 1


def test_what_minus_one_became_is_told_before_distractors_join(convert, tmp_path, arrays):
    files, _, _ = sft_reid_distractors(tmp_path, arrays)
    fields = sft_fields(arrays, "gallery", slice(30))
    scipy.io.savemat(files[1], fields | {"ids": fields["ids"].astype(np.uint16)})
    assert "ids is uint16 and has 65535 in 2 rows, which is -1 stored as unsigned" in convert(*files)


def test_distractors_are_joined_upright_and_what_was_done_to_them_is_told(convert, tmp_path, arrays):
    """Of another type, lying, without names."""
    files, _, _ = sft_reid_distractors(tmp_path, arrays)
    fields = {
        "feat": arrays["gallery"][30:].T.astype(np.float64),
        "ids": arrays["gallery_ids"][30:].astype(np.float64),
        "cam_ids": arrays["gallery_cams"][30:],
    }
    scipy.io.savemat(files[-1], fields)
    told = convert(*files)
    assert "float64 converted to integers in distractor0-resnet.mat" in told
    assert "transposed from 7 x 10 in distractor0-resnet.mat" in told
    assert "float32 converted to float64 as in distractor0-resnet.mat" in told
    data = br.load("out.h5")
    np.testing.assert_array_equal(data.gallery.features, arrays["gallery"])
    np.testing.assert_array_equal(data.gallery.ids, arrays["gallery_ids"])
    np.testing.assert_array_equal(data.probe.names, arrays["probe_names"])
    assert data.gallery.names is None


@pytest.mark.parametrize(("gallery", "said"), [(11, True), (12, False)])
def test_as_many_probes_as_gallery_are_not_the_other_way_round(gallery, said, convert, arrays):
    fields = layumi({key: value[: gallery if "gallery" in key else 12] for key, value in arrays.items()})
    fields["query_label"] = arrays["gallery_ids"][:12]
    assert ("are the sides swapped?" in convert(fields)) == said


def test_whole_numbers_as_features_become_floats_and_it_is_told(convert, tmp_path, arrays):
    whole = {side: (10 * arrays[side]).astype(np.int8) for side in SIDES}
    told = convert(layumi(arrays, query_f=whole["probe"], gallery_f=whole["gallery"]))
    assert "query_f, int8 converted to float32" in told
    check(tmp_path / "out.h5", arrays | {side: whole[side].astype(np.float32) for side in SIDES}, "ids", "cams")


def test_half_floats_stay_half(convert, tmp_path, arrays):
    half = {side: arrays[side].astype(np.float16) for side in SIDES}
    for side in SIDES:
        Path(f"{side}.hbin").write_bytes(np.array(half[side].shape, "<i4").tobytes() + half[side].tobytes())
    convert("probe.hbin", "gallery.hbin")
    check(tmp_path / "out.h5", half)
    assert br.load("out.h5").probe.features.dtype == np.float16


# Arrays that may lie on their side


def test_square_arrays_are_not_guessed_by_run(convert, refused, tmp_path):
    made = features(probes=8, gallery=8, dim=8)
    why = refused(layumi(made), command="run")
    assert "query_f is square: rows were assumed to be images; inspect it with `blurrerank convert`" in why
    assert "gallery_f is square" in why
    assert "warning: query_f is square" in convert("dump.npz")
    check(tmp_path / "out.h5", made, "ids", "cams")


@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("square", ["probe", "gallery"])
def test_a_square_array_is_read_as_the_other_side_is(square, lying, cli, convert, tmp_path):
    """Programs write both sides alike, and one of them fits its labels in one way alone."""
    made = features(probes=12, gallery=12, dim=12)
    other = next(side for side in SIDES if side != square)
    made |= {key: value[:9] for key, value in made.items() if key.startswith(other)}
    turned = {f"{word}_f": made[side].T if lying else made[side] for side, word in SIDES.items()}
    told = convert(layumi(made, **turned))
    assert f"{SIDES[square]}_f, square, oriented like the other side" in told
    assert ("transposed from 12 x 12" in told) == lying
    assert "is square" not in told
    check(tmp_path / "out.h5", made, "ids", "cams")
    assert cli("run", "dump.npz", "-o", "lists.csv")[0] == 0


def test_a_square_array_of_all_images_is_doubtful_however_it_is_cut(cli, convert, tmp_path):
    made = features(probes=4, gallery=8, dim=12)
    assert "warning: feats is square: rows were assumed to be images" in convert(joined(made, 4))
    check(tmp_path / "out.h5", made, "ids", "cams")
    cut = named(joined(features(probes=8, gallery=8, dim=8), 8))  # which happens to be square
    assert cli("run", cut, "-o", "lists.csv")[0] == 0


@pytest.mark.parametrize("form", ["named", "bare"])
def test_arrays_that_lie_on_their_side_without_labels(form, convert, tmp_path, arrays):
    """One dimension in common, the first of both: it is not that of the images."""
    turned = {side: arrays[side].T for side in SIDES}
    files, _, _ = npy(tmp_path, turned)
    told = convert(
        *(files if form == "bare" else [{f"{SIDES[side]}_f": rows for side, rows in turned.items()}])
    )
    assert "transposed from 7 x 12" in told
    assert "transposed from 7 x 40" in told
    check(tmp_path / "out.h5", arrays)


def test_two_arrays_of_one_shape_without_labels_are_doubtful(cli, tmp_path, arrays):
    files, _, _ = npy(tmp_path, arrays | {"gallery": arrays["gallery"][:12]})
    code, _, err = cli("run", files[0], "--gallery", files[1])
    assert code == 1
    assert "both arrays have the same shape: rows were assumed to be images" in err
    npy(tmp_path, arrays | {"gallery": arrays["gallery"][:13]})
    assert cli("run", files[0], "--gallery", files[1], "-o", "lists.csv")[0] == 0


# What is refused


RUN = b"q1 Q0 g7 1 0.9 tag\nq1 Q0 g8 2 0.8 tag\n"
IDS = np.array([2, 3, 5, 1, 0, 4, 2, 1], dtype="<i4").tobytes()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("lists.trec", RUN, "is a TREC run, which has lists but no features"),
        ("lists.trec.gz", gzip.compress(RUN, mtime=0), "is a TREC run, which has lists but no features"),
        ("market.qrels", b"q1 0 g7 1\nq1 0 g8 0\n", "contains TREC judgements"),
        ("gt.ibin", IDS, "pass it to `run` with --candidates"),
        ("lists.bin", IDS, "contains neighbour lists"),
        # Lists that are padded with -1, which is no small number as a float.
        ("gt.ibin", np.array([2, 2, 5, -1, 0, -1], dtype="<i4").tobytes(), "contains neighbour lists"),
        ("q.fbin", IDS[:8] + bytes(20), "says 2 x 3, which takes 32: it was truncated"),
        (
            "q.fbin",
            b"\xff" * 8 + bytes(20),
            "4,294,967,295 x 4,294,967,295, which takes 73,786,976,260,478,468,108",
        ),
        ("q.fbin", bytes(4) + b"\3\0\0\0", "has no values: its header says 0 rows of 3"),
        ("photo.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(300), "is not a recognised feature file"),
        ("notes.txt", b"hello\nworld\n", "is text, but not a table of features"),
        ("table.csv", b"a,b\n1,2\n3\n", "line 3 does not have the 2 columns of the first"),
        ("table.csv", b"\n\na,b\n1,2\n\n3\n", "line 6 does not have the 2 columns of the first"),
        ("table.csv", b"\n\n", "is empty"),
        ("q.csv", b"1,2\n3\n", "is text, but not a table of features: line 2 does not have the 2 columns of"),
        ("x.npz", b"PK\x03\x04 not really", "cannot be read"),
        ("x.mat", b"MATLAB 5.0 MAT-file" + bytes(200), "is a damaged MATLAB file"),
        ("packed.gz", gzip.compress(b"hello", mtime=0), "is compressed: decompress it"),
    ],
)
def test_other_things_are_refused_by_name(name, content, why, refused, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert why in refused(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("values", [scipy.sparse.csc_matrix(np.eye(12, 7)), {"f": 1}, np.eye(12, 7) * 1j])
def test_variables_that_are_not_read_are_told(values, refused, arrays):
    scipy.io.savemat("dump.mat", layumi(arrays) | {"query_f": values})
    why = refused("dump.mat")
    assert "no probe features: found MATLAB v5 with " in why
    assert "; not read: query_f (" in why


ONE_NAN = np.where(np.arange(280).reshape(40, 7) == 51, np.nan, 1)
WRONG = [
    (
        as_layumi,
        {"gallery_f": None},
        "no gallery features: found NumPy archive with query_f 12 x 7, query",
    ),
    (alone, {"one": "probe", "two": "gallery"}, "layout not recognised"),
    (alone, {"one": "probe", "two": "gallery"}, "Name the fields query_f, query_label"),
    (alone, {"feats": "probe", "pids": "probe_ids"}, "num_query"),
    (as_layumi, {"gallery_label": np.ones(39)}, "gallery_f is 40 x 7, and there are 39 labels"),
    (as_layumi, {"qf": np.ones((12, 7))}, "could both be the probe features"),
    (as_layumi, {"gallery_f": ONE_NAN}, "gallery/features has NaN or infinity in row 7"),
    (as_layumi, {"query_label": np.full(12, 2.0**25, "f4")}, "expected whole numbers that float32 holds"),
    (as_layumi, {"query_label": np.full(12, 2.0**60)}, "expected whole numbers that float64 holds exactly"),
    (as_layumi, {"query_label": np.full(12, np.inf)}, "query_label has inf in row 0"),
    (
        as_layumi,
        {"query_label": np.full(12, 2**63 + 7, "u8")},
        "has 9223372036854775815 in row 0: expected a value",
    ),
    (as_layumi, {"query_label": np.array([str(2**70)] * 12)}, "expected a value that fits int64"),
    (as_layumi, {"query_label": ["9" * 4300] * 12, "gallery_label": ["1"] * 40}, "has 4300 digits in row 0"),
    (as_layumi, {"query_label": ["9" * 5000] * 12, "gallery_label": ["1"] * 40}, "has 5000 digits in row 0"),
    (as_layumi, {"query_label": np.ones(12, complex)}, "is complex128: expected numbers or text"),
    (as_cuhk03, {"query_idx": np.arange(6)}, "query_idx names image 0: expected 1 to 61"),
    (as_cuhk03, {"gallery_idx": np.arange(50, 70)}, "gallery_idx names image 62: expected 1 to 61"),
    (as_cuhk03, {"gallery_idx": np.array([3, -2, 70])}, "gallery_idx names image -2: expected 1 to 61"),
    (as_cuhk03, {"query_idx": np.array(["a", "b"])}, "query_idx is text: expected whole numbers"),
    (as_cuhk03, {"query_idx": np.array([1, 2.5])}, "query_idx has 2.5 in row 1: expected whole numbers"),
    (as_cuhk03, {"query_idx": np.zeros((1, 0))}, "query_idx has shape (1, 0)"),
    (as_cuhk03, {"camId": np.ones(7)}, "feat has 61 images and camId 7: they do not describe the same images"),
    (as_cuhk03, {"labels": np.ones(60)}, "feat is 7 x 61, and there are 60 labels"),
    (as_multi_query, {"mquery_f": np.ones((3, 8), np.float32)}, "mquery_f has 8 dimensions and query_f 7"),
    (as_multi_query, {"mquery_cam": np.ones(2)}, "mquery_f has 3 images and mquery_cam 2"),
    (as_multi_query, {"mquery_label": ["a", "b", "c"]}, "mquery_label is text and query_label is numbers"),
    (as_one_list, {"camids": np.ones(15)}, "feats has 52 images and camids 15: they do not describe the same"),
    (as_one_list, {"num_query": np.array([])}, "num_query has 0 values: expected one number"),
    (as_one_list, {"num_query": np.array([6, 7])}, "num_query has 2 values: expected one number"),
    (as_one_list, {"num_query": "six"}, "num_query is text: expected whole numbers"),
    (as_one_list, {"num_query": 6.7}, "num_query has 6.7 in row 0: expected whole numbers"),
    (as_one_list, {"num_query": 0}, "num_query is 0 of 52 images: each side needs at least one"),
    (as_one_list, {"num_query": 52}, "num_query is 52 of 52 images: each side needs at least one"),
    (as_one_list, {"num_query": -3}, "num_query is -3 of 52 images"),
]


@pytest.mark.parametrize(("layout", "changes", "why"), WRONG)
def test_what_is_wrong_or_missing_is_named(layout, changes, why, refused, arrays):
    fields = {key: value for key, value in layout(arrays, **changes).items() if value is not None}
    told = refused(fields)
    assert "dump.npz" in told
    assert why in told


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"feat": np.ones((10, 9), np.float32)}, "feat has 9 dimensions and feat 7"),
        ({"cam_ids": None}, "distractor0-resnet.mat has features, ids, names, the gallery cams, features, ids"),
        ({"ids": np.array(["nobody"] * 10)}, "distractor0-resnet.mat: ids is text: expected whole numbers"),
        ({"ids": np.zeros(9)}, "feat is 10 x 7, and there are 9 labels"),
    ],
)
def test_distractors_that_do_not_fit_are_named(changes, why, refused, tmp_path, arrays):
    files, _, _ = sft_reid_distractors(tmp_path, arrays)
    fields = sft_fields(arrays, "gallery", slice(30, None)) | changes
    scipy.io.savemat(files[-1], {key: value for key, value in fields.items() if value is not None})
    assert why in refused(*files)


@pytest.mark.parametrize("command", ["index", "run"])
def test_what_takes_one_side_takes_native_files(command, cli, refused, arrays, write):
    name = named(layumi(arrays))
    if command == "run":
        assert cli("index", write(), "-o", "g.index.h5")[0] == 0
    why = refused(*([name] if command == "index" else ["--index", "g.index.h5", name]), command=command)
    assert "dump.npz is not a native file: convert it with `blurrerank convert`" in why


def test_files_that_cannot_be_converted_are_named(refused, write, arrays):
    assert "no.mat: no such file" in refused("no.mat")
    assert "feats.h5 is already a native file: use it directly" in refused(write())
    labels = {"queryID": arrays["probe_ids"], "testID": arrays["gallery_ids"]}
    scipy.io.savemat("dump.mat", labels | {"feat": np.ones((40, 12), np.float32)})
    assert "feat is the only array of features" in refused("dump.mat")


def test_the_output_is_named_last_and_kept(cli, convert, tmp_path, arrays):
    convert(layumi(arrays))
    code, _, err = cli("convert", "dump.npz", "other.mat")
    assert code == 2
    assert "give it the extension .h5" in err
    before = (tmp_path / "out.h5").read_bytes()
    code, _, err = cli("convert", "dump.npz", "out.h5")
    assert code == 1
    assert "pass --force" in err
    assert (tmp_path / "out.h5").read_bytes() == before


def test_json_says_the_same(cli, arrays):
    code, out, _ = cli("convert", named(layumi(arrays)), "out.h5", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["source"] == "NumPy archive, layumi's names"
    assert told["probe"] == {
        "features": "12 x 7 float32: query_f",
        "norms": told["probe"]["norms"],
        "ids": "query_label, flattened from 1 x 12",
        "cams": "query_cam, flattened from 1 x 12",
    }
    assert told["output"] == "out.h5"


# Pickles


class Call:
    """Calls whatever it is told to when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker: Path) -> list[object]:
    import builtins
    import os
    import subprocess

    return [
        Call(os.system, f"touch {marker}"),
        Call(subprocess.Popen, ["touch", str(marker)]),
        Call(builtins.exec, f"open({str(marker)!r}, 'w')"),
        Call(builtins.eval, f"open({str(marker)!r}, 'w')"),
        Call(builtins.open, str(marker), "w"),
        Call(np.save, str(marker), 1),
        Call(np.load, str(marker)),
        Call(getattr, "text", "upper"),
        Call(torch.load, str(marker)),
    ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_does_not_execute(protocol, tmp_path, arrays):
    for attack in attacks(tmp_path / "marker.npy"):
        program = pickle.dumps(layumi(arrays) | {"extra": attack}, protocol=protocol)
        with pytest.raises(br.InputError, match="no code in it was executed"):
            read_pickle(io.BytesIO(program), "here")
    assert not list(tmp_path.iterdir())


def test_the_attacks_are_real(tmp_path):
    """Python's own loader runs the first of them."""
    pickle.loads(pickle.dumps(attacks(tmp_path / "marker.npy")[0]))
    assert (tmp_path / "marker.npy").exists()


@pytest.mark.parametrize("ending", ["pkl", "pt", "npz"])
def test_a_malicious_file_does_not_execute(ending, refused, tmp_path, arrays):
    attack = attacks(tmp_path / "marker.npy")[0]
    fields, path = torchreid_fields(arrays) | {"extra": attack}, tmp_path / f"dump.{ending}"
    if ending == "pkl":
        path.write_bytes(pickle.dumps(fields))
    elif ending == "pt":
        torch.save(fields, path)
    else:
        np.savez(path, **torchreid_fields(arrays), extra=np.array([attack], dtype=object))
    where = f"dump.{ending}" + "::extra" * (ending == "npz")
    assert f"{where} contains posix.system" in refused(path.name, "--allow-pickle")
    assert sorted(tmp_path.iterdir()) == [path]


class Rebuilt:
    """Is rebuilt the way it is told to."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


REBUILD, SCALAR = np.empty(0).__reduce__()[0], np.float32(0).__reduce__()[0]


@pytest.mark.parametrize("dump", ["dump.pt", "dump.pkl"])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Rebuilt(REBUILD, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype(object), False, b"A" * 8)), "damaged"),
        (Rebuilt(SCALAR, (np.dtype(object), b"A" * 8)), "an object instead of a number"),
        (Rebuilt(np.ndarray, ((1,), np.dtype(object), b"A" * 8)), "damaged"),
        (
            Rebuilt(REBUILD, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype([("a", "O")]), False, b"A" * 8)),
            "an array of type 'V8'",
        ),
    ],
    ids=["array", "scalar", "ndarray", "fields"],
)
def test_bytes_are_never_taken_for_pointers(value, why, dump, refused, tmp_path, arrays):
    """As NumPy's own functions take them: the process would not come back."""
    if dump.endswith(".pt"):
        torch.save(torchreid_fields(arrays) | {"extra": value}, tmp_path / dump)
    else:
        (tmp_path / dump).write_bytes(pickle.dumps(layumi(arrays) | {"extra": value}))
    assert why in refused(dump, "--allow-pickle")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4)),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(1, 2, 0),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(1, 0, 2),
        np.arange(3, dtype=">i4"),
        np.array(["a", "bü"]),
        np.array([b"a", b"bc"]),
        np.array([True, False]),
        np.float32(1.5),
        np.int64(-3),
        np.array([]),
    ],
    ids=repr,
)
def test_arrays_come_out_of_pickles_as_numpy_reads_them(value, protocol):
    found = read_pickle(
        io.BytesIO(pickle.dumps({"a": [value, (1, "x", None, 2.5, b"y")]}, protocol=protocol)), "here"
    )
    assert found["a"][1] == (1, "x", None, 2.5, b"y")
    np.testing.assert_array_equal(found["a"][0], value)
    assert found["a"][0].dtype.newbyteorder("=") == value.dtype.newbyteorder("=")


def test_arrays_of_objects_come_out_of_pickles():
    value = np.empty(2, dtype=object)
    value[:] = [np.arange(2), "name"]
    found = read_pickle(io.BytesIO(pickle.dumps(value)), "here")
    np.testing.assert_array_equal(found[0], [0, 1])
    assert found[1] == "name"


@given(st.data())
def test_a_spoiled_pickle_is_read_or_refused(data):
    """Any byte of a real one may be another: nothing but InputError comes of it."""
    whole = bytearray(
        pickletools.optimize(
            pickle.dumps(
                {"query_f": np.ones((2, 3), np.float32), "n": [1, "a"]}, protocol=data.draw(st.integers(0, 5))
            )
        )
    )
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(br.InputError):
        read_pickle(io.BytesIO(whole), "here")


# Lists of other tools that are compressed


@pytest.mark.parametrize("command", ["eval", "candidates"])
def test_compressed_lists_are_read(command, cli, tmp_path, write):
    feats, packed = write(), tmp_path / "lists.trec.gz"
    assert cli("run", feats, "-o", "lists.trec")[0] == 0

    def read(name):
        if command == "eval":
            return cli("eval", name, feats)
        return cli("run", feats, "--candidates", name, "--force", "-o", "again.csv")

    code, plain, _ = read("lists.trec")
    lists = (tmp_path / "again.csv").read_bytes() if command == "candidates" else b""
    packed.write_bytes(gzip.compress((tmp_path / "lists.trec").read_bytes()))
    packed_code, out, _ = read(packed.name)
    assert code == packed_code == 0
    assert re.sub(r"-+|\.gz|\s+", "", out) == re.sub(r"-+|\s+", "", plain)
    assert command == "eval" or (tmp_path / "again.csv").read_bytes() == lists
    packed.write_bytes(packed.read_bytes()[:-20])
    code, _, err = read(packed.name)
    assert code == 1
    assert "lists.trec.gz is a damaged gzip file" in err


def test_the_library_reads_them_too(tmp_path, monkeypatch, arrays):
    monkeypatch.chdir(tmp_path)
    name = named(layumi(arrays))
    found = import_features(Path(name))
    assert found.source == "NumPy archive, layumi's names"
    assert br.load(name).digest() == found.data.digest()
