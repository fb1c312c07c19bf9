"""`blurrerank bench`: methods side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..methods import available
from .latencies import ALL, show_latencies
from .options import (
    Runtime,
    features_argument,
    json_option,
    metrics_options,
    precision_option,
    runtime_options,
    style_options,
)
from .tables import comparison_line, method_label, print_json, table

if TYPE_CHECKING:
    from ..evaluation.significance import Comparison
    from ..methods import AnyMethod
    from ..studies.benchmark import Contender, Result

_MEANS = ("mAP", "mINP", "rank1", "rank5", "rank10")
_STAGES = ("index", "search", "re-rank", "metrics")


@click.command(short_help="Run methods side by side: quality, speed, memory.")
@features_argument
@click.option(
    "--methods",
    default=ALL,
    show_default=True,
    metavar="LIST",
    help="Methods or chains, separated by commas; parameters follow colons, as in lbr:topn=20:sigma=0.2, "
    "k-reciprocal:preset=cuhk03 or dba:k=4+lbr. all runs every method and groups them by the data they "
    "need. Methods: " + ", ".join(available()) + ".",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Number of runs of each method.",
)
@click.option(
    "--reference",
    is_flag=True,
    help="Also run the plain NumPy version of each method in float32, and the search before lbr in plain "
    "torch: one float32 product of normalised features and a top-n. The plain k-reciprocal holds three "
    "matrices of all images by all images in memory.",
)
@click.option(
    "--online",
    is_flag=True,
    help="Rank each probe independently of the other probes; refused for methods that need all of them.",
)
@click.option(
    "--index",
    metavar="FILE",
    help="Measure the time to answer probes of FEATS from an index written by `blurrerank index`: single "
    "probes (p50 and p99) and all together, by default with the method of the index, lbr and cosine. An "
    "approximate search is compared with a search of all items: overlap of the lists and, with ids, mAP "
    "to their depth.",
)
@click.option(
    "--effort",
    metavar="LIST",
    help="Values of `run --effort` to compare for an index built with --ann, separated by commas.  [default: "
    "as the index was built]",
)
@click.option(
    "--exact-index",
    metavar="FILE",
    help="Compare lists with those of this index, built without --ann, instead of a search of all items of "
    "the same index.",
)
@click.option(
    "compare",
    "--compare",
    nargs=2,
    metavar="A B",
    help="Also test whether method A is better than method B. Both must be among --methods, written in the "
    "same way.",
)
@style_options
@metrics_options
@json_option
@precision_option
@runtime_options
def bench(runtime: Runtime, **arguments: Any) -> None:
    """Run methods side by side on FEATS and compare quality, seconds and peak memory.

    Each run is a process of its own, and the methods take turns. Seconds are medians over the repeats,
    from an open file to lists in memory (search and re-rank), and for the metrics. Work on the gallery alone is
    listed as index and does not count in probes/s. Memory is the peak over the repeats, features included,
    beyond what the interpreter and its libraries need.

    \b
    blurrerank bench feats.h5
    blurrerank bench feats.h5 --methods lbr,lbr:topn=100,k-reciprocal --markdown
    blurrerank bench feats.h5 --compare lbr cosine
    blurrerank bench probes.h5 --index gallery.index.h5
    """
    from ..errors import ParameterError

    options = BenchOptions(**arguments)
    runtime.start()
    if options.index is not None:
        others = {
            "--gallery": options.gallery,
            "--reference": options.reference,
            "--compare": options.compare,
            "--online": options.online,
        }
        other = next((name for name, value in others.items() if value), None)
        if other is not None:
            raise ParameterError(f"{other} cannot be used with --index: leave one out")
        show_latencies(
            options.index,
            options.feats,
            runtime,
            methods=options.methods,
            effort=options.effort,
            exact_index=options.exact_index,
            repeats=options.repeats,
            style=options.style,
            as_json=options.as_json,
        )
        return
    if options.effort is not None or options.exact_index is not None:
        raise ParameterError("--effort and --exact-index apply to an index: add --index FILE")
    _bench(options, runtime)


@dataclass(frozen=True)
class BenchOptions:
    """The options of `bench`; each is described where it is declared."""

    feats: str
    gallery: str | None
    methods: str
    repeats: int
    reference: bool
    online: bool
    index: str | None
    effort: str | None
    exact_index: str | None
    compare: tuple[str, str] | None
    style: str | None
    protocol: str
    ap: str
    as_json: bool
    precision: str


def _contenders(options: BenchOptions, chosen: Sequence[AnyMethod]) -> list[Contender]:
    """What takes part: the methods, and what --reference adds."""
    from ..errors import ParameterError
    from ..evaluation.protocols import get_protocol
    from ..methods import HeadRanker
    from ..studies.benchmark import REFERENCES, Contender

    if len(set(chosen)) < len(chosen):
        raise ParameterError(f"{options.methods} names a method twice with the same parameters")
    contenders = [Contender(method) for method in chosen]
    if options.reference and get_protocol(options.protocol).single_shot:
        raise ParameterError(
            f"--reference enumerates every draw of protocol {options.protocol}, which would never end: "
            "choose another protocol"
        )
    if options.reference:
        contenders += [Contender(method, reference=True) for method in chosen if method.name in REFERENCES]
        heads = [method for method in chosen if isinstance(method, HeadRanker)]
        heads.sort(key=lambda method: method.name != "lbr")
        contenders += [Contender(method, unranked=True) for method in heads[:1]]
    return contenders


def _bench(options: BenchOptions, runtime: Runtime) -> None:
    """Run methods side by side."""
    from ..engine.plans import plan_for
    from ..engine.request import Request, needs_of, setting_of
    from ..errors import InputError, ParameterError
    from ..files import load
    from ..methods import available, create, split_methods
    from ..studies.benchmark import REFERENCES, benchmark
    from ..studies.cameras import camera_bias

    every = options.methods == ALL
    if not every:
        chosen = [create(name) for name in split_methods(options.methods)]
    else:
        chosen = []
        for name in available():
            try:
                method = create(name)
                setting_of(method, options.online)
            except ParameterError as error:  # one that cannot be loaded, or not rank online
                runtime.note(f"note: {error}")
            else:
                chosen.append(method)
    data = load(options.feats, options.gallery, memory=runtime.memory, notify=runtime.note)
    if every and not data.has_cams:
        for method in chosen:
            if method.needs_cameras:
                runtime.note(f"note: {data.lacking('cams')}: method {method.name} needs them")
        chosen = [method for method in chosen if not method.needs_cameras]
    if every:
        chosen.sort(key=lambda method: needs_of(method, options.online)[::-1])
    bias = camera_bias(data)
    if bias is not None and bias.matters and not any(method.needs_cameras for method in chosen):
        runtime.note(f"note: {bias}: try center+camera-graph")
    compared = [_chosen(text, chosen) for text in options.compare or ()]
    contenders = _contenders(options, chosen)
    for method in chosen:
        if options.reference and method.name not in REFERENCES:
            runtime.note(f"note: {method.name} has no plain version, so --reference adds none")
    compare, repeats = options.compare, options.repeats
    if compare is not None and not data.has_ids:
        raise InputError(f"{data.lacking('ids')}: --compare needs them")
    request = Request(whole_rows=data.has_ids, online=options.online)
    for method in chosen:  # what one run would refuse, all would
        setting_of(method, options.online)
        plan_for(data, method.ranker, request, runtime.compute())
    size = f"{len(data.probe)} probes x {len(data.gallery)} gallery x {data.dim}"
    del data
    results = benchmark(
        options.feats,
        options.gallery,
        contenders,
        repeats=repeats,
        options={
            "protocol": options.protocol,
            "ap": options.ap,
            "device": runtime.device,
            "memory": runtime.memory,
            "precision": options.precision,
            "threads": runtime.threads,
            "online": options.online,
            "per_probe": compare is not None,
        },
        progress=runtime.progress("benchmark", unit=" runs"),
    )
    for warned in dict.fromkeys(one for result in results for run in result.runs for one in run["warnings"]):
        runtime.note(f"warning: {warned}")
    first = next((result.runs[0] for result in results if result.runs), None)
    comparison = None if compare is None else _compared(results, compared)
    if options.as_json:
        summary: Any = [_plain(result, results, options.online) for result in results]
        if compare is not None:
            figures = None if comparison is None else comparison.summary()
            summary = {
                "results": summary,
                "comparison": figures and {"a": compare[0], "b": compare[1], **figures},
            }
        print_json(summary)
    elif first is not None:
        runs = f"median of {repeats} runs" if repeats > 1 else "one run"
        head = (
            f"{size}; {first['device']}, {first['threads']} threads, {os.cpu_count()} cores; "
            f"protocol {options.protocol}, {options.ap} AP; {runs}"
        )
        click.echo(_table(head, results, options))
        if comparison is not None:
            a, b = (method_label(method.name, method.params()) for method in compared)
            click.echo(f"\n{comparison_line(a, b, comparison, options.style)}")
    failed = [f"{_label(result.contender)}: {result.error}" for result in results if result.error]
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(results)} failed; {'; '.join(failed)}")


@click.command(hidden=True)
@click.argument("task")
def measure(task: str) -> None:
    """One run of `bench`, in a process of its own: TASK is JSON, and so is the answer."""
    from ..studies.benchmark import measure as run

    click.echo(json.dumps(run(json.loads(task))))


def _label(contender: Contender) -> str:
    label = method_label(contender.method.name, contender.method.params())
    if contender.unranked:
        return f"matmul and topk, torch alone, for {label}"
    return f"{label}, reference" if contender.reference else label


def _plain(result: Result, results: Sequence[Result], online: bool) -> dict[str, Any]:
    """A result, ready for JSON."""
    from ..engine.request import needs_of
    from ..studies.benchmark import ours

    row: dict[str, Any] = {
        "method": result.contender.method.name,
        "params": result.contender.method.params(),
        "needs": needs_of(result.contender.method, online),
        "reference": result.contender.reference,
        "unranked": result.contender.unranked,
        "error": result.error,
        "runs": [{key: value for key, value in run.items() if key != "ap"} for run in result.runs],
    }
    if result.runs:
        total = result.seconds("search", "re-rank")
        row |= {
            "seconds": {stage: result.seconds(stage) for stage in _STAGES},
            "probes_per_second": result.runs[0]["probes"] / total,
            "peak_bytes": result.peak(),
            "gpu_peak_bytes": result.peak("gpu_peak_bytes"),
            "metrics": result.runs[0]["metrics"],
        }
        method = ours(result, results)
        if (result.contender.reference or result.contender.unranked) and method is not None:
            peak, theirs = method.peak(), result.peak()
            row["times_as_slow"] = total / method.seconds("search", "re-rank")
            row["times_the_memory"] = theirs / peak if peak and theirs else None
            row["same_positions"] = result.same
    return row


def _chosen(text: str, chosen: Sequence[AnyMethod]) -> AnyMethod:
    """The one of the chosen methods that `text` names."""
    from ..errors import ParameterError
    from ..methods import create

    method = create(text)
    if method not in chosen:
        raise ParameterError(f"--compare {text}: this is not one of --methods; add it there")
    return method


def _compared(results: Sequence[Result], methods: Sequence[AnyMethod]) -> Comparison | None:
    """The comparison of two methods, unless one of them failed."""
    import numpy as np

    from ..evaluation.significance import compare_ap
    from ..studies.benchmark import Contender

    ran = {result.contender: result.runs[0] for result in results if result.runs}
    runs = [ran.get(Contender(method)) for method in methods]
    a, b = (None if run is None else run["ap"] for run in runs)
    return None if a is None or b is None else compare_ap(np.array(a), np.array(b))


def _table(head: str, results: Sequence[Result], options: BenchOptions) -> str:
    reference = options.reference
    labelled = [
        (_label(result.contender), _plain(result, results, options.online)) for result in results if result.runs
    ]
    needs = any(row["needs"] for _, row in labelled)
    on_gpu = any(row["gpu_peak_bytes"] is not None for _, row in labelled)
    headers = ["", *["needs"] * needs, "mAP", "mINP", "rank-1", "rank-5", "rank-10"]
    indexes = any(row["seconds"]["index"] for _, row in labelled)
    headers += ["index s"] * indexes + [f"{stage} s" for stage in _STAGES[1:]] + ["probes/s", "peak MiB"]
    headers += ["peak GPU MiB"] * on_gpu
    headers += ["times as slow", "times the memory", "same positions"] * reference
    rows = []
    for label, row in labelled:
        means = row["metrics"] or {}
        cells = [label, *[", ".join(row["needs"])] * needs]
        cells += [_number(means.get(name), ".4f") for name in _MEANS]
        split = not row["reference"]
        if indexes:
            cells.append(_number(row["seconds"]["index"] or None, ".2f") if split else "")
        cells += [
            _number(row["seconds"]["search"], ".2f") if split else "",
            _number(row["seconds"]["re-rank"], ".2f"),
            _number(row["seconds"]["metrics"], ".2f"),
            _number(row["probes_per_second"], ".0f"),
            _number(row["peak_bytes"], ".0f", 2**20),
        ]
        cells += [_number(row["gpu_peak_bytes"], ".0f", 2**20)] * on_gpu
        if reference:
            cells += [
                _number(row.get("times_as_slow"), ".2f"),
                _number(row.get("times_the_memory"), ".2f"),
                _number(row.get("same_positions"), ".4%"),
            ]
        rows.append(cells)
    return table(head, rows, headers, options.style, names=1 + needs)


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else f"{value / unit:{form}}"
