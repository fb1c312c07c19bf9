"""Heaps of text in HDF5 files.

Text of any length lies in heaps, and HDF5 walks through a whole heap when it first reads a text in it, by the
sizes that the file gives for its pieces. At a piece of size 0 it would stay forever. What is here walks first.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

_BEGIN = b"GCOL\x01"
# Bytes of the header of a heap, and of that of each piece in it.
_HEADER = 16
_BLOCK = 4 << 20


def heaps_end(path: str | Path, addresses: Iterable[int], width: int = 8) -> bool:
    """Whether HDF5 comes to the end of each of the heaps at these places in the file.

    Args:
        path: the file.
        addresses: where the heaps begin, each once, in bytes from the beginning of the file. Where there is
            none, HDF5 says so itself.
        width: bytes of a length in the file.

    Returns:
        False too if the heaps are together longer than the file: in a sound one they do not overlap.
    """
    size = left = os.stat(path).st_size
    with open(path, "rb", buffering=1 << 16) as file:
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


def all_heaps_end(path: str | Path, width: int = 8) -> bool:
    """`heaps_end` of whatever looks like a heap: a pass over the file, once for each state that it is in."""
    found = os.stat(path)
    return _all_end(str(path), width, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _all_end(path: str, width: int, *_: int) -> bool:
    return heaps_end(path, _like_heaps(path), width)


def _like_heaps(path: str) -> Iterator[int]:
    with open(path, "rb") as file:
        start, tail = 0, b""
        while block := file.read(_BLOCK):
            data = tail + block
            place = data.find(_BEGIN)
            while place >= 0:
                yield start + place
                place = data.find(_BEGIN, place + 1)
            tail = data[-(len(_BEGIN) - 1) :]
            start += len(data) - len(tail)
