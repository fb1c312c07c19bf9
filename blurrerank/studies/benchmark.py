"""Methods side by side on one file: how good, how fast, how much memory.

Every run has a process of its own, so that none warms another's memory figure or caches, and the repeats of
all methods alternate, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..compute.compute import Compute, Progress
from ..errors import BlurrerankError
from ..methods import AnyMethod, create

if TYPE_CHECKING:
    import torch

    from ..compute.peak_memory import PeakMemory
    from ..compute.stopwatch import Stopwatch
    from ..data.features import FeatureSet
    from ..data.ranking import Ranking
    from ..data.side import Side
    from ..index.gallery_index import GalleryIndex

REFERENCES = ("cosine", "lbr", "k-reciprocal", "k-reciprocal-online")
"""The methods that `reference.py` has too."""


# Asking one probe at a time stops then, if there are enough.
_ENOUGH_SECONDS = 120


@dataclass(frozen=True)
class Contender:
    """What takes part.

    Attributes:
        method: the method.
        reference: whether its plain version in `reference.py`.
        unranked: whether only what it starts from, by torch alone: one float32 product and one top-n.
    """

    method: AnyMethod
    reference: bool = False
    unranked: bool = False


@dataclass
class Result:
    """What one contender's runs gave.

    Attributes:
        contender: which.
        runs: for each repeat its `seconds` by stage, `peak_bytes`, `gpu_peak_bytes`, `metrics`, `warnings`,
            what it ran on and, if asked for, the `ap` of each probe.
        error: why there are none.
        same: reference only: share of list positions that hold the same item as the method's own lists.
    """

    contender: Contender
    runs: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    same: float | None = None

    def seconds(self, *stages: str) -> float:
        """Median over the repeats of the seconds that `stages` took together, absent ones counting nothing."""
        sums = [sum(run["seconds"].get(stage, 0.0) for stage in stages) for run in self.runs]
        return float(statistics.median(sums))

    def peak(self, name: str = "peak_bytes") -> int | None:
        """The most memory of any repeat, in bytes, beyond the interpreter and its libraries."""
        found = [run[name] for run in self.runs]
        return None if None in found else max(found)


def benchmark(
    path: str,
    gallery: str | None,
    contenders: Sequence[Contender],
    *,
    repeats: int = 3,
    options: Mapping[str, Any],
    progress: Progress | None = None,
) -> list[Result]:
    """Run every contender `repeats` times, each time in a process of its own.

    Args:
        path: the features; see `load`.
        gallery: likewise.
        contenders: a reference goes after its method.
        repeats: how often, at least 1.
        options: `protocol`, `ap`, `device`, `memory`, `precision` and `threads`, as `rerank_measured` and torch
            take them, and `per_probe`, whether runs tell the AP of each probe.
        progress: called with (runs done, runs in all).

    Returns:
        One result for each contender. One that failed says why and does not keep the others from running.
    """
    results = [Result(contender) for contender in contenders]
    with tempfile.TemporaryDirectory() as folder:
        done = 0
        for _ in range(repeats):
            for number, result in enumerate(results):
                if result.error is None:
                    task = {
                        "path": path,
                        "gallery": gallery,
                        "method": result.contender.method.name,
                        "params": result.contender.method.params(),
                        "reference": result.contender.reference,
                        "unranked": result.contender.unranked,
                        "lists": str(Path(folder, f"{number}.npy")),
                        **options,
                    }
                    try:
                        result.runs.append(_run(task))
                    except BlurrerankError as error:
                        result.error, result.runs = str(error), []
                done += 1
                if progress is not None:
                    progress(done, repeats * len(results))
        for result in results:
            other = ours(result, results)
            if result.contender.reference and result.runs and other is not None:
                lists = [np.load(Path(folder, f"{results.index(one)}.npy")) for one in (result, other)]
                result.same = float((lists[0] == lists[1]).mean())
    return results


def _run(task: Mapping[str, Any]) -> dict[str, Any]:
    """One run in a new process."""
    # From where this one has its modules: `-m` would look into the current folder first.
    program = f"import sys; sys.path[:] = {sys.path!r}; from blurrerank.cli import main; main()"
    command = [sys.executable, "-c", program, "measure", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode < 0:
        why = ", for lack of memory probably" if done.returncode == -signal.SIGKILL else ""
        raise BlurrerankError(f"killed by signal {-done.returncode}{why}")
    if done.returncode:
        raise BlurrerankError((done.stderr.strip().splitlines() or ["failed"])[-1].removeprefix("error: "))
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ours(reference: Result, results: Sequence[Result]) -> Result | None:
    """The result of the method that `reference` is the plain version of, if it has one."""
    method = Contender(reference.contender.method)
    return next((result for result in results if result.runs and result.contender == method), None)


@dataclass(frozen=True)
class Asked:
    """What an index is asked for.

    Attributes:
        method: what re-ranks.
        exact: whether to look at all items where the index is searched approximately.
        effort: how much to look at otherwise; by default what the index was built with.
    """

    method: AnyMethod
    exact: bool = False
    effort: int | None = None


@dataclass(frozen=True)
class Latency:
    """How long probes take against an index, and how good the lists are.

    Attributes:
        asked: what it was asked for.
        alone: seconds of each probe that was asked for by itself, from features to a list.
        search: seconds a probe when all are asked for together: of the search.
        rerank: likewise: of everything after it.
        probes: how many were asked for together.
        ranking: the lists of all probes.
    """

    asked: Asked
    alone: list[float]
    search: float
    rerank: float
    probes: int
    ranking: Ranking

    def overlap(self, exact: Ranking) -> float:
        """Return the mean share of the items of exact lists that these lists have."""
        shared = [
            len(np.intersect1d(one, other)) / len(other)
            for one, other in zip(self.ranking.indices, exact.indices, strict=True)
        ]
        return float(np.mean(shared))


def latency(
    index: GalleryIndex,
    probe: Side,
    contenders: Sequence[Asked],
    *,
    alone: int = 300,
    repeats: int = 3,
    memory: int | None = None,
    progress: Progress | None = None,
) -> list[Latency]:
    """Ask an index, in this process, for one probe after another and for all together.

    Args:
        index: the gallery.
        probe: the probes; those asked for alone are taken from the first on, again if there are fewer.
        contenders: what it is asked for, in turn.
        alone: how many probes to ask for by themselves, after a tenth of that to warm up; a third of them must
            do where that takes more than two minutes.
        repeats: how often to ask for all together; the median counts.
        memory: budget in bytes; see `rerank`.
        progress: called with (rounds done, rounds in all).

    Returns:
        One for each contender.
    """
    from ..data.ranking import Ranking
    from ..data.side import Side
    from ..engine.ranking import rank_batches
    from ..engine.rerank import rank

    singles: list[list[float]] = [[] for _ in contenders]
    together: list[list[dict[str, float]]] = [[] for _ in contenders]
    requests = [index.request(one.method, exact=one.exact, effort=one.effort) for one in contenders]
    rounds = alone // 10 + alone + repeats
    began = time.perf_counter()
    for turn in range(alone // 10 + alone):
        at = turn % len(probe)
        cams = None if probe.cams is None else probe.cams[at : at + 1]
        single = Side(probe.block(at, at + 1), cams=cams, label=probe.label, texts=probe.texts)
        for one, request, seconds in zip(contenders, requests, singles, strict=True):
            start = time.perf_counter()
            compute = Compute.choose(index.device, memory)
            rank(index.features(single), one.method, request, compute)
            if turn >= alone // 10:
                seconds.append(time.perf_counter() - start)
        if progress is not None:
            progress(turn + 1, rounds)
        if 3 * len(singles[0]) >= alone and time.perf_counter() - began > _ENOUGH_SECONDS:
            break
    data = index.features(probe)
    lists: list[Any] = [None] * len(contenders)
    for turn in range(repeats):
        for number, (one, request) in enumerate(zip(contenders, requests, strict=True)):
            compute, found = Compute.choose(index.device, memory), []
            for batch in rank_batches(data, one.method, request, compute):
                with compute.watch("re-rank"):
                    found.append(batch.lists(one.method.depth(len(index))))
            together[number].append(compute.watch.seconds)
            lists[number] = [np.concatenate(part) for part in zip(*found, strict=True)]
        if progress is not None:
            progress(rounds - repeats + turn + 1, rounds)
    answers = []
    for one, seconds, runs, (indices, scores) in zip(contenders, singles, together, lists, strict=True):
        search, rerank = (
            statistics.median(run[stage] for run in runs) / len(probe) for stage in ("search", "re-rank")
        )
        ranking = Ranking(indices, scores, gallery_size=len(index), source=one.method.name)
        answers.append(Latency(one, seconds, search, rerank, len(probe), ranking))
    return answers


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """What a new process does: load the libraries, warm up, then run and look at the clock and the memory.

    Args:
        task: as `benchmark` makes it.

    Returns:
        One of `Result.runs`.

    Raises:
        BlurrerankError: for whatever is wrong with the features or the options.
    """
    import warnings

    import torch

    from ..compute.peak_memory import PeakMemory
    from ..data.features import FeatureSet
    from ..data.side import Side
    from ..engine.request import Request
    from ..engine.runs import Measurement, rerank_measured
    from ..errors import BlurrerankWarning
    from ..files import load

    compute = Compute.choose(
        task["device"], task["memory"], precision=task["precision"], threads=task["threads"]
    )
    method, device, watch = create(task["method"], **task["params"]), compute.device, compute.watch
    lists: list[NDArray[Any]] = []
    per_probe: dict[str, Any] = {}
    random = np.random.default_rng(0)
    some = random.standard_normal((600, 64), dtype=np.float32)
    ids, cams = random.integers(1, 20, 600), random.integers(1, 4, 600)
    few = FeatureSet(Side(some[:100], ids[:100], cams[:100]), Side(some[100:], ids[100:], cams[100:]))
    request = Request(online=task["online"])
    warm_up = Compute.choose(task["device"])
    rerank_measured(few, method, request, Measurement(), warm_up)

    memory = PeakMemory(device)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", BlurrerankWarning)
        data = load(task["path"], task["gallery"], memory=task["memory"])
        if task["unranked"]:
            metrics = None
            _unranked(method, data, device, watch, memory, lists)
        elif task["reference"]:
            metrics = _reference(method, data, task["protocol"], task["ap"], watch, memory, lists)
        else:
            found = rerank_measured(
                data,
                method,
                request,
                Measurement(task["protocol"], task["ap"]),
                compute,
                write=lambda start, indices, scores: lists.append(indices),
            )
            metrics = None if found.after is None else found.after.summary()
            if task["per_probe"] and found.after is not None:
                per_probe["ap"] = found.after.ap.tolist()
            memory.stop()
    np.save(task["lists"], np.concatenate(lists))
    return {
        "seconds": watch.seconds,
        "peak_bytes": memory.host,
        "gpu_peak_bytes": memory.device,
        "metrics": metrics,
        "warnings": [str(one.message) for one in warned if issubclass(one.category, BlurrerankWarning)],
        "probes": len(data.probe),
        "gallery": len(data.gallery),
        "dim": data.dim,
        "threads": torch.get_num_threads(),
        "device": str(device),
        **per_probe,
    }


def _unranked(
    method: AnyMethod,
    data: FeatureSet,
    device: torch.device,
    watch: Stopwatch,
    memory: PeakMemory,
    lists: list[NDArray[Any]],
) -> None:
    """The list that re-ranking starts from, by torch alone; that rows are there normalised costs nothing."""
    from ..search.rows import unit_rows

    probe, gallery = (unit_rows(side.block(0, len(side)), device) for side in (data.probe, data.gallery))
    with watch("search"):
        lists.append((probe @ gallery.T).topk(method.depth(len(gallery)), dim=1).indices.cpu().numpy())
    memory.stop()


def _reference(
    method: AnyMethod,
    data: FeatureSet,
    protocol: str,
    ap: str,
    watch: Stopwatch,
    memory: PeakMemory,
    lists: list[NDArray[Any]],
) -> dict[str, float | None] | None:
    """The same by `reference.py`, in float32 and in memory, lists and metrics both."""
    from .. import reference
    from ..evaluation.metrics import CMC_RANKS, MEANS

    params = {**method.params(), "dtype": np.float32}
    with watch("re-rank"):
        probe, gallery = (np.asarray(side.features[:]) for side in (data.probe, data.gallery))
        if method.name == "cosine":
            order = reference.cosine_ranking(probe, gallery, np.float32)[0]
        elif method.name == "lbr":
            order = reference.local_blurring(probe, gallery, **params)[0]
        elif method.name == "k-reciprocal":
            order = np.argsort(reference.k_reciprocal(probe, gallery, **params), axis=1, kind="stable")
        else:
            scores = reference.k_reciprocal_online(probe, gallery, **params)
            order = np.argsort(-scores, axis=1, kind="stable")
    memory.stop()
    lists.append(order[:, : method.depth(len(gallery))])
    if not data.has_ids:
        return None
    with watch("metrics"):
        if order.shape[1] < len(gallery):
            heads, order = order, reference.cosine_ranking(probe, gallery, np.float32)[0]
            order[:, : heads.shape[1]] = heads
        assert data.probe.ids is not None
        assert data.gallery.ids is not None
        found = reference.evaluate(
            order, data.probe.ids, data.gallery.ids, data.probe.cams, data.gallery.cams, protocol=protocol
        )
    valid = ~np.isnan(found["ap"])
    if not valid.any():
        return None
    cmc = found["cmc"][valid].mean(axis=0)
    average = found["ap" if ap == "plain" else "ap_trapezoid"]
    means = (average[valid].mean(), found["inp"][valid].mean(), *(cmc[k - 1] for k in CMC_RANKS))
    return dict(zip(MEANS, means, strict=True))
