"""Arguments that `report` and `plot` share, and the comparison that both of them show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import InputError, ParameterError
from .options import (
    FILE,
    File,
    Runtime,
    check_ranking,
    features_argument,
    metrics_options,
    ranking_argument,
    ranking_of,
    runtime_options,
)

if TYPE_CHECKING:
    from ..studies.before_after import BeforeAfter
    from ..studies.heat_map import Grid
    from ..studies.sweep import Sweep
    from ..studies.tuning import Tuning

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Request:
    """The arguments of a comparison, and where to write the result."""

    ranking: str
    feats: str
    against: str | None
    gallery: str | None
    format: str | None
    output: Path
    force: bool
    sweep: str | None
    x: str | None
    y: str | None
    protocol: str
    ap: str

    def compare(self, runtime: Runtime, *, shown: int = 10) -> tuple[BeforeAfter, Grid | None]:
        """Check the output, read the inputs, and measure the ranking.

        Raises:
            BlurrerankError: if an input cannot be used or the output cannot be written.
        """
        from ..files import load
        from ..files.targets import check_target
        from ..studies.before_after import before_and_after
        from ..studies.heat_map import grid_of

        if self.sweep is None and (self.x or self.y):
            raise ParameterError("--x and --y name parameters of a tuning: pass the tuning with --sweep FILE")
        check_ranking(self.ranking, self.format)
        if self.against == "-":
            raise ParameterError("--against cannot read from standard input: name a file")
        check_target(self.output, force=self.force)
        sweep = None if self.sweep is None else _read_sweep(self.sweep)
        data = load(self.feats, self.gallery, memory=runtime.memory, notify=runtime.note)
        comparison = before_and_after(
            ranking=ranking_of(self.ranking, data, self.format),
            data=data,
            against=None if self.against is None else ranking_of(self.against, data, None),
            protocol=self.protocol,
            ap=self.ap,
            shown=shown,
            device=runtime.device,
            memory=runtime.memory,
            progress=runtime.progress("searching"),
        )
        return comparison, None if sweep is None else grid_of(sweep, comparison, self.x, self.y)


def _read_sweep(path: str) -> Sweep | Tuning:
    from ..studies.sweep_files import read_sweep
    from ..studies.tune_files import is_tuning, read_tuning

    try:
        return read_tuning(path) if is_tuning(path) else read_sweep(path)
    except InputError:
        raise InputError(
            f"{path} is not a sweep: pass a .json file written by `blurrerank sweep -o` or `tune -o`"
        ) from None


def comparison_options(command: F) -> F:
    """Add RANKING, FEATS and the options that both commands share; pass them as `request` and `runtime`."""
    names = tuple(Request.__dataclass_fields__)

    def collected(**arguments: Any) -> Any:
        request = Request(**{name: arguments.pop(name) for name in names})
        return command(request=request, **arguments)

    collected.__doc__ = command.__doc__
    collected.__name__ = command.__name__
    collected.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    collected = runtime_options(collected)
    collected = metrics_options(collected)
    collected = click.option(
        "--against",
        type=FILE,
        metavar="FILE",
        help="Compare RANKING with this ranking of the same features instead of with their cosine search.",
    )(collected)
    collected = click.option("--force", is_flag=True, help="Replace an existing output file.")(collected)
    collected = click.option(
        "--sweep",
        type=FILE,
        metavar="FILE",
        help="Also draw a heat map from FILE: a sweep of the same features written by `sweep -o`, or a "
        "tuning written by `tune -o` as .json, whose first half is shown.",
    )(collected)
    for axis, what, place in (("y", "rows", "next"), ("x", "columns", "first")):
        collected = click.option(
            f"--{axis}",
            metavar="NAME",
            help=f"Parameter along the {what} of the heat map of a tuning; other parameters have their chosen "
            f"values.  [default: the {place} one with several values]",
        )(collected)
    collected = features_argument(collected)
    return ranking_argument(collected)  # type: ignore[return-value]


def output_option(help: str) -> Callable[[F], F]:
    """Return a decorator that adds the required option -o."""
    return click.option("-o", "--output", required=True, metavar="FILE", type=File(Path), help=help)
