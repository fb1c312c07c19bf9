"""Read the bytes of a file that HDF5 has open, even if its path was replaced meanwhile."""

from __future__ import annotations

import io
import os
from typing import Any


class _Raw(io.RawIOBase):
    """Reads at a place of its own: HDF5 and other threads have the descriptor too."""

    def __init__(self, number: int) -> None:
        self._number, self._place = number, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._place = offset + (0, self._place, os.fstat(self._number).st_size)[whence]
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        data = os.pread(self._number, len(buffer), self._place)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def open_same(item: Any) -> io.BufferedReader:
    """Return a reader for the file of an h5py file, group or dataset, usable while that is open."""
    return io.BufferedReader(_Raw(item.file.id.get_vfd_handle()), 1 << 16)


def status(item: Any) -> os.stat_result:
    """Return the `os.stat_result` of that file."""
    return os.fstat(item.file.id.get_vfd_handle())
