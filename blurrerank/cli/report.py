"""`blurrerank report`: write an HTML report of a ranking."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .comparing import Request, comparison_options, output_option
from .options import FILE, Runtime

if TYPE_CHECKING:
    from ..data.features import FeatureSet
    from ..files.images import Pictures


@click.command(short_help="Show a ranking in one HTML page, probe by probe.")
@output_option("HTML file to write.")
@click.option(
    "--shown",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    metavar="N",
    help="Number of items to show of each list.",
)
@click.option(
    "--image-root",
    type=FILE,
    metavar="DIR",
    help="Take pictures from image files in this folder, found by the names in FEATS, instead of from FEATS.",
)
@comparison_options
def report(request: Request, shown: int, image_root: str | None, runtime: Runtime) -> None:
    """Write a self-contained HTML page about RANKING, made from FEATS: metrics, curves, and each probe's list.

    The page compares RANKING with the cosine search of FEATS, or with the ranking that --against names.
    It loads nothing from the network. Both rankings are read and measured as in `eval`; if one can only be
    measured to the depth of its lists, both are cut to the same depth.

    Each item shows its rank before and after, as far as the lists go (a cosine search ends at rank 1,000), and
    its score. The affinity map of a probe shows the similarities among the probe and its items; the 5,000
    probes whose AP changed most have one. The address of the page records what is shown, as in
    report.html#probe=12 or report.html#show=worse.

    Pictures come from the images in FEATS, or from the files in --image-root; an image without a picture is
    shown as a tile with its identity and camera. Pictures are scaled to 64 pixels. A page holds at most 20,000
    pictures and 10 MiB of them; the probes whose AP changed most get theirs first, and the page says how many
    probes have all their pictures. Pictures need the extra blurrerank[report].

    \b
    blurrerank report feats.lbr.ranking.h5 feats.h5 -o report.html
    blurrerank report feats.lbr.ranking.h5 feats.h5 -o report.html --image-root market/ --sweep sweep.json
    blurrerank report feats.lbr.ranking.h5 feats.h5 --against feats.gnn.ranking.h5 -o report.html
    """
    from ..files.images import pillow
    from ..files.rankings import format_of
    from ..report import write_report

    runtime.start()
    if image_root is not None:
        pillow()
    comparison, sweep = request.compare(runtime, shown=shown)
    probes, gallery = _pictures(request, comparison.data, image_root)
    # Pages are shared: show file names only, not the folders of this machine.
    facts = {"ranking": Path(request.ranking).name, "features": Path(request.feats).name}
    if request.against is not None:
        facts["ranking compared with"] = Path(request.against).name
    if request.gallery is not None:
        facts["gallery"] = Path(request.gallery).name
    if request.ranking != "-" and format_of(request.ranking, request.format) == "h5":
        from ..files.ranking_h5 import made_by

        made = made_by(Path(request.ranking))
        facts["made with"] = ", ".join(f"{name} {version}" for name, version in made.items())
    written = write_report(
        comparison=comparison,
        path=request.output,
        probe_pictures=probes,
        gallery_pictures=gallery,
        sweep=sweep,
        facts=facts,
        force=request.force,
        device=runtime.device,
        memory=runtime.memory,
    )
    if written.missing:
        runtime.note(
            f"warning: {written.missing} pictures were not found in {image_root} or are not images; they are "
            "shown as tiles. Names must be paths below that folder"
        )
    if written.left_out:
        runtime.note(
            f"note: only {written.pictures} pictures fit, {written.left_out} were left out: the "
            f"{written.complete} probes that changed most have all their pictures; a smaller --shown fits more "
            "probes"
        )
    runtime.note(
        f"wrote {request.output}: {written.size / 1e6:.1f} MB, with pictures of {written.pictures} of "
        f"{written.images} images"
    )


def _pictures(
    request: Request, data: FeatureSet, image_root: str | None
) -> tuple[Pictures | None, Pictures | None]:
    """Return the sources of the pictures of the probes and of the gallery."""
    from ..errors import InputError
    from ..files.images import ImageFiles, stored_images

    if image_root is None:
        return stored_images(request.feats, "probe"), stored_images(request.gallery or request.feats, "gallery")
    sides = (data.probe, data.gallery)
    if all(side.names is None for side in sides):
        raise InputError(
            f"{request.feats} has no names, and --image-root finds pictures by name: leave it out, or add names"
        )
    probe, gallery = (
        None if side.names is None else ImageFiles(image_root, side.names.tolist()) for side in sides
    )
    return probe, gallery
