"""Reading HDF5 files of strangers.

HDF5 lets a file point into others, declare more than it holds, and name filters that nobody has. Every reader
here goes through this module, which follows no way out of the file and checks sizes before anything is read.
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
    """The open file, an `h5py.File`.

    Raises:
        InputError: if it is not there, is no HDF5, is damaged, or somebody is writing it.
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
    """Whatever HDF5 and h5py say of a damaged file becomes an `InputError` that names `where`."""
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
    """The group or dataset at `path`, None if there is none; links inside the file are followed.

    Raises:
        InputError: for a link out of the file, or in a circle; for what cannot be opened.
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
    """What a reference in the file leads to.

    Raises:
        InputError: as `member`.
    """
    with reading(where):
        found = file[reference]
        check_tree(found)
        return found


def members(group: Any) -> dict[str, Any]:
    """All groups and datasets in a group, by name.

    Raises:
        InputError: as `member`.
    """
    with reading(f"{group.file.filename}::{group.name}"):
        found = {name: _resolved(group, name, [_LINKS]) for name in group}
    return {name: item for name, item in found.items() if item is not None}


def attributes(item: Any, where: str | None = None) -> dict[str, Any]:
    """The attributes of a group or dataset that are numbers or text; of more than one, as a list.

    Args:
        item: the group or dataset.
        where: how messages call it. To ask it for its name takes long if a reference led to it.

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
    """Refuse a dataset that is not in its file, or not all of it.

    Raises:
        InputError: for data in other files, filters that are not here, and sizes that cannot be true.
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
    """The values of a dataset, or those of a selection.

    Raises:
        InputError: as `check_dataset`, and if the file does not give them.
    """
    return Budget(dataset.file.filename).read(dataset, where, selection)


class Budget:
    """Reads of one file, which together are no more than a file of its size may unpack to.

    Many names may lead to one dataset, and many datasets may be packed as tightly as one may be.
    """

    def __init__(self, path: str | Path) -> None:
        """Begin to count."""
        self._path, self._size, self._total = str(path), os.stat(path).st_size, 0

    def take(self, size: int) -> None:
        """Count so many bytes.

        Raises:
            InputError: if all that was read is too much.
        """
        self._total += size
        check_unpacked(self._total, self._size, self._path)

    def read(self, dataset: Any, where: str, selection: Any = ()) -> NDArray[Any]:
        """The values of a dataset, as `hdf5.read` gives them.

        Raises:
            InputError: as `hdf5.read`, and if all that was read is too much.
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
