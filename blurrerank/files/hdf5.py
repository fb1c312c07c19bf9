"""Read untrusted HDF5 files safely.

An HDF5 file may refer to other files, declare more data than it contains, and name unknown filters. All readers
use this module, which follows no references to other files and checks sizes before reading.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .btrees import ELSEWHERE, check_tree
from .chunks import check_chunks, filters_of
from .hdf5_texts import check_heaps, check_letters, entry_bytes, is_variable, read_texts
from .headers import check_beginning
from .room import room_for
from .same_file import status
from .unpacking import check_unpacked

# Soft links on the way to one object.
_LINKS = 16
# What a text takes in memory beside its letters.
_TEXT_BYTES = 64


def open_hdf5(path: str | Path) -> Any:
    """Open a file for reading and return the `h5py.File`.

    Raises:
        InputError: if it does not exist, is not HDF5, is damaged, or is being written.
    """
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder: name a file in it")
    if not os.path.isfile(path):
        raise InputError(f"{path} is not a regular file; HDF5 cannot be read from a pipe or device")
    try:
        check_beginning(path)
        file = h5py.File(path, "r")
        check_tree(file["/"])
        return file
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied") from None
    except BlockingIOError:
        raise InputError(f"{path} is being written by another program: try again when it is done") from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if not h5py.is_hdf5(path):
            raise InputError(f"{path} is not an HDF5 file") from error
        if "truncated" in str(error):
            raise InputError(f"{path} is a truncated HDF5 file: copy or write it again") from error
        raise InputError(f"{path} is a damaged HDF5 file: {error}; copy or write it again") from error


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn errors of HDF5 and h5py about a damaged file into an `InputError` that names `where`."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{where} does not fit into memory, or is damaged") from None
    except Exception as error:  # h5py has no end of them
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where} cannot be read, the file is damaged: {said}") from error


def member(group: Any, path: str) -> Any:
    """Return the group or dataset at `path`, or None; links inside the file are followed.

    Raises:
        InputError: for a link to another file, a circular link, or an object that cannot be opened.
    """
    with reading(f"{group.file.filename}::/{path}"):
        return _resolved(group, path, [_LINKS])


def _resolved(group: Any, path: str, left: list[int]) -> Any:
    found = group.file["/"] if path.startswith("/") else group
    for part in filter(None, path.split("/")):
        if not isinstance(found, h5py.Group):
            return None
        link = found.get(part, getlink=True) if part != "." else None
        if isinstance(link, h5py.ExternalLink):
            raise InputError(
                f"{found.file.filename}::{found.name} has a link '{part}' to another file, which is not "
                "followed: copy its target into this file"
            )
        if isinstance(link, h5py.SoftLink):
            left[0] -= 1
            if left[0] < 0:
                raise InputError(
                    f"{found.file.filename}::{found.name} has a link '{part}' that is circular or nested too "
                    "deeply"
                )
            found = _resolved(found, link.path, left)
        elif link is not None:
            check_tree(found, part)
            found = found[part]
        elif part != ".":
            return None
    return found


def at(file: Any, reference: Any, where: str) -> Any:
    """Dereference an object reference.

    Raises:
        InputError: as `member`.
    """
    with reading(where):
        found = file[reference]
        check_tree(found)
        return found


def members(group: Any) -> dict[str, Any]:
    """Return all groups and datasets in a group, by name.

    Raises:
        InputError: as `member`.
    """
    with reading(f"{group.file.filename}::{group.name}"):
        found = {name: _resolved(group, name, [_LINKS]) for name in group}
    return {name: item for name, item in found.items() if item is not None}


def attributes(item: Any, where: str | None = None) -> dict[str, Any]:
    """Return the numeric and text attributes of a group or dataset; arrays as lists.

    Args:
        item: the group or dataset.
        where: its name in messages; HDF5 finds the name slowly if the item was reached by a reference.

    Raises:
        InputError: if they cannot be read.
    """
    where = where or f"{item.file.filename}::{item.name}"
    with reading(where):
        found: dict[str, Any] = {}
        for name in item.attrs:
            # Of what is neither number nor text, HDF5 believes whatever the file says.
            dtype = item.attrs.get_id(name).dtype
            if not dtype.hasobject or h5py.check_string_dtype(dtype) is not None:
                if is_variable(dtype):
                    check_letters(item.attrs.get_id(name).get_type(), where)
                    check_heaps(item, where)
                    with room_for(status(item).st_size):
                        value = item.attrs[name]
                else:
                    value = item.attrs[name]
                value = value.tolist() if isinstance(value, np.ndarray) else value
                found[_readable(name)] = _readable(value)
        return found


def _readable(value: Any) -> Any:
    """The same, and if it is text, such that can be printed."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def check_dataset(dataset: Any, where: str) -> None:
    """Check that a dataset is completely stored in its file and can be read.

    Raises:
        InputError: for data in other files, filters that are not installed, and impossible sizes.
    """
    with reading(where):
        dtype = dataset.dtype
        if dtype.hasobject and not (h5py.check_string_dtype(dtype) or h5py.check_ref_dtype(dtype)):
            raise InputError(f"{where} has a compound or object type: expected numbers or text")
        if is_variable(dtype):
            check_letters(dataset.id.get_type(), where)
        # One piece in this file, and no filters.
        plain = dataset.id.get_offset() is not None
        if not plain:
            _check_settings(dataset, where)
        if dataset.shape is None:
            return
        declared = _bytes(dataset, dataset.shape)
        stored = dataset.id.get_storage_size()
        size = status(dataset).st_size
        if stored > size or (stored < declared and (plain or not filters_of(dataset))):
            raise InputError(
                f"{where} is {_sizes(dataset)}, {declared:,} bytes, but the file has only "
                f"{min(stored, size):,} of them: it was truncated or never completely written"
            )
        if plain:
            return
        check_unpacked(declared, stored, where)
        if dataset.chunks:
            size = _bytes(dataset, dataset.chunks)
            check_unpacked(size, max(stored, declared), where)
            check_chunks(dataset, size, where)


def _check_settings(dataset: Any, where: str) -> None:
    # To ask for the settings makes HDF5 read what stands for values that were never written.
    if is_variable(dataset.dtype):
        check_heaps(dataset, where)
    if dataset.external:
        raise InputError(f"{where} {ELSEWHERE}")
    settings = dataset.id.get_create_plist()
    for number in range(settings.get_nfilters()):
        code, _, _, name = settings.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            called = name.decode("utf-8", "replace").split(";")[0] or "without a name"
            raise InputError(
                f"{where} is compressed by HDF5 filter {code} ({called}), which is not installed: write it "
                "with gzip or uncompressed"
            )


def read(dataset: Any, where: str, selection: Any = ()) -> NDArray[Any]:
    """Read a dataset, or a selection of it.

    Raises:
        InputError: as `check_dataset`, and if reading fails.
    """
    return Budget(dataset.file.filename).read(dataset, where, selection)


class Budget:
    """Limits the total size read from one file, in proportion to its size.

    Without it, many names for one dataset, or many highly compressed datasets, could fill the memory.
    """

    def __init__(self, path: str | Path) -> None:
        """Start counting."""
        self._path, self._size, self._total = str(path), os.stat(path).st_size, 0

    def take(self, size: int) -> None:
        """Count `size` bytes as read.

        Raises:
            InputError: if the total exceeds the limit.
        """
        self._total += size
        check_unpacked(self._total, self._size, self._path)

    def read(self, dataset: Any, where: str, selection: Any = ()) -> NDArray[Any]:
        """Read a dataset as `hdf5.read` does, and count its size.

        Raises:
            InputError: as `hdf5.read`, and if the total exceeds the limit.
        """
        check_dataset(dataset, where)
        text = h5py.check_string_dtype(dataset.dtype) is not None
        self.take(_bytes(dataset, dataset.shape) + text * _TEXT_BYTES * int(dataset.size))
        with reading(where):
            if not is_variable(dataset.dtype):
                return np.asarray(dataset[selection])
            values = read_texts(dataset, where)
        self.take(sum(map(len, values.flat)))
        return np.asarray(values[selection])


def _sizes(dataset: Any) -> str:
    return " x ".join(map(str, dataset.shape)) or "one value"


def _bytes(dataset: Any, shape: tuple[int, ...]) -> int:
    """What entries of such a shape take in the file, unpacked."""
    return math.prod(map(int, shape)) * entry_bytes(dataset)
