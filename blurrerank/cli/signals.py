"""Signals that end a command, by an error that goes past what removes temporary files."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# HDF5 calls what is in here, and calls again whatever that raises: something else comes of it.
_NOT_IN = "blurrerank.files.sink"
# Seconds until a signal comes again.
_LATER = 0.01


class EndedBySignalError(SystemExit):
    """Somebody told this process to end; its exit code is that by which shells tell of it."""

    def __init__(self, number: int) -> None:
        """Know the signal."""
        self.exit_code = 128 + number
        super().__init__(self.exit_code)
        self.name = signal.Signals(number).name


_due: set[int] = set()
_raised: list[tuple[int, BaseException]] = []


def end_by(number: int, error: Callable[[], BaseException]) -> None:
    """Have a signal raise an error, in the main thread, from now on.

    Where nothing can be raised it comes again a little later.
    """

    def raise_error(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_globals.get("__name__") == _NOT_IN:
                _later(number)
                return
            frame = frame.f_back
        _raised[:] = [(number, error())]
        raise _raised[0][1]

    signal.signal(number, raise_error)


@contextmanager
def none_lost() -> Iterator[None]:
    """Have a signal come again that came where Python ignores what is raised, as while it collects garbage.

    Python would print the traceback, and go on as if nobody had asked for the end.
    """
    before = sys.unraisablehook

    def tell(what: Any) -> None:
        for number, error in _raised:
            if what.exc_value is error:
                _later(number)
                return
        before(what)

    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = before
        _due.clear()
        _raised.clear()


def _later(number: int) -> None:
    if number not in _due:
        _due.add(number)
        _thread.start_new_thread(_again, (number,))


def _again(number: int) -> None:
    time.sleep(_LATER)
    if number in _due:
        _due.remove(number)
        os.kill(os.getpid(), number)
