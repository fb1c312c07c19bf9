"""k-reciprocal re-ranking by the functions of torchreid and fast-reid: quality, seconds and memory on a CPU.

    python benchmarks/authors.py torchreid FEATS
    python benchmarks/authors.py fastreid FEATS

prints JSON. `make recipes` installs both packages, and `benchmarks/evidence.py` calls this for each that is
installed. It measures what their evaluators do from features to sorted distances: torchreid with
`normalize_feature`, fast-reid with `TEST.RERANK` and the metric `cosine`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

import blurrerank as br
from blurrerank.compute.peak_memory import PeakMemory

K1, K2, LAMBDA = 20, 6, 0.3


def module(package: str, path: str) -> ModuleType:
    """One module of a package without the rest of it, which imports models and image libraries."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"{package} is not installed: make recipes")
    spec = importlib.util.spec_from_file_location("theirs", Path(found.submodule_search_locations[0], path))
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    return theirs


def by_torchreid(probe: torch.Tensor, gallery: torch.Tensor) -> np.ndarray:
    """Squared Euclidean distances, as its `compute_distance_matrix` makes them, then its `re_ranking`."""
    distance = module("torchreid", "reid/metrics/distance.py").compute_distance_matrix
    re_ranking = module("torchreid", "reid/utils/rerank.py").re_ranking
    pairs = (probe, gallery), (probe, probe), (gallery, gallery)
    return re_ranking(*(distance(*pair).numpy() for pair in pairs), K1, K2, LAMBDA)


def by_fastreid(probe: torch.Tensor, gallery: torch.Tensor) -> np.ndarray:
    """Its Jaccard distance, mixed with the cosine distance."""
    compute = importlib.import_module("fastreid.utils.compute_dist")
    jaccard = compute.compute_jaccard_distance(torch.cat([probe, gallery]), k1=K1, k2=K2, search_option=3)
    cosine = compute.build_dist(probe, gallery, "cosine")
    return (1 - LAMBDA) * jaccard[: len(probe), len(probe) :] + LAMBDA * cosine


def main() -> None:
    """Measure one function on one file."""
    programs = {"torchreid": by_torchreid, "fastreid": by_fastreid}
    if len(sys.argv) != 3 or sys.argv[1] not in programs:
        sys.exit(__doc__)
    data = br.load(sys.argv[2])
    sides = (data.probe, data.gallery)
    probe, gallery = (torch.nn.functional.normalize(side.block(0, len(side)).float(), dim=1) for side in sides)
    programs[sys.argv[1]](probe[:50], gallery[:100])  # imports, and the first use of threads
    memory = PeakMemory(torch.device("cpu"))
    start = time.perf_counter()
    distances = programs[sys.argv[1]](probe, gallery)
    np.argsort(distances, axis=1)
    seconds = time.perf_counter() - start
    memory.stop()
    labels = {
        f"{name}_{kind}": getattr(side, kind)
        for name, side in zip(("probe", "gallery"), sides, strict=True)
        for kind in ("ids", "cams")
    }
    matrix = br.SimilaritySet.from_matrices(distances, kind="cosine-distance", **labels)
    found = {"metrics": br.evaluate(matrix).means(), "seconds": seconds, "peak_bytes": memory.host}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
