"""Against answers that programs independent of this project gave on real features."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from conftest import check_lists

import blurrerank as br

GROUPS = {
    "cosine_top200": ("baseline", "cosine", {"topn": 200}),
    "lbr_n50_s0.1": ("lbr_n50_s0.1", "lbr", {"topn": 50, "sigma": 0.1}),
    "lbr_n150_s0.02": ("lbr_n150_s0.02", "lbr", {"topn": 150, "sigma": 0.02}),
    "lbr_n20_s0.3": ("lbr_n20_s0.3", "lbr", {"topn": 20, "sigma": 0.3}),
}
METRICS = ("mAP", "mINP", "rank1", "rank5", "rank10", "rank20", "valid_probes", "probes")


@pytest.fixture(scope="module")
def data(shared):
    return br.load(shared / "data/omniglot.h5")


def every(step, side):
    return br.Side(side.features[::step], side.ids[::step], side.cams[::step])


@pytest.mark.parametrize("group", GROUPS)
def test_lists_and_metrics_equal_the_golden_answers(shared, data, group):
    name, method, params = GROUPS[group]
    ranking = br.rerank(data, method, **params)
    with h5py.File(shared / "golden/omniglot.h5") as golden:
        check_lists(ranking.indices, ranking.scores, golden[group]["indices"][()], golden[group]["scores"][()])

    expected = json.loads((shared / "golden/omniglot_metrics.json").read_text())[name]
    measured = br.evaluate(ranking, data).summary()
    assert {key: measured[key] for key in METRICS} == pytest.approx(
        {key: expected[key] for key in METRICS}, abs=2e-4
    )
    trapezoid = br.evaluate(ranking, data, ap="trapezoid")
    assert trapezoid.mAP == pytest.approx(expected["mAP_trapezoid"], abs=2e-4)


def test_the_check_itself_can_fail():
    golden, scores = np.array([[3, 1, 2]]), np.array([[0.9, 0.5, 0.1]])
    check_lists(golden, scores, golden, scores)
    for wrong in ([[3, 2, 1]], [[7, 8, 9]], [[3, 1, 3]], [[4, 1, 2]]):
        with pytest.raises(AssertionError):
            check_lists(np.array(wrong), scores, golden, scores)
    tied = np.array([[0.9, 0.5, 0.5]])
    check_lists(np.array([[3, 2, 1]]), tied, golden, tied)


@pytest.mark.parametrize("group", GROUPS)
def test_a_run_gives_the_golden_lists_and_metrics_too(shared, tmp_path, cli, group):
    """The road that `run` takes, with whole rows of similarities, in streamed blocks."""
    name, method, params = GROUPS[group]
    options = [part for key, value in params.items() for part in (f"--{key}", value)]
    code, out, _ = cli(
        "run",
        shared / "data/omniglot.h5",
        "--method",
        method,
        *options,
        "-o",
        "o.h5",
        "--json",
        "--memory",
        "16MiB",
    )
    assert code == 0
    with h5py.File("o.h5") as ours, h5py.File(shared / "golden/omniglot.h5") as golden:
        check_lists(
            ours["indices"][()], ours["scores"][()], golden[group]["indices"][()], golden[group]["scores"][()]
        )
    expected = json.loads((shared / "golden/omniglot_metrics.json").read_text())
    told = json.loads(out)
    for stage, of in (("before", "baseline"), ("after", name)):
        assert {key: told[stage][key] for key in METRICS} == pytest.approx(
            {key: expected[of][key] for key in METRICS}, abs=2e-4
        )


@pytest.mark.parametrize("name", ["market1501", "dukemtmc", "cuhk03", "msmt17"])
def test_presets_are_those_of_the_paper(data, name):
    ranking = br.rerank(data, preset=name)
    assert (ranking.params["topn"], ranking.params["sigma"]) == ((150, 0.02) if name == "msmt17" else (50, 0.1))
    assert ranking.depth == ranking.params["topn"]


# Budgets of a few MiB are what is tested: that they are small is told each time.
@pytest.mark.filterwarnings("ignore:the memory budget does not hold:blurrerank.BlurrerankWarning")
def test_lists_do_not_depend_on_blocks_threads_or_memory(data, threads):
    # Blocks of a few rows are slow: 374 of them, of every thirtieth row, say as much as 11,203 do.
    few = br.FeatureSet(every(40, data.probe), every(30, data.gallery))
    part = br.FeatureSet(every(9, data.probe), every(7, data.gallery))
    for features, all_options in (
        (few, ({"block": 1}, {"block": 7})),
        (part, ({"block": 70}, {"block": 1000})),
        (data, ({"block": 1000}, {"block": 11203}, {"memory": 8 << 20})),
    ):
        whole = br.rerank(features, block=len(features.gallery))
        for count in (1, 2):
            threads(count)
            for options in all_options:
                other = br.rerank(features, **options)
                said = f"{options} {count} threads, {len(features.gallery)} rows"
                np.testing.assert_array_equal(other.indices, whole.indices, err_msg=said)
                np.testing.assert_array_equal(other.scores, whole.scores, err_msg=said)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_lists_do_not_depend_on_the_dtype_of_the_file(data, tmp_path, dtype):
    path = tmp_path / "feats.h5"
    with h5py.File(path, "w") as file:
        file["probe/features"] = data.probe.features.astype(dtype)
        file["gallery/features"] = data.gallery.features.astype(dtype)
    stored = br.rerank(br.load(path))
    np.testing.assert_array_equal(stored.indices, br.rerank(data).indices)


@pytest.mark.filterwarnings("ignore:the memory budget does not hold:blurrerank.BlurrerankWarning")
def test_metrics_do_not_depend_on_the_memory_budget(data):
    data = br.FeatureSet(every(9, data.probe), data.gallery)
    ranking = br.rerank(data)
    for protocol in ("market1501", "cuhk03"):
        generous = br.evaluate(ranking, data, protocol=protocol)
        tight = br.evaluate(ranking, data, protocol=protocol, memory=4 << 20)
        assert tight.mAP == pytest.approx(generous.mAP, abs=1e-9)
        np.testing.assert_allclose(tight.cmc, generous.cmc, atol=1e-9)


def test_a_real_dump_of_a_re_identification_model(market_subset):
    data = market_subset
    arrays = data.probe.features, data.gallery.features
    from blurrerank import reference

    ranking = br.rerank(data, topn=20, sigma=0.1)
    heads, scores = reference.local_blurring(*arrays, 20, 0.1)
    check_lists(ranking.indices, ranking.scores, heads, scores)
    lists, _ = reference.cosine_ranking(*arrays)
    lists[:, :20] = heads
    expected = reference.evaluate(lists, data.probe.ids, data.gallery.ids, data.probe.cams, data.gallery.cams)
    assert br.evaluate(ranking, data).mAP == pytest.approx(np.nanmean(expected["ap"]), abs=1e-6)
