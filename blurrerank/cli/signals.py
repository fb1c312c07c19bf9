"""Turn signals that stop a command into exceptions, so that temporary files are removed."""

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

# HDF5 calls the functions of this module and does not pass on what they raise: never raise inside it.
_NOT_IN = "blurrerank.files.sink"
# Seconds until a signal is sent again.
_RESEND_AFTER = 0.01


class EndedBySignalError(SystemExit):
    """The process was told to terminate; the exit code is 128 plus the signal number, as in shells."""

    def __init__(self, number: int) -> None:
        """Store the number, name and exit code of the signal."""
        self.exit_code = 128 + number
        super().__init__(self.exit_code)
        self.name = signal.Signals(number).name


_due: set[int] = set()
_raised: list[tuple[int, BaseException]] = []


def raise_on_signal(number: int, error: Callable[[], BaseException]) -> None:
    """Install a handler that raises `error()` in the main thread when signal `number` arrives.

    Where raising is not possible, the signal is sent again a little later.
    """

    def raise_error(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_globals.get("__name__") == _NOT_IN:
                _resend_later(number)
                return
            frame = frame.f_back
        _raised[:] = [(number, error())]
        raise _raised[0][1]

    signal.signal(number, raise_error)


@contextmanager
def resend_lost_signals() -> Iterator[None]:
    """Send a signal again if it arrived where Python ignores exceptions, as during garbage collection.

    Python would otherwise print the traceback and continue. Where a library in C makes another error of it, the
    signal's is raised in its stead.
    """
    before = sys.unraisablehook

    def resend_or_report(unraisable: Any) -> None:
        for number, error in _raised:
            if unraisable.exc_value is error:
                _resend_later(number)
                return
        before(unraisable)

    sys.unraisablehook = resend_or_report
    try:
        yield
    except Exception as error:
        if _raised:
            raise _raised[0][1] from error
        raise
    finally:
        sys.unraisablehook = before
        _due.clear()
        _raised.clear()


def _resend_later(number: int) -> None:
    if number not in _due:
        _due.add(number)
        _thread.start_new_thread(_resend, (number,))


def _resend(number: int) -> None:
    time.sleep(_RESEND_AFTER)
    if number in _due:
        _due.remove(number)
        os.kill(os.getpid(), number)
