"""Detect changes to files that are read on demand."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputError


class Watched:
    """An open file that must not change; renaming another file to its path is not a change."""

    def __init__(self, status: Callable[[], os.stat_result], where: str) -> None:
        """Record the current state of the file, from `status`; `where` is its name in messages."""
        self._status, self._where = status, where
        self._state = self._found()

    @classmethod
    def open(cls, path: str | Path) -> Watched:
        """Watch the file at `path`, and keep it open."""
        return cls._held(os.open(path, os.O_RDONLY), str(path))

    @classmethod
    def same(cls, number: int, where: str) -> Watched:
        """Watch the file of a descriptor, and keep it open when the descriptor is closed."""
        return cls._held(os.dup(number), where)

    @classmethod
    def _held(cls, number: int, where: str) -> Watched:
        found = cls(partial(os.fstat, number), where)
        weakref.finalize(found, os.close, number)
        return found

    def check(self) -> None:
        """Check that the file is unchanged.

        Raises:
            InputError: if it was changed.
        """
        if self._found() != self._state:
            raise InputError(
                f"{self._where} was changed while it was being read: run this again when it is complete "
                "(replacing it by a rename is safe)"
            )

    def _found(self) -> tuple[int, int]:
        found = self._status()
        return found.st_size, found.st_mtime_ns


def status(item: Any) -> os.stat_result:
    """Return the `os.stat_result` of the file of an h5py object, whatever stands at its path by now."""
    return os.fstat(item.file.id.get_vfd_handle())
