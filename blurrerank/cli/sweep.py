"""`blurrerank sweep`: local blurring over a grid of settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Runtime, features_argument, json_option, metrics_options, runtime_options, style_options
from .tables import print_json, remark, table

if TYPE_CHECKING:
    from ..studies.sweep import Sweep


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers separated by commas."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        """Take numbers of one kind."""
        self.kind = kind
        self.name = f"{kind.__name__}s"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """Parse, or fail as wrong usage."""
        if isinstance(value, list):
            return value
        try:
            return [self.kind(part) for part in str(value).split(",")]
        except ValueError:
            what = "whole numbers" if self.kind is int else "numbers"
            self.fail(f"{value!r} is not a list of {what} such as {param and param.default}", param, ctx)


@click.command(short_help="Measure local blurring over a grid of settings.")
@features_argument
@click.option(
    "--topn",
    type=Numbers(int),
    default="20,50,100",
    show_default=True,
    metavar="N,N,...",
    help="Sizes of the neighbourhood.",
)
@click.option(
    "--sigma",
    type=Numbers(float),
    default="0.02,0.05,0.1,0.2",
    show_default=True,
    metavar="X,X,...",
    help="Temperatures of the affinity.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Also write every row to this .json or .csv file. Settings that it already has for the same "
    "features are kept and not measured again.",
)
@style_options
@metrics_options
@json_option
@runtime_options
def sweep(runtime: Runtime, **arguments: Any) -> None:
    """Measure local blurring (method lbr) on FEATS for every pair of --topn and --sigma.

    The gallery is searched once for all settings. Prints one row per setting, and the best setting by each
    metric.

    \b
    blurrerank sweep feats.h5
    blurrerank sweep feats.h5 --topn 10,20,30 --sigma 0.05,0.1 -o sweep.csv
    """
    from ..engine.runs import Measurement
    from ..files import load
    from ..files.targets import check_target
    from ..studies.sweep import sweep as measure
    from ..studies.sweep_files import as_dict, check_name, read_sweep, save_sweep

    options = SweepOptions(**arguments)
    runtime.start()
    known, output = None, options.output
    if output is not None:
        check_name(Path(output))
        check_target(Path(output), force=True)
        known = read_sweep(output) if Path(output).exists() else None
    data = load(options.feats, options.gallery, memory=runtime.memory, notify=runtime.note)
    size = len(data.gallery)
    if max(options.topn) > size:
        runtime.note(f"note: topn {max(options.topn)} is capped at the gallery's {size} items")
    measurement = Measurement(options.protocol, options.ap)
    found = measure(data, options.topn, options.sigma, measurement, runtime.compute("sweeping"), known)
    if output is not None and found is not known:
        save_sweep(found, output, known)
    if options.as_json:
        print_json(as_dict(found))
    else:
        click.echo(_table(found, options.style))
    if output is not None:
        new = len(found.rows) - (len(known.rows) if known else 0)
        done = "wrote" if new else "kept"
        runtime.note(f"{done} {output}: {len(found.rows)} settings, {new} of them new")


@dataclass(frozen=True)
class SweepOptions:
    """The options of `sweep`; each is described where it is declared."""

    feats: str
    gallery: str | None
    topn: list[int]
    sigma: list[float]
    output: str | None
    style: str | None
    protocol: str
    ap: str
    as_json: bool


def _table(found: Sweep, style: str | None) -> str:
    from ..evaluation.metrics import MEANS

    rows = [["cosine", "", *(f"{found.cosine[name]:.4f}" for name in MEANS)]]
    for setting, means in found.rows.items():
        rows.append([str(setting[0]), str(setting[1]), *(f"{means[name]:.4f}" for name in MEANS)])
    names = {name: name.replace("rank", "rank-") for name in MEANS}
    headers = ["topn", "sigma", *names.values()]
    best = [
        remark(
            f"best {names[name]} {found.rows[setting][name]:.4f}: topn {setting[0]}, sigma {setting[1]}", style
        )
        for name, setting in found.best().items()
    ]
    head = (
        f"protocol {found.protocol}, {found.ap} AP; "
        f"means over {found.valid_probes} valid of {found.probes} probes"
    )
    return "\n".join([table(head, rows, headers, style, names=0), "", *best])
