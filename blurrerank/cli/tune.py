"""`blurrerank tune`: a grid over the parameters of a method, chosen and reported on different identities."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..errors import BlurrerankWarning
from .method_options import complete_method
from .options import (
    FILE,
    Runtime,
    camera_images_option,
    features_argument,
    json_option,
    load_camera_images,
    metrics_options,
    precision_option,
    runtime_options,
    style_options,
)
from .tables import print_json, remark, table

if TYPE_CHECKING:
    from ..evaluation.significance import Interval
    from ..methods.kinds.parameters import Parameter
    from ..studies.tune_files import TuningFile
    from ..studies.tuning import Tuning

METRICS = ("mAP", "mINP", "rank1", "rank5", "rank10", "rank20")
"""Those of `metrics.MEANS`, which is too heavy to import for a help text; a test compares them."""


class Values(click.ParamType):  # type: ignore[type-arg]
    """A parameter and its values, such as `ki=2,4,6`."""

    name = "NAME=V,V,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split, or fail as wrong usage; values are read as those of a chain are."""
        from ..methods.kinds.parameters import parse_value

        name, _, values = str(value).partition("=")
        parts = [part.strip() for part in values.split(",")]
        if not name.strip() or not all(parts):
            self.fail(f"{value!r} should read NAME=VALUE,VALUE,..., such as ki=2,4,6", param, ctx)
        return name.strip(), list(map(parse_value, parts))


@click.command(short_help="Choose a method's parameters on half of the identities.")
@features_argument
@click.option(
    "--method",
    required=True,
    metavar="CHAIN",
    shell_complete=complete_method,
    help="Method or chain to tune, with its fixed parameters, such as center+camera-graph:lambda=0.",
)
@click.option(
    "grid",
    "--grid",
    required=True,
    multiple=True,
    type=Values(),
    metavar="NAME=V,V,...",
    help="A parameter of the chain and the values to try, such as ki=2,4,6 or dba.k=4,8. If given several "
    "times, every combination is measured.",
)
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    default="mAP",
    show_default=True,
    help="Metric by which the best setting is chosen.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Random seed of the split of the identities.",
)
@click.option("--online", is_flag=True, help="Rank each probe independently of the others, as in `run`.")
@camera_images_option
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="Also write everything to this .json or .csv file. A .json file is updated after each setting; "
    "settings that it already has for the same features are kept and not measured again.",
)
@style_options
@metrics_options
@json_option
@precision_option
@runtime_options
def tune(runtime: Runtime, **arguments: Any) -> None:
    """Choose the parameters of a method on half of the identities in FEATS, and report on the other half.

    The identities are split at random by --seed. All settings of the grid are measured on the first half, and
    the best one is chosen there. The second half then reports the chosen setting, the chain as it was given,
    and cosine, with 95 % intervals from resampled identities. Both halves search the whole gallery. Settings
    share feature steps, search and neighbour graph.

    \b
    blurrerank tune feats.h5 --method center+camera-graph --grid ki=2,4,6 --grid ko=4,8,10
    blurrerank tune feats.h5 --method k-reciprocal:k2=6 --grid k1=10,20,30 --grid lambda=0.1,0.3 -o tune.json
    """
    from ..engine.request import Request
    from ..engine.runs import Measurement
    from ..files import load
    from ..methods import find_parameter
    from ..studies.grids import ParameterGrid
    from ..studies.tune import Choice, tune_grid
    from ..studies.tune_files import TuningFile, as_dict, check_name, save_csv

    options = TuneOptions(**arguments)
    runtime.start()
    warnings.simplefilter("once", BlurrerankWarning)  # all settings have the same reasons
    grid = ParameterGrid.of(options.method, options.grid)
    output, store = options.output, None
    if output is not None:
        check_name(output)
        store = TuningFile(output) if output.lower().endswith(".json") else None
    data = load(options.feats, options.gallery, memory=runtime.memory, notify=runtime.note)
    camera_images = load_camera_images(options.camera_images, runtime)
    methods = map(grid.method_at, grid.settings())
    notes = (note for method in methods for note in method.notes(len(data.probe), len(data.gallery)))
    for note in dict.fromkeys(notes):
        runtime.note(f"note: {note}")
    known = None if store is None else store.known
    with _noting_what_is_kept(runtime, store):
        found = tune_grid(
            data,
            grid,
            Request(online=options.online, camera_images=camera_images),
            Choice(Measurement(options.protocol, options.ap), options.metric, options.seed),
            runtime.compute("tuning", precision=options.precision, unit=" settings"),
            store,
        )
    if output is not None and store is None:
        save_csv(found, output)
    if options.as_json:
        print_json({**as_dict(found), "command": options.command(found)})
    else:
        click.echo(_tables(found, options))
    for name, value in zip(found.grid, found.chosen, strict=True):
        if edge := _edge(value, found.grid[name], find_parameter(options.method, name)[1]):
            runtime.note(f"note: the best {name}, {value}, is the {edge} of the grid: try a wider range")
    if output is not None:
        new = len(found.rows) - (len(known.rows) if known else 0)
        done = "kept" if found is known else "wrote"
        runtime.note(f"{done} {output}: {len(found.rows)} settings, {new} of them new")


@dataclass(frozen=True)
class TuneOptions:
    """The options of `tune`; each is described where it is declared."""

    feats: str
    gallery: str | None
    method: str
    grid: tuple[tuple[str, list[Any]], ...]
    metric: str
    seed: int
    online: bool
    camera_images: str | None
    output: str | None
    style: str | None
    protocol: str
    ap: str
    as_json: bool
    precision: str

    def command(self, found: Tuning) -> str:
        """Return the command that ranks by the chosen setting."""
        words = ["blurrerank", "run", self.feats, "--method", found.text_at(found.chosen)]
        words += ["--gallery", self.gallery] if self.gallery else []
        words += ["--online"] if self.online else []
        words += ["--camera-images", self.camera_images] if self.camera_images else []
        words += ["--protocol", self.protocol] if self.protocol != "market1501" else []
        words += ["--ap", self.ap] if self.ap != "plain" else []
        return shlex.join(words)


@contextmanager
def _noting_what_is_kept(runtime: Runtime, store: TuningFile | None) -> Iterator[None]:
    """Say what is kept of a tuning that does not end well."""
    try:
        yield
    except BaseException:
        if store is not None and store.kept:
            runtime.note(
                f"{store.kept} settings are kept in {store.path}: run the same command again to measure the "
                "rest"
            )
        raise


def _tables(found: Tuning, options: TuneOptions) -> str:
    """The settings on the tuning half, and the chosen one on the other."""
    style, basis = options.style, found.basis
    shown = {name: name.replace("rank", "rank-") for name in METRICS}
    chooses = f"{found.tuning.identities} identities with {found.tuning.probes} probes"
    reports = f"{found.reporting.identities} identities with {found.reporting.probes} probes"
    rows = [
        [*map(str, setting), *(f"{means[name]:.4f}" for name in METRICS)]
        for setting, means in found.rows.items()
    ]
    head = f"protocol {basis.protocol}, {basis.ap} AP; to choose by: {chooses}, drawn by seed {basis.seed}"
    settings = table(head, rows, [*found.grid, *shown.values()], style, names=0)
    values = ", ".join(f"{name} {value}" for name, value in zip(found.grid, found.chosen, strict=True))
    chosen = f"best {shown[found.metric]} {found.rows[found.chosen][found.metric]:.4f}: {values}"
    told = [name for name in METRICS if name in ("mAP", "mINP", "rank1", found.metric)]
    figures = [
        [name.replace("defaults", "as given"), *(_interval(means[mean], signed=" - " in name) for mean in told)]
        for name, means in found.report().items()
    ]
    head = f"to report: the other {reports}; 95 % intervals from resampled identities"
    report = table(head, figures, ["", *(shown[name] for name in told)], style)
    return "\n".join(
        [settings, "", remark(chosen, style), "", report, "", remark(options.command(found), style)]
    )


def _edge(value: Any, values: Sequence[Any], parameter: Parameter) -> str | None:
    """Whether a number is the `largest` or the `smallest` of three or more, and the parameter has others."""
    if len(values) < 3 or isinstance(value, bool | str) or value in (parameter.least, parameter.most):
        return None
    return "largest" if value == max(values) else "smallest" if value == min(values) else None


def _interval(found: Interval, *, signed: bool) -> str:
    sign = "+" if signed else ""
    return f"{found.value:{sign}.4f} ({found.low:{sign}.4f} to {found.high:{sign}.4f})"
