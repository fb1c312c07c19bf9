"""Which files an index is made of, and how they give way to others; `index_h5.py` has their formats."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

from ..errors import InputError, OutputError
from ..files.guard import guarded
from ..files.hdf5 import attributes, member, open_hdf5
from ..files.targets import replacing
from ..files.verified import remember, state_of, was_verified

FORMAT = "blurrerank-index"
CHANGES = "blurrerank-index-changes"


def base_of(path: Path) -> Path:
    """Return where the index is that an index of changes at `path` is of."""
    real = Path(os.path.realpath(path))
    return real.with_name(f"{real.name}.base")


@contextmanager
def changing(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Yield a temporary path that takes the place of an index, or of nothing; see `replacing`.

    A base that no index needs any more is removed.
    """
    base, of = base_of(path), path.with_name(path.name.removesuffix(".base"))
    if of != path and is_changed(of):
        raise OutputError(f"{path} belongs to {of}, which holds changes to it: change {of} instead")

    def settle() -> None:
        if is_changed(path):
            if verified:  # what was known of it goes with its name
                remember(base, state_of(base))
        elif ours:
            base.unlink(missing_ok=True)

    with replacing(path, force=force, then=settle) as temporary:
        changed = is_changed(path)
        # Whoever was interrupted may have left a second name of the index as it is.
        left = base.is_file() and path.is_file() and base.samefile(path)
        ours, verified = changed or left, was_verified(base if changed else path)
        yield temporary


def stored_items(path: Path) -> int:
    """Return how many items the files of an index store, those that were taken from it among them.

    Raises:
        InputError: if they cannot be read.
    """

    def read() -> int:
        total = 0
        for file in files_of(path):
            with open_hdf5(file) as opened:
                features = member(opened, "features")
                total += len(features) if isinstance(features, h5py.Dataset) else 0
        return total

    return guarded(read, *files_of(path))


def files_of(path: Path) -> list[Path]:
    """Return the files of an index: itself, and what it is changes to."""
    return [path, base_of(path)] if is_changed(path) else [path]


def is_changed(path: Path) -> bool:
    """Return whether the index at `path` is one of changes to another file."""
    return _stated(path).get("format") == CHANGES


def is_index(path: Path) -> bool:
    """Whether this is an index, sound or not."""
    return method_of(path) is not None


def method_of(path: Path) -> str | None:
    """Return the method that an index was built for, without looking at the rest of it; None if it is none."""
    stated = _stated(path)
    return str(stated.get("method")) if stated.get("format") in (FORMAT, CHANGES) else None


def _stated(path: Path) -> Mapping[str, Any]:
    """The attributes of a file, if it is of HDF5 and they can be read."""
    with suppress(OSError):  # whoever reads it says why it cannot be read
        if not path.is_file() or not h5py.is_hdf5(path):
            return {}

    def read() -> Mapping[str, Any]:
        with open_hdf5(path) as file:
            return attributes(file)

    try:
        return guarded(read, path)
    except InputError:
        return {}


def stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when the file at `path` is replaced; None if there is none."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None
