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
# Windows has no forks, and the tests that need them do not run there.
_CONTEXT = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
# What is not there by this name is imported by the forks that need it.
if os.name != "nt":
    _CONTEXT.set_forkserver_preload(
        ["torch", "h5py", "scipy.io", "matplotlib.figure", "pytest", "blurrerank.cli", "blurrerank.engine.runs"]
    )


def _child(
    streams: Sequence[Connection],
    cwd: str,
    env: dict[str, str],
    preexec_fn: Callable[[], object] | None,
    what: Sequence[str] | str,
) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    # As the interpreter makes them when it starts.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.update(env)
    if preexec_fn is not None:
        preexec_fn()
    if isinstance(what, str):
        exec(what, {"__name__": "__main__"})
    else:
        from blurrerank.cli import main

        main(what)


def _drained(stream: Connection) -> bytes:
    with os.fdopen(os.dup(stream.fileno()), "rb") as file:
        return file.read()


class Fork:
    """One that has been started."""

    def __init__(
        self,
        *arguments: object,
        cwd: Path,
        env: dict[str, str] | None = None,
        preexec_fn: Callable[[], object] | None = None,
        program: str | None = None,
        input: bytes = b"",
    ) -> None:
        assert len(input) < 60_000, "more than a pipe surely holds"
        asked, asking = _CONTEXT.Pipe(duplex=False)
        told, telling = _CONTEXT.Pipe(duplex=False)
        warned, warning = _CONTEXT.Pipe(duplex=False)
        self.what = list(map(str, arguments)) if program is None else program
        task = ((asked, telling, warning), str(cwd), env or {}, preexec_fn, self.what)
        self._process = _CONTEXT.Process(target=_child, args=task)
        self._process.start()
        os.write(asking.fileno(), input)
        for stream in (asked, asking, telling, warning):
            stream.close()
        self._pool = ThreadPoolExecutor(2)
        self._streams = told, warned
        self._texts = [self._pool.submit(_drained, stream) for stream in self._streams]

    def end(self) -> CompletedProcess[bytes]:
        """Wait for it."""
        self._process.join(SECONDS)
        late = self._process.is_alive()
        if late:
            self._process.kill()
            self._process.join()
        self._pool.shutdown()
        for stream in self._streams:
            stream.close()
        if late:
            raise TimeoutExpired(self.what, SECONDS)
        return CompletedProcess(self.what, self._process.exitcode, *(text.result() for text in self._texts))


def forked(*arguments: object, text: bool = True, **options: Any) -> CompletedProcess[Any]:
    """Run the command line, or the text of a `program`, as `subprocess.run` would with these options.

    `preexec_fn` must be of a module that is quick to import. `env` is added to that of the first call.
    """
    done = Fork(*arguments, **options).end()
    if text:
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


def forked_together(processes: int, *arguments: object, cwd: Path) -> CompletedProcess[str]:
    """The command line in so many forks, as torchrun starts it; the code is what torchrun makes of theirs."""
    from torch.distributed import TCPStore

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    forks = [Fork(*arguments, cwd=cwd, env=common | rank) for rank in ranks]
    done = [fork.end() for fork in forks]
    out, err = (b"".join(getattr(one, name) for one in done).decode() for name in ("stdout", "stderr"))
    return CompletedProcess(list(arguments), int(any(one.returncode for one in done)), out, err)


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
