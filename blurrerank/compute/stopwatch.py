"""Where the time goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Stopwatch:
    """Adds up seconds of wall-clock time by stage; the time of a stage within another is its own.

    Attributes:
        seconds: stage -> seconds so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within = [0.0]  # of each stage that is open, what stages within it took

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add what the block takes to `stage`."""
        start = _now()
        self._within.append(0.0)
        try:
            yield
        finally:
            took = _now() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + took - self._within.pop()
            self._within[-1] += took

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """`items`, with the time it takes to make each of them added to `stage`."""
        source = iter(items)
        while True:
            with self(stage):
                item = next(source, self)
            if item is self:
                return
            yield item  # type: ignore[misc]


def _now() -> float:
    """Work that was handed to a GPU counts where it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
