"""`make bench`: our local blurring beside the obvious NumPy loop, on the same generated features, in one run.

Each side runs in processes of its own, alternating, so that neither warms the other's memory figure. Peak
memory is what the process adds to what it held once the features were loaded.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
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


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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

    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    indices = work(probe, gallery, topn=TOPN, sigma=SIGMA)[0]
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    peak = max(peak, resident())
    checksum = int(np.asarray(indices)[:, :TOPN].astype(np.int64).sum())
    print(json.dumps({"seconds": seconds, "bytes": peak - before, "checksum": checksum}))


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
    seconds = {side: statistics.median(run["seconds"] for run in runs[side]) for side in sides}
    memory = {side: max(run["bytes"] for run in runs[side]) for side in sides}
    print(
        f"{PROBES} probes x {GALLERY} gallery x {DIM}, float32, top {TOPN}, sigma {SIGMA}; "
        f"{os.cpu_count()} cores; median of {REPEATS} runs, from features in memory to re-ranked lists\n"
    )
    print(
        tabulate(
            [
                [side, seconds[side], seconds["numpy loop"] / seconds[side], memory[side] / 2**20]
                for side in sides
            ],
            headers=["", "seconds", "times as fast", "peak MiB above the features"],
            floatfmt=("", ".2f", ".2f", ".0f"),
        )
    )
    spread = {side: [round(run["seconds"], 2) for run in runs[side]] for side in sides}
    print(f"\nall runs, seconds: {spread}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"largest process: {used / 2**10:.0f} MiB with interpreter, libraries and features")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(*sys.argv[1:])
    else:
        main()
