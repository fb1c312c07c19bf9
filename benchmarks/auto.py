"""What `--method auto` gains, beside cosine and fixed settings, as tables for a document.

    python benchmarks/auto.py gains FEATS [FEATS...]
    python benchmarks/auto.py sizes FEATS [FEATS...]
    python benchmarks/auto.py seconds FEATS [FEATS...]

`gains` prints mAP / rank-1 in per cent, protocol market1501, with 95 % intervals from 1,000 bootstrap samples
of identities; the row "best fixed" is the highest mAP of the settings in `FIXED`, found with the identities.
`sizes` prints estimates beside the means that identities tell. `seconds` prints ratios of the time of `auto` to
that of `k-reciprocal`, both in turn, the median of three.

FILE@1, @2, ... keeps so many gallery images of each identity, and no others; FILE@half the first half of the
dimensions.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import numpy as np
from tabulate import tabulate

import blurrerank as br
from blurrerank.compute.compute import Compute
from blurrerank.engine.request import Request
from blurrerank.evaluation.match_finder import MatchFinder
from blurrerank.evaluation.metrics import Metrics, measure
from blurrerank.evaluation.protocols import get_protocol
from blurrerank.methods import create
from blurrerank.studies.many import locate_each

FIXED = (
    "lbr",
    "k-reciprocal",
    "gnn",
    "nfc",
    "gcr:scale=0",
    "whiten",
    "center",
    "center+whiten",
    "ca-jaccard",
    "camera-graph",
    "center+lbr",
    "center+k-reciprocal",
    "center+gcr",
    "center+ca-jaccard",
    "center+camera-graph",
    "center+camera-graph:preset=two-cameras",
    "center+camera-graph:ki=4:ko=8:k2i=2:k2o=2",
    "center+camera-graph:ki=4:ko=16:k2i=1:k2o=4",
    "center+whiten+camera-graph:ki=1:ko=1:k2i=1:k2o=1",
)
"""Settings that somebody might fix for all data: defaults, authors' and this project's."""


def loaded(name: str) -> br.FeatureSet:
    """The features of a file, or what is kept of them."""
    file, _, part = name.partition("@")
    data = br.load(file)
    if not part:
        return data
    probe, gallery = data.probe, data.gallery
    rows, items = (np.asarray(side.features[:]) for side in (probe, gallery))
    if part == "half":
        half = data.dim // 2
        rows, items, keep = rows[:, :half], items[:, :half], np.arange(len(items))
    else:
        draw = np.random.default_rng(7)
        kept = []
        for identity in np.unique(gallery.ids[gallery.ids > 0]):
            own = np.flatnonzero(gallery.ids == identity)
            kept += list(draw.choice(own, min(int(part), len(own)), replace=False))
        keep = np.sort(kept)
    return br.FeatureSet(
        br.Side(rows, probe.ids, probe.cams),
        br.Side(items[keep], gallery.ids[keep], gallery.cams[keep]),
    )


def called(name: str) -> str:
    """What a table says of a set."""
    return Path(name).name.replace(".h5", "")


def spread(found: Metrics, ids: np.ndarray) -> str:
    """mAP / rank-1 with their intervals."""
    valid = ~np.isnan(found.ap)
    values = np.stack([found.ap[valid], found.first_match[valid] == 1])
    _, who = np.unique(ids[valid], return_inverse=True)
    sums = np.stack([np.bincount(who, weights=value) for value in values])
    counts = np.bincount(who)
    drawn = np.random.default_rng(0).integers(len(counts), size=(1000, len(counts)))
    means = sums[:, drawn].sum(axis=2) / counts[drawn].sum(axis=1)
    low, high = 100 * np.percentile(means, (2.5, 97.5), axis=1)
    parts = (f"{100 * v.mean():.1f} ({a:.1f}-{b:.1f})" for v, a, b in zip(values, low, high, strict=True))
    return " / ".join(parts)


def gains(names: list[str]) -> None:
    """Print a row for each set."""
    rows = []
    for name in names:
        data = loaded(name)
        ids = np.asarray(data.probe.ids)
        compute = Compute.choose("cpu")
        finder = MatchFinder(data, single_shot=False, device=compute.device, memory=compute.memory)
        found = {}
        texts = {create(text): text for text in ("cosine", *FIXED)}
        for method, where in locate_each(data, list(texts), Request(whole_rows=True), finder, compute):
            found[texts[method]] = measure(where, data, get_protocol("market1501"), ap="plain")
        best = max(found, key=lambda text: found[text].mAP)
        row = [called(name)]
        row += [spread(found[text], ids) for text in ("cosine", "lbr", "k-reciprocal", best)] + [f"`{best}`"]
        for online in (False, True):
            row.append(spread(br.evaluate(br.rerank(data, "auto", online=online), data), ids))
        rows.append(row)
        print("\t".join(row), file=sys.stderr, flush=True)
    heads = ["", "cosine", "lbr", "k-reciprocal", "best fixed", "which", "auto", "auto, online"]
    print(tabulate(rows, headers=heads, tablefmt="github"))


def sizes(names: list[str]) -> None:
    """Print estimates beside the truth."""
    rows = []
    for name in names:
        data = loaded(name)
        ids, cams = (
            np.concatenate([getattr(data.probe, kind), getattr(data.gallery, kind)]) for kind in ("ids", "cams")
        )
        known = np.flatnonzero(ids > 0)
        _, person = np.unique(ids[known], return_inverse=True)
        _, pair = np.unique(np.stack([ids[known], cams[known]]), axis=1, return_inverse=True)
        own = np.bincount(pair.ravel())[pair.ravel()]
        every = np.bincount(person)[person]
        near = br.estimate_neighbourhoods(data)
        row = [called(name), "+".join(near.steps) or "-"]
        for kind, truth in (("within", own - 1), ("across", every - own)):
            found = getattr(near, kind)
            row += [f"{truth.mean():.1f}", "-" if found is None else str(found), f"{found.bend:.3f}"]
        rows.append(row)
    heads = ["", "after", "within", "estimate", "bend", "across", "estimate", "bend"]
    print(tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True))


def seconds(names: list[str]) -> None:
    """Print how long choosing and ranking take, against k-reciprocal."""
    rows = []
    for name in names:
        data = loaded(name)
        taken: dict[str, list[float]] = {"k-reciprocal": [], "auto": []}
        for _ in range(3):
            for method, runs in taken.items():
                start = time.perf_counter()
                br.rerank(data, method)
                runs.append(time.perf_counter() - start)
        usual, auto = (float(np.median(runs)) for runs in taken.values())
        rows.append([called(name), f"{usual:.1f} s", f"{auto:.1f} s", f"{auto / usual:.2f}"])
    print(tabulate(rows, headers=["", "k-reciprocal", "auto", "ratio"], tablefmt="github"))


def main() -> None:
    """Print a table."""
    if len(sys.argv) < 3 or sys.argv[1] not in ("gains", "sizes", "seconds"):
        sys.exit(__doc__)
    warnings.simplefilter("ignore", br.BlurrerankWarning)
    {"gains": gains, "sizes": sizes, "seconds": seconds}[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
