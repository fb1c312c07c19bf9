"""docs/recipes.md, run with the packages that it is written for.

`make recipes` installs them. `make test` does not: together they are large, and some ask for versions that
exclude each other. A test whose package is missing is skipped. The functions of programs that are not on PyPI
are called here as the programs call them.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib.util
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.io
import torch
from conftest import features, recipe

import blurrerank as br
from blurrerank import compat, reference

# Other packages' warnings are not this project's; its own remain errors.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "ImportWarning", "ResourceWarning", "SyntaxWarning")
]
pytestmark += [
    pytest.mark.filterwarnings("ignore:Cython .*evaluation.* unavailable:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*unsafe cast from uint64 to int64"),  # numba's, of ranx
]


def package(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of a package that `make recipes` installs."""
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # OML imports it, and it looks for its latest version
    if importlib.util.find_spec(name.split(".")[0]) is None:
        pytest.skip(f"{name} is not installed: make recipes")
    torchvision_operators()
    return importlib.import_module(name)


@cache
def torchvision_operators() -> torch.library.Library | None:
    """Let torchvision be imported beside a torch that it was not compiled for.

    PyPI has torchvision for a torch with CUDA. Beside a torch for CPUs its operators cannot be loaded, and its
    import fails where it describes two of them. No recipe calls them, so it is enough to declare these two. The
    library object is kept: they exist for as long as it does.
    """
    if torch.version.cuda is not None:
        return None
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators


def people() -> dict[str, np.ndarray]:
    """Unit rows and labels, without junk: other packages drop that when they load a data set."""
    arrays = features(gallery=80, dim=16)
    real = arrays["gallery_ids"] != -1
    arrays |= {name: values[real] for name, values in arrays.items() if name.startswith("gallery")}
    for side in ("probe", "gallery"):
        arrays[side] = arrays[side] / np.linalg.norm(arrays[side], axis=1, keepdims=True)
    return arrays


def joined(arrays: dict[str, np.ndarray], kind: str = "") -> np.ndarray:
    """Both sides in one array, probes first."""
    return np.concatenate([arrays[f"{side}{kind}"] for side in ("probe", "gallery")])


def exact_map(out: str) -> float:
    """The mAP in the table that `run` and `eval` print, of the last row."""
    return float(re.findall(r"\b[01]\.\d{4}\b", out.splitlines()[-1])[0])


def lists_of(matrix: np.ndarray) -> np.ndarray:
    return np.argsort(matrix, axis=1, kind="stable")


# ---- layumi/Person_reID_baseline_pytorch: not on PyPI, so its calls alone


def test_layumi(cli):
    """`evaluate_rerank.py` passes products of float32 features; the recipe makes distances of them."""
    arrays = people()
    fields = {"query": "probe", "gallery": "gallery"}
    saved = {f"{name}_f": arrays[side] for name, side in fields.items()}
    saved |= {f"{name}_label": arrays[f"{side}_ids"] for name, side in fields.items()}
    saved |= {f"{name}_cam": arrays[f"{side}_cams"] for name, side in fields.items()}
    scipy.io.savemat("pytorch_result.mat", saved)
    result = scipy.io.loadmat("pytorch_result.mat")
    assert result["query_label"].shape == (1, 12)
    names = {"query_feature": result["query_f"], "gallery_feature": result["gallery_f"], "np": np}
    exec(recipe("query_feature"), names)
    assert names["re_rank"].dtype == np.float32
    options = {"base_distance": "squared-twice"}
    expected = reference.k_reciprocal(arrays["probe"], arrays["gallery"], 20, 6, 0.3, **options)
    np.testing.assert_allclose(names["re_rank"], expected, atol=2e-5)
    assert cli("convert", "pytorch_result.mat", "layumi.h5")[0] == 0
    data = br.load("layumi.h5")
    ranking = br.rerank(data, "k-reciprocal", depth=len(data.gallery), **options)
    np.testing.assert_array_equal(ranking.indices, lists_of(names["re_rank"]))


# ---- torchreid


def evaluated_by_torchreid(arrays, monkeypatch, re_ranking=None):
    """What its own loop passes to `re_ranking`, what it measures, and the mAP."""
    engine = package("torchreid.reid.engine.engine", monkeypatch)

    def batches(side):
        rows = {"img": side, "pid": f"{side}_ids", "camid": f"{side}_cams"}
        whole = {key: torch.from_numpy(arrays[kind]) for key, kind in rows.items()}
        return [{key: value[some] for key, value in whole.items()} for some in (slice(7), slice(7, None))]

    loaders = {"people": {"query": batches("probe"), "gallery": batches("gallery")}}
    manager = SimpleNamespace(train_loader=None, test_loader=loaders, sources=["people"])
    loop = engine.Engine(manager, use_gpu=False)
    loop.model = torch.nn.Identity()
    with monkeypatch.context() as patch:
        re_ranked = Mock(wraps=re_ranking or engine.re_ranking)
        measured = Mock(wraps=engine.metrics.evaluate_rank)
        patch.setattr(engine, "re_ranking", re_ranked)
        patch.setattr(engine.metrics, "evaluate_rank", measured)
        loop.run(test_only=True, rerank=True, normalize_feature=True)
    _, mean = engine.metrics.evaluate_rank(*measured.call_args.args)
    return re_ranked.call_args.args, measured.call_args.args, mean


def test_torchreid_with_the_import_changed(monkeypatch):
    """Its engine calls `re_ranking` with one array and two tensors."""
    arrays = people()
    given, (theirs, *_), their_map = evaluated_by_torchreid(arrays, monkeypatch)
    assert [type(matrix) for matrix in given] == [np.ndarray, torch.Tensor, torch.Tensor]
    _, (ours, *_), our_map = evaluated_by_torchreid(arrays, monkeypatch, compat.re_ranking)
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert our_map == pytest.approx(their_map, abs=1e-9)


def test_torchreid_with_its_arrays_saved(monkeypatch, cli):
    arrays = people()
    _, (_, q_pids, g_pids, q_camids, g_camids), their_map = evaluated_by_torchreid(arrays, monkeypatch)
    qf, gf = (torch.from_numpy(arrays[side]) for side in ("probe", "gallery"))
    labels = {"q_pids": q_pids, "g_pids": g_pids, "q_camids": q_camids, "g_camids": g_camids}
    exec(recipe("feats.npz"), {"np": np, "qf": qf, "gf": gf, **labels})
    options = ("--method", "k-reciprocal", "--base-distance", "squared-twice")
    code, out, _ = cli("run", "feats.npz", *options)
    assert code == 0
    assert exact_map(out) == pytest.approx(their_map, abs=5e-5)


# ---- fast-reid


@pytest.fixture
def evaluator(monkeypatch):
    """fast-reid's, after the last batch. Its package asks `collections` for what Python 3.10 moved."""
    monkeypatch.setattr(collections, "Mapping", collections.abc.Mapping, raising=False)
    package("fastreid.evaluation", monkeypatch)
    evaluation = importlib.import_module("fastreid.evaluation.reid_evaluation")
    monkeypatch.setattr(evaluation, "compile_helper", lambda: None)  # there is the same in Python
    off = SimpleNamespace(ENABLED=False)
    test = SimpleNamespace(AQE=off, RERANK=off, ROC=off, METRIC="cosine")
    arrays = people()
    found = evaluation.ReidEvaluator(SimpleNamespace(TEST=test), num_query=len(arrays["probe"]))
    labels = {"targets": joined(arrays, "_ids"), "camids": joined(arrays, "_cams")}
    for some in (slice(30), slice(30, None)):
        inputs = {name: torch.from_numpy(values[some]) for name, values in labels.items()}
        found.process(inputs, torch.from_numpy(joined(arrays)[some]))
    return found


def test_fast_reid(evaluator, cli):
    """`evaluate` joins the batches; the recipe saves what it has then."""
    batches = evaluator._predictions
    features = torch.cat([batch["feats"] for batch in batches])
    labels = {name: torch.cat([batch[name] for batch in batches]).numpy() for name in ("pids", "camids")}
    exec(recipe("self._num_query"), {"torch": torch, "self": evaluator, "features": features, **labels})
    code, out, _ = cli("run", "feats.pt", "--method", "cosine")
    assert code == 0
    assert exact_map(out) == pytest.approx(evaluator.evaluate()["mAP"] / 100, abs=5e-5)

    compute = importlib.import_module("fastreid.utils.compute_dist")
    jaccard = compute.compute_jaccard_distance(features, k1=20, k2=6, search_option=3)  # on the CPU
    probes = evaluator._num_query
    cosine = compute.build_dist(features[:probes], features[probes:], "cosine")
    expected = 0.7 * jaccard[:probes, probes:] + 0.3 * cosine  # as `evaluate` mixes them
    data = br.load("feats.pt")
    ranking = br.rerank(data, "k-reciprocal-fastreid", depth=len(data.gallery))
    found = -np.take_along_axis(ranking.scores, np.argsort(ranking.indices, axis=1), axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_fast_reid_s_old_function(evaluator):
    theirs = importlib.import_module("fastreid.evaluation.rerank").re_ranking
    feats = torch.cat([batch["feats"] for batch in evaluator._predictions])
    build_dist = importlib.import_module("fastreid.utils.compute_dist").build_dist
    query, gallery = feats[: evaluator._num_query], feats[evaluator._num_query :]
    pairs = (query, gallery), (query, query), (gallery, gallery)
    matrices = [build_dist(*pair, "cosine") for pair in pairs]
    assert {type(matrix) for matrix in matrices} == {np.ndarray}
    np.testing.assert_allclose(
        compat.re_ranking(*matrices, k1=20, k2=6, lambda_value=0.3),
        theirs(*matrices, k1=20, k2=6, lambda_value=0.3),
        atol=2e-5,
    )


# ---- wildlife-tools


@pytest.fixture
def animals(monkeypatch):
    """Two FeatureDataset, of queries and of a database."""
    dataset = package("wildlife_tools.data", monkeypatch).FeatureDataset
    pandas = pytest.importorskip("pandas")
    arrays = people()

    def part(side):
        table = pandas.DataFrame({"identity": [f"animal {number}" for number in arrays[f"{side}_ids"]]})
        return dataset(arrays[side], table)

    return {"query": part("probe"), "database": part("gallery")}


def test_wildlife_tools(animals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(recipe("FeatureDataset"), animals)
    data = br.load("wild.h5")
    for side, part in ((data.probe, animals["query"]), (data.gallery, animals["database"])):
        np.testing.assert_array_equal(side.features[:], part.features)
    np.testing.assert_array_equal(
        data.probe.ids[:, None] == data.gallery.ids,
        np.array(animals["query"].labels_string)[:, None] == np.array(animals["database"].labels_string),
    )


def test_wildlife_tools_from_images(tmp_path, monkeypatch):
    """Images, its DeepFeatures, FeatureDataset, feature file."""
    data = package("wildlife_tools.data", monkeypatch)
    deep = package("wildlife_tools.features", monkeypatch).DeepFeatures
    pandas, image = pytest.importorskip("pandas"), pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    for number, some in enumerate(pixels):
        image.fromarray(some).save(f"{number}.png")
    table = pandas.DataFrame({"path": [f"{n}.png" for n in range(8)], "identity": list("abcdabcd")})
    extractor = deep(torch.nn.Flatten(), num_workers=0)
    parts = {}
    for name, rows in (("query", slice(4)), ("database", slice(4, None))):
        images = data.WildlifeDataset(
            table[rows], root=str(tmp_path), transform=lambda one: torch.tensor(np.array(one)).float()
        )
        parts[name] = data.FeatureDataset(extractor(images), images.metadata)
    exec(recipe("FeatureDataset"), parts)
    read = br.load("wild.h5")
    np.testing.assert_array_equal(read.gallery.features[:], pixels[4:].reshape(4, -1))
    assert br.evaluate(br.rerank(read, "cosine", depth=4), read, protocol="plain").valid_probes == 4


def test_wildlife_tools_similarities(animals, monkeypatch):
    """Its matrices give the lists that the features behind them give."""
    similarity = package("wildlife_tools.similarity", monkeypatch).CosineSimilarity()
    query, database = animals["query"].features, animals["database"].features
    pairs = {"similarity": (query, database), "qq": (query, query), "gg": (database, database)}
    names: dict[str, Any] = {name: similarity(*pair)["cosine"] for name, pair in pairs.items()}
    ids = {"probe_ids": np.array(animals["query"].labels_string, dtype=object)}
    ids |= {"gallery_ids": np.array(animals["database"].labels_string, dtype=object)}
    names |= {"br": br} | ids
    with pytest.warns(br.BlurrerankWarning, match="no cameras"):
        exec(recipe("from_matrices"), names)
    expected = br.rerank(br.FeatureSet.from_arrays(query, database), "k-reciprocal")
    np.testing.assert_array_equal(names["ranking"].indices, expected.indices)


def test_wildlife_tools_classifier(animals, tmp_path, monkeypatch):
    package("wildlife_tools.inference", monkeypatch)
    if int(importlib.import_module("pandas").__version__.split(".")[0]) > 2:
        pytest.skip("KnnClassifier of wildlife-tools 0.0.9 needs a pandas before 3")
    monkeypatch.chdir(tmp_path)
    exec(recipe("FeatureDataset"), animals)
    names = dict(animals)
    exec(recipe("KnnClassifier"), names)
    data = br.load("wild.h5")
    first = br.rerank(data).indices[:, 0]
    np.testing.assert_array_equal(names["predicted"], np.array(animals["database"].labels_string)[first])


# ---- OML


def oml_table(arrays, folder: Path, sequences: bool):
    """Its table, the images that it names, and its data set."""
    pandas = pytest.importorskip("pandas")
    sides = np.repeat(["probe", "gallery"], [len(arrays["probe"]), len(arrays["gallery"])])
    columns = {
        "label": joined(arrays, "_ids"),
        "path": [f"{name}.jpg" for name in joined(arrays, "_names")],
        "split": "validation",
        "is_query": sides == "probe",
        "is_gallery": sides == "gallery",
    }
    if sequences:  # a sequence shows one item, so its name has both
        pairs = zip(columns["label"], joined(arrays, "_cams"), strict=True)
        columns["sequence"] = [f"{identity}-{camera}" for identity, camera in pairs]
    table = pandas.DataFrame(columns)
    for path in table["path"]:
        (folder / path).touch()
    table.to_csv(folder / "df.csv", index=False)
    np.save(folder / "features.npy", joined(arrays))
    return table


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("sequences", [True, False])
def test_oml_s_results(kind, sequences, tmp_path, monkeypatch):
    """The recipe's post-processor gives what the plain version gives for the head of each list."""
    datasets = package("oml.datasets", monkeypatch)
    check = package("oml.utils.dataframe_format", monkeypatch).check_retrieval_dataframe_format
    arrays = people()
    table = oml_table(arrays, tmp_path, sequences)
    check(table, dataset_root=tmp_path)
    dataset = datasets.ImageQueryGalleryLabeledDataset(table, dataset_root=tmp_path)
    given = torch.from_numpy(joined(arrays))
    before = package("oml.retrieval", monkeypatch).RetrievalResults.from_embeddings(given, dataset, n_items=100)
    names = {"embeddings": given, "dataset": dataset}
    exec(recipe("OMLLocalBlurring"), names)
    after = compat.OMLLocalBlurring(kind(joined(arrays)), top_n=50, sigma=0.1).process(before, dataset)
    assert type(after) is type(names["rr"]) is type(before)
    for p in range(len(arrays["probe"])):
        near = before.retrieved_ids[p].numpy()
        head = near[:50]
        assert len(head) == 50 < len(near)
        probe, candidates = arrays["probe"][p : p + 1], arrays["gallery"][head]
        order, _ = reference.local_blurring(probe, candidates, 50, 0.1)
        for found in (after, names["rr"]):
            np.testing.assert_array_equal(found.retrieved_ids[p], [*head[order[0]], *near[50:]])
            np.testing.assert_array_equal(found.distances[p], before.distances[p])
            np.testing.assert_array_equal(found.gt_ids[p], before.gt_ids[p])


def test_oml_s_metrics(tmp_path, monkeypatch, cli):
    """Its EmbeddingMetrics takes the post-processor, and its mAP is that of `run` for the table."""
    metrics = package("oml.metrics", monkeypatch).EmbeddingMetrics
    datasets = package("oml.datasets", monkeypatch)
    arrays = people()
    embeddings = torch.from_numpy(joined(arrays))
    size = len(arrays["gallery"])

    def theirs(dataset, postprocessor=None):
        found = metrics(dataset, map_top_k=(size,), postprocessor=postprocessor, verbose=False)
        found.setup(len(embeddings))
        found.update(embeddings, list(range(len(embeddings))))
        return float(found.compute_metrics()["OVERALL"]["map"][size])

    for sequences, options in ((True, ()), (False, ("--protocol", "plain"))):
        table = oml_table(arrays, tmp_path, sequences)
        dataset = datasets.ImageQueryGalleryLabeledDataset(table, dataset_root=tmp_path)
        code, _, err = cli("convert", "df.csv", "features.npy", "oml.h5", "--force")
        assert code == 0, err
        _, out, _ = cli("run", "oml.h5", "--method", "cosine", "--force", *options)
        assert exact_map(out) == pytest.approx(theirs(dataset), abs=5e-5)
    _, out, _ = cli("run", "oml.h5", "--method", "lbr", "--force", *options)
    blurred = theirs(dataset, compat.OMLLocalBlurring(embeddings))
    assert exact_map(out) == pytest.approx(blurred, abs=5e-5)
    assert blurred != theirs(dataset)


# ---- ranx, ir_measures


def judged(cli, depth):
    """The two dictionaries of the recipe, and what `eval` prints, of the same lists."""
    arrays = features(gallery=80)
    arrays["probe_ids"][3] = 99  # nowhere in the gallery
    br.save_features(br.FeatureSet.from_arrays(**arrays), "feats.h5")
    assert cli("run", "feats.h5", "--depth", depth, "-o", "lists.trec", "--topn", 20)[0] == 0
    names: dict[str, Any] = {}
    exec(recipe("qrels"), names)
    code, out, _ = cli("eval", "lists.trec", "feats.h5")
    assert code == 0
    return names["qrels"], names["run"], exact_map(out)


@pytest.mark.parametrize("depth", ["all", 30])
def test_ranx(depth, monkeypatch, cli):
    ranx = package("ranx", monkeypatch)
    qrels, run, ours = judged(cli, depth)
    theirs = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), "map")
    assert theirs == pytest.approx(ours, abs=5e-5)


@pytest.mark.parametrize("depth", ["all", 30])
def test_ir_measures(depth, cli):
    ir_measures = pytest.importorskip("ir_measures")
    qrels, run, ours = judged(cli, depth)
    theirs = ir_measures.calc_aggregate([ir_measures.AP], qrels, run)
    assert theirs[ir_measures.AP] == pytest.approx(ours, abs=5e-5)


def test_ranx_reads_the_file(monkeypatch, cli):
    """As it is written: every line, in our order."""
    ranx = package("ranx", monkeypatch)
    judged(cli, "all")
    data = br.load("feats.h5")
    read = ranx.Run.from_file("lists.trec", kind="trec").to_dict()
    ranking = br.read_ranking("lists.trec", data)
    for name, near in zip(data.probe.names, ranking.indices, strict=True):
        assert sorted(read[name], key=read[name].get, reverse=True) == list(data.gallery.names[near])
