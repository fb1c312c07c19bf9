"""A sweep says what a run at each setting would, from one search, and goes on where an earlier one ended."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, features

import blurrerank as br
from blurrerank.studies import sweep as sweeping
from blurrerank.studies.sweep_files import read_sweep, save_sweep

FEATS = ROOT / "examples/omniglot.h5"


@pytest.mark.parametrize("protocol", ["market1501", "cuhk03"])
def test_every_row_is_what_a_run_at_that_setting_gives(cli, protocol, tmp_path):
    data = br.load(FEATS)
    few = br.Side(data.probe.features[::4], data.probe.ids[::4], data.probe.cams[::4])
    br.save_features(br.FeatureSet(few, data.gallery), tmp_path / "few.h5")
    code, out, _ = cli(
        *("sweep", "few.h5", "--topn", "20,50", "--sigma", "0.05,0.1", "--protocol", protocol),
        *("--ap", "trapezoid", "--json"),
    )
    assert code == 0
    told = json.loads(out)
    assert [(row["topn"], row["sigma"]) for row in told["rows"]] == [
        (20, 0.05),
        (20, 0.1),
        (50, 0.05),
        (50, 0.1),
    ]
    for row in told["rows"]:
        run = cli(
            *("run", "few.h5", "--topn", row["topn"], "--sigma", row["sigma"], "--protocol", protocol),
            *("--ap", "trapezoid", "--json", "--force"),
        )
        after = json.loads(run[1])["after"]
        assert {name: row[name] for name in sweeping.MEANS} == {name: after[name] for name in sweeping.MEANS}
    assert told["cosine"]["mAP"] == json.loads(run[1])["before"]["mAP"]
    for name, best in told["best"].items():
        assert best[name] == max(row[name] for row in told["rows"])


def test_the_gallery_is_searched_once_and_neighbourhoods_compared_once_each(cli, monkeypatch):
    from blurrerank.search import sources
    from blurrerank.spectral.neighbourhoods import Blurring

    searches, grams = [], []
    search, blur = sources.search, Blurring._blur
    monkeypatch.setattr(sources, "search", lambda *a, **k: searches.append(a) or search(*a, **k))
    monkeypatch.setattr(
        Blurring,
        "_blur",
        lambda self, nodes, *a: grams.extend([nodes.shape[1]] * len(nodes)) or blur(self, nodes, *a),
    )
    assert cli("sweep", FEATS, "--topn", "5,9", "--sigma", "0.02,0.05,0.1")[0] == 0
    assert len(searches) == 1
    assert (grams.count(5), grams.count(9)) == (780, 780)


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_what_an_earlier_output_holds_is_not_measured_again(cli, ending, monkeypatch):
    name = f"sweep.{ending}"
    assert cli("sweep", FEATS, "--topn", "10", "--sigma", "0.1,0.2", "-o", name)[0] == 0
    first = read_sweep(name)
    measured = []
    measure = sweeping.measure
    monkeypatch.setattr(sweeping, "measure", lambda *a, **k: measured.append(a) or measure(*a, **k))
    code, _, err = cli("sweep", FEATS, "--topn", "10,20", "--sigma", "0.1", "-o", name)
    assert (code, err) == (0, f"wrote {name}: 3 settings, 1 of them new\n")
    assert len(measured) == 2, "the new setting, and cosine"
    second = read_sweep(name)
    assert list(second.rows) == [(10, 0.1), (10, 0.2), (20, 0.1)]
    assert {setting: second.rows[setting] for setting in first.rows} == first.rows
    measured.clear()
    monkeypatch.setattr("blurrerank.search.sources.search", None)
    written = os.stat(name)
    code, _, err = cli("sweep", FEATS, "--topn", "10", "--sigma", "0.2", "-o", name)
    assert (code, err) == (0, f"kept {name}: 3 settings, 0 of them new\n")
    assert not measured
    assert os.stat(name) == written


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_what_another_process_wrote_meanwhile_is_not_lost(cli, ending, monkeypatch):
    """Another sweep to the same name ends while ours is measuring: first where nothing was, then on a file."""
    name = f"sweep.{ending}"
    measure = sweeping.measure

    def meanwhile(*arguments, **options):
        monkeypatch.setattr(sweeping, "measure", measure)
        assert cli("sweep", FEATS, "--topn", "7", "--sigma", "0.1,0.2", "-o", name)[0] == 0
        return measure(*arguments, **options)

    for there in (False, True):
        if there:
            os.remove(name)
            assert cli("sweep", FEATS, "--topn", "7", "--sigma", "0.1", "-o", name)[0] == 0
        monkeypatch.setattr(sweeping, "measure", meanwhile)
        code, _, err = cli("sweep", FEATS, "--topn", "8", "--sigma", "0.1", "-o", name)
        assert code == 1
        assert err == f"error: {name} was written by another process meanwhile; run again to continue from it\n"
        assert list(read_sweep(name).rows) == [(7, 0.1), (7, 0.2)]


def test_json_and_csv_hold_the_same(cli):
    assert cli("sweep", FEATS, "--topn", "10,20", "--sigma", "0.1", "-o", "sweep.csv")[0] == 0
    sweep = read_sweep("sweep.csv")
    save_sweep(sweep, "sweep.json")
    assert read_sweep("sweep.json") == sweep
    with open("sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["cosine", "lbr", "lbr"]
    data = br.load(FEATS)
    assert float(rows[2]["mAP"]) == br.evaluate(br.rerank(data, topn=20, sigma=0.1), data).mAP
    assert {row["digest"] for row in rows} == {data.digest()}
    with open("sweep.json") as file:
        told = json.load(file)
    assert told == json.loads(cli("sweep", FEATS, "--topn", "10,20", "--sigma", "0.1", "--json")[1])


def test_the_table(cli):
    code, out, _ = cli("sweep", FEATS, "--topn", "20", "--sigma", "0.1,0.2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "protocol market1501, plain AP; means over 780 valid of 780 probes"
    assert lines[4].split()[:3] == ["cosine", "0.7524", "0.3474"]
    assert lines[5].split()[:2] == ["20", "0.1"]
    assert f"best mAP {lines[6].split()[2]}: topn 20, sigma 0.2" in lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"probe": features(seed=1)["probe"]},
            "the output file has a sweep of other features: choose another name",
        ),
        (
            {"probe_cams": np.arange(12)},
            "the output file has a sweep of other ids or cameras: choose another name",
        ),
        (("--protocol", "plain"), "the output file has a sweep of protocol market1501: choose another name"),
        (("--ap", "trapezoid"), "the output file has a sweep of ap plain: choose another name"),
    ],
)
def test_a_sweep_of_something_else_is_not_continued(change, said, cli, write, tmp_path):
    assert cli("sweep", write(), "--topn", "5", "-o", "sweep.json")[0] == 0
    before = (tmp_path / "sweep.json").read_bytes()
    options = () if isinstance(change, dict) else change
    feats = write(**change) if isinstance(change, dict) else tmp_path / "feats.h5"
    code, out, err = cli("sweep", feats, "--topn", "6", "-o", "sweep.json", *options)
    assert (code, out) == (1, "")
    assert said in err
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_of_equal_settings_the_smaller_is_best():
    equal = dict.fromkeys(sweeping.MEANS, 0.5)
    rows = {(30, 0.1): equal, (20, 0.2): equal, (20, 0.1): equal}
    sweep = sweeping.Sweep("d", "l", "market1501", "plain", 1, 1, equal, rows)
    assert set(sweep.best().values()) == {(20, 0.1)}


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("method", "k-reciprocal", "row 2 is of method k-reciprocal"),
        ("digest", "0" * 64, "row 2 has another digest than the first"),
        ("protocol", "plain", "row 2 has another protocol than the first"),
        ("mAP", "nan", "it has mAP nan"),
        ("mAP", "9.5", "it has mAP 9.5"),
        ("topn", "-9", "it is damaged or not a sweep"),
        ("sigma", "0", "it is damaged or not a sweep"),
        ("note", "mine", "it has a column note, which would be lost"),
    ],
)
def test_a_row_that_is_not_of_the_sweep_is_refused(column, value, said, cli, write):
    feats = write()
    assert cli("sweep", feats, "--topn", "5", "--sigma", "0.1", "-o", "sweep.csv")[0] == 0
    with open("sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.setdefault(column, "")
    rows[1][column] = value
    with open("sweep.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    before = Path("sweep.csv").read_bytes()
    code, _, err = cli("sweep", feats, "--topn", "6", "--sigma", "0.1", "-o", "sweep.csv")
    assert code == 1
    assert f"sweep.csv is not a sweep that can be continued: {said}; choose another name\n" in err
    assert Path("sweep.csv").read_bytes() == before


def test_a_file_that_a_spreadsheet_saved_is_continued(cli, write):
    feats = write()
    assert cli("sweep", feats, "--topn", "6,5", "--sigma", "0.2,0.1", "-o", "sweep.csv")[0] == 0
    with open("sweep.csv", newline="") as file:
        first, cosine, *rows = file.read().splitlines(keepends=True)
    with open("sweep.csv", "w", newline="", encoding="utf-8-sig") as file:
        file.write("".join([first, cosine, *reversed(rows)]))
    assert cli("sweep", feats, "--topn", "4", "--sigma", "0.1", "-o", "sweep.csv")[0] == 0
    assert list(read_sweep("sweep.csv").rows) == [(4, 0.1), (5, 0.1), (5, 0.2), (6, 0.1), (6, 0.2)]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("{}", "sweep.json"),
        ("[1]", "sweep.json"),
        ("not json", "sweep.json"),
        ("a,b\n1,2\n", "sweep.csv"),
        ("", "sweep.csv"),
        (json.dumps({"format": "blurrerank-sweep", "format_version": 2}), "sweep.json"),
        ("[" * 100_000, "sweep.json"),
        ("x" * 200_000, "sweep.csv"),
    ],
)
def test_a_file_that_is_no_sweep_is_left_alone(content, name, cli, write, tmp_path):
    feats = write()
    (tmp_path / name).write_text(content)
    code, _, err = cli("sweep", feats, "--topn", "6", "-o", name)
    assert code == 1
    assert err.startswith(f"error: {name} is not a sweep that can be continued")
    assert err.count("\n") == 1
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--topn", "20,x"), 2, "'20,x' is not a list of whole numbers such as 20,50,100"),
        (("--topn", "0"), 2, "topn must be a whole number of at least 1, not 0"),
        (("--topn", "5", "--sigma", "0.1,0"), 2, "sigma must be a finite number above 0"),
        (("--topn", "5", "--memory", "1k"), 2, "a memory budget of 1,000 bytes is too small for one probe"),
        (("-o", "sweep.txt"), 2, "sweep.txt: a sweep is written as .json or .csv"),
        (("-o", "no/sweep.csv"), 1, "no/sweep.csv: the folder no does not exist; create it first"),
    ],
)
def test_wrong_usage_is_one_line(arguments, code, said, cli, write):
    stopped, out, err = cli("sweep", write(), *arguments)
    assert (stopped, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1


def test_settings_that_cannot_be_compared(cli, write):
    feats = write(probe_ids=None, gallery_ids=None)
    assert cli("sweep", feats)[2] == (
        "note: topn 100 is capped at the gallery's 60 items\n"
        "error: there are no ids: settings cannot be compared without metrics\n"
    )
    code, _, err = cli("sweep", write(probe_ids=np.full(12, 99)))
    assert code == 1
    assert "error: no probe has a match in the gallery: settings cannot be compared without metrics\n" in err


def test_sizes_beyond_the_gallery_are_one_setting(cli, write):
    out = json.loads(cli("sweep", write(), "--topn", "60,61,500", "--sigma", "0.1", "--json")[1])
    assert [row["topn"] for row in out["rows"]] == [60]
