"""The command line as a user meets it: results, messages, exit codes."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from functools import partial

import h5py
import numpy as np
import pytest
from conftest import features, shell
from forks import forked, no_override

import blurrerank as br


def test_help_needs_nothing_heavy():
    script = (
        "import sys, blurrerank.cli\n"
        "try: blurrerank.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'h5py', 'scipy', 'tqdm', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Re-rank, write the lists, print metrics before and after." in done.stdout


def test_importing_the_package_imports_nothing_heavy_until_it_is_used():
    script = (
        "import sys, blurrerank as br\n"
        "assert 'torch' not in sys.modules\n"
        "br.rerank\n"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert set(br.__all__) <= set(dir(br))
    assert all(getattr(br, name) is not None for name in br.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = br.nothing


def test_run_prints_metrics_before_and_after_and_writes_the_lists(cli, write):
    feats = write()
    code, out, err = cli("run", feats, "--topn", 20, "--sigma", 0.2)
    assert (code, err) == (0, "wrote feats.lbr.ranking.h5: 12 lists of 20\n")
    data = br.load(feats)
    before, after = (br.evaluate(br.rerank(data, method, topn=20), data) for method in ("cosine", "lbr"))
    after = br.evaluate(br.rerank(data, topn=20, sigma=0.2), data)
    head, _, _, _, *rows = out.splitlines()
    assert head == "protocol market1501, plain AP; means over 12 valid of 12 probes"
    for row, name, metrics in zip(rows, ("cosine", "lbr (topn 20, sigma 0.2)"), (before, after), strict=True):
        values = (metrics.mAP, metrics.mINP, *(metrics.rank(k) for k in (1, 5, 10, 20)))
        assert row.split() == [*name.split(), *(f"{value:.4f}" for value in values)]
    np.testing.assert_array_equal(
        br.read_ranking("feats.lbr.ranking.h5", data).indices, br.rerank(data, topn=20, sigma=0.2).indices
    )


def test_json_and_the_metrics_file_say_the_same(cli, write):
    feats = write()
    code, out, _ = cli(
        "run", feats, "--json", "--metrics", "m.json", "--ap", "trapezoid", "--protocol", "plain"
    )
    assert code == 0
    told = json.loads(out)
    with open("m.json") as file:
        assert json.load(file) == told
    data = br.load(feats)
    expected = br.evaluate(br.rerank(data), data, ap="trapezoid", protocol="plain").summary()
    assert told["after"] == pytest.approx(expected)
    assert (
        told["before"]["mAP"]
        == br.evaluate(br.rerank(data, "cosine"), data, ap="trapezoid", protocol="plain").mAP
    )
    assert (told["method"], told["params"]["sigma"], told["depth"]) == ("lbr", 0.1, 50)


@pytest.mark.parametrize("form", ["h5", "trec", "jsonl", "csv", "npz"])
def test_standard_output_gets_what_the_file_would(form, cli, write, tmp_path):
    feats = write()
    assert cli("run", feats, "-o", f"lists.{form}")[0] == 0
    start = shell if form == "h5" else forked
    done = start("run", feats, "-o", "-", "--format", form, cwd=tmp_path, text=False)
    assert done.returncode == 0
    assert b"protocol market1501" in done.stderr, "the table goes where the lists do not"
    with open("piped", "wb") as file:
        file.write(done.stdout)
    data = br.load(feats)
    written, piped = br.read_ranking(f"lists.{form}", data), br.read_ranking("piped", data, format=form)
    np.testing.assert_array_equal(piped.indices, written.indices)
    np.testing.assert_array_equal(piped.scores, written.scores)
    if form not in ("npz", "h5"):
        with open(f"lists.{form}", "rb") as file:
            assert file.read() == done.stdout


def test_output_pipes_into_head_quietly(write, tmp_path):
    """Enough output that the writer is still writing when head has gone."""
    feats = write(**features(probes=400, gallery=2000))
    run = f"'{sys.executable}' -m blurrerank run {feats} -q -o - --format trec --depth all"
    command = f"set -o pipefail; {run} | head -2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[3] for line in done.stdout.splitlines()] == ["1", "2"]
    lost = subprocess.run(
        ["bash", "-c", command.replace("-q", "--metrics m.json")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert lost.returncode == 1
    assert lost.stderr == "error: standard output was closed before the run ended: m.json was not written\n"


def test_a_ranking_can_be_read_from_a_pipe(write, tmp_path):
    feats = write()
    command = (
        f"'{sys.executable}' -m blurrerank run {feats} -q -o - --format trec --depth all"
        f" | '{sys.executable}' -m blurrerank eval - {feats} --format trec --json"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    data = br.load(feats)
    assert json.loads(done.stdout)["mAP"] == pytest.approx(br.evaluate(br.rerank(data), data).mAP)


def test_text_formats_hold_what_they_say(cli, write):
    feats = write()
    for form in ("jsonl", "csv"):
        assert cli("run", feats, "-o", f"lists.{form}", "--depth", 4)[0] == 0
    data = br.load(feats)
    ranking = br.rerank(data, depth=4)
    with open("lists.jsonl") as file:
        lines = [json.loads(line) for line in file]
    assert [line["probe"] for line in lines] == list(range(12))
    assert lines[3]["name"] == "p003"
    assert lines[3]["indices"] == ranking.indices[3].tolist()
    assert lines[3]["names"] == [f"g{row:03}" for row in ranking.indices[3]]
    assert np.array_equal(np.float32(lines[3]["scores"]), ranking.scores[3])
    with open("lists.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48
    assert rows[5] == {
        "probe": "1",
        "rank": "2",
        "gallery": str(ranking.indices[1, 1]),
        "score": f"{ranking.scores[1, 1]:.9g}",
        "probe_name": "p001",
        "gallery_name": f"g{ranking.indices[1, 1]:03}",
    }


def test_eval_measures_native_files_whole_and_others_to_their_depth(cli, write):
    feats = write()
    assert cli("run", feats, "-o", "short.h5", "--depth", 2)[0] == 0
    assert cli("run", feats, "-o", "short.csv", "--depth", 2)[0] == 0
    data = br.load(feats)
    whole = br.evaluate(br.rerank(data), data)
    code, out, err = cli("eval", "short.h5", feats)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].split() == [
        "lbr",
        "(topn",
        "50,",
        "sigma",
        "0.1)",
        *(f"{value:.4f}" for value in (whole.mAP, whole.mINP, *(whole.rank(k) for k in (1, 5, 10, 20)))),
    ]
    code, out, err = cli("eval", "short.csv", feats)
    assert code == 0
    assert err == (
        "warning: the shortest list ends at rank 2 of 60: matches that are not listed count as missed\n"
    )
    assert "shortest list 2;" in out
    assert float(out.splitlines()[-1].split()[1]) < whole.mAP
    code, out, _ = cli("eval", "short.csv", feats, "--json")
    assert json.loads(out)["depth"] == 2


def test_info_tells_what_is_there_and_what_a_run_would_do(cli, write):
    feats = write(probe_images=np.zeros((12, 4, 6, 3), np.uint8))
    code, out, _ = cli("info", feats)
    assert code == 0
    table = {line.split("  ")[0]: line.split()[1:] for line in out.splitlines() if line}
    assert table["features"] == ["12", "x", "8", "float32", "60", "x", "8", "float32"]
    assert (table["identities"], table["junk"], table["distractors"]) == (["6", "6"], ["0", "2"], ["0", "2"])
    assert table["images"] == ["12", "x", "4", "x", "6", "x", "3", "-"]
    assert "default run: lbr (topn 50, sigma 0.1) on " in out
    told = json.loads(cli("info", feats, "--json")[1])
    data = br.load(feats)
    for protocol, valid in told["run"]["valid_probes"].items():
        assert valid == br.evaluate(br.rerank(data), data, protocol=protocol).valid_probes
    assert told["problems"] == []


def test_info_of_features_that_are_one_number(cli, write):
    code, out, _ = cli("info", write("feats.h5", probe=1.0))
    assert code == 1
    assert "feats.h5::/probe/features has shape ()" in out


def test_info_lists_every_problem(cli, write):
    bad = np.full((60, 8), np.nan)
    feats = write(
        gallery=bad, probe_ids=np.ones(12), probe_images=np.zeros((3, 4, 4)), probe_cams=np.ones(3, int)
    )
    code, out, err = cli("info", feats)
    assert (code, err) == (1, "")
    problems = json.loads(cli("info", feats, "--json")[1])["problems"]
    assert [problem.split("::")[1].split()[0] for problem in problems] == [
        "/probe/images",
        "/probe/ids",
        "/probe/cams",
        "/gallery/features",
    ]
    assert all(f"  - {problem}" in out.splitlines() for problem in problems)


def test_two_files(cli, write):
    both = write("both.h5")
    write("probes.h5", **{key: None for key in features() if key.startswith("gallery")})
    write("gallery.h5", **{key: None for key in features() if key.startswith("probe")})
    expected = cli("run", both, "--json")[1]
    apart = cli("run", "probes.h5", "--gallery", "gallery.h5", "--json", "-o", "other.h5")[1]
    same = {"output": None}
    assert json.loads(apart) | same == json.loads(expected) | same
    assert cli("eval", "other.h5", "probes.h5", "--gallery", "gallery.h5")[0] == 0


def bad_rows(value, row):
    gallery = features()["gallery"].copy()
    gallery[row] = value
    return gallery


def no_ids():
    return {"probe_ids": None, "gallery_ids": None}


BAD_FILES = {
    "no such file": (None, "error: feats.h5: no such file"),
    "not HDF5": (b"hello", "error: feats.h5 is text, but not a table of features"),
    "empty": (b"", "error: feats.h5 is not an HDF5 file"),
    "missing group": (
        {key: None for key in features() if key.startswith("gallery")},
        "error: feats.h5 has no group /gallery (it has /probe); address a group inside it as FILE::/GROUP",
    ),
    "missing features": ({"probe": None}, "error: feats.h5::/probe has no dataset 'features'"),
    "1-D features": (
        {"probe": np.ones(12)},
        "error: feats.h5::/probe/features has shape (12,): expected (rows, dim",
    ),
    "mismatched lengths": (
        {"gallery_ids": np.ones(7, int)},
        "error: feats.h5::/gallery/ids has shape (7,): expected (60,), one label per row",
    ),
    "mismatched dimensions": (
        {"probe": np.ones((12, 9))},
        "error: feats.h5::/probe has 9 dimensions and feats.h5::/gallery has 8: both must come from the same",
    ),
    "NaN": (
        {"gallery": bad_rows(np.nan, 17)},
        "error: feats.h5::/gallery/features has NaN or infinity in row 17: fix or remove them",
    ),
    "zero row": (
        {"gallery": bad_rows(0, 17)},
        "error: feats.h5::/gallery/features is all zero in row 17: such a row has no direction; remove it",
    ),
    "empty gallery": (
        {"gallery": np.ones((0, 8)), "gallery_ids": None, "gallery_cams": None, "gallery_names": None},
        "error: feats.h5::/gallery/features is empty, shape (0, 8): at least one row",
    ),
    "two problems": (
        {"probe": np.ones(12), "gallery": bad_rows(0, 1)},
        "error: feats.h5::/probe/features has shape (12,): expected (rows, dimensions); for one image use "
        "reshape(1, -1); "
        "feats.h5::/gallery/features is all zero in row 1",
    ),
    "float ids": ({"probe_ids": np.ones(12)}, "error: feats.h5::/probe/ids is float64: expected integers"),
    "text features": (
        {"probe": np.array([[b"a"]] * 12)},
        "error: feats.h5::/probe/features is |S1: expected float16",
    ),
    "names in latin-1": (
        {"probe_names": np.array([b"caf\xe9"] * 12)},
        "error: feats.h5::/probe/names is not utf-8",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_one_line_and_exit_1(case, cli, write, tmp_path):
    content, said = BAD_FILES[case]
    if isinstance(content, bytes):
        (tmp_path / "feats.h5").write_bytes(content)
    elif content is not None:
        write(**content)
    for command in ("run", "eval"):
        if command == "eval":
            (tmp_path / "lists.trec").write_text("0 Q0 0 1 1 x\n")
        code, out, err = cli(*(["run"] if command == "run" else ["eval", "lists.trec"]), "feats.h5")
        assert (code, out) == (1, "")
        assert err.startswith(said)
        assert err.count("\n") == 1
    assert not (tmp_path / "feats.lbr.ranking.h5").exists()


def test_a_truncated_file(cli, write):
    feats = write()
    whole = feats.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1):
        feats.write_bytes(whole[:size])
        assert cli("run", "feats.h5") == (
            1,
            "",
            "error: feats.h5 is a truncated HDF5 file: copy or write it again\n",
        )


def test_a_damaged_chunk(cli, write, tmp_path):
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        for side in ("probe", "gallery"):
            file.create_dataset(f"{side}/features", data=features()[side], compression="gzip")
        where = file["gallery/features"].id.get_chunk_info(0).byte_offset
    damaged = bytearray((tmp_path / "feats.h5").read_bytes())
    damaged[where : where + 16] = b"\xff" * 16
    (tmp_path / "feats.h5").write_bytes(damaged)
    code, _, err = cli("run", "feats.h5")
    assert code == 1
    assert err.startswith("error: feats.h5::/gallery/features cannot be read, the file is damaged:")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--topn", 0), "topn must be a whole number of at least 1, not 0"),
        (("--topn", "many"), "Invalid value for '--topn': 'many' is not a valid integer"),
        (("--sigma", 0), "sigma must be a finite number above 0 (at least 1e-30), not 0.0"),
        (("--sigma", -1), "sigma must be a finite number above 0 (at least 1e-30), not -1.0"),
        (("--sigma", "nan"), "sigma must be a finite number above 0 (at least 1e-30), not nan"),
        (("--steps", 10**8), "steps must be at most 100, not 100000000"),
        (("--depth", 0), "Invalid value for '--depth': '0' is neither a number of at least 1 nor 'all'"),
        (
            ("--method", "magic"),
            "method 'magic' is not known: use alpha-qe or aqe or",
        ),
        (
            ("--method", "cosine", "--sigma", 1),
            "--sigma is not an option of method cosine; it has --topn (see 'blurrerank run --help')",
        ),
        (("--preset", "mars"), "method lbr has no preset 'mars'; it has: market1501, dukemtmc, cuhk03, msmt17"),
        (("--protocol", "mars"), "Invalid value for '--protocol'"),
        (
            ("--memory", "lots"),
            "(env var: 'BLURRERANK_MEMORY'): 'lots' is not a size such as 512MiB or 2GiB",
        ),
        (("--memory", "1k"), "a memory budget of 1,000 bytes is too small for one probe: raise it to"),
        (("--threads", 0), "Invalid value for '--threads'"),
        (("-o", ""), "Invalid value for '-o' / '--output': it is empty: name a file"),
        (("-o", "lists.txt"), "lists.txt: unknown extension: use one of .h5, .hdf5, .trec"),
        (("-o", "-"), "standard output needs --format: h5, trec, jsonl, csv or npz"),
        (
            ("--metrics", "-"),
            "--metrics needs a file name: metrics are printed on standard output anyway, as JSON with --json",
        ),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments, said, cli, write):
    code, out, err = cli("run", write(), *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("feats.h5", "there is no command 'feats.h5': to rank its probes, type: blurrerank run feats.h5"),
        ("evaluate", "there is no command 'evaluate': did you mean eval?"),
        ("rerank", "there is no command 'rerank': choose one of bench, calibrate, completion, convert, eval,"),
    ],
)
def test_who_types_no_command_is_told_one(command, said, cli, write):
    write()
    code, out, err = cli(command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {said}")


def test_an_output_never_replaces_the_input(cli, write):
    feats = write()
    before = feats.read_bytes()
    for arguments in (
        ("-o", "feats.h5"),
        ("-o", "./feats.h5"),
        ("--metrics", feats),
        ("-o", "x.csv", "--metrics", "x.csv"),
    ):
        code, _, err = cli("run", "feats.h5", "--force", *arguments)
        assert code == 2
        assert "is named twice, as an output and as another input or output" in err
    assert feats.read_bytes() == before


def test_a_device_that_is_not_here(cli, write):
    code, _, err = cli("run", write(), "--device", "cuda:99")
    assert code == 1
    assert err.startswith("error: device 'cuda:99' is not available: torch sees ")


def test_outputs_that_cannot_be_written(cli, write, tmp_path):
    feats = write()
    assert cli("run", feats, "-o", "none/lists.h5") == (
        1,
        "",
        "error: none/lists.h5: the folder none does not exist; create it first\n",
    )
    (tmp_path / "kept.h5").write_text("precious")
    assert cli("run", feats, "-o", "kept.h5") == (
        1,
        "",
        "error: kept.h5 exists: pass --force (force=True) to replace it, or choose another name\n",
    )
    assert (tmp_path / "kept.h5").read_text() == "precious"
    assert cli("run", feats, "-o", "ok.h5", "--metrics", "kept.h5")[0] == 1
    assert not (tmp_path / "ok.h5").exists(), "nothing is run when one of two outputs cannot be written"
    assert cli("run", feats, "-o", "kept.h5", "--force")[0] == 0
    (tmp_path / "folder.h5").mkdir()
    assert "is a folder: name a file in it" in cli("run", feats, "-o", "folder.h5", "--force")[2]
    long = "n" * 253 + ".h5"
    assert cli("run", feats, "-o", long) == (
        1,
        "",
        f"error: {long} cannot be written: its name is too long\n",
    )


@pytest.mark.parametrize(
    "command",
    [
        "info {}.h5",
        "info {}.npz",
        "convert {}.mat out.h5",
        "run feats.h5 --gallery {}.h5",
        "run feats.h5 --candidates {}.npy",
        "run --index {}.h5 feats.h5",
        "index feats.h5 -o {}.h5 --force",
        "eval {}.h5 feats.h5",
        "eval {}.npz feats.h5",
        "eval {}.trec feats.h5",
        "sweep feats.h5 -o {}.json",
    ],
)
def test_a_file_that_may_not_be_read(command, write, tmp_path):
    write("feats.h5")
    words = command.format("closed").split()
    name = next(word for word in words if word.startswith("closed"))
    (tmp_path / name).write_text("whatever")
    (tmp_path / name).chmod(0)
    start = shell if command == "info {}.h5" else forked
    done = start(*words, cwd=tmp_path, preexec_fn=no_override if os.geteuid() == 0 else None)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {name} cannot be read: permission denied\n"


def test_a_read_only_folder(write, tmp_path):
    feats = write()
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    options = {"preexec_fn": no_override} if os.geteuid() == 0 else {}
    done = shell("run", feats, "-o", folder / "lists.h5", **options)
    assert done.returncode == 1
    assert (
        done.stderr == f"error: {folder}/lists.h5: the folder {folder} is read-only; choose another with -o\n"
    )


def test_more_than_there_is_is_capped_and_said(cli, write):
    code, _, err = cli("run", write(), "--topn", 1000, "--depth", 2000)
    assert code == 0
    assert err.splitlines() == [
        "note: topn 1000 is capped at the gallery's 60 items",
        "note: depth 2000 is capped at the gallery's 60 items",
        "wrote feats.lbr.ranking.h5: 12 lists of 60",
    ]


def test_without_ids_lists_are_written_and_metrics_are_not(cli, write):
    code, out, err = cli("run", write(**no_ids()), "-o", "lists.csv")
    assert (code, out) == (0, "")
    assert err.splitlines() == [
        "note: there are no ids, so there are no metrics",
        "wrote lists.csv: 12 lists of 50",
    ]
    code, _, err = cli("eval", "lists.csv", "feats.h5")
    assert (code, err) == (
        1,
        "error: there are no ids: a ranking can be written but not measured\n",
    )
    told = json.loads(cli("run", "feats.h5", "--json")[1])
    assert (told["before"], told["after"]) == (None, None)


def test_cameras_that_cannot_be_meant_are_warned_about(cli, write):
    one = {"probe_cams": np.ones(12, int), "gallery_cams": np.ones(60, int)}
    code, out, err = cli("run", write(**one))
    assert code == 0
    assert err.count("warning: all images have the same camera, so protocol market1501 drops every match:") == 1
    assert "0 valid of 12 probes" in out
    code, _, err = cli("run", write("none.h5", probe_cams=None, gallery_cams=None))
    assert (code, err.splitlines()[0]) == (
        0,
        "warning: there are no cameras: protocol market1501 drops only junk",
    )


def test_threads_are_those_asked_for(cli, write, threads):
    import torch

    threads(2)
    assert cli("run", write(), "--threads", 1)[0] == 0
    assert torch.get_num_threads() == 1


def test_the_default_name_is_of_the_format(cli, write):
    feats = write()
    for form in ("trec", "npz"):
        assert cli("run", feats, "--format", form)[2] == f"wrote feats.lbr.ranking.{form}: 12 lists of 50\n"
        assert cli("eval", f"feats.lbr.ranking.{form}", feats)[0] == 0


def test_the_default_name_has_the_methods_and_not_their_parameters(cli, write):
    feats = write()
    for method, name in {
        "lbr": "lbr",
        "lbr:topn=20": "lbr",
        "k-reciprocal": "k-reciprocal",
        "dba:k=4 + lbr:sigma=0.2": "dba+lbr",
        "center+k-reciprocal:k1=auto": "center+k-reciprocal",
        "auto": "auto",
    }.items():
        code, _, err = cli("run", feats, "--method", method, "--force")
        assert code == 0, err
        assert err.splitlines()[-1].startswith(f"wrote feats.{name}.ranking.h5: 12 lists of ")
    assert cli("run", feats)[2].startswith("error: feats.lbr.ranking.h5 exists: pass --force ")


def test_choices_are_those_of_the_library(cli):
    from blurrerank.evaluation.metrics import AP_KINDS
    from blurrerank.evaluation.protocols import PROTOCOLS
    from blurrerank.files import FORMATS

    shown = cli("run", "--help")[1]
    for choices in (FORMATS, PROTOCOLS, AP_KINDS):
        assert f"[{'|'.join(choices)}]" in shown
    for command in ("run", "eval"):
        for form in FORMATS:
            assert "Invalid value" not in cli(command, *["x"] * (1 + (command == "eval")), "--format", form)[2]


@pytest.mark.parametrize("name", ["aqe", "cosine", "dba", "k-reciprocal", "k-reciprocal-online", "lbr"])
def test_the_options_of_a_method_are_its_parameters_and_no_others(name, cli):
    from blurrerank.methods import available, options_of

    assert name in available()
    code, told, _ = cli("run", "--method", name, "--help")
    # --by is what features are averaged by, and a parameter of center: --center-by there.
    own = " ".join(told.split(f"Options of method {name}:")[1].partition("\nOptions:")[0].split())
    assert code == 0
    for key, (parameter, _) in options_of(name).items():
        assert f"--{parameter.option} " in own or f"--{parameter.option}, " in own, key
        if parameter.kind is not bool:
            assert f"[default: {parameter.default}]" in own
        if parameter.choices:
            assert "|".join(parameter.choices) in own
    mine = {parameter.option for parameter, _ in options_of(name).values()}
    others = {parameter.option for other in available() for parameter, _ in options_of(other).values()} - mine
    assert others
    assert not any(f" --{option} " in f" {own}" for option in others)


def test_no_arguments_show_the_help(cli):
    assert cli() == cli("--help")
    assert cli("run")[0] == 2
    assert cli("run")[2] == "error: Missing argument 'FEATS' (see 'blurrerank run --help')\n"


def test_a_symbolic_link_stays_and_what_it_points_to_is_replaced(cli, write, tmp_path):
    feats = write()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "elsewhere" / "real.csv")
    assert cli("run", feats, "-o", "link.csv")[0] == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "elsewhere" / "real.csv").read_text().startswith("probe,rank")


def test_what_is_no_file_is_not_replaced(cli, write, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    code, _, err = cli("run", write(), "-o", "pipe.csv", "--force")
    assert (code, err) == (
        1,
        "error: pipe.csv is not a regular file: write to standard output with -o - and redirect it\n",
    )
    assert (tmp_path / "pipe.csv").is_fifo()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_run_that_is_ended_leaves_nothing(sent, code, write, tmp_path):
    feats = write(**features(probes=4000, gallery=3000))
    command = [sys.executable, "-m", "blurrerank", "run", str(feats), "-o", "lists.csv", "--depth", "all"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(sent)
        err = process.communicate(timeout=60)[1]
    ended = "interrupted" if sent == signal.SIGINT else f"terminated by {sent.name}"
    said = f"note: no partial results of lists.csv were kept\nerror: {ended}\n"
    assert (process.returncode, err.decode()) == (code, said)
    assert [child.name for child in tmp_path.iterdir()] == ["feats.h5"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_error_that_a_library_makes_of_a_signal_ends_a_run_as_the_signal_does(sent, code, write, tmp_path):
    write()
    ended = subprocess.run(
        [sys.executable, "-c", _TURNED, str(int(sent)), "run", "feats.h5", "-o", "out.h5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = "interrupted" if sent == signal.SIGINT else "terminated by SIGTERM"
    assert (ended.returncode, ended.stdout) == (code, "")
    assert f"error: {said}\n" in ended.stderr
    assert "internal error" not in ended.stderr
    assert not (tmp_path / "out.h5").exists()


_TURNED = """
import os, sys, time
import blurrerank.search.sources, blurrerank.cli
def search(*_, **__):
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(5)
    except BaseException:
        raise TypeError("Operation not defined") from None
blurrerank.search.sources.search = search
blurrerank.cli.main(sys.argv[2:])
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_that_comes_while_garbage_is_collected_ends_a_run(sent, code, write, tmp_path):
    """Where it comes, Python can raise nothing: three times here, before it comes to where it can."""
    program = f"""
import os, sys, time
import blurrerank.search.sources, blurrerank.cli
search = blurrerank.search.sources.search
class Garbage:
    def __del__(self):
        os.kill(os.getpid(), {int(sent)})
        sum(range(10))  # where the signal is looked at
def interrupted(*arguments, **options):
    for _ in range(3):
        Garbage()
        time.sleep(0.001)
    time.sleep(20)
    return search(*arguments, **options)
blurrerank.search.sources.search = interrupted
blurrerank.cli.main(["run", "feats.h5"])
"""
    write("feats.h5")
    done = (shell if sent == signal.SIGTERM else forked)(program=program, cwd=tmp_path)
    assert done.returncode == code
    ended = "interrupted" if sent == signal.SIGINT else f"terminated by {sent.name}"
    assert done.stderr == f"note: no partial results of feats.lbr.ranking.h5 were kept\nerror: {ended}\n"
    assert [child.name for child in tmp_path.iterdir()] == ["feats.h5"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("command", [["run", "feats.h5", "-o", "out.h5"], ["convert", "dump.npz", "out.h5"]])
def test_a_signal_that_comes_while_hdf5_writes_ends_a_run(command, call, sent, cli, write, tmp_path):
    """HDF5 calls Python to write, and goes on calling when that raises."""
    start = shell if (command[0], call) == ("run", 1) else forked
    program = f"""
import os, sys
import h5py, blurrerank.cli
pwrite, left = os.pwrite, [{call}]
def interrupted(*arguments):
    left[0] -= 1
    if left[0] == 0:
        sys._clear_type_cache()  # or Python knows where `flush` is without looking
        os.kill(os.getpid(), {int(sent)})
    return pwrite(*arguments)
os.pwrite = interrupted
blurrerank.cli.main({command})
"""
    write("feats.h5")
    arrays = features()
    np.savez(tmp_path / "dump.npz", qf=arrays["probe"], gf=arrays["gallery"])
    assert cli(*command)[0] == 0
    whole = (tmp_path / "out.h5").read_bytes()
    (tmp_path / "out.h5").unlink()
    done = start(program=program, cwd=tmp_path)
    found = {child.name: child.read_bytes() for child in tmp_path.iterdir()}
    # It comes again a little later, when the file may be complete.
    assert done.returncode in (0, 128 + sent)
    assert found.get("out.h5", b"" if done.returncode else None) in (b"", whole)
    assert set(found) <= {"dump.npz", "feats.h5", "out.h5"}
    assert "Traceback" not in done.stderr
    assert ("error: " in done.stderr) == (done.returncode != 0)


def test_a_run_under_nohup_goes_on(write, tmp_path):
    feats = write(**features(probes=600, gallery=2000))
    command = [sys.executable, "-m", "blurrerank", "run", str(feats), "-o", "lists.csv", "--depth", "all"]
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["nohup", *command], cwd=tmp_path, **nowhere) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "lists.csv").exists()


@pytest.mark.parametrize("form", ["h5", "trec", "jsonl", "csv", "npz"])
def test_no_room_for_the_output(form, write, tmp_path):
    """A limit on the size of files stands for a full disk: the same failures, at the same places."""
    feats = write(**features(probes=100, gallery=300))
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000))
    start = shell if form == "h5" else forked
    done = start("run", feats, "-o", f"lists.{form}", "--depth", "all", cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: lists.{form} cannot be written: ")
    assert done.stderr.count("\n") == 1
    assert [child.name for child in tmp_path.iterdir()] == ["feats.h5"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_stays_within_the_budget(tmp_path):
    """Peak beyond what a tiny run takes, on a gallery of ties several times the budget."""
    rng = np.random.default_rng(9)
    with h5py.File(tmp_path / "large.h5", "w") as file:
        ids = rng.integers(-1, 500, 100_000)
        file["gallery/features"] = np.sign(rng.standard_normal((100_000, 128), dtype=np.float32))
        file["gallery/features"][::2] = 1
        file["gallery/ids"] = ids
        file["probe/features"] = np.sign(rng.standard_normal((60, 128), dtype=np.float32))
        file["probe/ids"] = rng.integers(1, 500, 60)
    with h5py.File(tmp_path / "tiny.h5", "w") as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"], file[f"{side}/ids"] = rng.standard_normal((300, 8)), np.arange(300)
    script = (
        "import sys\n"
        "from blurrerank.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peaks = []
    for name in ("tiny.h5", "large.h5"):
        command = [sys.executable, "-c", script, "run", name, "-q", "--memory", "32MiB"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-2]) / 1024)
    assert peaks[1] - peaks[0] < 32


def test_quiet_and_verbose(cli, write):
    feats = write(probe_cams=None)
    code, out, err = cli("run", feats, "-q", "--topn", 100)
    assert (code, err) == (0, "")
    assert "mAP" in out
    done = shell("run", feats, "-v", "--force", "--threads", 1, "--memory", "64 MiB")
    assert ": normalised gallery held, " in done.stderr


def test_no_traceback_without_debug(write, tmp_path):
    done = shell("run", "nowhere.h5", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: nowhere.h5: no such file\n")
    done = shell("run", "nowhere.h5", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "InputError: nowhere.h5: no such file" in done.stderr


def test_an_unforeseen_error_is_one_line_too(cli, write, monkeypatch):
    import blurrerank.engine.runs

    def broken(*_, **__):
        raise KeyError("unforeseen")

    monkeypatch.setattr(blurrerank.engine.runs, "rank_batches", broken)
    code, _, err = cli("run", write())
    assert (code, err) == (
        1,
        "error: internal error, KeyError: 'unforeseen' (--debug shows the traceback; please report this)\n",
    )


def test_the_progress_bar_is_for_terminals_alone(write, tmp_path):
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
    feats = write()
    with subprocess.Popen(
        [sys.executable, "-m", "blurrerank", "run", str(feats)],
        cwd=tmp_path,
        stderr=terminal,
        stdout=subprocess.DEVNULL,
    ) as process:
        os.close(terminal)
        seen = b""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                part = os.read(master, 4096)
            except OSError:
                break
            if not part:
                break
            seen += part
        assert process.wait() == 0
    os.close(master)
    assert b"re-ranking" in seen
    assert b"re-ranking" not in shell("run", feats, "--force", cwd=tmp_path).stderr.encode()
