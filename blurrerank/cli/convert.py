"""`blurrerank convert`: convert other tools' feature files to the native format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import FILE, Runtime, json_option, printable, shortened, talking_options
from .tables import print_json

if TYPE_CHECKING:
    from ..files.foreign import Imported


@click.command(short_help="Convert another tool's features to a native file.")
@click.argument("inputs", metavar="IN [IN2]...", type=FILE, nargs=-1, required=True)
@click.argument("out", type=FILE, metavar="OUT.h5")
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Also read pickles: arrays, numbers, text and plain containers. No code in them is executed.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@json_option
@talking_options
def convert(
    inputs: tuple[str, ...], out: str, allow_pickle: bool, force: bool, as_json: bool, runtime: Runtime
) -> None:
    """Read another tool's features from IN and write them to OUT, an HDF5 file that every command reads.

    The format of IN is detected from its content: MATLAB v5 and v7.3, NumPy .npz and .npy, torch.save, pickles,
    CSV, ann-benchmarks HDF5, .fbin and .hbin vectors; in the layouts of layumi, SFT_REID, Zhong, GCN_rerank,
    ECN, torchreid, fast-reid and OML. If each side or each field has a file of its own, pass them all: probes
    first, unless the names say otherwise.

    The command prints what it recognised: fields, shapes, arrays that were transposed or converted to integers,
    norms and cameras. It warns about likely mistakes. Features keep their dtype and norms.

    \b
    blurrerank convert pytorch_result.mat market.h5
    blurrerank convert query-sft.mat gallery-sft.mat market.h5
    blurrerank convert market_88_test.pkl market.h5 --allow-pickle
    """
    from ..data.similarities import SimilaritySet
    from ..errors import InputError, ParameterError
    from ..files import save_features
    from ..files.foreign import import_features
    from ..files.foreign.traps import label_doubts
    from ..files.targets import check_target

    runtime.start()
    if not out.lower().endswith((".h5", ".hdf5")):
        raise ParameterError(f"{out}: the last argument is the output file: give it the extension .h5")
    check_target(Path(out), force=force)
    if any(os.path.realpath(out) == os.path.realpath(one) for one in inputs):
        raise ParameterError(f"{out} is both an input and the output: choose another output file")
    found = import_features(*inputs, allow_pickle=allow_pickle)
    if isinstance(found.data, SimilaritySet):
        raise InputError(
            f"{', '.join(inputs)} has similarities, not features, so there is nothing to convert: pass it to "
            "`run` or `eval`"
        )
    doubts = [*found.unsure, *found.doubts, *label_doubts(found.data)]
    save_features(found.data, out, force=force)
    if as_json:
        print_json(
            {"source": found.source, **found.found, "notes": found.notes, "warnings": doubts, "output": out}
        )
    else:
        click.echo(printable(_table(found), lines=True))
        for doubt in doubts:
            runtime.note(f"warning: {doubt}")
    data = found.data
    runtime.note(f"wrote {out}: {len(data.probe)} probes x {len(data.gallery)} gallery x {data.dim}")


def _table(found: Imported) -> str:
    from tabulate import tabulate

    sides = (("probe", found.data.probe), ("gallery", found.data.gallery))
    lines = [*(printable(shortened(line)) for line in (found.source, *found.notes)), ""]
    rows: list[list[Any]] = []
    for kind in ("features", "norms", "ids", "cams", "names", "tracks"):
        if kind == "tracks" and not any(kind in one for one in found.found.values()):
            continue
        cells = [shortened(str(found.found[name].get(kind, "-"))) for name, _ in sides]
        rows.append([kind, *cells])
        if kind == "cams" and any(side.cams is not None for _, side in sides):
            rows.append(["", *(_camera_range(side.cams) for _, side in sides)])
        if kind == "ids" and any(side.ids is not None for _, side in sides):
            rows.append(["", *(_count_identities(side.ids) for _, side in sides)])
    lines.append(tabulate(rows, headers=["", *(name for name, _ in sides)], disable_numparse=True))
    return "\n".join(lines)


def _camera_range(cams: Any) -> str:
    return "-" if cams is None else f"{cams.min()} to {cams.max()}"


def _count_identities(ids: Any) -> str:
    import numpy as np

    from ..data.labels import DISTRACTOR, JUNK

    if ids is None:
        return "-"
    counts = [f"{len(np.unique(ids[ids > DISTRACTOR]))} identities"]
    counts += [
        f"{number} {what}"
        for number, what in (
            (int((ids == JUNK).sum()), "junk"),
            (int((ids == DISTRACTOR).sum()), "distractors"),
        )
        if number
    ]
    return ", ".join(counts)
