"""`blurrerank convert`: small files in the true layouts of other tools, and the traps in them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import pickletools
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


def sft_reid(folder, arrays):
    for side, word in SIDES.items():
        fields = {
            "feat": arrays[side],
            "ids": arrays[f"{side}_ids"].reshape(1, -1),
            "cam_ids": arrays[f"{side}_cams"].reshape(1, -1),
            "imgs": np.array(list(arrays[f"{side}_names"])),
        }
        scipy.io.savemat(folder / f"{word}-resnet.mat", fields)
    return ["query-resnet.mat", "gallery-resnet.mat"], ("ids", "cams", "names"), "MATLAB v5, SFT_REID"


def sft_reid_gallery_first(folder, arrays):
    files, kinds, told = sft_reid(folder, arrays)
    return files[::-1], kinds, told


def sft_reid_distractors(folder, arrays):
    cut = {key: value[:30] if key.startswith("gallery") else value for key, value in arrays.items()}
    files, kinds, told = sft_reid(folder, cut)
    scipy.io.savemat(
        folder / "distractor0-resnet.mat",
        {
            "feat": arrays["gallery"][30:],
            "ids": arrays["gallery_ids"][30:].reshape(1, -1),
            "cam_ids": arrays["gallery_cams"][30:].reshape(1, -1),
            "imgs": np.array(list(arrays["gallery_names"][30:])),
        },
    )
    return [*files, "distractor0-resnet.mat"], kinds, told


def zhong(folder, arrays):
    """Features lie down, and each label has a file."""
    scipy.io.savemat(folder / "ResNet_IDE_test.mat", {"Hist_test": arrays["gallery"].T})
    scipy.io.savemat(folder / "ResNet_IDE_query.mat", {"Hist_query": arrays["probe"].T})
    for side, word in (("probe", "query"), ("gallery", "test")):
        scipy.io.savemat(
            folder / f"{word}ID.mat", {f"{word}ID": arrays[f"{side}_ids"].reshape(-1, 1).astype(float)}
        )
        scipy.io.savemat(
            folder / f"{word}Cam.mat", {f"{word}CAM": arrays[f"{side}_cams"].reshape(-1, 1).astype(float)}
        )
    files = [
        "ResNet_IDE_query.mat",
        "ResNet_IDE_test.mat",
        "queryID.mat",
        "queryCam.mat",
        "testID.mat",
        "testCam.mat",
    ]
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
    """Tensors beside NumPy arrays and lists, as they come out of its evaluation loop."""
    fields = torchreid_fields(arrays)
    fields |= {
        "qf": torch.from_numpy(fields["qf"]),
        "gf": torch.from_numpy(fields["gf"]),
        "q_pids": fields["q_pids"].tolist(),
    }
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
    both = {
        name: np.concatenate([arrays[f"probe{kind}"], arrays[f"gallery{kind}"]])
        for name, kind in (("feats", ""), ("pids", "_ids"), ("camids", "_cams"))
    }
    torch.save(
        {name: torch.from_numpy(value) for name, value in both.items()} | {"num_query": 12}, folder / "out.pt"
    )
    return ["out.pt"], ("ids", "cams"), "torch.save, one list of images"


def fastreid_npz(folder, arrays):
    both = {
        name: np.concatenate([arrays[f"probe{kind}"], arrays[f"gallery{kind}"]])
        for name, kind in (("feats", ""), ("pids", "_ids"), ("camids", "_cams"))
    }
    np.savez(folder / "out.npz", **both, num_query=12)
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


TOOLS = [
    *(
        layumi_v5,
        layumi_without_paths,
        layumi_v73,
        sft_reid,
        sft_reid_gallery_first,
        sft_reid_distractors,
        zhong,
        zhong_cuhk03,
    ),
    *(
        gnn_reranking,
        gcn_rerank,
        coincheung,
        ecn,
        ecn_two_folders,
        torchreid_npz,
        torchreid_pt,
        torchreid_old_pt,
        fastreid,
    ),
    *(fastreid_npz, oml, ann_benchmarks, fbin, npy, csv_pair),
]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_what_a_tool_wrote_comes_out_as_it_was(tool, cli, tmp_path, arrays):
    arguments, kinds, source = tool(tmp_path, arrays)
    code, out, err = cli("convert", *arguments, "out.h5")
    assert code == 0, err
    assert out.splitlines()[0] == source
    data = check(tmp_path / "out.h5", arrays, *kinds, exact="csv" not in source.lower() or tool is oml)
    assert source in data.provenance["source"]
    assert "wrote out.h5: 12 probes x 40 gallery x 7" in err


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_run_reads_it_directly_with_the_lists_of_the_converted_file(tool, cli, tmp_path, arrays):
    files, _, source = tool(tmp_path, arrays)
    if "--allow-pickle" in files:
        code, _, err = cli(
            "run", *files[:1], *(("--gallery", files[1]) if len(files) == 3 else ()), "-o", "direct.csv"
        )
        assert code == 1
        assert "is a pickle" in err
        assert "convert --allow-pickle" in err
        return
    if len(files) > 2:
        pytest.skip("run takes one file, or one a side")
    code, _, err = cli(
        "run", files[0], *(("--gallery", files[1]) if len(files) == 2 else ()), "--topn", 10, "-o", "direct.csv"
    )
    assert code == 0, err
    assert f": {source}\n" in err
    assert cli("convert", *files, "out.h5")[0] == 0
    assert cli("run", "out.h5", "--topn", 10, "-o", "converted.csv")[0] == 0
    assert (tmp_path / "direct.csv").read_bytes() == (tmp_path / "converted.csv").read_bytes()


@pytest.mark.parametrize("shape", [(-1, 1), (1, -1)], ids=["columns", "rows"])
@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_doubles_of_cuhk03_are_labels_not_features(version, shape, cli, tmp_path, arrays):
    """MATLAB makes everything double, and gives labels two dimensions."""
    save = {"v5": scipy.io.savemat, "v7.3": write_73}[version]
    fields = cuhk03(arrays, np.float64, shape)
    save(tmp_path / "config.mat", fields)
    assert "there are 0: name its file too" in refused(cli, "convert", "config.mat", "out.h5")
    save(tmp_path / "config.mat", fields | {"width": np.full(61, 128.0).reshape(shape)})
    save(tmp_path / "feat.mat", {"feat": together(arrays)[0][""].T})
    code, out, err = cli("convert", "config.mat", "feat.mat", "out.h5")
    assert code == 0, err
    assert f"MATLAB {version}, CUHK03-NP" in out
    check(tmp_path / "out.h5", arrays, "ids", "cams")


@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_doubles_in_files_named_as_labels_are_labels(version, cli, tmp_path, arrays):
    """Zhong's files, each with a variable of the same name."""
    save = {"v5": scipy.io.savemat, "v7.3": write_73}[version]
    for side, word in (("probe", "query"), ("gallery", "test")):
        save(tmp_path / f"IDE_{word}.mat", {"feat": arrays[side].T})
        for kind, label in (("ids", "ID"), ("cams", "Cam")):
            save(tmp_path / f"{word}{label}.mat", {"x": arrays[f"{side}_{kind}"].reshape(-1, 1).astype(float)})
    files = ["IDE_query.mat", "IDE_test.mat", "queryID.mat", "queryCam.mat", "testID.mat", "testCam.mat"]
    assert cli("convert", *files, "out.h5")[0] == 0
    check(tmp_path / "out.h5", arrays, "ids", "cams")


def test_arrays_of_matlab_73_are_as_matlab_shows_them(cli, tmp_path, arrays):
    """HDF5 has their dimensions the other way round, and no labels are there to say so."""
    write_73(tmp_path / "bare.mat", {"query_f": arrays["probe"], "gallery_f": arrays["gallery"]})
    code, out, err = cli("convert", "bare.mat", "out.h5")
    assert code == 0, err
    assert "transposed" not in out
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


def test_a_byte_order_mark_is_no_part_of_a_column(cli, tmp_path, arrays):
    """As spreadsheets write it."""
    files, kinds, _ = oml(tmp_path, arrays)
    (tmp_path / files[0]).write_bytes(b"\xef\xbb\xbf" + (tmp_path / files[0]).read_bytes())
    code, _, err = cli("convert", *files, "out.h5")
    assert code == 0, err
    check(tmp_path / "out.h5", arrays, *kinds)


def test_a_byte_order_mark_is_no_number(cli, tmp_path, arrays):
    csv_pair(tmp_path, arrays)
    for side in SIDES:
        path = tmp_path / f"{side}.csv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    code, out, err = cli("convert", "probe.csv", "gallery.csv", "out.h5")
    assert code == 0, err
    assert out.startswith("CSV without a header, a file a side")
    check(tmp_path / "out.h5", arrays, exact=False)


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


def test_multi_query_averages_the_images_of_the_probe(cli, tmp_path, arrays):
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.repeat(np.arange(11), 3))
    vectors = rng.standard_normal((33, 7)).astype(np.float32)
    scipy.io.savemat(tmp_path / "pytorch_result.mat", layumi(arrays))
    scipy.io.savemat(
        tmp_path / "multi_query.mat",
        {
            "mquery_f": vectors,
            "mquery_label": arrays["probe_ids"][rows][None],
            "mquery_cam": arrays["probe_cams"][rows][None],
        },
    )
    code, out, err = cli("convert", "pytorch_result.mat", "multi_query.mat", "out.h5")
    assert code == 0, err
    assert "multi-query: each probe is the mean" in out
    found = br.load(tmp_path / "out.h5").probe.features
    key = list(zip(arrays["probe_ids"], arrays["probe_cams"], strict=True))
    for row in range(12):
        some = [vectors[place] for place, of in enumerate(rows) if key[of] == key[row]]
        np.testing.assert_allclose(
            found[row], np.mean(some, axis=0) if some else arrays["probe"][row], rtol=1e-5
        )
    scipy.io.savemat(tmp_path / "bare.mat", {"mquery_f": vectors})
    assert "multi-query needs mquery_f, mquery_label and mquery_cam: found only mquery_f" in refused(
        cli, "convert", "pytorch_result.mat", "bare.mat", "bare.h5"
    )
    code, _, err = cli("convert", "multi_query.mat", "alone.h5")
    assert code == 1
    assert "also pass pytorch_result.mat" in err


def test_probes_without_images_for_multi_query_stay_and_are_told(cli, tmp_path, arrays):
    """Each probe is the only one of its identity, and some identities have no images there."""
    ids = 1 + np.arange(12)
    fields = layumi(arrays, query_label=ids, query_cam=np.ones(12, int))
    fields |= {"mquery_f": arrays["gallery"][:7], "mquery_label": ids[:7], "mquery_cam": np.ones(7, int)}
    code, _, err = cli("convert", dumped(tmp_path, fields), "out.h5")
    assert code == 0, err
    assert "5 probes have no images for multi-query and keep their own features" in err
    expected = np.concatenate([arrays["gallery"][:7], arrays["probe"][7:]])
    np.testing.assert_array_equal(br.load(tmp_path / "out.h5").probe.features, expected)
    fields |= {"mquery_f": expected, "mquery_label": ids, "mquery_cam": np.ones(12, int)}
    assert "multi-query" not in cli("convert", dumped(tmp_path, fields), "out.h5", "--force")[2]


def test_oml_ignores_the_image_itself(cli, tmp_path, arrays):
    """Without sequences, images that are probe and gallery at once must not find themselves."""
    rows = arrays["gallery"][4:]
    ids = arrays["gallery_ids"][4:]
    table = [
        "label,path,is_query,is_gallery",
        *(f"{identity},{row}.png,True,True" for row, identity in enumerate(ids)),
    ]
    (tmp_path / "df.csv").write_text("\n".join(table))
    torch.save(torch.from_numpy(rows), tmp_path / "features.pt")
    code, out, err = cli("convert", "df.csv", "features.pt", "out.h5")
    assert code == 0, err
    assert "so that no image matches itself" in out
    data = br.load(tmp_path / "out.h5")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = unit.astype(np.float64) @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    found = br.evaluate(br.rerank(data, "cosine"), data)
    assert found.rank(1) == pytest.approx(np.mean(ids[cosine.argmax(axis=1)] == ids))


def test_oml_rows_of_other_splits_are_told(cli, tmp_path, arrays):
    ids = arrays["gallery_ids"][4:]
    table = ["label,path,split,is_query,is_gallery"]
    table += [f"{identity},{row}.png,validation,{row < 10},{row >= 10}" for row, identity in enumerate(ids)]
    table += [f"{identity},{row}.png,train,," for row, identity in enumerate(ids[:5])]
    (tmp_path / "df.csv").write_text("\n".join(table))
    np.save(tmp_path / "features.npy", arrays["gallery"][4:])
    code, out, _ = cli("convert", "df.csv", "features.npy", "out.h5")
    assert code == 0
    assert "features cover only the 36 query or gallery rows, of 41" in out
    np.testing.assert_array_equal(br.load(tmp_path / "out.h5").gallery.features, arrays["gallery"][14:])
    np.save(tmp_path / "features.npy", arrays["gallery"][:20])
    code, _, err = cli("convert", "df.csv", "features.npy", "wrong.h5")
    assert code == 1
    assert "has 20 rows and df.csv has 41" in err


def oml_table(folder: Path, labels, probes: int, **columns) -> list[str]:
    """A table whose first rows are probes and whose others are gallery, and its features."""
    names = ["label", "is_query", "is_gallery", *columns]
    table = [
        [label, row < probes, row >= probes, *(column[row] for column in columns.values())]
        for row, label in enumerate(labels)
    ]
    with open(folder / "df.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *table])
    rng = np.random.default_rng(0)
    np.save(folder / "features.npy", rng.standard_normal((len(labels), 7)).astype(np.float32))
    return ["df.csv", "features.npy"]


def test_oml_counts_from_0_and_a_probe_is_no_distractor(cli, tmp_path):
    labels = np.arange(30) % 5
    code, out, err = cli("convert", *oml_table(tmp_path, labels, 10), "out.h5")
    assert code == 0, err
    assert "text converted to integers, 1 added to all non-negative ids" in out
    assert "id 0" not in err
    data = br.load(tmp_path / "out.h5")
    np.testing.assert_array_equal(data.probe.ids, labels[:10] + 1)
    np.testing.assert_array_equal(data.gallery.ids, labels[10:] + 1)
    assert br.evaluate(br.rerank(data, "cosine"), data, protocol="plain").valid_probes == 10
    # Junk stays junk, and where no probe has 0 it may mark distractors: means are the same either way.
    for some, expected in (
        ([0, 1, 2, -1, 0, 1], [1, 2, 3, -1, 1, 2]),
        ([1, 2, 3, -1, 0, 1], [1, 2, 3, -1, 0, 1]),
    ):
        code, out, _ = cli("convert", *oml_table(tmp_path, some, 2), "out.h5", "--force")
        assert code == 0
        assert ("1 added" in out) == (some != expected)
        data = br.load(tmp_path / "out.h5")
        assert [*data.probe.ids, *data.gallery.ids] == expected


def test_oml_takes_what_pandas_wrote_for_nothing_as_no_sequence(cli, tmp_path):
    labels = [1, 1, 1, 1, 2, 2]
    files = oml_table(tmp_path, labels, 1, sequence=["3.0", "nan", "3.0", "nan", "NaN", "7.0"])
    code, out, err = cli("convert", *files, "out.h5")
    assert code == 0, err
    assert "sequence is nan in 3 rows: treated as empty" in out
    assert "holds several identities" not in err
    data = br.load(tmp_path / "out.h5")
    cams = [*data.probe.cams, *data.gallery.cams]
    assert [cams.index(camera) for camera in cams] == [0, 1, 0, 3, 4, 5]
    files = oml_table(tmp_path, labels, 1, sequence=["nan"] * 6)
    assert cli("convert", *files, "out.h5", "--force")[0] == 0
    assert br.load(tmp_path / "out.h5").probe.cams is None


def test_oml_images_without_a_sequence_are_of_none_together(cli, tmp_path):
    labels = [1, 1, 1, 2, 2, 2]
    files = oml_table(tmp_path, labels, 2, sequence=["a", "", "a", "", "", "b"])
    assert cli("convert", *files, "out.h5")[0] == 0
    data = br.load(tmp_path / "out.h5")
    cams = [*data.probe.cams, *data.gallery.cams]
    assert [cams.index(camera) for camera in cams] == [0, 1, 0, 3, 4, 5]


# Traps


def dumped(folder: Path, fields: dict[str, np.ndarray]) -> str:
    np.savez(folder / "dump.npz", **fields)
    return "dump.npz"


def test_labels_kept_as_lists_are_labels(cli, tmp_path, arrays):
    """A list of lists of text, which compares unequal to everything in an evaluation loop."""
    fields = layumi(arrays)
    fields["query_label"] = [[str(identity)] for identity in arrays["probe_ids"]]
    (tmp_path / "dump.pkl").write_bytes(pickle.dumps(fields))
    code, out, _ = cli("convert", "dump.pkl", "out.h5", "--allow-pickle")
    assert code == 0
    assert "flattened from 12 x 1, text converted to integers" in out
    check(tmp_path / "out.h5", arrays, "ids", "cams")


def test_one_camera_everywhere_is_told(cli, tmp_path, arrays):
    fields = layumi(arrays, query_cam=np.zeros(12, int), gallery_cam=np.zeros(40, int))
    _, _, err = cli("convert", dumped(tmp_path, fields), "out.h5")
    assert "warning: all images have the same camera" in err


@pytest.mark.parametrize("shifted", ["query_cam", "gallery_cam", None])
def test_cameras_that_count_from_0_and_1_are_told(shifted, cli, tmp_path, arrays):
    fields = layumi(arrays)
    if shifted:
        fields[shifted] = fields[shifted] - 1
    _, _, err = cli("convert", dumped(tmp_path, fields), "out.h5")
    assert ("one side counts from 0 and the other from 1" in err) == bool(shifted)


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
@pytest.mark.parametrize("command", ["convert", "info", "native"])
def test_cameras_are_compared_without_those_of_junk(probe, gallery, said, junk, command, cli, tmp_path, arrays):
    """The first two of the gallery, and a probe, are junk under a camera of its own."""
    cams = {"probe": np.resize(probe, 12), "gallery": np.resize(gallery, 40)}
    ids = arrays["probe_ids"].copy()
    ids[3] = -1
    cams["probe"][3] = cams["gallery"][0] = cams["gallery"][1] = junk
    fields = layumi(arrays, query_cam=cams["probe"], gallery_cam=cams["gallery"], query_label=ids)
    name = dumped(tmp_path, fields)
    told = cli("convert", name, "out.h5")[2]
    if command != "convert":
        told = cli("info", name if command == "info" else "out.h5")[1]
    assert (
        f"warning: cameras are {min(probe)} to {max(probe)} and {min(gallery)} to {max(gallery)}: if these are "
        "the same cameras, one side counts from 0 and the other from 1" in told
    ) == said


def test_junk_hides_neither_one_camera_nor_that_none_is_common(cli, tmp_path, arrays):
    """Names that do not parse give camera -1 on both sides."""
    ids = np.where(np.arange(12) == 3, -1, arrays["probe_ids"])
    for probe, gallery, said in (
        (1, 1, "all images have the same camera"),
        (1, 2, "probes and gallery have no camera in common"),
    ):
        fields = layumi(
            arrays,
            query_label=ids,
            query_cam=np.where(ids == -1, -1, probe),
            gallery_cam=np.where(arrays["gallery_ids"] == -1, -1, gallery),
        )
        _, _, err = cli("convert", dumped(tmp_path, fields), "out.h5", "--force")
        assert f"warning: {said}" in err


def traps(arrays) -> dict[str, dict[str, np.ndarray]]:
    """Dumps with something that is probably not meant, by what is said of it."""
    few, cams = layumi(arrays), {f"{word}_cam": arrays[f"{side}_cams"] for side, word in SIDES.items()}
    turned = {"query": "gallery", "gallery": "query"}
    return {
        "there are no cameras": {name: value for name, value in few.items() if "_cam" not in name},
        "all images have the same camera": few | {name: value * 0 for name, value in cams.items()},
        "probes and gallery have no camera in common": few | {"query_cam": cams["query_cam"] + 10},
        "one side counts from 0 and the other from 1": few | {"query_cam": cams["query_cam"] - 1},
        "have no match in the gallery": few | {"query_label": np.arange(12)},
        "are the sides swapped?": {
            f"{turned[word]}_{kind}": few[f"{word}_{kind}"] for word in turned for kind in ("f", "label", "cam")
        },
        "lists can be written but not measured": {name: few[name] for name in ("query_f", "gallery_f")},
    }


@pytest.mark.parametrize("said", traps(features()))
def test_info_and_convert_warn_of_the_same(said, cli, tmp_path, arrays):
    name = dumped(tmp_path, traps(arrays)[said])
    code, out, _ = cli("convert", name, "out.h5", "--json")
    assert code == 0
    expected = json.loads(out)["warnings"]
    assert any(said in line for line in expected)
    for file in (name, "out.h5"):
        assert json.loads(cli("info", file, "--json")[1])["warnings"] == expected
        assert f"warning: {expected[0]}" in cli("info", file)[1]


def test_info_tells_the_doubts_of_reading(cli, tmp_path, arrays):
    fields = {name: value for name, value in layumi(arrays).items() if name != "gallery_cam"}
    for command in (("convert", "out.h5"), ("info",), ("run", "-o", "lists.csv")):
        code, out, err = cli(command[0], dumped(tmp_path, fields), *command[1:])
        assert code == 0, err
        assert "warning: cams exist only for the probes" in out + err


def test_float_labels_become_integers_and_it_is_told(cli, tmp_path, arrays):
    fields = layumi(arrays, query_label=arrays["probe_ids"].astype(np.float64))
    code, out, _ = cli("convert", dumped(tmp_path, fields), "out.h5")
    assert code == 0
    assert "query_label, float64 converted to integers" in out
    check(tmp_path / "out.h5", arrays, "ids", "cams")
    fields["query_label"][5] = 3.5
    code, _, err = cli("convert", dumped(tmp_path, fields), "wrong.h5")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "query_label has 3.5 in row 5: expected whole numbers that float64 holds exactly" in err


def test_the_norm_of_pcb_is_told_and_kept(cli, tmp_path, arrays):
    unit = {side: arrays[side] / np.linalg.norm(arrays[side], axis=1, keepdims=True) for side in SIDES}
    fields = layumi(arrays, query_f=unit["probe"] * np.sqrt(6), gallery_f=unit["gallery"] * np.sqrt(6))
    _, out, _ = cli("convert", dumped(tmp_path, fields), "out.h5")
    assert "2.449, the square root of 6: perhaps 6 normalised parts" in out
    np.testing.assert_array_equal(br.load(tmp_path / "out.h5").probe.features, fields["query_f"])


def test_names_may_have_folders_of_either_kind(cli, tmp_path, arrays):
    """A dump from Windows has backslashes; the identity is at the start of the last part."""
    for side, word, folder in (("probe", "query", "data\\0009_c9\\"), ("gallery", "gallery", "9999_c9/x/")):
        rows = {folder + name: row for name, row in zip(arrays[f"{side}_names"], arrays[side], strict=True)}
        (tmp_path / f"{word}.pkl").write_bytes(pickle.dumps(rows))
    assert cli("convert", "query.pkl", "gallery.pkl", "out.h5", "--allow-pickle")[0] == 0
    data = br.load(tmp_path / "out.h5")
    for side in SIDES:
        np.testing.assert_array_equal(getattr(data, side).ids, arrays[f"{side}_ids"])
        np.testing.assert_array_equal(getattr(data, side).cams, arrays[f"{side}_cams"])


@pytest.mark.parametrize(("distance", "said"), [("euclidean", True), ("angular", False), (None, False)])
def test_another_distance_than_the_angle_is_told(distance, said, cli, tmp_path, arrays):
    ann_benchmarks(tmp_path, arrays)
    with h5py.File(tmp_path / "glove-angular.hdf5", "r+") as file:
        del file.attrs["distance"]
        if distance is not None:
            file.attrs["distance"] = distance
    _, _, err = cli("convert", "glove-angular.hdf5", "out.h5")
    assert ("its distance is euclidean, but blurrerank ranks by cosine similarity" in err) == said


def test_norms_that_differ_are_not_called_one_norm(cli, tmp_path, arrays):
    unit = arrays["gallery"] / np.linalg.norm(arrays["gallery"], axis=1, keepdims=True)
    unit[17] *= 0.5
    _, out, _ = cli("convert", dumped(tmp_path, layumi(arrays, gallery_f=unit)), "out.h5", "--json")
    assert json.loads(out)["gallery"]["norms"] == "0.5 to 1, not normalised"


def test_names_without_an_identity_become_distractors_and_it_is_told(cli, tmp_path, arrays):
    rows = {"Thumbs.db": arrays["gallery"][0]} | dict(
        zip(arrays["gallery_names"], arrays["gallery"], strict=True)
    )
    (tmp_path / "g.pkl").write_bytes(pickle.dumps(rows))
    (tmp_path / "q.pkl").write_bytes(
        pickle.dumps(dict(zip(arrays["probe_names"], arrays["probe"], strict=True)))
    )
    code, _, err = cli("convert", "q.pkl", "g.pkl", "out.h5", "--allow-pickle")
    assert code == 0
    assert (
        "warning: 1 of 41 gallery names say no identity (Thumbs.db): their images are distractors, id 0" in err
    )
    assert br.load(tmp_path / "out.h5").gallery.ids.tolist() == [0, *arrays["gallery_ids"]]


def test_probes_without_a_match_are_told(cli, tmp_path, arrays):
    fields = layumi(arrays, query_label=np.where(np.arange(12) < 3, 77, arrays["probe_ids"]))
    _, _, err = cli("convert", dumped(tmp_path, fields), "out.h5")
    assert "3 of 12 probes have no match in the gallery" in err


def test_identities_that_are_text_are_numbered_over_both_sides(cli, tmp_path, arrays):
    text = {side: np.array([f"dog {identity % 3}" for identity in arrays[f"{side}_ids"]]) for side in SIDES}
    fields = layumi(arrays, query_label=text["probe"], gallery_label=text["gallery"])
    code, out, _ = cli("convert", dumped(tmp_path, fields), "out.h5")
    assert code == 0
    assert "3 text labels numbered from 1" in out
    data = br.load(tmp_path / "out.h5")
    assert data.probe.ids.tolist() == [1 + identity % 3 for identity in arrays["probe_ids"]]
    assert data.gallery.ids.tolist() == [1 + identity % 3 for identity in arrays["gallery_ids"]]


def test_junk_and_distractors_keep_their_numbers_among_names(cli, tmp_path, arrays):
    text = {side: np.array([f"dog {i}" if i > 0 else str(i) for i in arrays[f"{side}_ids"]]) for side in SIDES}
    fields = layumi(arrays, query_label=text["probe"], gallery_label=text["gallery"])
    code, out, _ = cli("convert", dumped(tmp_path, fields), "out.h5")
    assert code == 0
    assert "6 text labels numbered from 1, except -1 and 0" in out
    check(tmp_path / "out.h5", arrays, "ids", "cams")
    # Padded to the width of the others, and one side with nothing but whole numbers.
    padded = {side: np.array([f"{i:04}" if i > -1 else "-1" for i in arrays[f"{side}_ids"]]) for side in SIDES}
    named = np.where(padded["gallery"] == "0003", "c3", padded["gallery"])
    fields = layumi(arrays, query_label=padded["probe"], gallery_label=named)
    code, out, err = cli("convert", dumped(tmp_path, fields), "padded.h5")
    assert code == 0, err
    assert "7 text labels numbered from 1, except -1 and 0000" in out
    data = br.load(tmp_path / "padded.h5")
    assert data.probe.ids.tolist() == arrays["probe_ids"].tolist()
    assert data.gallery.ids.tolist() == [7 if i == 3 else i for i in arrays["gallery_ids"]]
    fields = layumi(arrays, query_label=text["probe"])
    why = refused(cli, "convert", dumped(tmp_path, fields), "mixed.h5")
    assert "query_label is text and gallery_label is numbers" in why


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (np.full(12, 2.0**25, dtype=np.float32), "expected whole numbers that float32 holds exactly"),
        (np.full(12, 2.0**60), "expected whole numbers that float64 holds exactly"),
        (np.full(12, np.inf), "query_label has inf in row 0"),
        (
            np.full(12, 2**63 + 7, dtype=np.uint64),
            "query_label has 9223372036854775815 in row 0: expected a value that fits",
        ),
        (np.array([str(2**70)] * 12), "expected a value that fits int64"),
        (np.ones(12, dtype=complex), "is complex128: expected numbers or text"),
    ],
)
def test_labels_that_would_run_together_are_refused(labels, why, cli, tmp_path, arrays):
    assert why in refused(cli, "convert", dumped(tmp_path, layumi(arrays, query_label=labels)), "out.h5")


def test_what_minus_one_becomes_without_a_sign_is_told(cli, tmp_path, arrays):
    fields = layumi(arrays, gallery_label=arrays["gallery_ids"].astype(np.uint8))
    _, _, err = cli("convert", dumped(tmp_path, fields), "out.h5")
    assert "gallery_label is uint8 and has 255 in 2 rows, which is -1 stored as unsigned" in err


def test_what_minus_one_became_is_told_before_distractors_join(cli, tmp_path, arrays):
    files, _, _ = sft_reid_distractors(tmp_path, arrays)
    for file, dtype in zip(files[1:], (np.uint16, np.int64), strict=True):
        fields = {k: v for k, v in scipy.io.loadmat(tmp_path / file).items() if not k.startswith("__")}
        scipy.io.savemat(tmp_path / file, fields | {"ids": fields["ids"].astype(dtype)})
    _, _, err = cli("convert", *files, "out.h5")
    assert "ids is uint16 and has 65535 in 2 rows, which is -1 stored as unsigned" in err


def test_what_minus_one_became_is_told_of_cuhk03_once(cli, tmp_path, arrays):
    fields = cuhk03(arrays) | {"feat": together(arrays)[0][""].T}
    fields["labels"] = fields["labels"].astype(np.uint16)
    _, _, err = cli("convert", dumped(tmp_path, fields), "out.h5")
    assert err.count("labels is uint16 and has 65535 in 2 rows, which is -1 stored as unsigned") == 1


def test_distractors_are_joined_upright_and_what_was_done_to_them_is_told(cli, tmp_path, arrays):
    """Of another type, lying, without names."""
    files, _, _ = sft_reid_distractors(tmp_path, arrays)
    fields = {
        "feat": arrays["gallery"][30:].T.astype(np.float64),
        "ids": arrays["gallery_ids"][30:].astype(np.float64),
        "cam_ids": arrays["gallery_cams"][30:],
    }
    scipy.io.savemat(tmp_path / files[-1], fields)
    code, out, err = cli("convert", *files, "out.h5")
    assert code == 0, err
    assert "float64 converted to integers in distractor0-resnet.mat" in out
    assert "transposed from 7 x 10 in distractor0-resnet.mat" in out
    assert "float32 converted to float64 as in distractor0-resnet.mat" in out
    data = br.load(tmp_path / "out.h5")
    np.testing.assert_array_equal(data.gallery.features, arrays["gallery"])
    np.testing.assert_array_equal(data.gallery.ids, arrays["gallery_ids"])
    np.testing.assert_array_equal(data.probe.names, arrays["probe_names"])
    assert data.gallery.names is None


def test_sides_without_a_common_camera_are_told(cli, tmp_path, arrays):
    _, _, err = cli(
        "convert", dumped(tmp_path, layumi(arrays, gallery_cam=arrays["gallery_cams"] + 10)), "out.h5"
    )
    assert "warning: probes and gallery have no camera in common" in err


def test_sides_the_other_way_round_are_told(cli, tmp_path, arrays):
    turned = {
        key.replace("probe", "other").replace("gallery", "probe").replace("other", "gallery"): value
        for key, value in arrays.items()
    }
    for one, said in ((arrays, False), (turned, True)):
        _, _, err = cli("convert", dumped(tmp_path, layumi(one)), "out.h5", "--force")
        assert ("are the sides swapped?" in err) == said
    # As many as the gallery are not more.
    for gallery in (12, 11):
        fields = layumi({key: value[: gallery if "gallery" in key else 12] for key, value in arrays.items()})
        fields["query_label"] = arrays["gallery_ids"][:12]
        _, _, err = cli("convert", dumped(tmp_path, fields), "out.h5", "--force")
        assert ("are the sides swapped?" in err) == (gallery < 12)


def test_whole_numbers_as_features_become_floats_and_it_is_told(cli, tmp_path, arrays):
    whole = {side: (10 * arrays[side]).astype(np.int8) for side in SIDES}
    fields = layumi(arrays, query_f=whole["probe"], gallery_f=whole["gallery"])
    code, out, _ = cli("convert", dumped(tmp_path, fields), "out.h5")
    assert code == 0
    assert "query_f, int8 converted to float32" in out
    check(tmp_path / "out.h5", arrays | {side: whole[side].astype(np.float32) for side in SIDES}, "ids", "cams")


def test_half_floats_stay_half(cli, tmp_path, arrays):
    half = {side: arrays[side].astype(np.float16) for side in SIDES}
    for side in SIDES:
        with open(tmp_path / f"{side}.hbin", "wb") as file:
            np.array(half[side].shape, dtype="<i4").tofile(file)
            half[side].tofile(file)
    assert cli("convert", "probe.hbin", "gallery.hbin", "out.h5")[0] == 0
    check(tmp_path / "out.h5", half)
    assert br.load(tmp_path / "out.h5").probe.features.dtype == np.float16


def test_square_arrays_are_not_guessed_by_run(cli, tmp_path):
    made = features(probes=8, gallery=8, dim=8)
    code, _, err = cli("run", dumped(tmp_path, layumi(made)))
    assert code == 1
    assert "query_f is square: rows were assumed to be images; inspect it with `blurrerank convert`" in err
    assert "gallery_f is square" in err
    code, _, err = cli("convert", "dump.npz", "out.h5")
    assert code == 0
    assert "warning: query_f is square" in err
    check(tmp_path / "out.h5", made, "ids", "cams")


@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("square", ["probe", "gallery"])
def test_a_square_array_is_read_as_the_other_side_is(square, lying, cli, tmp_path):
    """Programs write both sides alike, and one of them fits its labels in one way alone."""
    made = features(probes=12, gallery=12, dim=12)
    other = next(side for side in SIDES if side != square)
    made |= {key: value[:9] for key, value in made.items() if key.startswith(other)}
    turned = {f"{word}_f": made[side].T if lying else made[side] for side, word in SIDES.items()}
    code, out, err = cli("convert", dumped(tmp_path, layumi(made, **turned)), "out.h5")
    assert code == 0, err
    assert f"{SIDES[square]}_f, square, oriented like the other side" in out
    assert ("transposed from 12 x 12" in out) == lying
    assert "is square" not in err
    check(tmp_path / "out.h5", made, "ids", "cams")
    assert cli("run", "dump.npz", "-o", "lists.csv")[0] == 0


def test_a_square_array_of_all_images_is_doubtful_however_it_is_cut(cli, tmp_path):
    made = features(probes=4, gallery=8, dim=12)
    both = {
        name: np.concatenate([made[f"probe{kind}"], made[f"gallery{kind}"]])
        for name, kind in (("feats", ""), ("pids", "_ids"), ("camids", "_cams"))
    }
    code, _, err = cli("convert", dumped(tmp_path, both | {"num_query": 4}), "out.h5")
    assert code == 0
    assert "warning: feats is square: rows were assumed to be images" in err
    check(tmp_path / "out.h5", made, "ids", "cams")


def test_no_doubt_where_a_cut_happens_to_be_square(cli, tmp_path):
    made = features(probes=8, gallery=8, dim=8)
    both = {
        name: np.concatenate([made[f"probe{kind}"], made[f"gallery{kind}"]])
        for name, kind in (("feats", ""), ("pids", "_ids"), ("camids", "_cams"))
    }
    assert cli("run", dumped(tmp_path, both | {"num_query": 8}), "-o", "lists.csv")[0] == 0


@pytest.mark.parametrize("form", ["named", "bare"])
def test_arrays_that_lie_on_their_side_without_labels(form, cli, tmp_path, arrays):
    """One dimension in common, the first of both: it is not that of the images."""
    turned = {side: arrays[side].T for side in SIDES}
    if form == "named":
        np.savez(tmp_path / "dump.npz", query_f=turned["probe"], gallery_f=turned["gallery"])
        files = ["dump.npz"]
    else:
        files = [f"{side}.npy" for side in SIDES]
        for side, file in zip(SIDES, files, strict=True):
            np.save(tmp_path / file, turned[side])
    code, out, err = cli("convert", *files, "out.h5")
    assert code == 0, err
    assert "transposed from 7 x 12" in out
    assert "transposed from 7 x 40" in out
    check(tmp_path / "out.h5", arrays)


def test_two_arrays_of_one_shape_without_labels_are_doubtful(cli, tmp_path, arrays):
    np.save(tmp_path / "probe.npy", arrays["probe"])
    np.save(tmp_path / "gallery.npy", arrays["gallery"][:12])
    code, _, err = cli("run", "probe.npy", "--gallery", "gallery.npy")
    assert code == 1
    assert "both arrays have the same shape: rows were assumed to be images" in err
    np.save(tmp_path / "gallery.npy", arrays["gallery"][:13])
    assert cli("run", "probe.npy", "--gallery", "gallery.npy", "-o", "lists.csv")[0] == 0


# What is refused


def refused(cli, *arguments: object) -> str:
    """The one line that says why."""
    code, out, err = cli(*arguments)
    assert (code, out, len(err.splitlines())) == (1, "", 1), (code, out, err)
    return err


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (
            "lists.trec",
            b"q1 Q0 g7 1 0.9 tag\nq1 Q0 g8 2 0.8 tag\n",
            "is a TREC run, which has lists but no features",
        ),
        (
            "lists.trec.gz",
            gzip.compress(b"q1 Q0 g7 1 0.9 tag\n", mtime=0),
            "is a TREC run, which has lists but no features",
        ),
        ("market.qrels", b"q1 0 g7 1\nq1 0 g8 0\n", "contains TREC judgements"),
        (
            "gt.ibin",
            np.array([2, 3, 5, 1, 0, 4, 2, 1], dtype="<i4").tobytes(),
            "pass it to `run` with --candidates",
        ),
        ("lists.bin", np.array([2, 3, 5, 1, 0, 4, 2, 1], dtype="<i4").tobytes(), "contains neighbour lists"),
        # Lists that are padded with -1, which is no small number as a float.
        ("gt.ibin", np.array([2, 2, 5, -1, 0, -1], dtype="<i4").tobytes(), "contains neighbour lists"),
        (
            "q.fbin",
            np.array([2, 3], dtype="<i4").tobytes() + bytes(20),
            "says 2 x 3, which takes 32: it was truncated",
        ),
        (
            "q.fbin",
            b"\xff" * 8 + bytes(20),
            "says 4,294,967,295 x 4,294,967,295, which takes 73,786,976,260,478,468,108",
        ),
        ("q.fbin", np.array([0, 3], dtype="<i4").tobytes(), "has no values: its header says 0 rows of 3"),
        ("photo.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(300), "is not a recognised feature file"),
        ("notes.txt", b"hello\nworld\n", "is text, but not a table of features"),
        ("table.csv", b"a,b\n1,2\n3\n", "line 3 does not have the 2 columns of the first"),
        ("table.csv", b"\n\na,b\n1,2\n\n3\n", "line 6 does not have the 2 columns of the first"),
        ("table.csv", b"\n\n", "is empty"),
        (
            "q.csv",
            b"1,2\n3\n",
            "is text, but not a table of features: line 2 does not have the 2 columns of the first",
        ),
        ("x.npz", b"PK\x03\x04 not really", "cannot be read"),
        ("x.mat", b"MATLAB 5.0 MAT-file" + bytes(200), "is a damaged MATLAB file"),
        ("packed.gz", gzip.compress(b"hello", mtime=0), "is compressed: decompress it"),
    ],
)
def test_other_things_are_refused_by_name(name, content, why, cli, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert why in refused(cli, "convert", name, "out.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("values", [scipy.sparse.csc_matrix(np.eye(12, 7)), {"f": 1}, np.eye(12, 7) * 1j])
def test_variables_that_are_not_read_are_told(values, cli, tmp_path, arrays):
    scipy.io.savemat(tmp_path / "dump.mat", layumi(arrays) | {"query_f": values})
    why = refused(cli, "convert", "dump.mat", "out.h5")
    assert "no probe features: found MATLAB v5 with " in why
    assert "; not read: query_f (" in why


def test_what_is_missing_is_told(cli, tmp_path, arrays):
    fields = layumi(arrays)
    assert "no.mat: no such file" in refused(cli, "convert", "no.mat", "out.h5")
    del fields["gallery_f"]
    why = refused(cli, "convert", dumped(tmp_path, fields), "out.h5")
    assert "no gallery features: found NumPy archive with query_f 12 x 7, query_label 1 x 12" in why
    why = refused(
        cli, "convert", dumped(tmp_path, {"one": arrays["probe"], "two": arrays["gallery"]}), "out.h5"
    )
    assert "layout not recognised" in why
    assert "Name the fields query_f, query_label" in why
    why = refused(
        cli, "convert", dumped(tmp_path, {"feats": arrays["probe"], "pids": arrays["probe_ids"]}), "out.h5"
    )
    assert "num_query" in why
    why = refused(cli, "convert", dumped(tmp_path, layumi(arrays, gallery_label=np.ones(39))), "out.h5")
    assert "gallery_f is 40 x 7, and there are 39 labels" in why
    why = refused(cli, "convert", dumped(tmp_path, layumi(arrays) | {"qf": arrays["probe"]}), "out.h5")
    assert "could both be the probe features" in why
    bad = arrays["gallery"].copy()
    bad[7, 2] = np.nan
    why = refused(cli, "convert", dumped(tmp_path, layumi(arrays, gallery_f=bad)), "out.h5")
    assert "gallery/features has NaN or infinity in row 7" in why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"query_idx": np.arange(6)}, "query_idx names image 0: expected 1 to 61"),
        ({"gallery_idx": np.arange(50, 70)}, "gallery_idx names image 62: expected 1 to 61"),
        ({"gallery_idx": np.array([3, -2, 70])}, "gallery_idx names image -2: expected 1 to 61"),
        ({"query_idx": np.array(["a", "b"])}, "query_idx is text: expected whole numbers"),
        ({"query_idx": np.array([1, 2.5])}, "query_idx has 2.5 in row 1: expected whole numbers"),
        ({"query_idx": np.zeros((1, 0))}, "query_idx has shape (1, 0)"),
        ({"camId": np.ones(7)}, "feat has 61 images and camId 7: they do not describe the same images"),
        ({"labels": np.ones(60)}, "feat is 7 x 61, and there are 60 labels"),
    ],
)
def test_what_is_wrong_with_cuhk03_is_named(changes, why, cli, tmp_path, arrays):
    fields = cuhk03(arrays) | changes | {"feat": together(arrays)[0][""].T}
    assert f"dump.npz: {why}" in refused(cli, "convert", dumped(tmp_path, fields), "out.h5")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mquery_f": np.ones((3, 8), np.float32)}, "mquery_f has 8 dimensions and query_f 7"),
        ({"mquery_cam": np.ones(2)}, "mquery_f has 3 images and mquery_cam 2"),
        ({"mquery_label": np.array(["a", "b", "c"])}, "mquery_label is text and query_label is numbers"),
    ],
)
def test_what_is_wrong_with_multi_query_is_named(changes, why, cli, tmp_path, arrays):
    fields = {"mquery_f": arrays["probe"][:3], "mquery_label": np.ones(3), "mquery_cam": np.ones(3)}
    name = dumped(tmp_path, layumi(arrays) | fields | changes)
    assert f"dump.npz: {why}" in refused(cli, "convert", name, "out.h5")


@pytest.mark.parametrize(
    ("count", "why"),
    [
        (np.array([]), "num_query has 0 values: expected one number"),
        (np.array([6, 7]), "num_query has 2 values: expected one number"),
        ("six", "num_query is text: expected whole numbers"),
        (6.7, "num_query has 6.7 in row 0: expected whole numbers"),
        (0, "num_query is 0 of 52 images: each side needs at least one"),
        (52, "num_query is 52 of 52 images: each side needs at least one"),
        (-3, "num_query is -3 of 52 images"),
    ],
)
def test_what_is_wrong_with_the_number_of_probes_is_named(count, why, cli, tmp_path, arrays):
    fields = {"feats": np.concatenate([arrays["probe"], arrays["gallery"]]), "num_query": count}
    assert f"dump.npz: {why}" in refused(cli, "convert", dumped(tmp_path, fields), "out.h5")


def test_labels_of_one_list_that_are_too_few_are_named(cli, tmp_path, arrays):
    fields = {"feats": np.ones((20, 7), np.float32), "pids": np.arange(20), "camids": np.ones(15)}
    why = refused(cli, "convert", dumped(tmp_path, fields | {"num_query": 8}), "out.h5")
    assert "feats has 20 images and camids 15: they do not describe the same images" in why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"feat": np.ones((10, 9), np.float32)}, "feat has 9 dimensions and feat 7"),
        ({"cam_ids": None}, "distractor0-resnet.mat has features, ids, names, the gallery cams, features, ids"),
        ({"ids": np.array(["nobody"] * 10)}, "distractor0-resnet.mat: ids is text: expected whole numbers"),
        ({"ids": np.zeros(9)}, "feat is 10 x 7, and there are 9 labels"),
    ],
)
def test_distractors_that_do_not_fit_are_named(changes, why, cli, tmp_path, arrays):
    files, _, _ = sft_reid_distractors(tmp_path, arrays)
    fields = scipy.io.loadmat(tmp_path / files[-1]) | changes
    scipy.io.savemat(
        tmp_path / files[-1],
        {key: value for key, value in fields.items() if value is not None and not key.startswith("__")},
    )
    assert why in refused(cli, "convert", *files, "out.h5")


@pytest.mark.parametrize("command", ["index", "run"])
def test_what_takes_one_side_takes_native_files(command, cli, tmp_path, arrays, write):
    name = dumped(tmp_path, layumi(arrays))
    if command == "run":
        assert cli("index", write(), "-o", "g.index.h5")[0] == 0
    why = refused(cli, *(("index", name) if command == "index" else ("run", "--index", "g.index.h5", name)))
    assert "dump.npz is not a native file: convert it with `blurrerank convert`" in why


def test_a_native_file_needs_no_converting(cli, write):
    assert "feats.h5 is already a native file: use it directly" in refused(cli, "convert", write(), "out.h5")


def test_one_array_is_not_both_sides(cli, tmp_path, arrays):
    scipy.io.savemat(
        tmp_path / "dump.mat",
        {
            "feat": np.ones((40, 12), np.float32),
            "queryID": arrays["probe_ids"],
            "testID": arrays["gallery_ids"],
        },
    )
    assert "feat is the only array of features" in refused(cli, "convert", "dump.mat", "out.h5")


def test_the_output_is_named_last_and_kept(cli, tmp_path, arrays):
    name = dumped(tmp_path, layumi(arrays))
    code, _, err = cli("convert", name, "other.mat")
    assert code == 2
    assert "give it the extension .h5" in err
    assert cli("convert", name, "out.h5")[0] == 0
    before = (tmp_path / "out.h5").read_bytes()
    assert "pass --force" in refused(cli, "convert", name, "out.h5")
    assert (tmp_path / "out.h5").read_bytes() == before
    assert cli("convert", name, "out.h5", "--force")[0] == 0


def test_json_says_the_same(cli, tmp_path, arrays):
    code, out, _ = cli("convert", dumped(tmp_path, layumi(arrays)), "out.h5", "--json")
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


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_does_not_execute(number, protocol, cli, tmp_path, arrays):
    marker = tmp_path / "marker.npy"
    fields = layumi(arrays) | {"extra": attacks(marker)[number]}
    (tmp_path / "dump.pkl").write_bytes(pickle.dumps(fields, protocol=protocol))
    why = refused(cli, "convert", "dump.pkl", "out.h5", "--allow-pickle")
    assert "no code in it was executed" in why
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.pkl"]


def test_the_attacks_are_real(tmp_path):
    """Python's own loader runs the first of them."""
    pickle.loads(pickle.dumps(attacks(tmp_path / "marker.npy")[0]))
    assert (tmp_path / "marker.npy").exists()


def test_a_malicious_file_of_torch_or_numpy_does_not_execute(cli, tmp_path, arrays):
    marker = tmp_path / "marker.npy"
    fields = torchreid_fields(arrays) | {"extra": attacks(marker)[0]}
    torch.save(fields, tmp_path / "dump.pt")
    assert "contains posix.system" in refused(cli, "convert", "dump.pt", "out.h5", "--allow-pickle")
    np.savez(
        tmp_path / "dump.npz", **torchreid_fields(arrays), extra=np.array([attacks(marker)[0]], dtype=object)
    )
    assert "dump.npz::extra contains posix.system" in refused(
        cli, "convert", "dump.npz", "out.h5", "--allow-pickle"
    )
    assert not marker.exists()


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
        (Rebuilt(SCALAR, (np.dtype(object), b"A" * 8)), "an object in the place of a number"),
        (Rebuilt(np.ndarray, ((1,), np.dtype(object), b"A" * 8)), "damaged"),
        (
            Rebuilt(REBUILD, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype([("a", "O")]), False, b"A" * 8)),
            "an array of type 'V8'",
        ),
    ],
    ids=["array", "scalar", "ndarray", "fields"],
)
def test_bytes_are_never_taken_for_pointers(value, why, dump, cli, tmp_path, arrays):
    """As NumPy's own functions take them: the process would not come back."""
    if dump.endswith(".pt"):
        torch.save(torchreid_fields(arrays) | {"extra": value}, tmp_path / dump)
    else:
        (tmp_path / dump).write_bytes(pickle.dumps(layumi(arrays) | {"extra": value}))
    assert why in refused(cli, "convert", dump, "out.h5", "--allow-pickle")


def test_labels_of_numpy_are_read_beside_tensors(cli, tmp_path, arrays):
    fields = torchreid_fields(arrays)
    torch.save(
        {name: torch.from_numpy(fields[name]) for name in ("qf", "gf")}
        | {name: list(fields[name]) for name in ("q_pids", "g_pids")}  # a list of NumPy's scalars
        | {name: fields[name] for name in ("q_camids", "g_camids")},
        tmp_path / "dump.pt",
    )
    assert cli("convert", "dump.pt", "out.h5")[0] == 0
    found = br.load(tmp_path / "out.h5")
    np.testing.assert_array_equal(found.gallery.ids, fields["g_pids"])
    np.testing.assert_array_equal(found.probe.cams, fields["q_camids"])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4)),
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


@pytest.mark.parametrize(
    "code",
    [
        b"cnumpy\nndarray\n((I1000000000000\ntcnumpy\ndtype\n(Vf8\ntRtR.",  # an array of 8 TB
        b"cnumpy\ncore.multiarray._reconstruct\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
        b"(lp0\ng0\na.",  # a list that holds itself
        b"\x80\x04" + b"(" * 200000 + b".",
        b"I1\n",
        b"",
    ],
)
def test_pickles_made_by_hand_are_refused_in_one_line(code):
    with pytest.raises(br.InputError) as error:
        read_pickle(io.BytesIO(code), "here")
    assert len(error.value.problems) == 1
    assert "here" in str(error.value)


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
    feats = write()
    assert cli("run", feats, "-o", "lists.trec")[0] == 0
    (tmp_path / "lists.trec.gz").write_bytes(gzip.compress((tmp_path / "lists.trec").read_bytes()))
    arguments = (
        ("eval", "{}", feats)
        if command == "eval"
        else ("run", feats, "--candidates", "{}", "--force", "-o", "again.h5")
    )
    told = [cli(*(str(one).format(name) for one in arguments)) for name in ("lists.trec", "lists.trec.gz")]
    assert told[0][0] == told[1][0] == 0
    packed, plain = (out.replace("lists.trec.gz", "lists.trec").split() for _, out, _ in told[::-1])
    assert [word for word in packed if set(word) != {"-"}] == [word for word in plain if set(word) != {"-"}]
    (tmp_path / "lists.trec.gz").write_bytes(gzip.compress((tmp_path / "lists.trec").read_bytes())[:-20])
    code, _, err = cli(*(str(one).format("lists.trec.gz") for one in arguments))
    assert code == 1
    assert "lists.trec.gz is a damaged gzip file" in err


def test_the_library_reads_them_too(tmp_path, arrays):
    name = dumped(tmp_path, layumi(arrays))
    found = import_features(tmp_path / name)
    assert found.source == "NumPy archive, layumi's names"
    assert br.load(tmp_path / name).digest() == found.data.digest()
