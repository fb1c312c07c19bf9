"""Validate the text heaps (global heaps) of HDF5 files.

Variable-length text is stored in heaps. HDF5 walks a whole heap when it first reads a text in it, using the
object sizes in the file; an object of size 0 would make it loop forever. This module walks the heap first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from .same_file import open_same, status

_BEGIN = b"GCOL\x01"
# Bytes of the header of a heap, and of that of each piece in it.
_HEADER = 16
_BLOCK = 4 << 20


def heaps_end(item: Any, addresses: Iterable[int], width: int = 8) -> bool:
    """Return whether HDF5 would reach the end of each of the heaps at the given addresses.

    Args:
        item: an h5py file, or an object in it.
        addresses: where the heaps begin, each once, in bytes from the beginning of the file. Addresses without
            a heap are left to HDF5.
        width: size of a length in the file, in bytes.

    Returns:
        False also if the heaps are together longer than the file: in a valid file they do not overlap.
    """
    size = left = status(item).st_size
    with open_same(item) as file:
        for heap in addresses:
            if heap + _HEADER > size:
                continue
            file.seek(heap)
            header = file.read(_HEADER)
            length = int.from_bytes(header[8 : 8 + width], "little")
            if not header.startswith(_BEGIN) or heap + length > size:
                continue
            left -= length
            if left < 0 or not _ends(file, heap + _HEADER, heap + length, width):
                return False
    return True


def _ends(file: BinaryIO, place: int, end: int, width: int) -> bool:
    while place + _HEADER <= end:
        file.seek(place)
        header = file.read(_HEADER)
        needed = int.from_bytes(header[8 : 8 + width], "little")
        if header[:2] != b"\0\0":  # not the room that is left
            # As HDF5 calculates it, which may come out at 0 again.
            needed = (_HEADER + needed + (-needed % 8)) % (1 << 64)
        if needed < _HEADER:
            return False
        place += needed
    return True


# Whether all heaps of a file end, by its state.
_known: dict[tuple[int, ...], bool] = {}
_MOST_KNOWN = 16


def all_heaps_end(item: Any, width: int = 8) -> bool:
    """Apply `heaps_end` to everything that looks like a heap: a pass over the file, cached until it changes."""
    found = status(item)
    state = (width, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if state not in _known:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[state] = heaps_end(item, _like_heaps(item), width)
    return _known[state]


def _like_heaps(item: Any) -> Iterator[int]:
    with open_same(item) as file:
        start, tail = 0, b""
        while block := file.read(_BLOCK):
            data = tail + block
            place = data.find(_BEGIN)
            while place >= 0:
                yield start + place
                place = data.find(_BEGIN, place + 1)
            tail = data[-(len(_BEGIN) - 1) :]
            start += len(data) - len(tail)
