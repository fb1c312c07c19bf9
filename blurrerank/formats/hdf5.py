"""Reading HDF5 files of strangers.

HDF5 lets a file point into others, declare more than it holds, and name filters that nobody has. Every reader
here goes through this module, which follows no way out of the file and checks sizes before anything is read.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .heaps import all_heaps_end, heaps_end
from .unpacking import check_unpacked

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_STATM = Path("/proc/self/statm")
# The limit is the process's: threads that set it at the same time would take each other's for what was before.
_ONE_LIMIT = threading.Lock()
# Soft links on the way to one object.
_LINKS = 16
# Bytes of text at a time whose length is not known before.
_TEXT_BYTES = 64 << 20
# What the system's allocator sets aside for a thread that begins to allocate, and something for itself.
_THREAD_BYTES = 256 << 20
# Codes of filters.
_GZIP, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE


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
        raise InputError(f"{path} is no ordinary file: HDF5 is read from files alone")
    try:
        return h5py.File(path, "r")
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
                f"{found.file.filename}::{found.name} has a link '{part}' into another file, which is not "
                "followed: copy what it points to into this one"
            )
        if isinstance(link, h5py.SoftLink):
            left[0] -= 1
            if left[0] < 0:
                raise InputError(f"{found.file.filename}::{found.name} has a link '{part}' that leads nowhere")
            found = _resolved(found, link.path, left)
        elif link is not None:
            found = found[part]
        elif part != ".":
            return None
    return found


def members(group: Any) -> dict[str, Any]:
    """All groups and datasets in a group, by name.

    Raises:
        InputError: as `member`.
    """
    with reading(f"{group.file.filename}::{group.name}"):
        found = {name: _resolved(group, name, [_LINKS]) for name in group}
    return {name: item for name, item in found.items() if item is not None}


def attributes(item: Any) -> dict[str, Any]:
    """The attributes of a group that are numbers or text; of more than one, as a list.

    Raises:
        InputError: if they cannot be read.
    """
    with reading(f"{item.file.filename}::{item.name}"), _room_for(os.stat(item.file.filename).st_size):
        found = {}
        for name in item.attrs:
            # Of what is neither number nor text, HDF5 believes whatever the file says.
            dtype = item.attrs.get_id(name).dtype
            if not dtype.hasobject or h5py.check_string_dtype(dtype) is not None:
                if _is_variable(dtype) and not all_heaps_end(item.file.filename, _widths(item)[1]):
                    raise InputError(f"{item.file.filename} is a damaged HDF5 file: copy or write it again")
                value = item.attrs[name]
                value = value.tolist() if isinstance(value, np.ndarray) else value
                found[_readable(name)] = _readable(value)
        return found


def _readable(value: Any) -> Any:
    """The same, and if it is text, such that can be printed."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


@contextlib.contextmanager
def _room_for(size: int) -> Iterator[None]:
    """Memory for attributes of a file of so many bytes: HDF5 takes what the length of a text says, up to 4 GiB,
    before it looks whether there is so much text."""
    if resource is None or not _STATM.exists():
        yield
        return
    with _ONE_LIMIT:
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(_STATM.read_text().split()[0]) * resource.getpagesize()
        most = used + size + _TEXT_BYTES + (threading.active_count() - 1) * _THREAD_BYTES
        if before[0] == resource.RLIM_INFINITY or most < before[0]:
            resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


def check_dataset(dataset: Any, where: str) -> None:
    """Refuse a dataset that is not in its file, or not all of it.

    Raises:
        InputError: for data in other files, filters that are not here, and sizes that cannot be true.
    """
    with reading(where):
        dtype = dataset.dtype
        if dtype.hasobject and not (h5py.check_string_dtype(dtype) or h5py.check_ref_dtype(dtype)):
            raise InputError(f"{where} is of parts of many kinds: expected numbers or text")
        # One piece in this file, and no filters.
        plain = dataset.id.get_offset() is not None
        if not plain:
            _check_settings(dataset, where)
        if dataset.shape is None:
            return
        declared = _bytes(dataset, dataset.shape)
        stored = dataset.id.get_storage_size()
        size = os.stat(dataset.file.filename).st_size
        if stored > size or (stored < declared and (plain or not _filters(dataset))):
            raise InputError(
                f"{where} is {_sizes(dataset)}, {declared:,} bytes, and the file holds {min(stored, size):,} "
                "of it: it was cut short, or never written"
            )
        if plain:
            return
        check_unpacked(declared, stored, where)
        if dataset.chunks:
            check_unpacked(_bytes(dataset, dataset.chunks), max(stored, declared), where)


def _check_settings(dataset: Any, where: str) -> None:
    # To ask for the settings makes HDF5 read what stands for values that were never written.
    if _is_variable(dataset.dtype) and not all_heaps_end(dataset.file.filename, _widths(dataset)[1]):
        raise _endless(where)
    if dataset.external or dataset.is_virtual:
        raise InputError(
            f"{where} is kept in another file, which is not opened: copy it into this one, with h5repack"
        )
    settings = dataset.id.get_create_plist()
    for number in range(settings.get_nfilters()):
        code, _, _, name = settings.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            called = name.decode("utf-8", "replace").split(";")[0] or "without a name"
            raise InputError(
                f"{where} is packed by HDF5 filter {code} ({called}), which is not installed: write it "
                "with gzip or unpacked"
            )


def _filters(dataset: Any) -> list[int]:
    settings = dataset.id.get_create_plist()
    return [settings.get_filter(number)[0] for number in range(settings.get_nfilters())]


def _endless(where: str) -> InputError:
    return InputError(f"{where} lies in a heap of text without an end: the file is damaged")


def read(dataset: Any, where: str, selection: Any = ()) -> NDArray[Any]:
    """The values of a dataset, or those of a selection.

    Raises:
        InputError: as `check_dataset`, and if the file does not give them.
    """
    check_dataset(dataset, where)
    return _values(dataset, where, selection)


def _values(dataset: Any, where: str, selection: Any = ()) -> NDArray[Any]:
    with reading(where):
        if dataset.shape and _is_variable(dataset.dtype):
            return np.asarray(_texts(dataset, where)[selection])
        return np.asarray(dataset[selection])


class Budget:
    """Reads of one file, which together are no more than a file of its size may unpack to.

    Many names may lead to one dataset.
    """

    def __init__(self, path: str | Path) -> None:
        """Begin to count."""
        self._path, self._size, self._total = str(path), os.stat(path).st_size, 0

    def read(self, dataset: Any, where: str) -> NDArray[Any]:
        """The values of a dataset, as `read` gives them.

        Raises:
            InputError: as `read`, and if all that was read is too much.
        """
        check_dataset(dataset, where)
        self._total += _bytes(dataset, dataset.shape)
        check_unpacked(self._total, self._size, self._path)
        return _values(dataset, where)


def _sizes(dataset: Any) -> str:
    return " x ".join(map(str, dataset.shape)) or "one value"


def _is_variable(dtype: Any) -> bool:
    """Whether the entries are of different lengths, and lie elsewhere in the file."""
    text = h5py.check_string_dtype(dtype)
    return text is not None and text.length is None


def _widths(item: Any) -> tuple[int, int]:
    """Bytes of an address and of a length in its file."""
    address, length = item.file.id.get_create_plist().get_sizes()
    return int(address), int(length)


def _stored_size(dataset: Any) -> int:
    """Bytes of an entry in the file."""
    if _is_variable(dataset.dtype):
        # A length, an address and a number.
        return 8 + _widths(dataset)[0]
    return int(dataset.id.get_type().get_size())


def _bytes(dataset: Any, shape: tuple[int, ...]) -> int:
    """What entries of such a shape take in the file, unpacked."""
    return math.prod(map(int, shape)) * _stored_size(dataset)


def _texts(dataset: Any, where: str) -> NDArray[Any]:
    """Entries of any length. Those of a sound file are not longer, together, than the file."""
    path = dataset.file.filename
    size = os.stat(path).st_size
    damaged = InputError(f"{where} holds more text than the file has bytes: it is damaged")
    total, pieces = 0, _references(dataset)
    if dataset.id.get_offset() is not None and not heaps_end(path, _heaps(dataset), _widths(dataset)[1]):
        raise _endless(where)
    if pieces is not None:
        for references in pieces:
            total += int(references[:, :4].copy().view("<u4").sum(dtype=np.uint64))
            if total > size:
                raise damaged
        return np.asarray(dataset[()])
    # Packed in an unusual way: a few at a time, for each may be as long as the file.
    step = max(1, _TEXT_BYTES // size * dataset.shape[0] // dataset.size)
    found = []
    for start in range(0, dataset.shape[0], step):
        found.append(np.asarray(dataset[start : start + step]))
        total += sum(map(len, found[-1].flat))
        if total > size:
            raise damaged
    return np.concatenate(found)


def _heaps(dataset: Any) -> list[int]:
    """Where in the file the heaps are that a dataset of one piece points to."""
    width = _widths(dataset)[0]
    references = next(_references(dataset) or iter(()))
    places = np.zeros((len(references), 8), np.uint8)
    places[:, :width] = references[:, 4 : 4 + width]
    return [int(place) + dataset.file.userblock_size for place in np.unique(places.view("<u8")) if place]


def _references(dataset: Any) -> Iterator[NDArray[np.uint8]] | None:
    """What the file keeps in the place of entries of any length: their lengths, and where they are."""
    offset, width = dataset.id.get_offset(), _stored_size(dataset)
    if offset is not None:
        count = dataset.size * width
        references = np.fromfile(dataset.file.filename, np.uint8, count, offset=offset).reshape(-1, width)
        return iter([references])
    filters = _filters(dataset)
    if not dataset.chunks or filters not in ([], [_GZIP], [_SHUFFLE, _GZIP]):
        return None
    places: list[tuple[int, ...]] = []
    dataset.id.chunk_iter(lambda info: places.append(info.chunk_offset))
    return (_chunk(dataset, place, filters, width).reshape(-1, width) for place in places)


def _chunk(dataset: Any, place: tuple[int, ...], filters: list[int], width: int) -> NDArray[np.uint8]:
    size = math.prod(dataset.chunks) * width
    skipped, data = dataset.id.read_direct_chunk(place)
    applied = [code for place, code in enumerate(filters) if not skipped >> place & 1]
    if _GZIP in applied:
        data = zlib.decompressobj().decompress(data, size)
    values = np.frombuffer(data[: len(data) // width * width], np.uint8)
    return values.reshape(width, -1).T if _SHUFFLE in applied else values
