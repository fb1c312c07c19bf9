"""How the time of exact lists grows with the gallery and the dimension, beside torch and FAISS.

    python benchmarks/growth.py [--figure docs/growth.svg] [--gallery 10000,100000] [--dims 128,2048]

For each size features are generated and asked for the lists of 50 of 1,024 probes: by blurrerank's search
(`cosine`) and local blurring (`lbr`), which normalise features themselves; by torch's float32 product and top-n
and by FAISS's flat index, which get normalised rows and an index that is built, outside of the time.
The faster of two turns counts, forwards and backwards. Galleries of more than 5 GB as float32 are left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from tabulate import tabulate
from torch.nn.functional import normalize

import blurrerank as br
from blurrerank.compute.compute import Compute
from blurrerank.engine.ranking import rank_batches
from blurrerank.engine.request import Request
from blurrerank.methods import create
from blurrerank.studies.synth import Size, synthesize

_PROBES, _TOPN, _MOST_BYTES = 1024, 50, 5e9
# Threads of one library may still be waiting for work when another begins.
_PAUSE_SECONDS = 0.5
_NAMES = ("cosine", "lbr", "torch", "FAISS flat")


def ours(data: br.FeatureSet, method: str) -> Callable[[], object]:
    """Exact lists by blurrerank, with memory for all rows."""
    compute = Compute.choose("cpu", 24 << 30)
    return lambda: list(rank_batches(data, create(method, topn=_TOPN), Request(), compute))


def by_torch(probe: torch.Tensor, gallery: torch.Tensor) -> None:
    """One float32 product and one top-n, some probes at a time."""
    for some in torch.split(probe, 256):
        (some @ gallery.T).topk(_TOPN, dim=1)


def seconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The faster of two turns of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    # What has not been used for a while may have to be fetched again.
    for order in (names, names[::-1]):
        for name in order:
            time.sleep(_PAUSE_SECONDS)
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in times.items()}


def measure(gallery: int, dim: int) -> dict[str, float]:
    """Seconds of each way to make lists, for generated features."""
    size = Size(_PROBES, gallery, dim, ids=gallery // 20, cams=6)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "features.h5")
        synthesize(path, size)
        loaded = br.load(path, memory=1 << 40)
        sides = [np.ascontiguousarray(side.features[:]) for side in (loaded.probe, loaded.gallery)]
    data = br.FeatureSet.from_arrays(*sides)
    probe, rows = (normalize(torch.from_numpy(side)) for side in sides)
    index = faiss.IndexFlatIP(dim)
    index.add(rows.numpy())
    return seconds(
        {
            "cosine": ours(data, "cosine"),
            "lbr": ours(data, "lbr"),
            "torch": lambda: by_torch(probe, rows),
            "FAISS flat": lambda: index.search(probe.numpy(), _TOPN),
        }
    )


def draw(path: str, found: dict[tuple[int, int], dict[str, float]]) -> None:
    """Time against the size of the gallery, a panel for each dimension."""
    import matplotlib.pyplot as plt

    dims = sorted({dim for _, dim in found})
    figure, panels = plt.subplots(1, len(dims), figsize=(3.4 * len(dims), 3.2), sharey=True, squeeze=False)
    styles = zip(_NAMES, ("#0072b2", "#009e73", "#d55e00", "#5f6b76"), "osv^", strict=True)
    looks = {name: {"color": color, "marker": marker} for name, color, marker in styles}
    for panel, dim in zip(panels[0], dims, strict=True):
        sizes = sorted(size for size, other in found if other == dim)
        for name, look in looks.items():
            panel.loglog(sizes, [found[size, dim][name] for size in sizes], label=name, lw=1.5, ms=4, **look)
        panel.set_title(f"{dim} dimensions", fontsize=10)
        panel.set_xlabel("gallery items")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"seconds for {_PROBES:,} probes")
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", metavar="FILE", help="draw it, as .svg, .png or .pdf; needs matplotlib")
    parser.add_argument("--gallery", default="10000,30000,100000,300000,1000000", help="sizes of galleries")
    parser.add_argument("--dims", default="128,512,2048", help="dimensions")
    asked = parser.parse_args()
    faiss.omp_set_num_threads(torch.get_num_threads())
    found = {}
    for dim in map(int, asked.dims.split(",")):
        for size in map(int, asked.gallery.split(",")):
            if 4 * size * dim <= _MOST_BYTES:
                found[size, dim] = measure(size, dim)
                print(f"{size} x {dim}: {found[size, dim]}", flush=True)
    rows = [(dim, size, *(times[name] for name in _NAMES)) for (size, dim), times in found.items()]
    print(tabulate(rows, headers=["dimensions", "gallery", *(f"{name} s" for name in _NAMES)], floatfmt=".2f"))
    if asked.figure:
        draw(asked.figure, found)


if __name__ == "__main__":
    main()
