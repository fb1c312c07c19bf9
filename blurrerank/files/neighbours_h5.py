"""Neighbour lists of the first images, kept while the lists of all are being found."""

from __future__ import annotations

from pathlib import Path

from ..graph.neighbour_graph import NeighbourGraph
from .mapped_h5 import VERSION, describe, put_neighbours, reading_mapped
from .sink import new_hdf5
from .targets import replacing

PARTIAL = "blurrerank-index-partial"


def write_partial(path: Path, near: NeighbourGraph, *, pool: int, digest: str) -> None:
    """Write, or replace, what is known while an index is built.

    Raises:
        OutputError: if it cannot be written there.
    """
    with replacing(path, force=True) as temporary, new_hdf5(temporary) as file:
        put_neighbours(file, near)
        describe(file, {"format": PARTIAL, "format_version": VERSION, "pool": pool, "digest": digest})


def read_partial(path: Path) -> tuple[NeighbourGraph, int, str]:
    """What is known so far, the pool, and the digest of the gallery.

    Raises:
        InputError: if it is no such file, or is damaged.
    """
    with reading_mapped(path, PARTIAL, verify=True) as file:
        return file.neighbours(), int(file.attrs["pool"]), str(file.attrs["digest"])
