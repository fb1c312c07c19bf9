"""`blurrerank index`: a gallery, encoded once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .method_options import MethodCommand, given_parameters, method_option, preset_option
from .options import FILE, Runtime, camera_images_option, load_camera_images, precision_option, runtime_options
from .together import of_process, together

if TYPE_CHECKING:
    from ..index.gallery_index import GalleryIndex


@click.command(
    cls=MethodCommand,
    method="k-reciprocal-online",
    short_help="Index a gallery, to answer probes as they arrive.",
)
@click.argument("gallery", type=FILE, metavar="[GALLERY]", required=False)
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="Index file to write.  [default: NAME.index.h5 in this folder, for NAME.h5]",
)
@method_option(
    "A graph ranker that works online, a chain such as center+camera-graph, or auto, which chooses for GALLERY",
    "k-reciprocal-online",
    auto=True,
)
@preset_option
@click.option(
    "--also",
    multiple=True,
    metavar="METHOD",
    help="Another method that the index can rank with, from the same neighbour lists; parameters as in "
    "gnn:k1=20. May be repeated.",
)
@camera_images_option
@click.option(
    "--ann",
    type=click.Choice(["hnsw", "ivf"]),
    help="Search approximately, for neighbours now and for probes later: by a graph of near items (hnsw) or "
    "by clusters (ivf). Needs the extra blurrerank[faiss]; the recall is printed.  [default: compare "
    "all items]",
)
@click.option(
    "--effort",
    type=click.IntRange(min=1),
    metavar="N",
    help="How much --ann searches per probe: number of candidates (hnsw) or of clusters (ivf). `run "
    "--effort` can ask for more.  [default: 256 candidates, or a sixteenth of the clusters]",
)
@click.option("--append", is_flag=True, help="Add the items of GALLERY to an existing index.")
@click.option(
    "--remove",
    metavar="ROWS",
    help="Remove items from an existing index, without GALLERY: their current row numbers, such as "
    "3,17,100-199. The remaining items are renumbered.",
)
@click.option(
    "--remove-names",
    type=FILE,
    metavar="FILE",
    help="Likewise, by name: a text file with one name per line.",
)
@click.option(
    "--remove-tracks",
    type=FILE,
    metavar="FILE",
    help="Likewise, all items of some tracks: a text file with one track per line.",
)
@click.option(
    "--compact",
    is_flag=True,
    help="Encode an existing index again after changes. Until then, an index with --ann keeps changes beside "
    "its original encoding.",
)
@click.option("--force", is_flag=True, help="Replace an existing index, and discard a partial build.")
@precision_option
@runtime_options
def index(
    gallery: str | None,
    output: str | None,
    method: str | None,
    preset: str | None,
    also: tuple[str, ...],
    camera_images: str | None,
    ann: str | None,
    effort: int | None,
    append: bool,
    remove: str | None,
    remove_names: str | None,
    remove_tracks: str | None,
    compact: bool,
    force: bool,
    precision: str,
    runtime: Runtime,
    **params: Any,
) -> None:
    """Find and encode the neighbours of every item of GALLERY, for `run --index`.

    GALLERY is an HDF5 file with a group /gallery or with the datasets of such a group, or file.h5::/group. A
    build saves its progress every minute in FILE.partial; after an interruption, the same command continues
    from there.

    --append adds items after those of the index, with the same parameters; --remove takes items out. Both take
    seconds for an index built with --ann, and as long as a new build for any other.

    \b
    blurrerank index feats.h5 -o gallery.index.h5
    blurrerank run --index gallery.index.h5 probes.h5
    blurrerank index more.h5 -o gallery.index.h5 --append
    blurrerank index -o gallery.index.h5 --remove 3,17,100-199
    blurrerank index -o gallery.index.h5 --compact
    blurrerank index feats.h5 --method center+camera-graph --camera-images earlier.h5
    blurrerank index feats.h5 --ann hnsw
    blurrerank index feats.h5 --method center+camera-graph --also center+gnn
    torchrun --nproc-per-node 2 -m blurrerank index feats.h5
    """
    from ..errors import ParameterError

    given = given_parameters({"preset": preset, **params})
    change = "--compact" if compact else "--remove"
    removed = {"--remove": remove, "--remove-names": remove_names, "--remove-tracks": remove_tracks}
    changes = compact or any(value is not None for value in removed.values())
    if append and force:
        raise ParameterError("--append adds to the index and --force replaces it: choose one")
    if changes:
        others = {
            "GALLERY": gallery,
            "--method": method,
            "--also": also,
            "--camera-images": camera_images,
            "--ann": ann,
            "--effort": effort,
            "--append": append,
            "--force": force,
            **(removed if compact else {}),
            **given,
        }
        other = next((name for name, value in others.items() if value), None)
        if other is not None:
            does = "works on the whole index" if compact else "only removes items"
            raise ParameterError(f"{change} {does}: leave {other} out")
        if output is None:
            raise ParameterError(f"{change} needs the index: name it with -o")
    elif gallery is None:
        raise click.UsageError("Missing argument 'GALLERY'.")
    with together(runtime.device) as group:
        runtime = of_process(runtime, group)
        runtime.start()
        how: dict[str, Any] = {
            "device": runtime.device,
            "memory": runtime.memory,
            "precision": precision,
            "progress": runtime.progress("indexing") if group is None or group.rank == 0 else None,
        }
        if changes and group is not None:
            raise ParameterError(f"{change} is done in one process: start this without torchrun")
        if compact:
            assert output is not None
            _compact(output, how, runtime)
        elif changes:
            assert output is not None
            _remove(output, remove, remove_names, remove_tracks, how, runtime)
        else:
            assert gallery is not None
            asked = {
                "also": also,
                "ann": ann,
                "effort": effort,
                "append": append,
                "force": force,
                "group": group,
            }
            _build(gallery, output, method, camera_images, how | asked, given, runtime)


def _build(
    gallery: str,
    output: str | None,
    method: str | None,
    camera_images: str | None,
    how: dict[str, Any],
    given: dict[str, Any],
    runtime: Runtime,
) -> None:
    """Index a gallery, or add to an index."""
    from ..errors import ParameterError
    from ..files import load_side
    from ..index.building import build_index, check_method, partial_of
    from ..methods import text_of

    check_method(method, append=how["append"], also=how["also"], **given)
    if how["effort"] is not None and how["ann"] is None:
        raise ParameterError("--effort applies to approximate search: add --ann")
    if output == "-":
        raise ParameterError("an index cannot be written to standard output: name a file with -o")
    file = Path(gallery.partition("::")[0])
    path = Path(output or f"{file.stem}.index.h5")
    for name in filter(None, (gallery, camera_images)):
        if os.path.realpath(path) == os.path.realpath(name.partition("::")[0]):
            raise ParameterError(f"{path} is named twice, as an input and as the index")
    try:
        built = build_index(
            # An approximate build keeps normalised rows: what they are made of is read in passes, and not kept.
            load_side(gallery, "gallery", memory=1 if how["ann"] else runtime.memory),
            path,
            method,
            camera_images=load_camera_images(camera_images, runtime),
            notify=runtime.note,
            **how,
            **given,
        )
    except (KeyboardInterrupt, SystemExit):
        left = partial_of(path)
        if left.exists():
            runtime.note(f"note: partial results are kept in {left}; run the same command again to continue")
        raise
    if built.approximation is not None and built.drift is None:
        for kind, share in built.approximation.recall.items():
            lists = "neighbour lists" if kind == "nearest" else f"neighbour lists {kind} cameras"
            runtime.note(
                f"{built.approximation.search.kind}: {lists} contain {share:.2%} of the exact neighbours"
            )
    served = " and ".join(map(text_of, built.methods))
    runtime.note(f"wrote {path}: {len(built)} gallery items x {built.dim}, for {served}")
    _tell_drift(built, runtime)


def _tell_drift(index: GalleryIndex, runtime: Runtime) -> None:
    """Say how far an index that was changed is from one that is built anew."""
    if index.drift is not None:
        runtime.note(f"{index.drift}; --compact encodes it again")


def _compact(path: str, how: dict[str, Any], runtime: Runtime) -> None:
    """Encode an index anew."""
    from ..index.changing import compact_index
    from ..index.index_files import is_changed

    changed = is_changed(Path(path))
    built = compact_index(path, **how)
    if changed:
        runtime.note(f"wrote {path}: {len(built)} gallery items")
    else:
        runtime.note(f"{path} is encoded as it is: there is nothing to compact")


def _remove(
    path: str,
    rows: str | None,
    names: str | None,
    tracks: str | None,
    how: dict[str, Any],
    runtime: Runtime,
) -> None:
    """Take items from an index."""
    from ..index.changing import remove_from_index

    numbers = _rows(rows or "", Path(path))
    named: dict[str, Any] = {"names": _lines(names, "names"), "tracks": _lines(tracks, "tracks")}
    left = remove_from_index(path, rows=numbers, **named, **how)
    runtime.note(f"wrote {path}: {len(left)} gallery items are left")
    _tell_drift(left, runtime)


def _lines(path: str | None, what: str) -> list[str]:
    """The lines of a text file, without those that are empty."""
    from ..errors import InputError
    from ..files.access import check_readable

    if path is None:
        return []
    check_readable(Path(path))
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: expected a text file of {what}, one per line") from None
    return [line for line in lines if line]


def _rows(text: str, path: Path) -> list[int]:
    """The row numbers of --remove; of those beyond an index, the first.

    Raises:
        ParameterError: for anything else than numbers and ranges of them.
    """
    from ..errors import ParameterError
    from ..index.index_files import stored_items

    found: list[int] = []
    beyond = stored_items(path) if text else 0
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ParameterError(f"--remove takes row numbers and ranges such as 3,17,100-199, not {part!r}")
        start, stop = int(first), int(last or first)
        if stop < start:
            raise ParameterError(f"--remove {part} goes backwards: write {last}-{first}")
        found += range(start, min(stop, beyond) + 1) if start <= beyond else [start]
    return found
