"""A command that `torchrun` started several times: one of them speaks, and all end together."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import BlurrerankError
from . import signals

if TYPE_CHECKING:
    from ..compute.processes import Group


class EndedError(BlurrerankError):
    """Told to end, as `torchrun` tells the others when it has lost a process, and schedulers tell all."""

    def __init__(self) -> None:
        super().__init__(
            "this run was ended, or another process of it was lost: nothing was written; start it again"
        )


def is_first() -> bool:
    """Whether this process is the only one, or the first of those that `torchrun` started."""
    return "MASTER_ADDR" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def together(device: str) -> Iterator[Group | None]:
    """The processes of this run, met and connected; None outside `torchrun`.

    An error in the block goes on in one process and ends the others, which say nothing.

    Args:
        device: as the user named it.
    """
    if "MASTER_ADDR" in os.environ:
        # Before torch is imported: it would add its stack to each connection that another process closed.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from ..compute.processes import Group, expected

    if expected() == 1:
        yield None
        return

    before = signal.getsignal(signal.SIGTERM)
    signals.end_by(signal.SIGTERM, EndedError)
    group = None
    try:
        group = Group()
        group.connect(device)
        yield group
        group.close()
    except BaseException as error:
        # What there is to say must be said before torchrun, which sees the others go, ends this one.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if group is None or group.closed:
            raise
        if isinstance(error, BrokenPipeError):
            group.claim("enough")  # was read, as in `... | head`: no failure
        speaks = group.claim("error")
        group.give_up()
        if speaks:
            raise
        raise SystemExit(0 if group.claimed("enough") else 1) from None
    signal.signal(signal.SIGTERM, before)
