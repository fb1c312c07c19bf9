"""What local blurring takes on a CUDA device, beside what the device can do at all.

    python benchmarks/gpu_blur.py

generates features of Market-1501's size on the device and prints, from one run, its measured ceilings and the
floors that follow from them, the blur stage on the plain path and in the fused kernel, and the whole road from
features on the device to lists on the device. `docs/gpu.md` says how the floors are counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch.nn.functional import normalize

import blurrerank as br
from blurrerank.compute.compute import Compute
from blurrerank.engine.ranking import rank_batches
from blurrerank.engine.request import Request
from blurrerank.methods.lbr import LocalBlurring
from blurrerank.spectral import fused
from blurrerank.spectral.neighbourhoods import Blurring

TOPN, SIGMA = 50, 0.1
REPEATS = 30
WARM_UP = 5
# Milliseconds on one H100.
GOAL_BLUR, GOAL_ALL = 1.0, 5.0


class Size(NamedTuple):
    """How much to work on: Market-1501's test set, and what fills a card for the ceilings."""

    probes: int = 3368
    gallery: int = 19732
    dim: int = 2048
    people: int = 751
    square: int = 8192
    copied: int = 1 << 28


def times(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Milliseconds of each call, by events on the device; the calls take turns, so that all meet one card."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            found[name].append(start.elapsed_time(end))
    return found


def product(dtype: torch.dtype, precision: str, side: int, device: torch.device) -> Callable[[], torch.Tensor]:
    """A product of two random squares; zeros would be faster than any real numbers."""
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(one)

    def multiply() -> torch.Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return torch.mm(one, other, out=out)
        finally:
            torch.set_float32_matmul_precision(before)

    return multiply


def ceilings(size: Size, device: torch.device) -> dict[str, float]:
    """Bytes, and operations, per millisecond: the best that the device was seen to do."""
    source = torch.randn(size.copied, device=device)
    target = torch.empty_like(source)
    found = times(
        {
            "copy": lambda: target.copy_(source),
            "bfloat16": product(torch.bfloat16, "highest", size.square, device),
            "TF32": product(torch.float32, "high", size.square, device),
            "float32": product(torch.float32, "highest", size.square, device),
        }
    )
    # A copy reads and writes every byte.
    work = {"copy": 2 * 4 * size.copied}
    return {name: work.get(name, 2 * size.square**3) / min(taken) for name, taken in found.items()}


def generate(size: Size, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows in clusters, probes of one person together, as in the files of Market-1501."""
    random = torch.Generator(device).manual_seed(0)

    def rows(number: int, people: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(number, size.dim, device=device, generator=random)
        return normalize(centres[people] + noise, dim=1)

    centres = torch.randn(size.people, size.dim, device=device, generator=random)
    drawn = torch.randint(size.people, (size.probes,), device=device, generator=random)
    probe = rows(size.probes, drawn.sort().values)
    gallery = rows(size.gallery, torch.arange(size.gallery, device=device) * size.people // size.gallery)
    return probe, gallery


def errors(
    table: torch.Tensor, places: torch.Tensor, probe: torch.Tensor, answers: dict[str, torch.Tensor]
) -> dict[str, float]:
    """The largest difference of each answer to float64, over the first 64 probes."""
    nodes, queries = table[places[:64]].double(), probe[:64].double()
    steps = torch.softmax(nodes @ nodes.transpose(1, 2) / SIGMA, dim=-1)
    exact = (steps @ (nodes @ queries.unsqueeze(-1))).squeeze(-1)
    return {name: float((answer[:64] - exact).abs().max()) for name, answer in answers.items()}


def report(size: Size, device: torch.device) -> None:
    """Measure and print."""
    best = ceilings(size, device)
    probe, gallery = generate(size, device)
    scores, places = (probe @ gallery.T).topk(TOPN, dim=1)
    method = LocalBlurring(TOPN, SIGMA)
    data = br.FeatureSet.from_arrays(probe, gallery)
    blurs: dict[str, Callable[[], torch.Tensor]] = {
        "plain path": lambda: Blurring()._plain(gallery, places, probe, scores, [SIGMA])[0],
        "fused kernel": lambda: fused.blur(gallery, places, scores, SIGMA),
    }

    def everything() -> None:
        for _ in rank_batches(data, method, Request(), Compute.choose(str(device))):
            pass

    found = times({**blurs, "end to end": everything})
    off = errors(gallery, places, probe, {name: blur() for name, blur in blurs.items()})

    nodes = fused.nodes_for(TOPN)
    reading = 4 * size.probes * TOPN * size.dim / best["copy"]
    gram = 2 * size.probes * nodes**2 * size.dim
    computing = 3 * gram / best["TF32"]
    floor = max(reading, computing)
    search = 2 * size.probes * size.gallery * size.dim
    print(f"{size.probes} probes x {size.gallery} gallery x {size.dim}, topn {TOPN}, sigma {SIGMA}\n")
    measured = [
        ["copy on the device, read and written", best["copy"] / 1e9, "TB/s"],
        *([f"product, {name}", best[name] / 1e9, "TFLOPS"] for name in ("bfloat16", "TF32", "float32")),
    ]
    print(tabulate(measured, ["ceiling, measured", "best", ""], floatfmt=".2f"))
    floors = [
        ["blur: every row read once a probe", reading],
        [f"blur: 3xTF32 of {nodes} x {nodes}", computing],
        [f"blur: float32 of {nodes} x {nodes}", gram / best["float32"]],
        *([f"search: product in {name}", search / best[name]] for name in ("bfloat16", "TF32", "float32")),
    ]
    print("\n" + tabulate(floors, ["floor, from these", "ms"], floatfmt=".3f"))
    rows = [
        [name, median(taken), min(taken), max(taken), median(taken) / floor, GOAL_BLUR, off[name]]
        for name, taken in found.items()
        if name in off
    ]
    taken = found["end to end"]
    least = floor + search / best["bfloat16"]
    rows.append(["end to end", median(taken), min(taken), max(taken), median(taken) / least, GOAL_ALL, None])
    header = ["", "median ms", "least", "most", "times the floor", "goal ms", "largest error"]
    print("\n" + tabulate(rows, header, floatfmt=(".3f",) * 6 + (".1e",), missingval="-"))
    print(f"\n{REPEATS} runs each, in turns; the error is to float64, of 64 probes")


def main() -> None:
    """Print a report on the current CUDA device, or one line where there is none."""
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device: run this where torch sees one")
    device = torch.device("cuda", torch.cuda.current_device())
    if not fused.available(device):
        sys.exit("the fused kernel needs Triton and compute capability 8.0: see `fused.available`")
    import triton

    about = torch.cuda.get_device_properties(device)
    print(
        f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}; "
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, Triton {triton.__version__}"
    )
    report(Size(), device)


if __name__ == "__main__":
    main()
