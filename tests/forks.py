"""Command lines in forks of a process that has imported everything and computed nothing.

A process of its own takes two seconds to import torch. Where many cases of one test need a process each, for a
limit, a signal, or standard input, one of them gets one that begins from nothing, and the others are forks.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any

SECONDS = 120
_CONTEXT = multiprocessing.get_context("forkserver")
# What is not there by this name is imported by the forks that need it.
_CONTEXT.set_forkserver_preload(
    ["torch", "h5py", "scipy.io", "matplotlib.figure", "pytest", "blurrerank.cli", "blurrerank.engine.runs"]
)


def _child(
    streams: Sequence[Connection], cwd: str, before: Callable[[], object] | None, what: Sequence[str] | str
) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    # As the interpreter makes them when it starts.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    if before is not None:
        before()
    if isinstance(what, str):
        exec(what, {"__name__": "__main__"})
    else:
        from blurrerank.cli import main

        main(what)


def _drained(stream: Connection) -> bytes:
    with os.fdopen(os.dup(stream.fileno()), "rb") as file:
        return file.read()


def forked(
    *arguments: object,
    cwd: Path,
    preexec_fn: Callable[[], object] | None = None,
    program: str | None = None,
    input: bytes = b"",
    text: bool = True,
) -> CompletedProcess[Any]:
    """Run the command line, or the text of a program, as `subprocess.run` would with these options.

    `preexec_fn` must be of a module that is quick to import. The environment is that of the first call.
    """
    (asked, asking), (told, telling), (warned, warning) = (_CONTEXT.Pipe(duplex=False) for _ in range(3))
    what = list(map(str, arguments)) if program is None else program
    process = _CONTEXT.Process(target=_child, args=((asked, telling, warning), str(cwd), preexec_fn, what))
    process.start()
    for theirs in (asked, telling, warning):
        theirs.close()
    with ThreadPoolExecutor(2) as pool:
        drained = [pool.submit(_drained, stream) for stream in (told, warned)]
        assert len(input) < 60_000, "more than a pipe surely holds"
        os.write(asking.fileno(), input)
        asking.close()
        process.join(SECONDS)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
    for ours in (told, warned):
        ours.close()
    if late:
        raise TimeoutExpired(what, SECONDS)
    out, err = (one.result() for one in drained)
    if text:
        return CompletedProcess(what, process.exitcode, out.decode(), err.decode())
    return CompletedProcess(what, process.exitcode, out, err)


def no_override() -> None:
    """Root may read and write anywhere: give up that right, here and in what is started from here."""
    libc = ctypes.CDLL(None, use_errno=True)
    cap_bset_drop, cap_dac_override, cap_dac_read_search = 24, 1, 2
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for right in (cap_dac_override, cap_dac_read_search):
        libc.prctl(cap_bset_drop, right, 0, 0, 0)
        for number in range(3):  # effective, permitted, inheritable
            sets[number] &= ~(1 << right)
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
