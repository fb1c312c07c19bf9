"""Files that are read bit by bit, as they are needed: whoever changes one meanwhile is noticed."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..errors import InputError


class Watched:
    """An open file that is to stay as it is; another that gets its name by a rename is no change to it."""

    def __init__(self, status: Callable[[], os.stat_result], where: str) -> None:
        """Note how the file is now, of which `status` tells; `where` names it in messages."""
        self._status, self._where = status, where
        self._state = self._found()

    @classmethod
    def open(cls, path: str | Path) -> Watched:
        """The file at `path`, held open."""
        return cls._held(os.open(path, os.O_RDONLY), str(path))

    @classmethod
    def same(cls, number: int, where: str) -> Watched:
        """The file of a descriptor, held open when that is closed."""
        return cls._held(os.dup(number), where)

    @classmethod
    def _held(cls, number: int, where: str) -> Watched:
        found = cls(partial(os.fstat, number), where)
        weakref.finalize(found, os.close, number)
        return found

    def check(self) -> None:
        """See that nothing was written to the file.

        Raises:
            InputError: if something was.
        """
        if self._found() != self._state:
            raise InputError(
                f"{self._where} was changed while it was being read: run this again when it is complete "
                "(replacing it by a rename is safe)"
            )

    def _found(self) -> tuple[int, int]:
        found = self._status()
        return found.st_size, found.st_mtime_ns
