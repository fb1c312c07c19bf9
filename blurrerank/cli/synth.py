"""`blurrerank synth`: generate synthetic features of any size."""

from __future__ import annotations

from dataclasses import replace

import click

from .options import FILE, Runtime, talking_options

PRESET_NAMES = ("market1501", "dukemtmc", "cuhk03", "msmt17", "veri776")
"""Names of `synth.PRESETS`, which is too slow to import for a help text; a test compares both."""


@click.command(short_help="Generate synthetic features sized like a public data set.")
@click.argument("out", type=FILE, metavar="OUT")
@click.option(
    "--preset",
    type=click.Choice(PRESET_NAMES),
    default="market1501",
    show_default=True,
    help="Test set that sets the defaults of the sizes below.",
)
@click.option("--probes", type=int, metavar="N", help="Number of probe images.")
@click.option("--gallery", type=int, metavar="N", help="Number of gallery images.")
@click.option("--dim", type=int, metavar="N", help="Dimensions of a feature vector.")
@click.option("--ids", type=int, metavar="N", help="Number of identities in the gallery.")
@click.option("--cams", type=int, metavar="N", help="Number of cameras.")
@click.option("--distractors", type=int, metavar="N", help="Number of distractors in the gallery, id 0.")
@click.option("--junk", type=int, metavar="N", help="Number of junk images in the gallery, id -1.")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float32",
    show_default=True,
    help="Data type of the stored features.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Random seed.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@talking_options
def synth(
    out: str, preset: str, dtype: str, seed: int, force: bool, runtime: Runtime, **sizes: int | None
) -> None:
    """Write synthetic features to OUT, an HDF5 file that `run` and `bench` read.

    They match a public test set in sizes, identities and cameras, and are hard enough for methods to differ.
    Use them to try out scale and for benchmarks; gains on them say nothing about real images.

    \b
    blurrerank synth market.h5 --preset market1501
    blurrerank synth small.h5 --probes 100 --gallery 1000 --ids 50 --distractors 100 --junk 0 --dim 128
    """
    from ..studies.synth import PRESETS, synthesize

    if out == "-" or "::" in out:
        raise click.UsageError(f"{out}: name an HDF5 file to write")
    runtime.start()
    given = {name: value for name, value in sizes.items() if value is not None}
    size = replace(PRESETS[preset], **given)
    synthesize(out, size, dtype=dtype, seed=seed, force=force, progress=runtime.progress("generating"))
    runtime.note(f"wrote {out}: {size.probes} probes x {size.gallery} gallery x {size.dim}")
