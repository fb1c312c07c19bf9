"""`blurrerank run`: from features to a re-ranked list and its metrics."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from .options import (
    ANY_FORMAT,
    FORMAT_NAMES,
    Depth,
    Runtime,
    features_argument,
    json_option,
    metrics_options,
    runtime_options,
)
from .tables import method_label, metrics_table, print_json


@click.command(short_help="Re-rank, write the lists, print metrics before and after.")
@features_argument
@click.option(
    "--method",
    default="lbr",
    show_default=True,
    metavar="NAME",
    help="lbr (local blurring), k-reciprocal, k-reciprocal-online, or cosine (no re-ranking).",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="Parameters for a public data set; lbr: market1501, dukemtmc, cuhk03, msmt17; k-reciprocal: "
    "market1501, cuhk03.",
)
@click.option("--topn", type=int, metavar="N", help="How many items to re-rank; lbr, cosine.  [default: 50]")
@click.option(
    "--sigma",
    type=float,
    metavar="X",
    help="Temperature of the affinity; lbr, k-reciprocal-online.  [default: 0.1]",
)
@click.option("--probe-in-graph", is_flag=True, default=None, help="The probe is a node of the graph too; lbr.")
@click.option("--cosine", is_flag=True, default=None, help="Cosine, not dot product, after blurring; lbr.")
@click.option("--steps", type=int, metavar="N", help="Steps of the random walk; lbr.  [default: 1]")
@click.option(
    "--k1",
    type=int,
    metavar="N",
    help="Neighbours of an image.  [default: k-reciprocal 20, k-reciprocal-online 15]",
)
@click.option(
    "--k2",
    type=int,
    metavar="N",
    help="Size of query expansion.  [default: k-reciprocal 6, k-reciprocal-online 6]",
)
@click.option(
    "lambda_value",
    "--lambda",
    "--lambda-value",
    type=float,
    metavar="X",
    help="Weight of the base distance, or of the transition from the probe.  "
    "[default: k-reciprocal 0.3, k-reciprocal-online 0.2]",
)
@click.option(
    "--blur",
    type=int,
    metavar="N",
    help="How many images, itself among them, a gallery item is blurred with; k-reciprocal-online.  "
    "[default: 8]",
)
@click.option(
    "--pool",
    type=int,
    metavar="N",
    help="How many items by cosine are looked at around an image; k-reciprocal-online.  [default: 50]",
)
@click.option(
    "--base-distance",
    type=click.Choice(["squared", "squared-twice"]),
    help="Squared Euclidean, or its square as in torchreid and layumi's scripts; k-reciprocal.  "
    "[default: squared]",
)
@click.option(
    "-o",
    "--output",
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
@click.option("metrics_file", "--metrics", metavar="FILE", help="Also write the metrics to this JSON file.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@metrics_options
@json_option
@runtime_options
def run(
    feats: str,
    gallery: str | None,
    method: str,
    preset: str | None,
    output: str | None,
    format: str | None,
    depth: int | str | None,
    metrics_file: str | None,
    force: bool,
    protocol: str,
    ap: str,
    as_json: bool,
    runtime: Runtime,
    **params: Any,
) -> None:
    """Rank the gallery for every probe of FEATS and re-rank the lists.

    FEATS is an HDF5 file with groups /probe and /gallery, or file.h5::/group. Prints metrics before and after
    if there are ids, and writes the lists.

    \b
    blurrerank run feats.h5 --topn 50 --sigma 0.1
    blurrerank run feats.h5 -o - --format trec | head
    blurrerank run probes.h5 --gallery gallery.h5 -o lists.trec
    """
    from ..errors import ParameterError
    from ..formats import format_of, load
    from ..formats.targets import check_target, replacing
    from ..methods import create
    from ..runs import rerank_to

    runtime.start()
    given = {name: value for name, value in params.items() if value is not None}
    _check_options(method, given)
    chosen = create(method, preset=preset, **given)
    piped = output == "-"
    if piped and format is None:
        raise ParameterError(f"standard output needs --format: {ANY_FORMAT}")
    if metrics_file == "-":
        raise ParameterError("metrics go to standard output by themselves, as JSON with --json")
    path = Path(output or f"{_file(feats).stem}.ranking.{format or 'h5'}")
    form = format_of(path, format)
    outputs = ([] if piped else [path]) + ([Path(metrics_file)] if metrics_file else [])
    for number, file in enumerate(outputs):
        check_target(file, force=force)
        if any(_same(file, other) for other in (*outputs[:number], _file(feats), _file(gallery or feats))):
            raise ParameterError(f"{file} is named twice, as an output and as something else")

    data = load(feats, gallery, memory=runtime.memory)
    size = len(data.gallery)
    for capped in chosen.capped(len(data.probe), size):
        runtime.note(f"note: {capped}")
    if isinstance(depth, int) and depth > size:
        runtime.note(f"note: depth {depth} is capped at the gallery's {size} items")
    try:
        outcome = rerank_to(
            sys.stdout.buffer if piped else path,
            data,
            chosen,
            format=form,
            depth=size if depth == "all" else depth,  # type: ignore[arg-type]
            force=force,
            protocol=protocol,
            ap=ap,
            device=runtime.device,
            memory=runtime.memory,
            progress=runtime.progress("re-ranking"),
        )
    except BrokenPipeError:
        if metrics_file:
            raise click.ClickException(
                f"standard output was closed before the run ended: {metrics_file} was not written"
            ) from None
        raise

    summary = outcome.summary() | {"output": "-" if piped else str(path)}
    if metrics_file:
        with replacing(Path(metrics_file), force=force) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    # Standard output belongs to the lists when they go there.
    if as_json:
        print_json(summary, err=piped)
    elif outcome.before is None or outcome.after is None:
        runtime.note("note: no ids on both sides, so there are no metrics")
    else:
        rows = [("cosine", outcome.before)]
        if outcome.info.reranked_depth:
            rows.append((method_label(chosen.name, chosen.params()), outcome.after))
        if not (piped and runtime.quiet):
            click.echo(metrics_table(rows), err=piped)
    if not piped:
        runtime.note(f"wrote {path}: {len(data.probe)} lists of {outcome.depth}")


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
    return one.resolve() == other.resolve()
