"""Write files with libraries that cannot handle a full disk.

HDF5 retries failed writes, also at exit, until the process crashes; zip archives raise errors where they cannot
be caught. Here they write to a `Sink`, which accepts everything and reports errors afterwards.
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
    """A new file whose write operations never raise.

    Args:
        path: the file, which is truncated if it exists; a symbolic link is refused.

    Raises:
        OSError: if it cannot be opened; later only from `check`.
    """

    def __init__(self, path: Path) -> None:
        """Open the file."""
        self._error: OSError | None = None
        self._number = opener(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._place = self._size = 0

    def check(self) -> None:
        """Raise the `OSError` of the first failed operation, if any."""
        if self._error is not None:
            raise self._error

    def readable(self) -> bool:
        """Return True: written data can be read back."""
        return True

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the position."""
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        """Return the position."""
        return self._place

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size."""
        self._size = self._place if size is None else size
        self._try(os.ftruncate, self._number, self._size)
        return self._size

    def write(self, data: Any, /) -> int:
        """Write all of `data`, or record the error."""
        left = memoryview(data).cast("B")
        size, place = len(left), self._place
        while len(left) and self._error is None:
            written = self._try(os.pwrite, self._number, left, place) or 0
            left, place = left[written:], place + written
        self._place += size
        self._size = max(self._size, self._place)
        return size

    def readinto(self, buffer: Any, /) -> int:
        """Read data back, with zeros where it could not be written."""
        into = memoryview(buffer).cast("B")
        wanted = max(0, min(len(into), self._size - self._place))
        found = self._try(os.pread, self._number, wanted, self._place) or b""
        into[:wanted] = found.ljust(wanted, b"\0")
        self._place += wanted
        return wanted

    def flush(self) -> None:
        """Do nothing: writes are not buffered."""

    def close(self) -> None:
        """Close the file and forget the descriptor, which may be reused: later writes go nowhere."""
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
    """Create an `h5py.File` at `path` and close it at the end of the block.

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
