"""A tuning chooses on half of the identities, reports on the others, and says what runs one by one would."""

from __future__ import annotations

import csv
import json
import re
import warnings
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import features, shell

import blurrerank as br
from blurrerank import reference
from blurrerank.cli.tune import METRICS
from blurrerank.evaluation.metrics import MEANS
from blurrerank.methods import create, find_parameter, with_settings
from blurrerank.studies import many
from blurrerank.studies import tune as tuning
from blurrerank.studies.tune_files import TuningFile, read_tuning

GRAPH = ("--method", "center+camera-graph", "--grid", "ki=2,3", "--grid", "ko=3,5")


def people(seed: int = 3, probes: int = 40, people: int = 10, **changes) -> dict[str, np.ndarray]:
    """More identities than `features` has, not equally often; one of them, and some probes, without a match."""
    rng = np.random.default_rng(seed)
    ids = 1 + np.minimum(rng.integers(0, people + 3, probes), people - 1)
    gallery_ids = np.concatenate([[-1, -1, 0, 0], 1 + np.arange(86) % (people - 1)])
    centres = rng.standard_normal((people + 1, 12))
    return {
        "probe": (centres[ids] + 0.9 * rng.standard_normal((probes, 12))).astype(np.float32),
        "gallery": (centres[gallery_ids] + 0.9 * rng.standard_normal((90, 12))).astype(np.float32),
        "probe_ids": ids,
        "gallery_ids": gallery_ids,
        "probe_cams": rng.integers(1, 4, probes),
        "gallery_cams": rng.integers(1, 4, 90),
    } | changes


@pytest.fixture
def feats(write) -> Path:
    return write(**people(), probe_names=None, gallery_names=None)


def by_reference(data, lists, protocol="market1501", ap="ap"):
    """(P, M) values of each probe, from its whole list."""
    labels = (data.probe.ids, data.gallery.ids, data.probe.cams, data.gallery.cams)
    found = reference.evaluate(lists, *labels, protocol=protocol)
    return np.column_stack([found[ap], found["inp"], found["cmc"][:, [0, 4, 9, 19]]])


def halves(data, values, seed=0):
    """Which probes tune and which report, as the documents define it."""
    matched = ~np.isnan(values[:, 0])
    ids = np.unique(data.probe.ids[matched])
    tuning = np.random.default_rng(seed).permutation(ids)[: len(ids) // 2]
    tunes = np.isin(data.probe.ids, tuning)
    return matched & tunes, matched & ~tunes


CASES = {
    "one graph": ("camera-graph:lambda=0.2", {"ki": [2, 4], "k2o": [1, 3]}, {}),
    "a step's parameter and the ranker's": ("center+dba+camera-graph", {"dba.k": [2, 4], "ko": [3, 6]}, {}),
    "online": ("center+camera-graph", {"ki": [2, 4], "lambda": [0.1, 0.5]}, {"online": True}),
    "always online": ("k-reciprocal-online:blur=3", {"k1": [4, 8], "pool": [12, 20]}, {}),
    "several lists": ("ca-jaccard", {"k1_intra": [2, 4], "k1-inter": [3, 5]}, {"metric": "rank1", "seed": 4}),
    "heads": ("lbr", {"topn": [5, 200], "sigma": [0.05, 0.3], "cosine": [False, True]}, {"ap": "trapezoid"}),
    "heads after steps": ("aqe+lbr:topn=20", {"aqe.k": [2, 3], "sigma": [0.1, 1]}, {"metric": "mINP"}),
    "heads by camera": ("center+kwf:topn=40", {"k": [1, 4], "shrink": [0, 5]}, {"online": True}),
    "steps alone": ("center", {"shrink": [0, 5, 50]}, {"protocol": "plain"}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_setting_is_what_a_run_of_it_gives(case):
    method, grid, options = CASES[case]
    data = br.FeatureSet.from_arrays(**people())
    found = br.tune(data, method, grid, **options)
    measured = {
        "protocol": options.get("protocol", "market1501"),
        "ap": {"trapezoid": "ap_trapezoid"}.get(options.get("ap"), "ap"),
    }

    def values(method, **params):
        online = options.get("online", False)
        lists = br.rerank(data, method, depth=len(data.gallery), online=online, **params).indices
        return by_reference(data, lists, **measured)

    tunes, reports = halves(data, values("cosine"), options.get("seed", 0))
    assert (found.tuning.probes, found.reporting.probes) == (tunes.sum(), reports.sum())
    names = [find_parameter(method, name)[0] for name in grid]
    assert list(found.grid) == names
    table = {}
    for setting in product(*grid.values()):
        table[setting] = values(method, **dict(zip(grid, setting, strict=True)))
        means = table[setting][tunes].mean(axis=0)
        np.testing.assert_allclose([found.rows[setting][name] for name in MEANS], means, rtol=0, atol=1e-12)
    assert list(found.rows) == list(table), "in the order of the grid"
    column = MEANS.index(options.get("metric", "mAP"))
    scores = [round(table[setting][tunes, column].mean(), 12) for setting in table]
    assert found.chosen == list(table)[int(np.argmax(scores))]
    assert (
        create(found.text_at(found.chosen)).params()
        == create(method, **dict(zip(grid, found.chosen, strict=True))).params()
    )
    told = found.report()
    expected = {
        name: some[reports].mean(axis=0)
        for name, some in (
            ("cosine", values("cosine")),
            ("defaults", values(method)),
            ("chosen", table[found.chosen]),
            ("chosen - defaults", table[found.chosen] - values(method)),
            ("chosen - cosine", table[found.chosen] - values("cosine")),
        )
    }
    assert set(told) == set(expected)
    for name, means in expected.items():
        np.testing.assert_allclose([told[name][mean].value for mean in MEANS], means, rtol=0, atol=1e-12)
        assert all(interval.low <= interval.value <= interval.high for interval in told[name].values())


def test_an_identity_is_in_one_half_with_all_its_probes(tmp_path):
    data = br.FeatureSet.from_arrays(**people())
    found = {seed: br.tune(data, "lbr", {"topn": [5]}, seed=seed) for seed in range(4)}
    by_numpy = br.tune(data, "lbr", {"topn": [5]}, seed=np.int64(3), output=tmp_path / "t.json")
    assert by_numpy.report() == found[3].report()
    assert br.tune(data, "lbr", {"topn": [5]}, seed=3, output=tmp_path / "t.json").rows == by_numpy.rows
    matched = data.probe.ids <= 9  # one identity is not in the gallery
    assert len({tuple(one.counts) for one in found.values()}) > 1
    for one in found.values():
        assert one.tuning.identities + one.reporting.identities == len(np.unique(data.probe.ids[matched]))
        assert one.tuning.identities == one.reporting.identities - 1
        counts = np.bincount(data.probe.ids[matched])
        assert set(one.counts) <= set(counts)


def test_intervals_resample_identities_not_probes():
    """Copies of a probe are no further evidence."""
    arrays = people()
    copied = {name: np.repeat(arrays[name], 5, axis=0) for name in ("probe", "probe_ids", "probe_cams")}
    once, often = (
        br.tune(br.FeatureSet.from_arrays(**some), "lbr", {"topn": [5]}).report()["cosine"]["mAP"]
        for some in (arrays, arrays | copied)
    )
    np.testing.assert_allclose(
        [once.value, once.low, once.high], [often.value, often.low, often.high], rtol=0, atol=1e-9
    )


def test_of_equal_settings_the_first_is_chosen():
    data = br.FeatureSet.from_arrays(**people())
    found = br.tune(data, "lbr", {"sigma": [0.3, 0.1, 0.2], "topn": [1]})
    assert found.chosen == (0.3, 1)


def test_steps_and_graphs_are_shared(monkeypatch):
    data = br.FeatureSet.from_arrays(**people())
    calls = []
    for name in ("apply_feature_step", "find_neighbours"):
        function = getattr(many, name)
        monkeypatch.setattr(many, name, lambda *a, f=function, n=name: calls.append(n) or f(*a))
    br.tune(data, "center+camera-graph", {"ki": [2, 4, 6], "ko": [3, 8]})
    assert calls == ["apply_feature_step", "find_neighbours"]
    calls.clear()
    br.tune(data, "center+camera-graph", {"shrink": [5, 9], "ko": [3, 8]})
    assert calls == ["apply_feature_step", "find_neighbours"] * 2


HEADS = ("--method", "lbr", "--grid", "topn=5,10", "--grid", "sigma=0.1,0.2")


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("method", [GRAPH, HEADS])
def test_an_interrupted_tuning_is_completed_to_the_same_file(method, after, cli, feats, monkeypatch):
    assert cli("tune", feats, *method, "-o", "whole.json")[0] == 0
    located, measured = many.locate_each, []

    def stopping(*arguments):
        for found in located(*arguments):
            if len(measured) == after + 2:  # cosine, the chain as it was given, and so many settings
                raise KeyboardInterrupt
            measured.append(found[0])
            yield found

    monkeypatch.setattr(tuning, "locate_each", stopping)
    code, out, err = cli("tune", feats, *method, "-o", "part.json")
    assert (code, out) == (130, "")
    assert f"{after} settings are kept in part.json: run the same command again to measure the rest" in err
    told = json.loads(Path("part.json").read_text())
    assert (len(told["rows"]), told["finished"]) == (after, False)
    assert "report" not in told
    measured.clear()
    monkeypatch.setattr(
        tuning,
        "locate_each",
        lambda data, methods, *rest: measured.extend(methods) or located(data, methods, *rest),
    )
    code, _, err = cli("tune", feats, *method, "-o", "part.json")
    assert (code, err) == (0, f"wrote part.json: 4 settings, {4 - after} of them new\n")
    assert len(measured) == 4 - after
    assert Path("part.json").read_bytes() == Path("whole.json").read_bytes()


def test_a_larger_grid_or_another_metric_goes_on(cli, feats, monkeypatch):
    assert cli("tune", feats, *GRAPH, "-o", "tune.json")[0] == 0
    before = Path("tune.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "locate_each", None)
        code, _, err = cli("tune", feats, *GRAPH, "-o", "tune.json")
    assert (code, err) == (0, "kept tune.json: 4 settings, 0 of them new\n")
    assert Path("tune.json").read_bytes() == before
    more = ("--method", "center+camera-graph", "--grid", "camera-graph.ko=5", "--grid", "ki=9,3")
    code, _, err = cli("tune", feats, *more, "-o", "tune.json")
    assert (code, err) == (0, "wrote tune.json: 5 settings, 1 of them new\n")
    found = read_tuning("tune.json")
    assert list(found.rows) == [(2, 3), (2, 5), (3, 3), (3, 5), (9, 5)]
    data = br.load(feats)
    for metric in MEANS:
        assert cli("tune", feats, *GRAPH, "-o", "tune.json", "--metric", metric)[0] == 0
        fresh = br.tune(data, "center+camera-graph", {"ki": [2, 3, 9], "ko": [3, 5]}, metric=metric)
        known = read_tuning("tune.json")
        values = {setting: fresh.rows[setting][metric] for setting in known.rows}
        assert known.chosen == max(values, key=values.get)
        lists = br.rerank(data, known.text_at(known.chosen), depth=90).indices
        table = by_reference(data, lists)
        value = table[halves(data, table)[1]].mean(axis=0)[MEANS.index(metric)]
        assert known.report()["chosen"][metric].value == pytest.approx(value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probe": people(seed=9)["probe"]}, "other features"),
        ({"probe_cams": np.arange(40)}, "other ids or cameras"),
        (("--protocol", "plain"), "protocol market1501"),
        (("--ap", "trapezoid"), "ap plain"),
        (("--seed", "1"), "seed 0"),
        (("--online",), "setting transductive"),
        (("--method", "center:shrink=9+camera-graph"), "method center+camera-graph"),
        (("--grid", "lambda=0.1"), "a grid over ki, ko"),
    ],
)
def test_a_tuning_of_something_else_is_not_continued(change, said, cli, feats, write):
    assert cli("tune", feats, *GRAPH, "-o", "tune.json")[0] == 0
    before = Path("tune.json").read_bytes()
    options = () if isinstance(change, dict) else change
    if isinstance(change, dict):
        feats = write("other.h5", **people() | change, probe_names=None, gallery_names=None)
    code, out, err = cli("tune", feats, *GRAPH, *options, "-o", "tune.json")
    assert (code, out) == (1, "")
    assert err == f"error: the output file has a tuning of {said}: choose another name for this one\n"
    assert Path("tune.json").read_bytes() == before


def test_what_another_process_wrote_meanwhile_is_not_lost(cli, feats):
    file = TuningFile("tune.json")
    assert cli("tune", feats, *GRAPH, "-o", "tune.json")[0] == 0
    with pytest.raises(br.OutputError, match="written by another process meanwhile"):
        file.keep(read_tuning("tune.json"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: told.clear(),
        lambda told: told.update(format_version=2),
        lambda told: told["rows"][0].update(mAP=1.5),
        lambda told: told["rows"][0]["params"].update(ki=7),
        lambda told: told["grid"].update(kx=[1]),
        lambda told: told["samples"]["counts"].pop(),
        lambda told: told["samples"]["chosen"][0].__setitem__(0, -1),
        lambda told: told.update(metric="accuracy"),
        lambda told: told["samples"]["counts"].__setitem__(0, 10**30),
        lambda told: told["grid"].update(ki=list(range(1, 9999)), ko=list(range(1, 9999))),
    ],
)
def test_a_file_that_is_no_tuning_is_left_alone(damage, cli, feats):
    assert cli("tune", feats, *GRAPH, "-o", "tune.json")[0] == 0
    told = json.loads(Path("tune.json").read_text())
    damage(told)
    Path("tune.json").write_text(json.dumps(told))
    code, out, err = cli("tune", feats, *GRAPH, "-o", "tune.json")
    assert (code, out) == (1, "")
    assert err.startswith("error: tune.json is not a tuning that can be continued: it is ")
    assert err.count("\n") == 1
    assert json.loads(Path("tune.json").read_text()) == told


def test_json_csv_and_table_hold_the_same(cli, feats):
    assert tuple(METRICS) == MEANS
    code, out, err = cli("tune", feats, *GRAPH, "-o", "tune.csv", "--metric", "mINP")
    assert (code, err) == (0, "wrote tune.csv: 4 settings, 4 of them new\n")
    told = json.loads(cli("tune", feats, *GRAPH, "--metric", "mINP", "--json")[1])
    with open("tune.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["half"] for row in rows] == ["tuning"] * 4 + ["reporting"] * 3
    for row, known in zip(rows[:4], told["rows"], strict=True):
        assert {name: float(row[name]) for name in MEANS} == {name: known[name] for name in MEANS}
        assert (int(row["ki"]), int(row["ko"])) == tuple(known["params"].values())
    for row, name in zip(rows[4:], ("cosine", "defaults", "chosen"), strict=True):
        assert float(row["mAP"]) == told["report"][name]["mAP"]["value"]
        assert float(row["mAP_high"]) == told["report"][name]["mAP"]["high"]
    assert rows[-1]["method"] == told["chosen"]["method"]
    lines = out.splitlines()
    figure = told["report"]["chosen"]["mAP"]
    shown = f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})"
    assert any(line.startswith("chosen ") and shown in line for line in lines)
    assert lines[-1] == told["command"] == f"blurrerank run {feats} --method {told['chosen']['method']}"
    assert cli(*lines[-1].split()[1:])[0] == 0
    code, _, err = cli("tune", feats, *GRAPH, "-o", "tune.csv")
    assert (code, err) == (1, "error: tune.csv exists, and only .json can be continued: choose another name\n")


def test_only_the_half_to_choose_by_is_shown_of_all_settings(cli, feats):
    out = cli("tune", feats, *GRAPH)[1]
    found = br.tune(br.load(feats), "center+camera-graph", {"ki": [2, 3], "ko": [3, 5]})
    lines = [line.split() for line in out.splitlines()]
    shown = {tuple(map(int, line[:2])): line[2:] for line in lines if line and line[0] in ("2", "3")}
    assert shown == {
        setting: [f"{value:.4f}" for value in means.values()] for setting, means in found.rows.items()
    }


def test_online_and_camera_images_are_as_in_run(cli, write):
    arrays = people()
    lacking = arrays["gallery_cams"] != 3
    arrays |= {name: arrays[name][lacking] for name in ("gallery", "gallery_ids", "gallery_cams")}
    feats = write(**arrays, probe_names=None, gallery_names=None)
    write("earlier.h5", **people(seed=8), probe_names=None, gallery_names=None)
    options = ("--online", "--camera-images", "earlier.h5")
    told = json.loads(cli("tune", feats, *GRAPH, *options, "--json")[1])
    words = told["command"].split()
    assert words[-3:] == list(options)
    measured = ("--protocol", "plain", "--ap", "trapezoid")
    assert json.loads(cli("tune", feats, *GRAPH, *measured, "--json")[1])["command"].split()[-4:] == list(
        measured
    )
    data = br.load(feats)
    camera_images = br.load("earlier.h5").probe
    lists = br.rerank(
        data, told["chosen"]["method"], depth=99, online=True, camera_images=camera_images
    ).indices
    table = by_reference(data, lists)
    assert told["report"]["chosen"]["mAP"]["value"] == pytest.approx(table[halves(data, table)[1], 0].mean())
    # What is there already is kept for the same earlier images, and not for others, or others' cameras.
    tuned = ("tune", feats, *GRAPH, *options, "-o", "tune.json")
    assert cli(*tuned)[0] == 0
    assert "kept tune.json: 4 settings, 0 of them new" in cli(*tuned)[2]
    for changes, of in (
        ({"probe_cams": people(seed=8)["probe_cams"] % 3 + 1}, "cameras of the camera images"),
        ({"probe": people(seed=9)["probe"]}, "camera images"),
    ):
        write("earlier.h5", **people(seed=8) | changes, probe_names=None, gallery_names=None)
        code, _, err = cli(*tuned)
        assert (code, f"the output file has a tuning of other {of}: choose another name" in err) == (1, True), (
            err
        )
    # What all settings warn of is told once.
    _, _, err = cli("tune", feats, *GRAPH, "--online")
    assert err.count("warning: ") == 1


def test_a_best_value_at_the_end_of_its_list_is_told_of(cli, feats):
    def notes(grid):
        _, out, err = cli("tune", feats, "--method", "lbr", "--grid", grid, "--grid", "steps=1,2")
        best = float(re.search(rf"best mAP .*: {grid.partition('=')[0]} ([0-9.]+)", out)[1])
        return best, [line for line in err.splitlines() if line.startswith("note: the best")]

    values = [1, 5, 20, 60, 90]
    means = br.tune(br.load(feats), "lbr", {"topn": values}).rows
    best = max(values, key=lambda value: means[value,]["mAP"])
    below, above = [some for some in values if some < best][-2:], [some for some in values if some > best][:2]
    assert len(below) == 2, "the data must tell something"
    at, told = notes(f"topn={','.join(map(str, [*below, best]))}")
    assert (at, told) == (best, [f"note: the best topn, {best}, is the largest of the grid: try a wider range"])
    if above:
        assert notes(f"topn={','.join(map(str, [below[1], best, above[0]]))}") == (best, [])
    # 1 is the least that there is.
    assert notes("topn=1,1,1")[1] == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--grid", "kx=2"), 2, "no part of center+camera-graph has a parameter 'kx'; they have: center.by, "),
        (("--grid", "camera-graph.kx=2"), 2, "camera-graph has no parameter 'camera-graph.kx'; it has: k2i, "),
        (
            ("--grid", "dba.k=2"),
            2,
            "center+camera-graph has no part 'dba'; its parts are: center, camera-graph",
        ),
        (("--grid", "ki=2,2.5"), 2, "ki must be a whole number of at least 1, not 2.5"),
        (("--grid", "ki=two"), 2, "ki must be a whole number of at least 1, not 'two'"),
        (("--grid", "lambda=1.5"), 2, "lambda must be a number from 0 to 1, not 1.5"),
        (("--grid", "scale=maybe"), 2, "scale must be True or False, not 'maybe'"),
        (("--grid", "by=house"), 2, "by 'house' is not known: use camera or gallery"),
        (("--grid", "ki"), 2, "'ki' should read NAME=VALUE,VALUE,..., such as ki=2,4,6"),
        (("--grid", "ki=2,"), 2, "'ki=2,' should read NAME=VALUE,VALUE,..., such as ki=2,4,6"),
        (("--grid", "ki=2", "--grid", "ki=3"), 2, "the grid has ki twice: give all of its values at once"),
        (("--grid", "ki=2", "--grid", "camera-graph.ki=3"), 2, "the grid has ki twice"),
        ((), 2, "Missing option '--grid'"),
        (("--method", "k-reciprocal", "--grid", "k1=3", "--online"), 2, "so it cannot rank them online"),
        (
            ("--method", "lbr", "--grid", "topn=3", "--camera-images", "feats.h5"),
            2,
            "does not use camera images",
        ),
        (("--grid", "ki=2", "-o", "tune.txt"), 2, "tune.txt: a tuning is written as .json or .csv"),
        (("--grid", "ki=2", "-o", "no/tune.json"), 1, "the folder no does not exist; create it first"),
    ],
)
def test_wrong_usage_is_one_line(arguments, code, said, cli, feats):
    stopped, out, err = cli("tune", feats, "--method", "center+camera-graph", *arguments)
    assert (stopped, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"probe_ids": None, "gallery_ids": None}, "there are no ids: settings cannot be compared"),
        ({"probe_cams": None, "gallery_cams": None}, "center+camera-graph needs them; choose another method"),
        (
            {"probe_ids": 1 + np.arange(40) % 3},
            "3 identities have a match in the gallery: tuning needs at least two",
        ),
    ],
)
def test_settings_that_cannot_be_compared(changes, said, cli, write):
    feats = write(**people() | changes, probe_names=None, gallery_names=None)
    code, out, err = cli("tune", feats, *GRAPH)
    assert (code, out) == (1, "")
    assert said in err


def test_the_library_refuses_what_is_no_grid():
    data = br.FeatureSet.from_arrays(**features())
    many = {"topn": range(1, 102), "sigma": np.arange(1, 101) / 100}
    with pytest.raises(br.ParameterError, match=r"the grid has 10,100 settings: at most 10,000 are allowed"):
        br.tune(data, "lbr", many)
    for grid in ({}, {"topn": []}, {"topn": "5"}, {"topn": [5], "lbr.topn": [6]}, {"topn": [True]}):
        with pytest.raises(br.ParameterError):
            br.tune(data, "lbr", grid)
    for options in ({"metric": "accuracy"}, {"seed": -1}, {"output": "tune.csv"}):
        with pytest.raises(br.ParameterError):
            br.tune(data, "lbr", {"topn": [5]}, **options)


def test_chains_are_written_as_they_are_read():
    for text, settings, written in (
        ("center", {"shrink": 2.0}, "center:shrink=2"),
        ("center", {"cosine.topn": 9}, "center+cosine:topn=9"),
        ("dba+dba+lbr", {"dba-2.k": 3, "sigma": 1e20}, "dba+dba:k=3+lbr:sigma=1e20"),
        ("k-reciprocal:preset=cuhk03", {"base-distance": "squared-twice"}, None),
        ("lbr:topn=7", {"probe_in_graph": True, "sigma": 0.1 + 0.2}, None),
    ):
        found = with_settings(text, settings)
        assert written in (None, found)
        assert create(found).params() == create(text, **settings).params()
        assert with_settings(found, {}) == found


def heat_map(file: str) -> set[str]:
    tree = ElementTree.parse(file)
    return {node.text or "" for node in tree.iter("{http://www.w3.org/2000/svg}text")}


def test_the_heat_map_is_of_any_two_parameters(cli, feats, write):
    grid = (*GRAPH, "--grid", "lambda=0.1,0.4")
    assert cli("tune", feats, *grid, "-o", "tune.json")[0] == 0
    assert cli("run", feats, "-o", "lists.h5")[0] == 0
    found = read_tuning("tune.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fonts
        for axes, names in (((), ("ki", "ko")), (("--x", "lambda_value", "--y", "ki"), ("lambda", "ki"))):
            drawing = (
                "lists.h5",
                feats,
                "-o",
                "heat.svg",
                "--figure",
                "sweep",
                "--sweep",
                "tune.json",
                "--force",
            )
            assert cli("plot", *drawing, *axes)[0] == 0
            text = heat_map("heat.svg")
            assert {*names, "mAP on the tuning half", "best"} <= text
            (other,) = {"ki", "ko", "lambda"} - set(names)
            place = list(found.grid).index(other)
            for setting, means in found.rows.items():
                if setting[place] == found.chosen[place]:
                    assert f"{means['mAP']:.4f}" in text
    assert cli("report", "lists.h5", feats, "-o", "page.html", "--sweep", "tune.json", "--x", "ko")[0] == 0
    caption = (
        f"mAP on the tuning half by center+camera-graph, other parameters as in {found.text_at(found.chosen)}"
    )
    assert f"<caption>{caption}; columns: ko, rows: ki</caption>" in Path("page.html").read_text()
    other = write("other.h5", **people(seed=9), probe_names=None, gallery_names=None)
    for arguments, said in (
        (
            ("lists.h5", feats, "--x", "ki"),
            "--x and --y name parameters of a tuning: pass the tuning with --sweep FILE",
        ),
        (
            ("lists.h5", feats, "--sweep", "tune.json", "--x", "k2i"),
            "the tuning does not vary k2i: it has ki, ko",
        ),
        (("lists.h5", feats, "--sweep", "tune.json", "--x", "ki", "--y", "ki"), "both name ki: the tuning"),
        (
            ("lists.h5", feats, "--sweep", "tune.json", "--protocol", "plain"),
            "measured with protocol market1501",
        ),
        (("others.h5", other, "--sweep", "tune.json"), "the tuning was made from other features"),
    ):
        if arguments[0] == "others.h5":
            assert cli("run", other, "-o", "others.h5")[0] == 0
        code, _, err = cli("plot", *arguments, "-o", "no.svg")
        assert code
        assert said in err
        assert not Path("no.svg").exists()


def test_help_does_not_wait_for_torch():
    program = """
import sys
from blurrerank.cli import main
try:
    main(["tune", "--help"])
finally:
    print("torch" in sys.modules)
"""
    done = shell(program=program)
    assert done.stdout.splitlines()[-1] == "False", done
