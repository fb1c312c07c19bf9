"""New files whose writers cannot bear a disk that is full.

HDF5 tries again and again to write what the disk did not take, on its way out too, until the process crashes;
zip archives complain from where nobody can catch it. Here they write into a `Sink`, which takes everything, and
tells afterwards.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from .targets import opener


class Sink(io.RawIOBase):
    """A new file that never refuses to be written to.

    Args:
        path: the file, which is emptied if it is there; a link is refused.

    Raises:
        OSError: if it cannot be opened; later from `check` alone.
    """

    def __init__(self, path: Path) -> None:
        """Open the file."""
        self._error: OSError | None = None
        self._number = opener(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._place = self._size = 0

    def check(self) -> None:
        """Raise the `OSError` of the first thing that could not be written, if there was one."""
        if self._error is not None:
            raise self._error

    def readable(self) -> bool:
        """What was written can be read."""
        return True

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to another place."""
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        """The place where it goes on."""
        return self._place

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size."""
        self._size = self._place if size is None else size
        self._try(os.ftruncate, self._number, self._size)
        return self._size

    def write(self, data: Any, /) -> int:
        """Write all of it, or note that it could not be done."""
        left = memoryview(data).cast("B")
        size, place = len(left), self._place
        while len(left) and self._error is None:
            written = self._try(os.pwrite, self._number, left, place) or 0
            left, place = left[written:], place + written
        self._place += size
        self._size = max(self._size, self._place)
        return size

    def readinto(self, buffer: Any, /) -> int:
        """Read what is there, zeros where it could not be written."""
        into = memoryview(buffer).cast("B")
        wanted = max(0, min(len(into), self._size - self._place))
        found = self._try(os.pread, self._number, wanted, self._place) or b""
        into[:wanted] = found.ljust(wanted, b"\0")
        self._place += wanted
        return wanted

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Close the file. Whoever still writes then, writes nowhere: the number may soon be another file's."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)
        super().close()

    def _try(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            self._error = self._error or error
            return None


@contextmanager
def new_hdf5(path: Path) -> Iterator[Any]:
    """A new `h5py.File` at `path`, closed at the end.

    Raises:
        OSError: if it could not be written.
    """
    with Sink(path) as sink:
        try:
            with h5py.File(sink, "w") as file:
                yield file
        finally:
            # Whatever else went wrong did so because of this.
            sink.check()
