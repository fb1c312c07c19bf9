"""`blurrerank run`: from features to a re-ranked list and its metrics."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from .candidates import Source, candidates_options
from .options import (
    ANY_FORMAT,
    FILE,
    FORMAT_NAMES,
    Depth,
    Runtime,
    features_argument,
    json_option,
    method_names,
    method_options,
    metrics_options,
    precision_option,
    runtime_options,
)
from .tables import method_label, metrics_table, print_json
from .together import together

if TYPE_CHECKING:
    from ..compute.processes import Group
    from ..data.features import FeatureSet
    from ..index.gallery_index import GalleryIndex
    from ..methods import Method


@click.command(short_help="Re-rank, write the lists, print metrics before and after.")
@features_argument
@click.option(
    "--index",
    type=FILE,
    metavar="FILE",
    help="Take the gallery from an index that `blurrerank index` wrote; FEATS then gives the probes, and - is "
    "standard input.",
)
@click.option(
    "--method",
    metavar="NAME",
    shell_complete=method_names,
    help="lbr (local blurring), k-reciprocal, k-reciprocal-online, or cosine (no re-ranking).  [default: lbr; "
    "with --index, unless with --candidates, k-reciprocal-online]",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="Parameters for a public data set; lbr: market1501, dukemtmc, cuhk03, msmt17; k-reciprocal: "
    "market1501, cuhk03.",
)
@method_options()
@candidates_options
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="Where the lists go, the ending says how: .h5, .trec or .run, .jsonl, .csv, .npz; - is standard "
    "output.  [default: NAME.ranking.h5 in this folder, for NAME.h5]",
)
@click.option(
    "--format",
    type=click.Choice(FORMAT_NAMES),
    help="What to write, instead of what the ending says.",
)
@click.option(
    "--depth", type=Depth(), metavar="N|all", help="How much of the lists to write.  [default: topn, or 50]"
)
@click.option(
    "metrics_file", "--metrics", type=FILE, metavar="FILE", help="Also write the metrics to this JSON file."
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace files that exist; without --resume, also start over what an interrupted run left.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from what an interrupted run left beside its output, to the file that it would have written.",
)
@metrics_options
@json_option
@precision_option
@runtime_options
def run(runtime: Runtime, **options: Any) -> None:
    """Rank the gallery for every probe of FEATS and re-rank the lists.

    FEATS is an HDF5 file with groups /probe and /gallery, or file.h5::/group. Prints metrics before and after
    if there are ids, and writes the lists.

    With --index and - for FEATS, probes are read from standard input, as JSON lines ([number, ...] or
    {"features": [...], "name": "..."}) or as .npy arrays, and each is answered on standard output by a JSON
    line as soon as it is there.

    With --candidates or --search faiss the lists are not of the whole gallery: metrics are to the depth they
    have, and matches that are not listed count as missed.

    Started by torchrun, several processes share the work: each reads a part of the gallery.

    \b
    blurrerank run feats.h5 --topn 50 --sigma 0.1
    blurrerank run feats.h5 -o - --format trec | head
    blurrerank run probes.h5 --gallery gallery.h5 -o lists.trec
    blurrerank run --index gallery.index.h5 probes.h5
    blurrerank run feats.h5 --candidates lists.ibin
    blurrerank run feats.h5 --search faiss --index-factory IVF64,Flat --nprobe 8
    torchrun --nproc-per-node 2 -m blurrerank run feats.h5
    """
    with together(runtime.device) as group:
        if group is not None:
            silent = group.rank > 0
            runtime = replace(
                runtime,
                device=group.device,
                quiet=runtime.quiet or silent,
                verbose=runtime.verbose and not silent,
            )
        _run(group, runtime, **options)


def _run(
    group: Group | None,
    runtime: Runtime,
    *,
    feats: str,
    gallery: str | None,
    index: str | None,
    method: str | None,
    preset: str | None,
    output: str | None,
    format: str | None,
    depth: int | str | None,
    metrics_file: str | None,
    force: bool,
    resume: bool,
    protocol: str,
    ap: str,
    as_json: bool,
    precision: str,
    source: Source,
    **params: Any,
) -> None:
    """What each process does."""
    from ..engine.runs import rerank_to
    from ..errors import ParameterError
    from ..files import format_of, load, load_sharded, load_side
    from ..files.targets import check_target, opener, replacing, what_is_kept
    from ..index.gallery_index import GalleryIndex
    from ..methods import GalleryMethod, create

    runtime.start()
    given = {name: value for name, value in params.items() if value is not None}
    method = method or ("lbr" if index is None or not source.exact else "k-reciprocal-online")
    _check_options(method, given)
    chosen = create(method, preset=preset, **given)
    if group is not None and (index is not None or isinstance(chosen, GalleryMethod)):
        raise ParameterError(
            "an index, and k-reciprocal-online, work in one process: start this without torchrun, or choose "
            "another method"
        )
    if group is not None and not source.exact:
        raise ParameterError("candidates are re-ranked in one process: start this without torchrun")
    if index is not None and gallery is not None:
        raise ParameterError("--index and --gallery both name a gallery: choose one")
    source.check(chosen, feats=feats, index=index)
    indexed = None if index is None else GalleryIndex.open(index, device=runtime.device)
    if indexed is not None:
        chosen = indexed.method_for(method, preset=preset, **given)
    if feats == "-":
        if indexed is None:
            raise ParameterError("- reads probes from standard input, which needs --index: name a file")
        if output not in (None, "-") or format not in (None, "jsonl") or metrics_file or as_json:
            raise ParameterError("probes from standard input are answered on standard output, as JSON lines")
        if resume:
            raise ParameterError("--resume needs an output file: nothing is kept of probes from standard input")
        _answer(indexed, chosen, depth, runtime)
        return
    piped = output == "-"
    if piped and format is None:
        raise ParameterError(f"standard output needs --format: {ANY_FORMAT}")
    if piped and resume:
        raise ParameterError("--resume needs an output file: nothing is kept of what is written to a pipe")
    if metrics_file == "-":
        raise ParameterError("metrics go to standard output by themselves, as JSON with --json")
    path = Path(output or f"{_file(feats).stem}.ranking.{format or 'h5'}")
    form = format_of(path, format)
    outputs = ([] if piped else [path]) + ([Path(metrics_file)] if metrics_file else [])
    leads = group is None or group.rank == 0
    for number, file in enumerate(outputs if leads else []):
        check_target(file, force=force, resume=resume)
        if any(
            _same(file, other)
            for other in (*outputs[:number], *map(_file, filter(None, (feats, gallery, index, source.file))))
        ):
            raise ParameterError(f"{file} is named twice, as an output and as something else")

    data: FeatureSet
    if group is not None:
        data = load_sharded(feats, gallery, group=group, memory=runtime.memory)
    elif indexed is None:
        data = load(feats, gallery, memory=runtime.memory, told=runtime.note)
    else:
        data = indexed.features(load_side(feats, "probe", memory=runtime.memory))
    lists, found_by = source.find(data, chosen, depth, runtime)
    size, whole = (len(data.gallery), "the gallery's") if lists is None else (lists.depth, "the longest list's")
    for capped in chosen.capped(len(data.probe), size):
        told = capped.replace("the gallery's", whole)
        runtime.note(f"note: {told}")
    if isinstance(depth, int) and depth > size:
        runtime.note(f"note: depth {depth} is capped at {whole} {size} items")
    left = what_is_kept(path) if leads and not piped else {}
    if resume and leads and not left:
        runtime.note(f"note: no interrupted run left anything of {path}: starting from the beginning")
    try:
        outcome = rerank_to(
            sys.stdout.buffer if piped else path,
            data,
            chosen,
            format=form,
            depth=size if depth == "all" else depth,  # type: ignore[arg-type]
            force=force,
            resume=resume,
            protocol=protocol,
            ap=ap,
            device=runtime.device if indexed is None else indexed.device,
            memory=runtime.memory,
            precision=precision,
            progress=runtime.progress("re-ranking") if leads else None,
            candidates=lists,
        )
    except BaseException as error:
        # What another run left may be what the error is about.
        kept = what_is_kept(path) if leads and not piped else {}
        if kept and (kept != left or not isinstance(error, Exception)):
            runtime.note(f"note: what was done of {path} is kept; the same command with --resume goes on")
        elif leads and not piped and not isinstance(error, Exception):
            runtime.note(f"note: nothing of {path} is kept")
        if isinstance(error, BrokenPipeError) and metrics_file:
            raise click.ClickException(
                f"standard output was closed before the run ended: {metrics_file} was not written"
            ) from None
        raise
    if group is not None:
        group.close()  # the file is there: what may fail now is this process's own
    if not leads:
        return

    summary = outcome.summary() | found_by | {"output": "-" if piped else str(path)}
    if metrics_file:
        with (
            replacing(Path(metrics_file), force=force) as temporary,
            open(temporary, "w", encoding="utf-8", opener=opener) as metrics,
        ):
            metrics.write(json.dumps(summary, indent=2) + "\n")
    # Standard output belongs to the lists when they go there.
    if as_json:
        print_json(summary, err=piped)
    elif outcome.before is None or outcome.after is None:
        runtime.note(f"note: {data.lacking('ids')}, so there are no metrics")
    else:
        rows = [("cosine", outcome.before)]
        if outcome.info.reranked_depth:
            rows.append((method_label(chosen.name, chosen.params()), outcome.after))
        if not (piped and runtime.quiet):
            click.echo(metrics_table(rows), err=piped)
    if not piped:
        before = f", {outcome.resumed} of them from before the interruption" if outcome.resumed else ""
        runtime.note(f"wrote {path}: {len(data.probe)} lists of {outcome.depth}{before}")


def _answer(index: GalleryIndex, method: Method, depth: int | str | None, runtime: Runtime) -> None:
    """Answer each probe on standard input as soon as it is there."""
    from io import BufferedReader

    from ..data.side import Side
    from ..engine.pipeline import rerank_with
    from ..errors import InputError
    from ..files.jsonl import line
    from ..files.probes import arriving

    shown = len(index) if depth == "all" else cast("int | None", depth)
    failed = number = 0
    for number, probe in enumerate(arriving(cast(BufferedReader, sys.stdin.buffer), index.dim), start=1):
        problem = probe.problem
        if probe.features is not None:
            try:
                data = index.features(Side(probe.features, label=f"probe {number - 1}"))
            except InputError as error:
                problem = str(error)
            else:
                found = rerank_with(method, data, depth=shown, device=index.device, memory=runtime.memory)
                answer = line(number - 1, probe.name, found.indices[0], found.scores[0], index.gallery.names)
        if problem is not None:
            failed += 1
            named = {} if probe.name is None else {"name": probe.name}
            answer = json.dumps({"probe": number - 1, **named, "error": problem}, ensure_ascii=False) + "\n"
        sys.stdout.buffer.write(answer.encode())
        sys.stdout.buffer.flush()
    if failed:
        raise click.ClickException(f"{failed} of {number} lines were no probes: their answers say why")


def _check_options(method: str, given: dict[str, Any]) -> None:
    """Refuse an option of another method by the name it has here."""
    from ..methods import parameters

    options = {option.name: option.opts[0] for option in run.params}
    known = parameters(method)
    for name in given:
        if name not in known:
            its = ", ".join(options[parameter] for parameter in known if parameter in options)
            raise click.UsageError(f"{options[name]} is no option of method {method}, which has {its}")


def _file(address: str) -> Path:
    """The file that an address such as file.h5::/group is in."""
    return Path(address.partition("::")[0])


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
