"""Read HDF5 files of strangers: nothing outside of the file is read, and sizes are checked first.

Whatever HDF5 itself may come to harm over is tried in a child process, see `guard`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .guard import trying
from .limits import check_unpacked
from .watched import status

# Soft links on the way to one object.
_LINKS = 16
# What a text takes in memory beside its letters.
_TEXT_BYTES = 64
# Bytes read at a time in a trial.
_BLOCK = 16 << 20
# Kinds of dtypes.
_NUMERIC = "biufc"
_ELSEWHERE = "is stored in another file, which is not read: copy its data into this file"


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
        return h5py.File(path, "r")
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied") from None
    except BlockingIOError:
        raise InputError(f"{path} is being written by another program: try again when it is done") from None
    except Exception as error:  # h5py raises what it likes
        if not h5py.is_hdf5(path):
            raise InputError(f"{path} is not an HDF5 file") from error
        if "truncated" in str(error):
            raise InputError(f"{path} is a truncated HDF5 file: copy or write it again") from error
        if "h5clear" in str(error):
            raise InputError(
                f"{path} was not closed by the program that wrote it: if no program is writing it any more, "
                f"repair it with `h5clear -s {path}`"
            ) from error
        raise InputError(f"{path} is a damaged HDF5 file: {error}; copy or write it again") from error


class UnreadableError(InputError):
    """Something of a file that HDF5 cannot read."""


class UnfitError(InputError):
    """Something that is not read though the file may be sound: elsewhere, of another type, never written."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn errors of HDF5 and h5py about a damaged file into an `UnreadableError` that names `where`."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise UnreadableError(f"{where} does not fit into memory, or is damaged") from None
    except Exception as error:  # h5py has no end of them
        said = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(f"{where} cannot be read, the file is damaged: {said}") from error


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
            raise UnfitError(
                f"{found.file.filename}::{found.name} has a link '{part}' to another file, which is not "
                "followed: copy its target into this file"
            )
        if isinstance(link, h5py.SoftLink):
            left[0] -= 1
            if left[0] < 0:
                raise UnfitError(
                    f"{found.file.filename}::{found.name} has a link '{part}' that is circular or nested too "
                    "deeply"
                )
            found = _resolved(found, link.path, left)
        elif link is not None:
            found = found[part]
        elif part != ".":
            return None
    return found


def members(group: Any) -> dict[str, Any]:
    """Return all groups and datasets in a group, by name; for links that are not followed, the `UnfitError`.

    Raises:
        InputError: for an object that cannot be opened.
    """
    found: dict[str, Any] = {}
    with reading(f"{group.file.filename}::{group.name}"):
        for name in group:
            try:
                found[name] = _resolved(group, name, [_LINKS])
            except UnfitError as error:
                found[name] = error
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
            dtype = dtype_of(item.attrs.get_id(name))
            if dtype is not None and (dtype.base.kind in _NUMERIC or h5py.check_string_dtype(dtype.base)):
                value = item.attrs[name]
                value = value.tolist() if isinstance(value, np.ndarray) else value
                found[_readable(name)] = _readable(value)
        return found


def dtype_of(item: Any) -> Any:
    """Return the dtype of a dataset or attribute, None if NumPy has no such type."""
    try:
        return item.dtype
    except TypeError:
        return None


def is_text(item: Any) -> bool:
    """Return whether a dataset holds strings."""
    dtype = dtype_of(item)
    return dtype is not None and h5py.check_string_dtype(dtype) is not None


def _readable(value: Any) -> Any:
    """The same, and if it is text, such that can be printed."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def check_dataset(dataset: Any, where: str) -> None:
    """Check that a dataset is completely stored in its file and can be read; in a trial, read what is packed.

    Raises:
        UnfitError: for data in other files or of other types, filters that are not installed, and data that
            was never written.
        InputError: for impossible sizes.
    """
    with reading(where):
        dtype = dtype_of(dataset)
        if dtype is None:
            raise UnfitError(f"{where} has a type that NumPy does not support: expected numbers or text")
        if dtype.hasobject and not (h5py.check_string_dtype(dtype) or h5py.check_ref_dtype(dtype)):
            kind = "rows of different lengths" if h5py.check_vlen_dtype(dtype) else "a compound or object type"
            raise UnfitError(f"{where} has {kind}: expected a plain array of numbers or text")
        if dataset.external:
            raise UnfitError(f"{where} {_ELSEWHERE}")
        if dataset.shape is None:
            return
        filters = _filters(dataset, where)
        declared, stored = _bytes(dataset, dataset.shape), dataset.id.get_storage_size()
        if dataset.is_virtual:
            if any(source.file_name != "." for source in dataset.virtual_sources()):
                raise UnfitError(f"{where} {_ELSEWHERE}")
            stored = status(dataset).st_size
        elif stored < declared and not filters:
            raise UnfitError(
                f"{where} is {_sizes(dataset)}, {declared:,} bytes, but the file has only "
                f"{stored:,} of them: it was truncated or never completely written"
            )
        check_unpacked(declared, stored, where)
        if dataset.chunks:
            check_unpacked(_bytes(dataset, dataset.chunks), max(stored, declared), where)
        if trying() and dataset.chunks:
            dataset.id.chunk_iter(lambda chunk: None)
        if trying() and (filters or dataset.is_virtual):
            for part in _parts(dataset):
                dataset[part]


def _filters(dataset: Any, where: str) -> int:
    """How many filters a dataset has, all of which are installed."""
    settings = dataset.id.get_create_plist()
    for number in range(settings.get_nfilters()):
        code, _, _, name = settings.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            with suppress(ImportError):
                import_module("hdf5plugin")  # which brings many filters
        if not h5py.h5z.filter_avail(code):
            called = name.decode("utf-8", "replace").split(";")[0] or "without a name"
            raise UnfitError(
                f"{where} is compressed by HDF5 filter {code} ({called}), which is not installed: install "
                "hdf5plugin, or write it with gzip or uncompressed"
            )
    return int(settings.get_nfilters())


def _parts(dataset: Any) -> Iterator[Any]:
    """Parts of a dataset that are together all of it."""
    if not dataset.shape:
        yield ()
        return
    rows = dataset.chunks[0] if dataset.chunks else 1
    row = max(1, _bytes(dataset, dataset.shape[1:]))
    step = max(rows, _BLOCK // row // rows * rows)
    for start in range(0, dataset.shape[0], step):
        yield slice(start, start + step)


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
        text = h5py.check_string_dtype(dataset.dtype)
        self.take(_bytes(dataset, dataset.shape) + (text is not None) * _TEXT_BYTES * int(dataset.size))
        with reading(where):
            values = np.asarray(dataset[selection])
        if text is not None and text.length is None:
            self.take(sum(map(len, values.flat)))
        return values


def _sizes(dataset: Any) -> str:
    return " x ".join(map(str, dataset.shape)) or "one value"


def _bytes(dataset: Any, shape: tuple[int, ...]) -> int:
    """What entries of such a shape take in the file, unpacked."""
    return math.prod(map(int, shape)) * int(dataset.id.get_type().get_size())
