"""What `report` and `plot` share: their arguments, and the road to what they show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

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
    from ..studies.sweep import Sweep

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Request:
    """What is to be compared, and where the result goes."""

    ranking: str
    feats: str
    gallery: str | None
    format: str | None
    output: Path
    force: bool
    sweep: str | None
    protocol: str
    ap: str

    def compare(self, runtime: Runtime, *, shown: int = 10) -> tuple[BeforeAfter, Sweep | None]:
        """Read everything and measure it; targets are checked before.

        Raises:
            BlurrerankError: for anything that cannot be used or written.
        """
        from ..files import load
        from ..files.targets import check_target
        from ..studies.before_after import before_and_after, grid_of

        check_ranking(self.ranking, self.format)
        check_target(self.output, force=self.force)
        sweep = None if self.sweep is None else _read_sweep(self.sweep)
        data = load(self.feats, self.gallery, memory=runtime.memory, told=runtime.note)
        comparison = before_and_after(
            ranking=ranking_of(self.ranking, data, self.format),
            data=data,
            protocol=self.protocol,
            ap=self.ap,
            shown=shown,
            device=runtime.device,
            memory=runtime.memory,
            progress=runtime.progress("searching"),
        )
        if sweep is not None:
            grid_of(sweep, comparison)
        return comparison, sweep


def _read_sweep(path: str) -> Sweep:
    from ..errors import InputError
    from ..studies.sweep_files import read_sweep

    try:
        return read_sweep(path)
    except InputError:
        raise InputError(f"{path} is no sweep: pass a file that `blurrerank sweep -o` wrote") from None


def comparison_options(command: F) -> F:
    """RANKING, FEATS and all options that both commands have, collected as `request` and `runtime`."""
    names = tuple(Request.__dataclass_fields__)

    def collected(**arguments: Any) -> Any:
        request = Request(**{name: arguments.pop(name) for name in names})
        return command(request=request, **arguments)

    collected.__doc__ = command.__doc__
    collected.__name__ = command.__name__
    collected.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    collected = runtime_options(collected)
    collected = metrics_options(collected)
    collected = click.option("--force", is_flag=True, help="Replace FILE if it exists.")(collected)
    collected = click.option(
        "--sweep",
        type=FILE,
        metavar="FILE",
        help="Also draw this sweep of the same features, which `sweep -o` wrote, as a heat map of mAP.",
    )(collected)
    collected = features_argument(collected)
    return ranking_argument(collected)  # type: ignore[return-value]


def output_option(help: str) -> Callable[[F], F]:
    """-o, which must be given."""
    return click.option("-o", "--output", required=True, metavar="FILE", type=File(Path), help=help)
