from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from forks import forked
from hypothesis import settings
from hypothesis import strategies as st

import blurrerank as br
from blurrerank.cli import main

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# What is remembered of files belongs to this run.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="blurrerank-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# What runs in the background, or under nohup, has signals ignored; what tests start should not inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # not on Windows
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Deterministic: a failure here can be repeated anywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip("real features and golden answers (../shared) are not beside this clone")
    return SHARED


@pytest.fixture
def market_subset(shared: Path) -> br.FeatureSet:
    """100 probes and 86 gallery images of Market-1501, as layumi's script writes them."""
    from scipy.io import loadmat

    dump = loadmat(shared / "data/layumi_market_subset.mat")
    return br.FeatureSet.from_arrays(
        dump["query_f"],
        dump["gallery_f"],
        probe_ids=dump["query_label"].ravel(),
        gallery_ids=dump["gallery_label"].ravel(),
        probe_cams=dump["query_cam"].ravel(),
        gallery_cams=dump["gallery_cam"].ravel(),
    )


@pytest.fixture
def threads():
    """Set torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def features(seed: int = 0, probes: int = 12, gallery: int = 60, dim: int = 8) -> dict[str, np.ndarray]:
    """Arrays as FeatureSet.from_arrays takes them: 6 identities, 3 cameras, junk and distractors."""
    rng = np.random.default_rng(seed)
    probe_ids = 1 + np.arange(probes) % 6
    gallery_ids = np.concatenate([[-1, -1, 0, 0], 1 + np.arange(gallery - 4) % 6])
    centres = rng.standard_normal((8, dim))
    return {
        "probe": (centres[probe_ids] + rng.standard_normal((probes, dim))).astype(np.float32),
        "gallery": (centres[gallery_ids] + rng.standard_normal((gallery, dim))).astype(np.float32),
        "probe_ids": probe_ids,
        "gallery_ids": gallery_ids,
        "probe_cams": rng.integers(1, 4, probes),
        "gallery_cams": rng.integers(1, 4, gallery),
        "probe_names": np.array([f"p{row:03}" for row in range(probes)], dtype=object),
        "gallery_names": np.array([f"g{row:03}" for row in range(gallery)], dtype=object),
    }


@st.composite
def sides(draw):
    """Rows in clusters, no two equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim, people = draw(st.integers(2, 12)), draw(st.integers(1, 8))
    centres = rng.standard_normal((people, dim))
    probes, gallery = draw(st.integers(1, 9)), draw(st.integers(1, 80))
    spread = draw(st.sampled_from([0.1, 0.5, 2.0]))
    return tuple(
        (centres[rng.integers(0, people, rows)] + spread * rng.standard_normal((rows, dim))).astype(np.float32)
        for rows in (probes, gallery)
    )


@st.composite
def exact_sides(draw):
    """Rows of plus and minus ones: cosines and their ties are exact in any arithmetic."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim = draw(st.sampled_from([4, 16]))
    probes, gallery = draw(st.integers(1, 7)), draw(st.integers(1, 60))
    return tuple(rng.choice([-1.0, 1.0], (rows, dim)).astype(np.float32) for rows in (probes, gallery))


def spread(*arrays: np.ndarray) -> float:
    """The largest squared distance of unit rows from one of them, for the one that has the least."""
    rows = np.vstack(arrays).astype(np.float64)
    rows /= np.abs(rows).max(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return float(max(0, (2 - 2 * rows @ rows.T).max(axis=1).min()))


@contextmanager
def alike(*arrays: np.ndarray):
    """k-reciprocal of images that are much alike says how far scores may be off: gives the tolerance."""
    off = 1e-6 / max(spread(*arrays), 1e-6)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", br.BlurrerankWarning)
        yield max(1e-5, 1.5 * off)
    said = any("features are nearly equal" in str(one.message) for one in told)
    assert said or off < 1.1e-5 or off > 0.2
    assert not said or off > 0.9e-5


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write arrays as a user would, with h5py alone; None leaves something out."""

    def write(name: str = "feats.h5", **changes) -> Path:
        arrays = features() | changes
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in arrays.items():
                side, _, what = key.partition("_")
                if value is not None:
                    file[f"{side}/{what or 'features'}"] = value
        return tmp_path / name

    return write


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the command line in this process, in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def cli(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    return cli


def shell(*arguments: object, program: str | None = None, **options) -> subprocess.CompletedProcess[Any]:
    """Run the command line, or the text of a program, in a process of its own."""
    what = ["-m", "blurrerank"] if program is None else ["-c", program]
    options = {"capture_output": True, "text": True, "timeout": 120} | options
    return subprocess.run([sys.executable, *what, *map(str, arguments)], **options)


def blocks_of(page: str) -> list[str]:
    """The Python programs in a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def recipe(beginning: str) -> str:
    """The program in docs/recipes.md that has some line."""
    return next(block for block in blocks_of("docs/recipes.md") if beginning in block)


@pytest.fixture
def quick_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of `bench` are forks: for tests of what it makes of them, not of what it measures."""
    from blurrerank.studies import benchmark

    run = subprocess.run

    def fork(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "measure" not in command:
            return run(command, **options)
        return forked(*command[command.index("measure") :], cwd=Path.cwd())

    monkeypatch.setattr(benchmark.subprocess, "run", fork)


def check_lists(
    indices: np.ndarray,
    scores: np.ndarray,
    golden: np.ndarray,
    golden_scores: np.ndarray,
    tolerance: float = 1e-5,
) -> None:
    """Ours equals golden; two items may swap only where golden scores differ by less than the tolerance.

    Both lists have the same length, so an item of ours that golden does not list may only stand in for one
    that ties with the last of golden's list, and must itself stand at the end.
    """
    np.testing.assert_allclose(scores, golden_scores, atol=tolerance)
    assert (np.diff(np.sort(indices, axis=1)) > 0).all(), "an item is listed twice"
    for row, column in np.argwhere(indices != golden):
        place = np.flatnonzero(golden[row] == indices[row, column])
        last = golden_scores[row, -1]
        theirs = golden_scores[row, place[0]] if len(place) else last
        assert abs(theirs - golden_scores[row, column]) < tolerance, (row, column)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of several processes that test, each tells the first what it counted."""
    from counting import cases

    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cases"] = dict(cases)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of them has ended."""
    from counting import cases

    cases.update(getattr(node, "workeroutput", {}).get("cases", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases of faults, fuzzing and numbers ran, and what repeats them."""
    from counting import cases

    if cases:
        terminalreporter.section("cases")
    for kind, number in cases.items():
        terminalreporter.write_line(f"{kind}: {number}")
