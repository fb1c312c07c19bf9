"""The benchmark: every figure is of the run it names, and one that fails keeps none from running."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from conftest import ROOT

from blurrerank.methods import available, create
from blurrerank.studies import benchmark as bench

FEATS = ROOT / "examples/omniglot.h5"
MEANS = ("mAP", "mINP", "rank1", "rank5", "rank10", "rank20")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Small enough for the reference to be quick."""
    import blurrerank as br

    data = br.load(FEATS)
    some = [
        br.Side(side.features[:n], side.ids[:n], side.cams[:n])
        for side, n in ((data.probe, 90), (data.gallery, 500))
    ]
    path = tmp_path_factory.mktemp("bench") / "small.h5"
    br.save_features(br.FeatureSet(*some), path)
    return path


def test_every_method_is_measured_as_run_measures_it(cli, small, quick_bench):
    code, out, err = cli("bench", small, "--repeats", 2, "--json", "--methods", "all")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert sorted(row["method"] for row in told) == sorted(create(name).name for name in available())
    groups = [[], ["cameras"], ["other probes"], ["cameras", "other probes"]]
    needs = [row["needs"] for row in told]
    assert needs == sorted(needs, key=groups.index)
    needing = {row["method"]: row["needs"] for row in told}
    for group, method in enumerate(("lbr", "kwf", "k-reciprocal", "camera-graph")):
        assert needing[method] == groups[group]
    assert needing["k-reciprocal-online"] == []
    for row in told:
        run = json.loads(cli("run", small, "--method", row["method"], "--json", "--force")[1])
        assert row["metrics"] == run["after"]
        assert row["params"] == run["params"]
        assert len(row["runs"]) == 2
        for stage in ("search", "re-rank", "metrics"):
            times = [run["seconds"][stage] for run in row["runs"]]
            assert min(times) > 0
            assert row["seconds"][stage] == np.median(times)
        total = np.median([run["seconds"]["search"] + run["seconds"]["re-rank"] for run in row["runs"]])
        assert row["probes_per_second"] == pytest.approx(90 / total)
        assert row["peak_bytes"] == max(run["peak_bytes"] for run in row["runs"])


def test_the_reference_is_beside_what_it_is_compared_with(cli, small, quick_bench):
    code, out, _ = cli("bench", small, "--repeats", 1, "--reference", "--json")
    assert code == 0
    told = json.loads(out)
    assert [row["method"] for row in told if row["unranked"]] == ["lbr"]
    ours = {row["method"]: row for row in told if not row["reference"] and not row["unranked"]}
    theirs = {row["method"]: row for row in told if row["reference"]}
    (unranked,) = (row for row in told if row["unranked"])
    assert unranked["metrics"] is None
    times = [row["seconds"]["search"] + row["seconds"]["re-rank"] for row in (unranked, ours["lbr"])]
    assert unranked["times_as_slow"] == pytest.approx(times[0] / times[1])
    assert set(theirs) == {"cosine", "k-reciprocal", "k-reciprocal-online", "lbr"}
    for name, row in theirs.items():
        assert row["same_positions"] > 0.999
        assert {key: row["metrics"][key] for key in MEANS} == pytest.approx(
            {key: ours[name]["metrics"][key] for key in MEANS}, abs=1e-4
        )
        seconds = [one["seconds"]["search"] + one["seconds"]["re-rank"] for one in (row, ours[name])]
        assert row["times_as_slow"] == pytest.approx(seconds[0] / seconds[1])
        assert row["times_the_memory"] == pytest.approx(row["peak_bytes"] / ours[name]["peak_bytes"])


def test_options_reach_every_run(cli, small, write, threads, quick_bench):
    """Protocol and AP, for ours and for the reference; threads; the gallery from another file."""
    import blurrerank as br

    data = br.load(small)
    probes, gallery = ({} for _ in range(2))
    for name, side, other in (("probe", data.probe, gallery), ("gallery", data.gallery, probes)):
        arrays = {"": side.features, "_ids": side.ids, "_cams": side.cams, "_names": None}
        (probes if name == "probe" else gallery).update(
            {f"{name}{key}": value for key, value in arrays.items()}
        )
        other.update({f"{name}{key}": None for key in arrays})
    files = (write("probes.h5", **probes), "--gallery", write("gallery.h5", **gallery))
    options = ("--protocol", "plain", "--ap", "trapezoid", "--json")
    methods = "lbr,lbr:topn=20:cosine=true"
    code, out, _ = cli(
        *("bench", *files, *options, "--methods", methods, "--repeats", 1, "--reference", "--threads", 1)
    )
    assert code == 0
    told = [row for row in json.loads(out) if not row["unranked"]]
    assert [(row["reference"], row["params"]["topn"]) for row in told] == [
        (False, 50),
        (False, 20),
        (True, 50),
        (True, 20),
    ]
    for row in told:
        run = cli(
            *("run", *files, *options, "--topn", row["params"]["topn"], "--force"),
            *(["--cosine"] if row["params"]["cosine"] else []),
        )
        after = json.loads(run[1])["after"]
        assert {key: row["metrics"][key] for key in MEANS} == pytest.approx(
            {key: after[key] for key in MEANS}, abs=1e-5
        )
        assert row["runs"][0]["threads"] == 1
    for row, ours in zip(told[2:], told[:2], strict=True):
        assert row["same_positions"] > 0.999
        assert row["times_the_memory"] == row["peak_bytes"] / ours["peak_bytes"]


def test_what_the_runs_warn_of_is_said_once(cli, write, quick_bench):
    feats = write(probe_cams=None, gallery_cams=None)
    code, _, err = cli("bench", feats, "--methods", "cosine,lbr", "--repeats", 2)
    assert code == 0
    assert err == "warning: there are no cameras: protocol market1501 drops only junk\n"


def test_repeats_alternate_in_processes_of_their_own(monkeypatch):
    started = []

    def run(command, **_):
        started.append(json.loads(command[-1])["method"])
        told = {"seconds": {"search": 1.0}, "peak_bytes": 1, "gpu_peak_bytes": None, "metrics": None}
        return subprocess.CompletedProcess(command, 0, json.dumps(told), "")

    monkeypatch.setattr(bench.subprocess, "run", run)
    contenders = [bench.Contender(create(name)) for name in ("lbr", "cosine")]
    done = []
    bench.benchmark("x", None, contenders, repeats=3, options={}, progress=lambda *a: done.append(a))
    assert started == ["lbr", "cosine"] * 3
    assert done == [(number, 6) for number in range(1, 7)]


@pytest.mark.parametrize(
    ("code", "stderr", "said"),
    [
        (-9, "", "killed by signal 9, for lack of memory probably"),
        (1, "x\nout of memory: y\n", "out of memory: y"),
    ],
)
def test_one_that_fails_keeps_none_from_running(quick_bench, monkeypatch, cli, small, code, stderr, said):
    real = bench.subprocess.run

    def run(command, **options):
        if json.loads(command[-1])["method"] == "cosine":
            return subprocess.CompletedProcess(command, code, "", stderr)
        return real(command, **options)

    monkeypatch.setattr(bench.subprocess, "run", run)
    for style in ((), ("--json",)):
        stopped, out, err = cli("bench", small, "--methods", "cosine,lbr", "--repeats", 1, *style)
        assert (stopped, err) == (1, f"error: 1 of 2 failed; cosine (topn 50): {said}\n")
        assert "lbr" in out
        assert ("cosine" in out) == bool(style), "the table has those that finished"
        stopped, out, err = cli("bench", small, "--methods", "cosine", "--repeats", 1, *style)
        assert (stopped, err) == (1, f"error: 1 of 1 failed; cosine (topn 50): {said}\n")


def test_tables(cli, small, quick_bench):
    methods = "k-reciprocal:base_distance=squared-twice"
    for style, mark in ((), "---"), (("--latex",), r"\begin{tabular}"), (("--markdown",), "|---"):
        code, out, _ = cli("bench", small, "--methods", methods, "--repeats", 1, *style)
        assert code == 0
        assert mark in out
        assert "90 probes x 500 gallery x 128; " in out
        assert "k-reciprocal (k1 20, k2 6, lambda 0.3, base distance squared-twice)" in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--methods", "magic"), 2, "method 'magic' is not known"),
        (("--methods", "lbr:topn"), 2, "lbr:topn: 'topn' should read NAME=VALUE, such as lbr:topn=20"),
        (("--methods", "lbr:topn=many"), 2, "topn must be a whole number of at least 1, not 'many'"),
        (("--methods", "lbr:cosine=no"), 2, "cosine must be True or False, not 'no'"),
        (("--methods", "lbr:name=x"), 2, "method lbr has no parameter 'name'"),
        (("--methods", ""), 2, "'' lacks the name of a method"),
        (("--methods", "lbr,lbr:topn=50"), 2, "lbr,lbr:topn=50 names a method twice with the same parameters"),
        (("--reference", "--protocol", "cuhk03"), 2, "--reference enumerates every draw of protocol cuhk03"),
        (("--methods", "lbr:sigma=wide"), 2, "sigma must be a finite number above 0"),
        (("--methods", "lbr:k1=3"), 2, "method lbr has no parameter 'k1'"),
        (("--methods", "k-reciprocal:lambda=2"), 2, "lambda must be a number from 0 to 1, not 2"),
        (("--methods", "k-reciprocal:base-distance=cubed"), 2, "base distance 'cubed' is not known"),
        (("--device", "cuda:99"), 1, "device 'cuda:99' is not available"),
        (("--repeats", 0), 2, "Invalid value for '--repeats'"),
        (("--memory", "1k"), 2, "a memory budget of"),
    ],
)
def test_wrong_usage_is_one_line(arguments, code, said, cli, small):
    stopped, out, err = cli("bench", small, *arguments)
    assert (stopped, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1


def test_features_without_ids_are_timed_and_not_measured(cli, write, quick_bench):
    feats = write(probe_ids=None, gallery_ids=None)
    code, out, _ = cli("bench", feats, "--methods", "lbr", "--repeats", 1)
    assert code == 0
    assert out.splitlines()[-1].split()[5:10] == ["-"] * 5


def test_no_matrix_of_all_images_by_all_images(cli):
    """7,000 images: such a matrix would be 187 MiB."""
    sizes = ("--probes", 500, "--gallery", 6500, "--ids", 500, "--distractors", 0, "--junk", 0, "--dim", 16)
    assert cli("synth", "set.h5", *sizes)[0] == 0
    code, out, _ = cli(
        "bench", "set.h5", "--methods", "k-reciprocal", "--repeats", 1, "--json", "--memory", "32MiB"
    )
    told = json.loads(out)[0]
    assert (code, told["error"]) == (0, None)
    assert told["peak_bytes"] < 64 << 20


def test_modules_in_the_current_folder_are_not_run(cli, write, tmp_path):
    (tmp_path / "random.py").write_text("raise SystemExit('code in this folder was run')")
    (tmp_path / "blurrerank").mkdir()
    code, _, err = cli("bench", write(), "--methods", "cosine", "--repeats", 1)
    assert code == 0, err
