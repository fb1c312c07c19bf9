"""Measure the time spent in each stage of the work."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Stopwatch:
    """Sums up wall-clock time by stage; the time of a nested stage counts only for that stage.

    Attributes:
        seconds: stage -> seconds so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within = [0.0]  # for each open stage, the seconds spent in stages nested in it

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to `stage`."""
        start = _now()
        self._within.append(0.0)
        try:
            yield
        finally:
            took = _now() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + took - self._within.pop()
            self._within[-1] += took

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, adding the time to produce each of them to `stage`."""
        source = iter(items)
        while True:
            with self(stage):
                item = next(source, self)
            if item is self:
                return
            yield item  # type: ignore[misc]


def _now() -> float:
    """Return the time after pending GPU work is done, so that it counts for the stage that started it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
