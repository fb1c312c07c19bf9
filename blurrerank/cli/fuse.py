"""`blurrerank fuse`: one ranking from several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import click

from .options import (
    FILE,
    FORMAT_NAMES,
    Depth,
    Runtime,
    features_argument,
    json_option,
    matrix_option,
    metrics_options,
    ranking_or_matrix,
    runtime_options,
)
from .tables import method_label, metrics_table, print_json


class Weights(click.ParamType):  # type: ignore[type-arg]
    """Numbers with commas between them."""

    name = "W,W,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """Parse, or fail as wrong usage."""
        try:
            return [float(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 1,0.5", param, ctx)


@click.command(short_help="Fuse several rankings into one.")
@click.argument("rankings", type=FILE, metavar="RANKING RANKING...", nargs=-1, required=True)
@features_argument
@click.option(
    "--by",
    type=click.Choice(["reciprocal-rank", "mean"]),
    default="reciprocal-rank",
    show_default=True,
    help="reciprocal-rank adds up 1 / (k + rank); mean averages scores, scaled to 0 to 1 within each list.",
)
@click.option("--k", type=float, default=60.0, show_default=True, help="The k of reciprocal-rank.")
@click.option("--weights", type=Weights(), metavar="W,W,...", help="Weight of each RANKING.  [default: 1 each]")
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="Output file of the lists. Its extension sets the format: .h5, .trec or .run, .jsonl, .csv, .npz.  "
    "[default: NAME.fused.h5 in this folder, for NAME.h5]",
)
@click.option(
    "--format", type=click.Choice(FORMAT_NAMES), help="Output format, instead of the one the extension implies."
)
@click.option(
    "--depth",
    type=Depth(),
    metavar="N|all",
    help="Number of items to write per list.  [default: that of the longest RANKING]",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@matrix_option
@metrics_options
@json_option
@runtime_options
def fuse(runtime: Runtime, **arguments: Any) -> None:
    """Fuse several rankings of FEATS into one and write it. If there are ids, print the metrics of all.

    RANKING is a file written by `run`, a TREC run from any tool, or a matrix of similarities or distances. The
    rankings may come from different models or methods, but must have the same probes and gallery. An item that
    a RANKING does not list gets no score from it, so write deep lists, for example with `run --depth 1000`.

    \b
    blurrerank fuse resnet.h5 vit.trec feats.h5 -o fused.h5
    blurrerank fuse distmat.npy lbr.h5 feats.h5 --by mean --weights 1,0.5
    """
    from ..data.ranking import Ranking
    from ..engine.evaluate import evaluate
    from ..files import format_of, load, save_ranking
    from ..files.targets import check_target
    from ..studies.fusion import fuse as fused

    options = FuseOptions(**arguments)
    runtime.start()
    target = options.path
    form = format_of(target, options.format)
    check_target(target, force=options.force)
    data = load(options.feats, options.gallery, memory=runtime.memory, notify=runtime.note, similarities=True)
    rankings = [ranking_or_matrix(name, data, None, options.matrix) for name in options.rankings]
    depth = len(data.gallery) if options.depth == "all" else cast("int | None", options.depth)
    found = fused(rankings, data, by=options.by, k=options.k, weights=options.weights, depth=depth)
    save_ranking(found, data, target, format=form, force=options.force)
    summary: dict[str, Any] = {"method": found.method, "params": dict(found.params), "output": str(target)}
    if data.has_ids:
        settings = {
            "protocol": options.protocol,
            "ap": options.ap,
            "device": runtime.device,
            "memory": runtime.memory,
        }
        # Of another model's features a ranking says no more than its lists and its matches.
        alone = [
            replace(one, digest=None, cosine_tail=False) if isinstance(one, Ranking) else one
            for one in rankings
        ]
        measured = [evaluate(one, data, **settings) for one in (*alone, found)]  # type: ignore[arg-type]
        names = [*options.rankings, method_label(found.method, found.params)]
        if not options.as_json:
            click.echo(metrics_table(list(zip(names, measured, strict=True))))
        summary["metrics"] = measured[-1].summary()
    elif not options.as_json:
        runtime.note(f"note: {data.lacking('ids')}, so there are no metrics")
    if options.as_json:
        print_json(summary)
    runtime.note(f"wrote {target}: {len(found)} lists of {found.depth}")


@dataclass(frozen=True)
class FuseOptions:
    """The options of `fuse`; each is described where it is declared."""

    rankings: tuple[str, ...]
    feats: str
    gallery: str | None
    by: str
    k: float
    weights: list[float] | None
    output: str | None
    format: str | None
    depth: int | str | None
    force: bool
    matrix: str | None
    protocol: str
    ap: str
    as_json: bool

    @property
    def path(self) -> Path:
        """The file that lists go to."""
        stem = Path(self.feats.partition("::")[0]).stem
        return Path(self.output or f"{stem}.fused.{self.format or 'h5'}")
