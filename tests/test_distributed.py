"""Under torchrun: the files of one process, and nothing at all when a process is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, features, shell
from forks import forked, forked_together

import blurrerank as br
from blurrerank.compute.compute import Compute
from blurrerank.compute.processes import expected
from blurrerank.engine.request import Request
from blurrerank.engine.runs import Measurement, Output, rerank_to
from blurrerank.files.stored_features import StoredFeatures
from blurrerank.methods import available, create

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)

OMNIGLOT = ROOT / "examples/omniglot.h5"
CASES = ROOT / "tests/torchrun_cases.py"
# Seconds within which a run ends that lost a process, and after which another hangs.
LIMIT, LONGEST = 60, 240


def torchrun(processes: int, *arguments: object) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return [str(argument) for argument in (*start, *arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def together(processes: int, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        torchrun(processes, *arguments),
        capture_output=True,
        text=True,
        timeout=LONGEST,
        cwd=cwd,
        env=environment(),
    )


def said(stderr: str) -> list[str]:
    """Our lines, without torchrun's report of the processes that failed."""
    return [
        line
        for line in stderr.splitlines()
        if line.startswith(("error:", "warning:", "note:", "auto:", "wrote"))
    ]


def ties(gallery: int = 300, dim: int = 16) -> dict[str, np.ndarray]:
    """Rows of plus and minus ones, each several times: cosines are exact, and equal ones everywhere."""
    rng = np.random.default_rng(3)
    arrays = features(probes=15, gallery=gallery, dim=dim)
    some = rng.choice([-1.0, 1.0], (20, dim)).astype(np.float32)
    arrays["gallery"] = some[rng.integers(0, 20, gallery)]
    arrays["probe"] = some[rng.integers(0, 20, 15)]
    return arrays


@pytest.fixture
def cases(write, tmp_path) -> list[dict]:
    """Runs that differ in what could go apart: sizes, ties, methods, protocols, formats, memory."""
    files = {
        "plain": write("plain.h5"),
        "large": write("large.h5", **features(seed=1, probes=150, gallery=2500, dim=24)),
        "ties": write("ties.h5", **ties()),
        "half": write("half.h5", **{k: v.astype(np.float16) for k, v in features().items() if k in SIDES}),
        "two": write("two.h5", **{k: v[:2] if k.startswith("gallery") else v for k, v in features().items()}),
        "bare": write("bare.h5", **{k: None for k in features() if "_" in k}),
        "single": write("single.h5", **{k: v[:1] for k, v in features().items()}),
    }
    found = []

    def add(feats, method, format="h5", protocol="market1501", depth=None, memory=None, **params):
        found.append(
            {
                "feats": str(files[feats]),
                "method": method,
                "params": params,
                "format": format,
                "depth": depth,
                "protocol": protocol,
                "memory": memory,
                "output": str(tmp_path / f"{len(found)}.{format}"),
            }
        )

    for feats in files:
        add(feats, "lbr", topn=20, sigma=0.2)
        add(feats, "k-reciprocal", k1=6, k2=3)
    for feats in ("ties", "two", "single", "large"):
        add(feats, "k-reciprocal-online", k1=6, k2=3, blur=4, pool=20)
        add(feats, "dba:k=3+aqe:k=4+lbr", topn=20)
    for protocol in ("cuhk03", "plain"):
        add("large", "lbr", protocol=protocol)
        add("ties", "k-reciprocal", protocol=protocol)
    add("large", "cosine", "trec", depth=70)
    add("ties", "cosine")
    add("ties", "lbr", "jsonl", topn=7)
    add("large", "lbr", "csv", depth=2500)
    add("large", "lbr", memory=1_400_000)  # many batches, and rows that are read again for each
    add("large", "k-reciprocal", "trec", memory=1_400_000, k1=8, k2=2)
    add("ties", "k-reciprocal-online", memory=1_000_000, k1=8, k2=2)
    add("ties", "dba+k-reciprocal", memory=1_000_000)
    new = [method for method in available() if method not in {case["method"] for case in found}]
    for number, method in enumerate(new):
        add(("plain", "ties", "large")[number % 3], method)
    add("plain", "center:shrink=0+camera-graph")
    return found


SIDES = ("probe", "gallery")


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.filterwarnings(
    "ignore:no cameras",
    "ignore:no probe has",
    "ignore:all images have the same camera",
    "ignore:.* probes are in the gallery too",  # of cases in which all features are equal
)
def test_files_are_those_of_one_process(cases, processes, tmp_path):
    cases = cases[processes % 2 :: 2]  # half of them each
    plan = tmp_path / "cases.json"
    plan.write_text(json.dumps(cases))
    done = together(processes, CASES, plan, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for case in cases:
        target = tmp_path / f"alone.{case['format']}"
        one = rerank_to(
            Output(target, case["format"], force=True),
            br.load(case["feats"], memory=case["memory"]),
            create(case["method"], **case["params"]),
            Request(case["depth"]),
            Measurement(case["protocol"]),
            Compute.choose(memory=case["memory"]),
        )
        assert target.read_bytes() == Path(case["output"]).read_bytes(), case
        assert one.summary() == json.loads(Path(case["output"] + ".json").read_text()), case


@pytest.mark.parametrize("method", [[], ["--method", "auto"]])
def test_the_command_line_says_what_it_says_alone(method, tmp_path):
    alone = forked("run", OMNIGLOT, *method, "-o", "alone.h5", cwd=tmp_path)
    done = together(3, "-m", "blurrerank", "run", OMNIGLOT, *method, "-o", "lists.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.stdout
    assert said(done.stderr) == alone.stderr.replace("alone", "lists").splitlines()
    assert (tmp_path / "lists.h5").read_bytes() == (tmp_path / "alone.h5").read_bytes()


def test_lists_are_piped_by_one(write, tmp_path):
    feats = write()
    pipe = ("run", feats, "-o", "-", "--format", "trec", "--method", "k-reciprocal", "-q")
    alone = forked(*pipe, cwd=tmp_path)
    done = forked_together(2, *pipe, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, alone.stdout), done.stderr


def test_what_is_wrong_with_a_file_is_said_once(write, tmp_path):
    arrays = features()
    arrays["gallery"][[1, 58]] = np.nan  # the first row is with the first process, the second with the last
    arrays["gallery_ids"] = arrays["gallery_ids"][:59]
    done = forked_together(2, "run", write(**arrays), cwd=tmp_path)
    assert done.returncode == 1
    (line,) = said(done.stderr)
    for problem in ("NaN or infinity in row 1:", "NaN or infinity in row 58:", "ids has shape (59,)"):
        assert problem in line
    assert "blurrerank/" not in done.stderr.replace(str(tmp_path), ""), "a traceback of ours"
    assert not (tmp_path / "feats.lbr.ranking.h5").exists()


def test_wrong_usage_and_what_needs_one_process_are_said_once(write, tmp_path):
    feats = write()
    for options, why in (
        (("--candidates", "lists.npz"), "candidates are re-ranked in one process: start this without torchrun"),
    ):
        done = forked_together(2, "run", feats, *options, cwd=tmp_path)
        assert done.returncode == 1
        assert said(done.stderr) == [f"error: {why}"]
    torchruns = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for rank, lines in enumerate((1, 0)):
        done = shell("run", feats, "--nope", env=os.environ | torchruns | {"RANK": str(rank)})
        assert (done.returncode, len(said(done.stderr))) == (2, lines), done.stderr


INDEXES = {
    "k-reciprocal-online": ("--pool", 20, "--k1", 6, "--k2", 3, "--blur", 4),
    "gnn": (),
    "center+camera-graph": (),
}


@pytest.mark.parametrize(
    ("method", "ann", "processes"),
    [
        ("k-reciprocal-online", (), 2),
        ("k-reciprocal-online", (), 3),
        ("gnn", (), 2),
        ("center+camera-graph", (), 3),
        ("k-reciprocal-online", ("--ann", "hnsw"), 3),
        ("gnn", ("--ann", "ivf"), 3),
        ("center+camera-graph", ("--ann", "hnsw"), 2),
    ],
)
def test_indexes_are_built_and_asked_together(method, ann, processes, write, tmp_path):
    feats = write("feats.h5", **features(probes=600, gallery=407, dim=24))
    how = ("--method", method, *INDEXES[method], *ann)
    assert forked("index", feats, "-o", "alone.h5", *how, cwd=tmp_path).returncode == 0
    done = forked_together(processes, "index", feats, "-o", "index.h5", *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("wrote") for line in done.stderr.splitlines()) == 1
    assert (tmp_path / "index.h5").read_bytes() == (tmp_path / "alone.h5").read_bytes()
    assert not list(tmp_path.glob("*.partial"))
    head = ("--method", "center+cosine" if "center" in method else "lbr")
    asking = [(), head, ("--search", "exact")]
    if ann:  # as one that was changed, which is of what it was encoded with and of more
        more = write("more.h5", **features(seed=1, probes=33, gallery=40, dim=24))
        asking = [(), head, (more, "--append"), ("--search", "exact"), ("--remove", "3-40"), (), head]
    for asked in asking:
        if asked[-1:] in (("--append",), ("3-40",)):
            change = forked("index", *asked, "-o", "index.h5", cwd=tmp_path)
            assert change.returncode == 0, change.stderr
            continue
        run = ("run", feats, "--index", "index.h5", *asked, "--depth", 30, "--force")
        alone = forked(*run, "-o", "a.h5", cwd=tmp_path)
        assert alone.returncode == 0, alone.stderr
        done = forked_together(processes, *run, "-o", "b.h5", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, alone.stdout), done.stderr
        assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_steps_that_change_the_dimensions_are_refused_together(write, tmp_path):
    feats = write("feats.h5", **features(probes=9, gallery=100))
    how = ("index", feats, "-o", "i.h5", "--method", "whiten:dim=4+gnn")
    alone = forked(*how, cwd=tmp_path)
    done = forked_together(2, *how, cwd=tmp_path)
    assert (alone.returncode, done.returncode) == (2, 1)
    assert said(done.stderr) == said(alone.stderr)


def test_fewer_probes_than_processes(write, tmp_path):
    feats = write("feats.h5", **features(probes=2, gallery=300))
    for ann in ((), ("--ann", "hnsw")):
        assert forked("index", feats, "-o", "i.h5", *ann, "--force", cwd=tmp_path).returncode == 0
        run = ("run", feats, "--index", "i.h5", "--force")
        assert forked(*run, "-o", "a.h5", cwd=tmp_path).returncode == 0
        done = forked_together(3, *run, "-o", "b.h5", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_what_one_process_does_with_an_index(write, tmp_path):
    feats = write("feats.h5", **features(gallery=100))
    assert forked("index", feats, "-o", "i.h5", cwd=tmp_path).returncode == 0
    before = (tmp_path / "i.h5").read_bytes()
    for arguments, why in (
        (("index", feats, "-o", "i.h5", "--append"), "append works in one process only"),
        (("index", "-o", "i.h5", "--remove", "3"), "--remove is done in one process"),
        (("index", "-o", "i.h5", "--compact"), "--compact is done in one process"),
        (("run", "-", "--index", "i.h5"), "probes from standard input are answered by one process"),
        (("index", feats, "-o", "i.h5"), "i.h5 exists: pass --force"),
    ):
        done = forked_together(2, *arguments, cwd=tmp_path)
        assert done.returncode != 0
        (line,) = said(done.stderr)
        assert line.startswith(f"error: {why}")
        assert (tmp_path / "i.h5").read_bytes() == before


@pytest.mark.parametrize(("ann", "moment"), [((), "barrier"), (("--ann", "hnsw"), "all_gather")])
def test_a_process_that_is_killed_leaves_no_index(moment, ann, write, tmp_path):
    feats = write(**features(probes=40, gallery=500))
    done = together(3, CASES, "--die", moment, "index", feats, "-o", "lists.h5", *ann, cwd=tmp_path)
    check_lost(done.stderr, done.returncode, tmp_path)


def test_a_process_that_is_killed_while_an_index_answers(write, tmp_path):
    feats = write(**features(probes=40, gallery=500))
    for name, ann in (("feats.exact", ()), ("feats.hnsw", ("--ann", "hnsw"))):
        assert forked("index", feats, "-o", name, *ann, cwd=tmp_path).returncode == 0
        done = together(
            2, CASES, "--die", "all_gather", "run", feats, "--index", name, "-o", "lists.h5", cwd=tmp_path
        )
        check_lost(done.stderr, done.returncode, tmp_path)


def check_lost(stderr: str, code: int, folder: Path) -> None:
    assert code != 0
    (line,) = said(stderr)
    assert line.startswith("error: ")
    assert "another process of" in line
    assert line.endswith("lost: nothing was written; start it again")
    assert [path.name for path in folder.iterdir() if "feats" not in path.name] == []


# When all have met, and at the very end, when the file has only to be renamed.
@pytest.mark.parametrize("moment", ["connect", "barrier"])
def test_a_process_that_is_killed_leaves_no_file(moment, write, tmp_path):
    feats = write(**features(probes=40, gallery=500))
    done = together(3, CASES, "--die", moment, "run", feats, "-o", "lists.h5", cwd=tmp_path)
    check_lost(done.stderr, done.returncode, tmp_path)


@pytest.mark.parametrize("worker", [0, 1])
def test_a_process_that_is_killed_while_it_works(worker, tmp_path, write):
    rng = np.random.default_rng(0)
    sizes = {"probe": 4000, "gallery": 20000}
    sides = {name: rng.standard_normal((rows, 256), dtype=np.float32) for name, rows in sizes.items()}
    feats = write(**{name: sides.get(name) for name in features()})
    run = subprocess.Popen(
        torchrun(2, "-m", "blurrerank", "run", feats, "-o", "lists.h5", "--method", "k-reciprocal"),
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    limit = time.monotonic() + LIMIT
    left = tmp_path / ".lists.h5.blurrerank"
    while not left.exists():  # features are checked, work begins
        assert time.monotonic() < limit
        assert run.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    os.kill(workers(run.pid)[worker], signal.SIGKILL)
    began = time.monotonic()
    _, stderr = run.communicate(timeout=LIMIT)
    assert time.monotonic() - began < LIMIT
    if worker == 0:  # nobody is left to take away what the process that writes had begun: the next one does
        assert left.exists()
        small = ("--probes", 10, "--gallery", 50, "--ids", 5, "--distractors", 0, "--junk", 0, "--dim", 8)
        assert shell("synth", "feats-of-another.h5", *small, cwd=tmp_path).returncode == 0
    check_lost(stderr, run.returncode, tmp_path)


def workers(parent: int) -> list[int]:
    """The processes that `parent` started, by rank."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(fields[1]) == parent:
            ranks = [int(value[5:]) for value in variables if value.startswith(b"RANK=")]
            found.update({rank: int(entry.name) for rank in ranks})
    return [found[rank] for rank in sorted(found)]


def test_a_part_of_stored_features_is_read_alone(write):
    rows = features()["gallery"]
    with h5py.File(write()) as file:
        part = StoredFeatures(file["gallery/features"], "here", slice(10, 30))
        assert part.shape == (20, 8)
        for some in (slice(None), slice(3, 7), slice(15, 99)):
            np.testing.assert_array_equal(part[some], rows[10:30][some])


def test_without_torchrun_there_is_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert expected() == 1
    monkeypatch.setenv("RANK", "0")
    assert expected() == 1
