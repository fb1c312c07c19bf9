"""What surrounds the commands: completion, versions, defaults from the environment, help."""

from __future__ import annotations

import ast
import os
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ROOT, shell
from forks import forked

from blurrerank.cli.help import TOPICS

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def completions(*words: str, style: str = "bash") -> set[str]:
    """What is offered for the last of the words, as the shell's script asks for it."""
    asked = " ".join(("blurrerank", *words[:-1])) if style == "fish" else " ".join(("blurrerank", *words))
    env = os.environ | {
        "_BLURRERANK_COMPLETE": f"{style}_complete",
        "COMP_WORDS": asked,
        "COMP_CWORD": words[-1] if style == "fish" else str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "blurrerank"], capture_output=True, text=True, env=env, timeout=60
    )
    assert done.stderr == ""
    lines = done.stdout.split()
    return {line.split(",", 1)[1] for line in lines if "," in line}


@pytest.mark.parametrize("style", ["bash", "fish"])
def test_commands_options_methods_and_files_are_completed(style):
    assert completions("sy", style=style) == {"synth"}
    assert "run" in completions("", style=style)
    assert "measure" not in completions("", style=style), "it is hidden"
    assert {"--topn"} <= completions("run", "--to", style=style)
    assert completions("run", "feats.h5", "--method", "k", style=style) == {
        "k-reciprocal",
        "k-reciprocal-fastreid",
        "k-reciprocal-online",
        "kwf",
    }
    assert completions("run", "feats.h5", "--protocol", "c", style=style) == {"cuhk03"}
    assert completions("help", "fea", style=style) == {"features"}


def test_a_real_bash_completes():
    bash = shutil.which("bash")
    assert bash
    script = """
        source <(blurrerank completion bash)
        complete -p blurrerank
        COMP_WORDS=(blurrerank run --meth); COMP_CWORD=2
        _blurrerank_completion blurrerank --meth run
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        [bash, "--norc", "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": PATH},
        timeout=60,
    )
    assert "complete -o nosort -F _blurrerank_completion blurrerank" in done.stdout
    assert "--method" in done.stdout.splitlines()


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_scripts_name_the_variable_that_is_read(name):
    done = shell("completion", name)
    assert done.returncode == 0
    assert f"_BLURRERANK_COMPLETE={name}_complete" in done.stdout
    if shutil.which(name):
        assert subprocess.run([name, "-n"], input=done.stdout, text=True, timeout=60).returncode == 0


def test_version_names_the_libraries_that_matter():
    done = shell("--version")
    assert done.returncode == 0
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert told["python"] == sys.version.split()[0]
    for name in ("blurrerank", "numpy", "torch", "scipy", "h5py", "click"):
        assert told[name] == version(name)


def test_defaults_come_from_the_environment_and_options_win(write, tmp_path):
    feats = write()
    env = os.environ | {"BLURRERANK_PROTOCOL": "plain", "BLURRERANK_AP": "trapezoid", "BLURRERANK_THREADS": "1"}
    assert "protocol plain, trapezoid AP" in shell("run", feats, "--force", cwd=tmp_path, env=env).stdout
    done = shell("run", feats, "--force", "--protocol", "cuhk03", cwd=tmp_path, env=env)
    assert "protocol cuhk03, trapezoid AP" in done.stdout
    done = shell("run", feats, "--force", cwd=tmp_path, env=os.environ | {"BLURRERANK_MEMORY": "much"})
    assert done.returncode == 2
    assert "BLURRERANK_MEMORY" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    told = shell("run", "--help").stdout
    for option in ("DEVICE", "THREADS", "MEMORY", "PRECISION", "PROTOCOL", "AP"):
        assert f"BLURRERANK_{option}" in told


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_is_what_the_code_says_of_its_files(topic):
    done = shell("help", topic)
    assert done.returncode == 0
    for module in TOPICS[topic]:
        text = ast.get_docstring(ast.parse((ROOT / f"blurrerank/{module}.py").read_text()))
        assert text in done.stdout


def test_help_lists_topics_and_tells_of_commands():
    listed = shell("help").stdout
    assert all(f"  {topic}" in listed for topic in TOPICS)
    assert shell("help", "run").stdout == shell("run", "--help").stdout
    done = shell("help", "nothing")
    assert done.returncode == 2
    assert "choose one of bench, " in done.stderr
    assert "measure" not in done.stderr


def test_help_comes_without_the_libraries():
    code = "import sys; from blurrerank.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'numpy', 'h5py', 'scipy', 'PIL', 'matplotlib'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"
    for arguments in (
        ["--help"],
        ["help", "features"],
        ["run", "--help"],
        ["--version"],
        ["completion", "zsh"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["commands.md", "formats.md"])
def test_pages_made_from_the_code_are_not_stale(page):
    made = runpy.run_path(str(ROOT / "docs/generate.py"))["PAGES"][page]()
    assert made == (ROOT / "docs" / page).read_text(encoding="utf-8"), "run make docs"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_what_daemons_close_is_not_missed(closed, cli, write, tmp_path):
    """And no file gets the number of what is closed, and what is told with it."""
    feats = write("feats.h5")
    assert cli("run", feats, "-o", "open.h5")[0] == 0
    command = f"{sys.executable} -m blurrerank run {feats} -o closed.h5 {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    assert (tmp_path / "closed.h5").read_bytes() == (tmp_path / "open.h5").read_bytes()


def test_standard_output_without_room_is_named(write):
    feats = write("feats.h5")
    command = f"{sys.executable} -m blurrerank info {feats} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


def test_what_a_file_says_cannot_change_what_follows(write, tmp_path):
    with h5py.File(write("feats.h5"), "r+") as file:
        file.attrs["source"] = "model\x1b[31m\nproblems:\r\x07"
    done = shell("info", tmp_path / "feats.h5")
    assert done.returncode == 0
    assert "source: model\\x1b[31m\\nproblems:\\r\\x07\n" in done.stdout


def test_what_a_file_says_is_shortened(write, tmp_path):
    with h5py.File(write("feats.h5"), "r+") as file:
        file.attrs["source"] = f"begin{'x' * 60_000}end"
        file.attrs["words"] = "word " * 10_000
    told = forked("info", "feats.h5", cwd=tmp_path).stdout.splitlines()
    assert max(map(len, told)) < 5_000
    source = next(line for line in told if line.startswith("source: "))
    assert (source[:14], source[-4:]) == ("source: beginx", "xend")
    assert "x[... 59,808 characters ...]x" in source
    (tmp_path / "lists.trec").write_text(f"p000 Q0 {'y' * 10**7} 1 0.5 run\n")
    done = forked("eval", "lists.trec", "feats.h5", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: lists.trec line 1: 'yyy")
    assert done.stderr.endswith("yyy' is not a gallery name or row number below 60\n")
    assert len(done.stderr) < 1_000
    deep = "/".join(["n" * 255] * 15)  # about as long as the system lets a name be
    assert shell("info", deep, cwd=tmp_path).stderr == f"error: {deep}: no such file\n"


def test_what_a_file_is_called_stays_in_one_line(cli, write):
    feats, name = write("feats.h5"), "a\nb\x1b[31m.trec"
    assert cli("run", feats, "-o", name)[2] == "wrote a\\nb\\x1b[31m.trec: 12 lists of 50\n"
    assert cli("run", feats, "-o", name)[2].startswith("error: a b\\x1b[31m.trec exists: pass --force ")
    code, out, _ = cli("eval", name, feats)
    assert code == 0
    assert out.splitlines()[-1].startswith("a\\nb\\x1b[31m.trec ")
    assert cli("info", "no\nfile")[2] == "error: no file: no such file\n"


def test_sizes_are_not_without_end(write):
    done = shell("run", write("feats.h5"), "--memory", "9" * 400)
    assert done.returncode == 2
    assert "is not a size such as 512MiB or 2GiB" in done.stderr


def test_letters_that_are_none_are_told(tmp_path, write):
    """NumPy keeps text as numbers, of any size."""
    info = np.frombuffer(np.array([ord("{"), 0x7FFFFFFF, 0xD800], np.uint32).tobytes(), "U3")[0]
    np.savez(tmp_path / "lists.npz", info=info, indices=np.zeros((12, 1), np.int32), scores=np.zeros((12, 1)))
    done = shell("eval", tmp_path / "lists.npz", write("feats.h5"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("threads", [0, 100_000, 10**20])
def test_threads_are_not_without_end(threads, write):
    done = shell("run", write("feats.h5"), "--threads", threads)
    assert done.returncode == 2
    assert "threads" in done.stderr
