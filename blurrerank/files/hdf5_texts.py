"""Read variable-length text in HDF5 files: it is stored in heaps; datasets hold positions and lengths."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .chunks import GZIP, SHUFFLE, filters_of, for_each_chunk
from .heaps import all_heaps_end, heaps_end
from .room import room_for
from .same_file import open_same, status

# Bytes of text at a time whose length is not known before.
_TEXT_BYTES = 64 << 20


def is_variable(dtype: Any) -> bool:
    """Return whether `dtype` is variable-length text, which is stored in heaps."""
    text = h5py.check_string_dtype(dtype)
    return text is not None and text.length is None


def check_letters(kind: Any, where: str) -> None:
    """Check that text has characters of one byte: HDF5 would allocate whatever size the file declares.

    Args:
        kind: the h5py type of a dataset or an attribute.
        where: its name in messages.

    Raises:
        InputError: if the character size is not one byte.
    """
    # Two bytes, then the type as in a file: class and size, and behind these class and size of a letter.
    if kind.encode()[14:18] != b"\1\0\0\0":
        raise InputError(f"{where} is text with an invalid character type: the file is damaged")


def _widths(item: Any) -> tuple[int, int]:
    """Bytes of an address and of a length in its file."""
    address, length = item.file.id.get_create_plist().get_sizes()
    return int(address), int(length)


def check_heaps(item: Any, where: str) -> None:
    """Check everything in the file that looks like a text heap.

    This takes a pass over the file; it is needed for text whose position only HDF5 knows.

    Raises:
        InputError: if HDF5 would never reach the end of one of them.
    """
    if not all_heaps_end(item, _widths(item)[1]):
        raise _endless(where)


def _endless(where: str) -> InputError:
    return InputError(f"{where} is stored in a malformed text heap: the file is damaged")


def entry_bytes(dataset: Any) -> int:
    """Return the size of an entry in the file, in bytes."""
    if is_variable(dataset.dtype):
        # A length, an address and a number.
        return 8 + _widths(dataset)[0]
    return int(dataset.id.get_type().get_size())


def read_texts(dataset: Any, where: str) -> NDArray[Any]:
    """Read a dataset of variable-length text.

    Raises:
        InputError: if its entries are longer, together, than the file, or are stored in a malformed heap.
    """
    if not dataset.size:
        return np.empty(dataset.shape, object)
    size = status(dataset).st_size
    damaged = InputError(f"{where} contains more text than the file has bytes: it is damaged")
    total, pieces = 0, _references(dataset)
    if dataset.id.get_offset() is not None and not heaps_end(dataset, _heaps(dataset), _widths(dataset)[1]):
        raise _endless(where)
    if pieces is not None:
        for references in pieces:
            total += int(references[:, :4].copy().view("<u4").sum(dtype=np.uint64))
            if total > size:
                raise damaged
        return np.asarray(dataset[()], object)
    # Kept in an unusual way: a few at a time, for each may be as long as the file.
    with room_for(size):
        if not dataset.shape:
            return np.asarray(dataset[()], object)
        step = max(1, _TEXT_BYTES // size * dataset.shape[0] // dataset.size)
        if dataset.chunks:  # each is unpacked once
            step = -(-step // dataset.chunks[0]) * dataset.chunks[0]
        found = []
        for start in range(0, dataset.shape[0], step):
            found.append(np.asarray(dataset[start : start + step], object))
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
    offset, width = dataset.id.get_offset(), entry_bytes(dataset)
    if offset is not None:
        count = dataset.size * width
        with open_same(dataset) as file:
            file.seek(offset)
            references = np.frombuffer(file.read(count), np.uint8).reshape(-1, width)
        return iter([references])
    filters = filters_of(dataset)
    if not dataset.chunks or filters not in ([], [GZIP], [SHUFFLE, GZIP]):
        return None
    places: list[tuple[int, ...]] = []
    for_each_chunk(dataset, lambda chunk: places.append(chunk.chunk_offset))
    return (_chunk(dataset, place, filters, width).reshape(-1, width) for place in places)


def _chunk(dataset: Any, place: tuple[int, ...], filters: list[int], width: int) -> NDArray[np.uint8]:
    size = math.prod(dataset.chunks) * width
    skipped, data = dataset.id.read_direct_chunk(place)
    applied = [code for place, code in enumerate(filters) if not skipped >> place & 1]
    if GZIP in applied:
        data = zlib.decompressobj().decompress(data, size)
    values = np.frombuffer(data[: len(data) // width * width], np.uint8)
    return values.reshape(width, -1).T if SHUFFLE in applied else values
