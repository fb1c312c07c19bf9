"""Partial neighbour lists, saved while an index is built."""

from __future__ import annotations

from pathlib import Path

from ..graph.neighbour_graph import NeighbourGraph
from .guard import guarded, trying
from .mapped_h5 import VERSION, describe, put_neighbours, reading_mapped
from .sink import new_hdf5
from .targets import replacing

PARTIAL = "blurrerank-index-partial"


def write_partial(path: Path, near: NeighbourGraph, *, pool: int, digest: str) -> None:
    """Write or replace the file of partial neighbour lists.

    Raises:
        OutputError: if it cannot be written there.
    """
    with replacing(path, force=True) as temporary, new_hdf5(temporary) as file:
        put_neighbours(file, near)
        describe(file, {"format": PARTIAL, "format_version": VERSION, "pool": pool, "digest": digest})


def read_partial(path: Path) -> tuple[NeighbourGraph, int, str]:
    """Return the partial neighbour lists, the pool size and the digest of the gallery.

    Raises:
        InputError: if it is not such a file, or is damaged.
    """

    def read() -> tuple[NeighbourGraph, int, str]:
        with reading_mapped(path, PARTIAL, verify=not trying()) as file:
            return file.neighbours(farthest=True), int(file.attrs["pool"]), str(file.attrs["digest"])

    return guarded(read, path)
