"""Read what may crash, hang or fill the memory in a child process first, where it does no harm.

HDF5, scipy and torch are large libraries, and some damaged or crafted files upset them. A file is therefore
read twice: first in a fork of this process with limits on memory and time, which throws away what it reads;
then, if that went well, in this process. Where a system has no fork, there is no trial.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import logging
import os
import selectors
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ..errors import InputError

T = TypeVar("T")

log = logging.getLogger(__name__)

# What a trial may take beside what the process has: bytes, and as many times the size of the files.
_MEMORY, _TIMES = 192 << 20, 16
# Seconds of CPU time, and another for so many bytes; the clock may show so many times as much.
_SECONDS, _BYTES, _SLOWER = 5, 10 << 20, 12
# How often to try files that are replaced meanwhile.
_ATTEMPTS = 3

_ENDING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_DAMAGED = "it is damaged, or was made to do so"

# Stands for no signal, but for a child that did not come to an end.
_LATE = -1

_trying = False


def trying() -> bool:
    """Return whether this process is one in which files are tried."""
    return _trying


def guarded(read: Callable[[], T], *paths: str | Path) -> T:
    """Return what `read` returns, after it was called in a child process.

    Args:
        read: opens files, and reads whatever of them may upset a library.
        *paths: the files; others, such as folders, do not count in the limits.

    Raises:
        InputError: as `read`, or if the child crashes or exceeds its limits.
    """
    if _trying or not hasattr(os, "fork"):
        return read()
    where = ", ".join(map(str, paths))
    for _ in range(_ATTEMPTS):
        before = _states(paths)
        _check(read, before, where)
        if _states(paths) == before:
            return read()
    raise InputError(f"{where} keeps changing: run this again when it is complete")


def _states(paths: Sequence[str | Path]) -> list[tuple[int, ...]]:
    """Which files are at some paths, their sizes and when they were written."""
    found = [os.stat(path) for path in paths if os.path.isfile(path)]
    return [(one.st_size, one.st_mtime_ns, one.st_ino, one.st_dev) for one in found]


def _check(read: Callable[[], Any], states: list[tuple[int, ...]], where: str) -> None:
    """Call `read` in a child process, and raise what comes of it."""
    size = sum(state[0] for state in states)
    memory, seconds = _MEMORY + _TIMES * size, _SECONDS + size // _BYTES
    answers, answer = os.pipe()
    try:
        # Python may warn of the locks of other threads: the child takes none, and h5py's is free in it.
        child = os.fork()
    except OSError as error:
        os.close(answers)
        os.close(answer)
        log.warning("no process could be started to check %s: %s", where, error)
        return
    if not child:
        _try(read, memory, seconds, answer, where)
    os.close(answer)
    problems, ended = _outcome(child, answers, _SLOWER * seconds)
    if problems:
        raise InputError(problems)
    if problems is not None:
        return
    if ended in (0, *_ENDING, signal.SIGKILL):
        raise InputError(f"{where}: the process that checked it was terminated from outside: try again")
    crashes = f"crashes what reads it ({signal.strsignal(ended)})"
    whys = {
        signal.SIGXCPU: f"takes more than {seconds:,} s of computing to read",
        _LATE: f"is not read within {_SLOWER * seconds:,} s",
    }
    raise InputError(f"{where} {whys.get(ended, crashes)}: {_DAMAGED}")


def _try(read: Callable[[], Any], memory: int, seconds: int, answer: int, where: str) -> NoReturn:
    """Do what the child does: answer with what is wrong, and end."""
    global _trying
    try:
        _trying = True
        _confine(memory, seconds)
        problems: list[str] = []
        try:
            read()
        except InputError as error:
            problems = error.problems
        except Exception as error:  # other than of memory, it will be met again outside
            if isinstance(error, MemoryError) or "allocation failed" in str(error):  # as HDF5 says
                problems = [f"{where} takes more than {memory >> 20:,} MiB of memory to read: {_DAMAGED}"]
            log.debug("%s", error)
        os.write(answer, json.dumps(problems).encode())
    finally:
        os._exit(0)


def _confine(memory: int, seconds: int) -> None:
    """Limit the memory in bytes and the CPU time, and leave the terminal alone."""
    import resource

    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()
    gc.disable()
    warnings.simplefilter("ignore")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    sys.stdout = sys.stderr = os.fdopen(silent, "w")
    # What is imported here, such as pandas by pyarrow, shall not begin with threads: there is no room for them.
    os.environ.update(dict.fromkeys(("NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "OMP_NUM_THREADS"), "1"))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # a fork does not have the others
    # Nor for the 64 MiB of addresses that glibc sets aside for each thread: M_ARENA_MAX is 1.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(-8, 1)
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: seconds}
    statm = Path("/proc/self/statm")
    if statm.exists():
        limits[resource.RLIMIT_AS] = int(statm.read_text().split()[0]) * resource.getpagesize() + memory
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        with suppress(ValueError, OSError):  # a lower limit holds already
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _outcome(child: int, answers: int, seconds: float) -> tuple[list[str] | None, int]:
    """The problems that a child finds, None if it does not answer, and the signal that ends it, 0 if none."""
    said, status, late = b"", 0, False
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(answers, selectors.EVENT_READ)
            while selector.select(seconds) and (some := os.read(answers, 1 << 16)):
                said += some
            late = not selector.select(0)  # it is still at work
            if late:
                os.kill(child, signal.SIGKILL)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(answers)
        with suppress(ChildProcessError):  # somebody else waits for all children
            status = os.waitpid(child, 0)[1]
    if late:
        return None, _LATE
    return json.loads(said) if said else None, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
