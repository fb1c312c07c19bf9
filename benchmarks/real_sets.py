"""Methods side by side on several feature files, as a table for a document.

    python benchmarks/real_sets.py METHOD[,METHOD...] FEATS [FEATS...]

prints mAP / rank-1 in per cent, protocol market1501. A method that ends with @ ranks each probe by itself; its
camera images are the probes of the other half of the identities, so that no probe is among them, and
its figures are means over five draws of the halves.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from tabulate import tabulate

import blurrerank as br
from blurrerank.methods import AUTO, create
from blurrerank.methods.kinds.steps import Transform

_DRAWS = 5


def measured(data: br.FeatureSet, method: str) -> tuple[float, float]:
    """mAP and rank-1, transductive."""
    found = br.evaluate(br.rerank(data, method), data).summary()
    return found["mAP"], found["rank1"]


def _takes_camera_images(method: str) -> bool:
    """Whether a method can take camera images."""
    if method == AUTO:
        return True
    return any(isinstance(step, Transform) and step.needs_cameras for step in create(method).feature_steps)


def measured_online(data: br.FeatureSet, method: str) -> tuple[float, float]:
    """The same, each probe by itself, with camera images: the probes of the other half of the identities."""
    if not _takes_camera_images(method):
        found = br.evaluate(br.rerank(data, method, online=True), data).summary()
        return found["mAP"], found["rank1"]
    ids, features = data.probe.ids, np.asarray(data.probe.features[:])
    found = []
    for seed in range(_DRAWS):
        drawn = np.random.default_rng(seed).permutation(np.unique(ids))
        first = np.isin(ids, drawn[: len(drawn) // 2])
        for half in (first, ~first):
            probe = br.Side(features[half], ids[half], data.probe.cams[half], label="probe")
            other = br.Side(features[~half], cams=data.probe.cams[~half], label="camera images")
            some = br.FeatureSet(probe, data.gallery)
            ranking = br.rerank(some, method, online=True, camera_images=other)
            summary = br.evaluate(ranking, some).summary()
            found.append((summary["mAP"], summary["rank1"], summary["valid_probes"]))
    weights = [valid for *_, valid in found]
    return tuple(np.average([one[part] for one in found], weights=weights) for part in (0, 1))  # type: ignore[return-value]


def main() -> None:
    """Print the table."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    methods, files = sys.argv[1].split(","), sys.argv[2:]
    warnings.simplefilter("ignore", br.BlurrerankWarning)
    sets = [br.load(file) for file in files]
    rows = []
    for method in methods:
        row = [f"`{method.rstrip('@')}`{', online' if method.endswith('@') else ''}"]
        for data in sets:
            measure = measured_online if method.endswith("@") else measured
            row.append(" / ".join(f"{100 * value:.1f}" for value in measure(data, method.rstrip("@"))))
        rows.append(row)
        print(row, file=sys.stderr)
    print(tabulate(rows, headers=["", *(Path(file).stem for file in files)], tablefmt="github"))


if __name__ == "__main__":
    main()
