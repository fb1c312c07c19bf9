"""What is published: wheel and sdist, in an environment of their own, and the files about the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, features
from packaging.requirements import Requirement
from scipy.io import savemat
from test_examples import COMMAND, README

import blurrerank as br

WHEEL, SDIST = (f"blurrerank-{br.__version__}{end}" for end in ("-py3-none-any.whl", ".tar.gz"))
NOT_SOURCE = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder with sdist and wheel; the wheel is built from the sdist."""
    source = tmp_path_factory.mktemp("source") / "blurrerank"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", source],
        check=True,
        cwd=source.parent,
        env=outside(),
        capture_output=True,
        timeout=300,
    )
    return source / "dist"


@pytest.fixture(scope="module")
def clean(dist, tmp_path_factory):
    """An environment with the wheel, and with what it needs from the environment of the tests; its programs."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False)
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", dist / WHEEL]
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", *install]
    subprocess.run(pip, check=True, env=outside(), timeout=300)
    # Installing torch anew would take minutes. A .pth file adds a folder, and not what the .pth files in it
    # add, such as the clone that the tests run on.
    packages = next(home.rglob("site-packages"))
    (packages / "needed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return programs


def outside() -> dict[str, str]:
    """The environment variables, without those that lead into this clone."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def test_the_wheel_has_the_package_and_nothing_else(dist):
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "blurrerank").rglob("*.py")}
    package |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "blurrerank/report").glob("page.*")}
    with zipfile.ZipFile(dist / WHEEL) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        about = message_from_bytes(wheel.read(f"blurrerank-{br.__version__}.dist-info/METADATA"))
    assert held == package | {"blurrerank/py.typed"}
    assert about["Version"] == br.__version__
    assert about["Author"] == "The blurrerank authors"
    assert about["Requires-Python"] == ">=3.10"
    urls = dict(line.split(", ") for line in about.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Issues", "Changelog"} <= set(urls)
    assert "Typing :: Typed" in about.get_all("Classifier")
    assert about.get_payload() in (README, README.replace("\n", "\r\n"))
    needed = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert not {"pytest", "ruff", "mypy", "build"} & {re.split(r"\W", line)[0] for line in needed}


def test_the_sdist_has_what_describes_the_project_and_no_tests(dist):
    with tarfile.open(dist / SDIST) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "constraints.txt"):
        assert name in held
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.*")} <= held
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.*")} <= held
    assert not [name for name in held if name.startswith(("tests", "benchmarks", "."))]


def test_the_installed_wheel_runs_the_demo(clean, tmp_path):
    shutil.copy(ROOT / "examples/omniglot.h5", tmp_path)
    where = "import blurrerank; print(blurrerank.__file__)"
    for command, expected in (
        ((clean / "python", "-c", where), str(clean.parent)),
        ((clean / "blurrerank", "--version"), f"blurrerank {br.__version__}\n"),
        ((clean / "blurrerank", "run", "omniglot.h5", "--topn", "50", "--sigma", "0.1"), "0.7946"),
        (
            (clean / "blurrerank", "report", "omniglot.lbr.ranking.h5", "omniglot.h5", "-o", "report.html"),
            "",
        ),
    ):
        done = subprocess.run(command, cwd=tmp_path, env=outside(), capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    assert "</html>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_installed_wheel_runs_the_commands_of_the_readme(clean, tmp_path):
    arrays = features()
    br.save_features(br.FeatureSet.from_arrays(**arrays), tmp_path / "feats.h5")
    layumi = {"query": "probe", "gallery": "gallery"}
    layumi = {f"{word}_{short}": arrays[f"{side}{what}"] for word, side in layumi.items()
              for short, what in (("f", ""), ("label", "_ids"), ("cam", "_cams"))}  # fmt: skip
    savemat(tmp_path / "pytorch_result.mat", layumi)
    lines = list(dict.fromkeys(re.findall(COMMAND, README, re.MULTILINE)))
    # Every method that bench runs is a process of its own: two will do.
    lines = [
        f"{line} --methods cosine,lbr" if line.split() == ["bench", "feats.h5"] else line for line in lines
    ]
    assert len(lines) > 5
    program = f"""
import blurrerank
from blurrerank.cli import main
QUICK = ["--repeats", "1"]
assert blurrerank.__file__.startswith({str(clean.parent)!r})
for line in {lines!r}:
    try:
        main(line.split() + (QUICK if line.startswith("bench") else []))
    except SystemExit as end:
        assert not end.code, line
"""
    done = subprocess.run(
        [clean / "python", "-c", program],
        cwd=tmp_path,
        env=outside() | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def parsed(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_workflow_tests_three_systems_and_four_pythons():
    workflow = parsed(".github/workflows/ci.yml")
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]  # text: 3.10 as a number is 3.1
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            run = step.get("run", "")
            assert "make" not in run or "matrix" not in str(job["runs-on"]), "Windows has no make"
            assert "pip install" not in run or "-c constraints.txt" in run
            for file in re.findall(r"tests/\w+\.py", run):
                assert (ROOT / file).exists()


def test_pythons_are_those_of_the_classifiers():
    said = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text())
    assert said == parsed(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_issue_templates_have_what_a_form_needs(name):
    form = parsed(f".github/ISSUE_TEMPLATE/{name}")
    assert form["name"]
    assert form["description"]
    for field in form["body"]:
        assert field["type"] == "textarea"
        assert field["attributes"]["label"]


def test_hooks_are_the_linters_of_make_lint():
    (local,) = parsed(".pre-commit-config.yaml")["repos"]
    hooks = {" ".join(hook["entry"].split()[:2]) for hook in local["hooks"]}
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert hooks == {" ".join(line.split("/")[1].split()[:2]) for line in lint.splitlines() if "$(BIN)" in line}


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = parsed("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == br.__version__
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Luo", "Chen", "Wang", "Zhang"]
    assert paper["identifiers"][0]["value"] == "arXiv:1811.11405"


def test_the_changelog_has_this_version_in_at_most_60_lines():
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert any(line.startswith(f"## {br.__version__}") for line in lines)


def test_the_image_has_what_it_copies_and_does_not_run_as_root():
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {Path(name) for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    assert {str(path) for path in copied} == allowed
    assert all((ROOT / path).exists() for path in copied)
    assert [line.split()[1] for line in lines if line.startswith("USER")] == ["blurrerank"]
    assert 'ENTRYPOINT ["blurrerank"]' in lines


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows"])
def test_constraints_name_one_version_of_each_package(python, system):
    where = {"python_version": python, "python_full_version": f"{python}.0", "platform_system": system}
    where["sys_platform"] = {"Linux": "linux", "Darwin": "darwin", "Windows": "win32"}[system]
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    names = [pin.name.lower() for pin in pins if pin.marker is None or pin.marker.evaluate(where)]
    assert len(names) > 50
    assert len(names) == len(set(names))
