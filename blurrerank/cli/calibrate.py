"""`blurrerank calibrate`: from scores to probabilities, on labelled probes."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import ParameterError
from .options import (
    FILE,
    Runtime,
    check_ranking,
    features_argument,
    protocol_option,
    ranking_argument,
    ranking_of,
    talking_options,
)


@click.command(short_help="Turn scores into probabilities.")
@ranking_argument
@features_argument
@click.option(
    "-o", "--output", type=FILE, required=True, metavar="FILE", help="JSON file to write the calibration to."
)
@click.option(
    "--by",
    type=click.Choice(["isotonic", "logistic"]),
    default="isotonic",
    show_default=True,
    help="isotonic fits any non-decreasing function and needs some hundred probes; logistic fits two "
    "parameters.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@protocol_option
@talking_options
def calibrate(
    runtime: Runtime,
    ranking: str,
    feats: str,
    gallery: str | None,
    format: str | None,
    output: str,
    by: str,
    force: bool,
    protocol: str,
) -> None:
    """Fit the probability that the first item of a list is right, as a function of its score.

    RANKING is a native file that `run` wrote for FEATS. Probes and gallery need ids. Use other probes here than
    those that `run --reject` will judge later, with about the same share of identities that the gallery lacks.
    The calibration is valid only for lists of the same method and parameters.

    Fitting needs scikit-learn: pip install "blurrerank[calibrate]". Using a calibration does not.

    \b
    blurrerank calibrate feats.lbr.ranking.h5 feats.h5 -o calibration.json
    blurrerank run probes.h5 --gallery gallery.h5 --calibration calibration.json --reject 0.5
    """
    from ..engine.open_set import calibrate as fit
    from ..evaluation.score_calibration import check_can_fit
    from ..files import load, save_calibration
    from ..files.targets import check_target

    runtime.start()
    check_ranking(ranking, format)
    check_can_fit(by)
    if output == "-":
        raise ParameterError("a calibration cannot be written to standard output: name a file")
    check_target(Path(output), force=force)
    data = load(feats, gallery, notify=runtime.note, similarities=True)
    found = fit(ranking_of(ranking, data, format), data, by=by, protocol=protocol)
    save_calibration(found, output, force=force)
    runtime.note(f"wrote {output}: {by}, from {found.probes} lists, {found.right} with a right first item")
