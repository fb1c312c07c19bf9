"""`blurrerank plot`: draw the figures of a report for print."""

from __future__ import annotations

import click

from .comparing import Request, comparison_options, output_option
from .options import Runtime


@click.command(short_help="Draw CMC curves and changes of AP for print.")
@output_option("Figure file to write: .png, .pdf or .svg.")
@click.option(
    "--figure",
    type=click.Choice(["cmc", "ap", "sweep", "neighbourhoods", "all"]),
    default="all",
    show_default=True,
    help="What to draw: CMC curves before and after; the changes of AP per probe, sorted; the heat map of "
    "--sweep; the number of images per identity, estimated from neighbours; or all but the last side by "
    "side.",
)
@comparison_options
def plot(request: Request, figure: str, runtime: Runtime) -> None:
    """Draw figures that compare RANKING, made from FEATS, with the cosine search of FEATS or another ranking.

    The numbers are the same as in `report`. Needs the extra blurrerank[plot], but no display.

    \b
    blurrerank plot feats.lbr.ranking.h5 feats.h5 -o figure.pdf
    blurrerank plot feats.lbr.ranking.h5 feats.h5 -o cmc.svg --figure cmc
    """
    from ..report.plots import check_figure, draw

    runtime.start()
    check_figure(request.output, figure, sweep=request.sweep is not None)
    comparison, sweep = request.compare(runtime)
    draw(comparison=comparison, path=request.output, figure=figure, sweep=sweep, force=request.force)
    runtime.note(f"wrote {request.output}")
