"""Commands started by `torchrun`: one process reports errors, and all processes stop together."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import BlurrerankError
from . import signals

if TYPE_CHECKING:
    from ..compute.processes import Group
    from .options import Runtime


class EndedError(BlurrerankError):
    """This process received SIGTERM: from `torchrun`, because another process was lost, or from a scheduler."""

    def __init__(self) -> None:
        super().__init__(
            "this run was stopped, or another process of it was lost: nothing was written; start it again"
        )


def is_first() -> bool:
    """Return whether this process is the only one, or the first one that `torchrun` started."""
    return "MASTER_ADDR" not in os.environ or os.environ.get("RANK", "0") == "0"


def of_process(runtime: Runtime, group: Group | None) -> Runtime:
    """Return what a process uses, of which only the first speaks."""
    if group is None:
        return runtime
    silent = group.rank > 0
    return replace(
        runtime,
        device=group.device,
        quiet=runtime.quiet or silent,
        verbose=runtime.verbose and not silent,
    )


@contextmanager
def together(device: str) -> Iterator[Group | None]:
    """Connect the processes of this run and yield their group; None outside `torchrun`.

    An error in the block propagates in one process and stops the others silently.

    Args:
        device: the device as the user gave it.
    """
    if "MASTER_ADDR" in os.environ:
        # Must be set before torch is imported: it logs a stack trace for each connection that is closed.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from ..compute.processes import Group, expected

    if expected() == 1:
        yield None
        return

    before = signal.getsignal(signal.SIGTERM)
    signals.raise_on_signal(signal.SIGTERM, EndedError)
    group = None
    try:
        group = Group()
        group.connect(device)
        yield group
        group.close()
    except BaseException as error:
        # torchrun sends SIGTERM as soon as another process exits: ignore it until the error is reported.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if group is None or group.closed:
            raise
        if isinstance(error, BrokenPipeError):
            group.claim("enough")  # the reader closed the pipe, as in `... | head`: not a failure
        speaks = group.claim("error")
        group.give_up()
        if speaks:
            raise
        raise SystemExit(0 if group.claimed("enough") else 1) from None
    signal.signal(signal.SIGTERM, before)
