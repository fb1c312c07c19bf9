"""What the documentation shows is what happens."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas
import pytest
from conftest import ROOT, blocks_of, features, recipe, shell
from scipy.io import savemat

import blurrerank as br

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCS = [page.read_text() for page in PAGES]
COMMANDS = "run|eval|calibrate|fuse|bench|sweep|tune|synth|index|info|convert|report|plot|help|completion"
COMMAND = rf"^    blurrerank ((?:{COMMANDS}) [^|>\n]*)$"


WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "blurrerank").rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstring_examples(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed


def test_the_readme_s_table_is_what_the_demo_prints(tmp_path):
    done = shell("run", ROOT / "examples/omniglot.h5", "--topn", 50, "--sigma", 0.1, cwd=tmp_path)
    assert done.returncode == 0
    assert f"```\n{done.stdout}```" in README
    assert (tmp_path / "omniglot.lbr.ranking.h5").exists()


def test_features_of_one_s_own_and_every_indented_command_of_the_documents(
    quick_bench, tmp_path, monkeypatch, cli
):
    recipe = next(block for block in blocks_of("docs/getting-started.md") if "import h5py" in block)
    arrays = features()
    names = {
        f"{side}_{what}": arrays[f"{side}_{what}"] for side in ("probe", "gallery") for what in ("ids", "cams")
    }
    exec(recipe, {"probe_features": arrays["probe"], "gallery_features": arrays["gallery"], **names})
    with h5py.File("feats.h5") as file:
        np.testing.assert_array_equal(file["gallery/features"], arrays["gallery"])
    savemat(
        "pytorch_result.mat",
        {
            "query_f": arrays["probe"],
            "query_label": arrays["probe_ids"],
            "query_cam": arrays["probe_cams"],
            "gallery_f": arrays["gallery"],
            "gallery_label": arrays["gallery_ids"],
            "gallery_cam": arrays["gallery_cams"],
        },
    )
    # docs/thresholds.md: a calibration is fitted with some probes and used for others, without ids.
    br.save_features(br.FeatureSet.from_arrays(**arrays), "labelled.h5")
    later = {name: array for name, array in features(1).items() if not name.endswith("ids")}
    br.save_features(br.FeatureSet.from_arrays(**later), "new.h5")
    lines = dict.fromkeys(line for page in DOCS for line in re.findall(COMMAND, page, re.MULTILINE))
    assert len(lines) > 10
    for line in lines:
        # What a table looks like does not depend on how often it was measured.
        once = ["--repeats", "1"] if line.startswith("bench") and "--repeats" not in line else []
        assert cli(*line.split(), *once)[0] == 0, line


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_library_examples(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    example = next(block for block in blocks_of(page) if "br.load" in block)
    names: dict[str, object] = {}
    exec(example, names)
    assert round(names["metrics"].mAP, 4) == 0.7946
    if "indices" in names:
        np.testing.assert_array_equal(names["indices"], names["ranking"].indices)


def test_the_index_of_the_documents(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    data = br.FeatureSet.from_arrays(**features())
    br.save_features(data, "feats.h5")
    assert cli("index", "feats.h5", "-o", "gallery.index.h5")[0] == 0
    names = {"br": br, "data": data}
    exec(next(block for block in blocks_of("docs/online.md") if "GalleryIndex.open" in block), names)
    assert names["ranking"].indices.shape == (1, 50)


def test_the_recipe_for_wildlife_datasets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = features()

    def dataset(side):  # as FeatureDataset has it: an array, and a pandas table
        names = [f"animal {number}" for number in arrays[f"{side}_ids"]]
        table = pandas.DataFrame({"identity": names})
        return SimpleNamespace(features=arrays[side], metadata=table, col_label="identity")

    exec(recipe("FeatureDataset"), {"query": dataset("probe"), "database": dataset("gallery")})
    data = br.load("wild.h5")
    np.testing.assert_array_equal(data.gallery.features[:], arrays["gallery"])
    for one, other in ((data.probe.ids, "probe_ids"), (data.gallery.ids, "gallery_ids")):
        alike = data.probe.ids[:, None] == one, arrays["probe_ids"][:, None] == arrays[other]
        np.testing.assert_array_equal(*alike)


def test_the_recipe_for_matrices(tmp_path, monkeypatch, cli):
    arrays = features()
    unit = {side: arrays[side] / np.linalg.norm(arrays[side], axis=1)[:, None] for side in ("probe", "gallery")}
    probe, gallery = unit.values()
    given = {"q_pids": arrays["probe_ids"], "g_pids": arrays["gallery_ids"]}
    given |= {"q_camids": arrays["probe_cams"], "g_camids": arrays["gallery_cams"]}
    pairs = {"q_g_dist": (probe, gallery), "q_q_dist": (probe, probe), "g_g_dist": (gallery, gallery)}
    given |= {name: 1 - one @ other.T for name, (one, other) in pairs.items()}
    exec(recipe("pairs.npz"), given | {"np": np, "distmat": given["q_g_dist"]})
    br.save_features(br.FeatureSet.from_arrays(**arrays), "feats.h5")
    measured = [cli("eval", *files)[1].split()[-6:] for files in (("distmat.npy", "feats.h5"), ("pairs.npz",))]
    assert measured[0] == measured[1]
    assert cli("run", "pairs.npz", "--method", "k-reciprocal", "-o", "out.h5")[0] == 0
    names = {"similarity": 1 - given["q_g_dist"], "qq": 1 - given["q_q_dist"], "gg": 1 - given["g_g_dist"]}
    names |= {"probe_ids": arrays["probe_ids"], "gallery_ids": arrays["gallery_ids"], "br": br}
    with pytest.warns(br.BlurrerankWarning, match="no cameras"):
        exec(recipe("from_matrices"), names)
    assert len(names["ranking"]) == len(probe)


def test_every_option_in_the_documentation_exists():
    helps = shell("--help").stdout + "".join(
        shell(command, "--help").stdout
        for command in (
            "run",
            "eval",
            "calibrate",
            "info",
            "index",
            "bench",
            "sweep",
            "tune",
            "synth",
            "convert",
            "fuse",
            "report",
            "plot",
        )
    )
    helps += "".join(
        shell("run", "--method", method, "--help").stdout
        for method in ("k-reciprocal", "dba+lbr", "center", "camera-graph", "nfc", "whiten")
    )
    # The options of torchrun are not ours, nor those of the method that docs/architecture.md makes up, and
    # tests/test_training.py looks at those of the example.
    pages = (
        re.sub(r"torchrun .*-m blurrerank|train_sft\.py.*", "", "".join(DOCS))
        .replace("--count 8", "")
        .replace("`--nproc-per-node`", "")
    )
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", pages)) <= set(re.findall(r"--[a-z][a-z-]+", helps))


def test_quickstart():
    done = subprocess.run(
        [sys.executable, ROOT / "examples/quickstart.py"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "lbr     mAP 0.7946  rank-1 0.9026  mINP 0.3969" in done.stdout


def test_pipe():
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    assert shutil.which("blurrerank", path=path), "install the project first: make install"
    done = subprocess.run(
        [ROOT / "examples/pipe.sh"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\S+ Q0 \S+ \d \S+ blurrerank-lbr$", done.stdout, re.MULTILINE)) == 3
    assert "shortest list 200;" in done.stdout
