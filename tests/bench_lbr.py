"""`make bench`: our local blurring beside the obvious NumPy loop, on the same generated features, in one run.

Each side runs in processes of its own, alternating, so that neither warms the other's memory figure. Peak
memory is what the process adds to what it held once the features were loaded.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np
from tabulate import tabulate

PROBES, GALLERY, DIM, TOPN, SIGMA = 3368, 19732, 2048, 50, 0.1
REPEATS = 3


def generate(path: str) -> None:
    """751 identities, each a direction with noise around it: sizes of Market-1501."""
    rng = np.random.default_rng(1501)
    centres = rng.standard_normal((751, DIM), dtype=np.float32)
    with h5py.File(path, "w") as file:
        for side, rows in (("probe", PROBES), ("gallery", GALLERY)):
            stored = file.create_dataset(f"{side}/features", (rows, DIM), np.float32)
            ids = np.sort(rng.integers(0, 751, rows))
            for start in range(0, rows, 1024):
                some = ids[start : start + 1024]
                noise = rng.standard_normal((len(some), DIM), dtype=np.float32)
                stored[start : start + 1024] = centres[some] + 2.5 * noise


def memory(field: str) -> int:
    """Bytes resident now (VmRSS) or at the most since the last reset (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))


def measure(side: str, path: str) -> None:
    """Run one side in this process and print seconds and bytes as JSON."""
    with h5py.File(path) as file:
        probe, gallery = file["probe/features"][()], file["gallery/features"][()]
    if side == "ours":
        import blurrerank as br

        work = br.local_blurring
        work(probe[:2], gallery[:64], topn=2)  # load what is loaded once
    else:
        from blurrerank.reference import local_blurring

        def work(probe, gallery, topn, sigma):
            return local_blurring(probe, gallery, topn, sigma, dtype=np.float32)

    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = memory("VmRSS")
    start = time.perf_counter()
    indices = work(probe, gallery, topn=TOPN, sigma=SIGMA)[0]
    seconds = time.perf_counter() - start
    bytes_added = memory("VmHWM") - before
    np.save(f"{path}.{side}.npy", np.asarray(indices))
    print(json.dumps({"seconds": seconds, "bytes": bytes_added}))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "features.h5")
        generate(path)
        sides = ("numpy loop", "ours")
        runs = {side: [] for side in sides}
        for _ in range(REPEATS):
            for side in sides:
                done = subprocess.run(
                    [sys.executable, __file__, side, path], check=True, stdout=subprocess.PIPE
                )
                runs[side].append(json.loads(done.stdout))
        lists = [np.load(f"{path}.{side}.npy") for side in sides]
    seconds = {side: statistics.median(run["seconds"] for run in runs[side]) for side in sides}
    added = {side: max(run["bytes"] for run in runs[side]) for side in sides}
    print(
        f"{PROBES} probes x {GALLERY} gallery x {DIM}, float32, top {TOPN}, sigma {SIGMA}; "
        f"{os.cpu_count()} cores; median of {REPEATS} runs, from features in memory to re-ranked lists\n"
    )
    print(
        tabulate(
            [
                [side, seconds[side], seconds["numpy loop"] / seconds[side], added[side] / 2**20]
                for side in sides
            ],
            headers=["", "seconds", "times as fast", "peak MiB above the features"],
            floatfmt=("", ".2f", ".2f", ".0f"),
        )
    )
    spread = {side: [round(run["seconds"], 2) for run in runs[side]] for side in sides}
    print(f"\nall runs, seconds: {spread}")
    print(f"positions where both lists are the same: {np.mean(lists[0] == lists[1]):.4%}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(*sys.argv[1:])
    else:
        main()
