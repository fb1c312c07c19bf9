"""The evidence page: every method on several feature files, with quality, time, memory and what it needs.

    python benchmarks/evidence.py FEATS [FEATS...]

runs every method, two chains and `auto` on each file, writes the tables into docs/evidence.md and draws
docs/evidence-light.svg and docs/evidence-dark.svg. Each method runs with its default parameters in a process of
its own. Beside it run the plain NumPy version, if there is one, and the functions of torchreid and fast-reid,
if these are installed (`make recipes`; see benchmarks/authors.py). Intervals are 95 % bootstrap intervals
over identities. Files whose features cannot be given away add figures only.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from tabulate import tabulate

import blurrerank as br
from blurrerank.engine.request import needs_of
from blurrerank.methods import available, create

DOCS = Path(__file__).parents[1] / "docs"
CHAINS = ("center+camera-graph", "center+k-reciprocal", "auto")
# Other programs that compute a method: what follows its name here, and on the page.
PROGRAMS = {"": "", " (plain)": ", plain NumPy", " (torchreid)": ", torchreid", " (fastreid)": ", fast-reid"}
# The packages that have one, and the method that it is.
AUTHORS = {"torchreid": "k-reciprocal", "fastreid": "k-reciprocal-fastreid"}
SAMPLES = 1000


def run(*arguments: str) -> Any:
    """What a command prints as JSON."""
    command = [sys.executable, "-m", "blurrerank", *arguments, "--json", "--quiet"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def interval(data: br.FeatureSet, ranking: br.Ranking) -> tuple[float, float]:
    """Of mAP in per cent, by drawing identities with all their probes."""
    precisions = br.evaluate(ranking, data).ap
    valid = ~np.isnan(precisions)
    _, which = np.unique(data.probe.ids[valid], return_inverse=True)
    counts = np.bincount(which)
    sums = np.bincount(which, precisions[valid])
    drawn = np.random.default_rng(0).integers(len(counts), size=(SAMPLES, len(counts)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
    return 100 * low, 100 * high


def measured(path: str, data: br.FeatureSet) -> dict[str, dict[str, Any]]:
    """Quality, seconds and memory of every method on one file."""
    contenders = ",".join([*available(), *CHAINS[:-1]])
    found = {}
    for result in run("bench", path, "--methods", contenders, "--reference", "--repeats", "1"):
        if result["error"]:
            sys.exit(f"{path}: {result['method']}: {result['error']}")
        if result["unranked"]:
            continue
        seconds = result["seconds"]
        name = result["method"].removesuffix("+cosine")
        found[name + " (plain)" * result["reference"]] = {
            "needs": ", ".join(result["needs"]),
            "mAP": 100 * result["metrics"]["mAP"],
            "rank1": 100 * result["metrics"]["rank1"],
            "seconds": seconds["index"] + seconds["search"] + seconds["re-rank"],
            "MiB": result["peak_bytes"] / 2**20,
        }
    for package, name in AUTHORS.items():
        if importlib.util.find_spec(package) is not None:
            script = [sys.executable, str(Path(__file__).with_name("authors.py")), package, path]
            result = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
            found[f"{name} ({package})"] = {
                "needs": found[name]["needs"],
                "mAP": 100 * result["metrics"]["mAP"],
                "rank1": 100 * result["metrics"]["rank1"],
                "seconds": result["seconds"],
                "MiB": result["peak_bytes"] / 2**20,
            }
    with tempfile.TemporaryDirectory() as folder:
        told = run("run", path, "--method", "auto", "-o", str(Path(folder, "auto.h5")))
    found["auto"] = {
        "needs": ", ".join(needs_of(create(told["method"]), online=False)),
        "mAP": 100 * told["after"]["mAP"],
        "rank1": 100 * told["after"]["rank1"],
        "chose": told["auto"].partition(" (")[0],
    }
    for name in ("cosine", "lbr", "k-reciprocal", *CHAINS):
        start = time.perf_counter()
        ranking = br.rerank(data, name)
        found[name].setdefault("seconds", time.perf_counter() - start)  # of `auto`, which `bench` does not take
        found[name]["interval"] = interval(data, ranking)
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """One file's results, best first."""
    rows = []
    for name, one in sorted(found.items(), key=lambda item: -item[1]["mAP"]):
        between = "{:.1f} to {:.1f}".format(*one["interval"]) if "interval" in one else ""
        seconds, memory = (one.get(what) for what in ("seconds", "MiB"))
        method, space, program = name.partition(" ")
        rows.append(
            (
                f"`{method}`{PROGRAMS[space + program]}",
                one["needs"],
                f"{one['mAP']:.1f}",
                between,
                f"{one['rank1']:.1f}",
                "" if seconds is None else f"{seconds:.2f}",
                "" if memory is None else f"{memory:,.0f}",
            )
        )
    headers = ["method", "needs", "mAP", "95 % interval", "rank-1", "seconds", "MiB"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def draw(found: dict[str, dict[str, dict[str, Any]]], path: Path, ink: str) -> None:
    """A row for each method and a panel for each file: mAP, and where cosine is."""
    names = [name for name in next(iter(found.values())) if " (" not in name and name != "cosine"]
    mean_gain = {
        name: np.mean([one[name]["mAP"] - one["cosine"]["mAP"] for one in found.values() if name in one])
        for name in names
    }
    names.sort(key=mean_gain.__getitem__)
    plt.rcParams.update(dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink))
    figure, panels = plt.subplots(
        1, len(found), figsize=(2.1 * len(found) + 1.6, 5.6), sharey=True, squeeze=False
    )
    for panel, (label, one) in zip(panels[0], found.items(), strict=True):
        base = one["cosine"]["mAP"]
        panel.axvline(base, color=ink, lw=1, ls=":")
        for row, name in enumerate(names):
            if name in one:
                value = one[name]["mAP"]
                color = "#d55e00" if value < base - 0.05 else "#0072b2" if ink == "#222222" else "#56b4e9"
                panel.plot([base, value], [row, row], color=color, lw=1.5)
                panel.plot(value, row, "o", color=color, ms=4)
        panel.set_title(label, fontsize=9, color=ink)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
        panel.grid(axis="x", alpha=0.25)
        panel.patch.set_alpha(0)
        for spine in panel.spines.values():
            spine.set_color(ink)
            spine.set_alpha(0.3)
    figure.supxlabel("mAP in per cent", fontsize=9, color=ink)
    figure.legend(
        handles=[Line2D([], [], color=ink, ls=":", label="cosine")],
        loc="lower right",
        frameon=False,
        fontsize=8,
    )
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = path.name
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure, write the tables, draw."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    found, sections = {}, []
    for path in sys.argv[1:]:
        data = br.load(path)
        label = Path(path).stem
        found[label] = measured(path, data)
        size = f"{len(data.probe):,} probes x {len(data.gallery):,} gallery x {data.dim}"
        chose = found[label]["auto"]["chose"]
        sections.append(f"### {label}\n\n{size}. `auto` chose `{chose}`.\n\n{table(found[label])}\n")
        print(sections[-1], flush=True)
    page = DOCS / "evidence.md"
    head, _, rest = page.read_text(encoding="utf-8").partition("<!-- tables -->\n")
    tail = rest.partition("<!-- end of tables -->\n")[2]
    tables = "<!-- tables -->\n\n" + "\n".join(sections) + "\n<!-- end of tables -->\n"
    page.write_text(head + tables + tail, encoding="utf-8")
    for mode, ink in (("light", "#222222"), ("dark", "#e6e6e6")):
        draw(found, DOCS / f"evidence-{mode}.svg", ink)


if __name__ == "__main__":
    main()
