"""`blurrerank index`: a gallery, encoded once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .method_options import MethodCommand, given_parameters, method_option, preset_option
from .options import FILE, Runtime, calibrate_option, load_calibration, precision_option, runtime_options


@click.command(
    cls=MethodCommand,
    method="k-reciprocal-online",
    short_help="Index a gallery, so that probes can be answered as they come.",
)
@click.argument("gallery", type=FILE, metavar="GALLERY")
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="The index.  [default: NAME.index.h5 in this folder, for NAME.h5]",
)
@method_option(
    "A graph ranker that works online, a chain such as center+camera-graph, or auto, which chooses for GALLERY",
    "k-reciprocal-online",
    auto=True,
)
@preset_option
@calibrate_option
@click.option(
    "--ann",
    type=click.Choice(["hnsw", "ivf"]),
    help="Search approximately, for neighbours now and for probes later: by a graph of near items, or by "
    "clusters; needs the extra blurrerank[faiss], and its recall is told.  [default: compare all items]",
)
@click.option(
    "--effort",
    type=click.IntRange(min=1),
    metavar="N",
    help="How much --ann looks at for a probe: candidates (hnsw) or clusters (ivf); `run --effort` may ask for "
    "more.  [default: 256 candidates, or a sixteenth of the clusters]",
)
@click.option("--append", is_flag=True, help="Add GALLERY to the index that is there.")
@click.option("--force", is_flag=True, help="Replace an index that exists, and start over.")
@precision_option
@runtime_options
def index(
    gallery: str,
    output: str | None,
    method: str | None,
    preset: str | None,
    calibrate: str | None,
    ann: str | None,
    effort: int | None,
    append: bool,
    force: bool,
    precision: str,
    runtime: Runtime,
    **params: Any,
) -> None:
    """Find and encode the neighbours of every item of GALLERY, for `run --index`.

    GALLERY is an HDF5 file with a group /gallery, or with the datasets of one, or file.h5::/group. An
    interrupted run goes on when it is started again: what is known is kept, every minute, in FILE.partial.
    With --append the items of the index come first, and its parameters hold.

    \b
    blurrerank index feats.h5 -o gallery.index.h5
    blurrerank run --index gallery.index.h5 probes.h5
    blurrerank index more.h5 -o gallery.index.h5 --append
    blurrerank index feats.h5 --method center+camera-graph --calibrate earlier.h5
    blurrerank index feats.h5 --ann hnsw
    """
    from ..errors import ParameterError
    from ..files import load_side
    from ..index.building import build_index, check_method, partial_of
    from ..methods import text_of

    runtime.start()
    if append and force:
        raise ParameterError("--append adds to the index and --force replaces it: choose one")
    given = given_parameters({"preset": preset, **params})
    check_method(method, append=append, **given)
    if effort is not None and ann is None:
        raise ParameterError("--effort is that of an approximate search: it needs --ann")
    if output == "-":
        raise ParameterError("an index is no stream: name a file with -o")
    file = Path(gallery.partition("::")[0])
    path = Path(output or f"{file.stem}.index.h5")
    for name in filter(None, (gallery, calibrate)):
        if os.path.realpath(path) == os.path.realpath(name.partition("::")[0]):
            raise ParameterError(f"{path} is named twice, as an input and as the index")
    try:
        built = build_index(
            load_side(gallery, "gallery", memory=runtime.memory),
            path,
            method,
            calibration=load_calibration(calibrate, runtime),
            ann=ann,
            effort=effort,
            append=append,
            force=force,
            device=runtime.device,
            memory=runtime.memory,
            precision=precision,
            progress=runtime.progress("indexing"),
            notify=runtime.note,
            **given,
        )
    except (KeyboardInterrupt, SystemExit):
        left = partial_of(path)
        if left.exists():
            runtime.note(f"note: {left} has what was found so far; the same command goes on")
        raise
    if built.approximation is not None:
        for kind, share in built.approximation.recall.items():
            lists = "neighbour lists" if kind == "nearest" else f"neighbour lists {kind} cameras"
            runtime.note(f"{ann}: {lists} hold {share:.2%} of the exact ones")
    runtime.note(f"wrote {path}: {len(built)} gallery items x {built.dim}, for {text_of(built.method)}")
