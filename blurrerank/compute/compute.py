"""`Compute`: everything about how a piece of work is done, and nothing about what the work is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from ..errors import BlurrerankError, BlurrerankWarning, ParameterError
from .device import budget, pick_device
from .processes import Group
from .stopwatch import Stopwatch

# A budget of fewer bytes holds a few rows at most.
_LEAST_MEMORY = 1 << 15

Progress = Callable[[int, int], None]
"""Called with (images done, images in all): probes, and all images for a method that looks at them first."""


@dataclass(frozen=True)
class Compute:
    """How to compute. Made once, by the command line or a public function, and passed on whole.

    Attributes:
        device: where the work is done.
        memory: budget for working memory in bytes; `device.DEFAULT_MEMORY` says how it is divided.
        precision: of the products that find candidates, `auto`, `float32` or `bfloat16`; lists are the same.
        block: gallery rows per block, instead of what the budget suggests.
        progress: called as the work proceeds.
        watch: adds up the seconds of the stages `index`, `search`, `re-rank` and `metrics`.
        group: the processes that share the work; None for one process.
    """

    device: torch.device
    memory: int
    precision: str = "auto"
    block: int | None = None
    progress: Progress | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    group: Group | None = None

    @classmethod
    def choose(
        cls,
        device: str = "auto",
        memory: int | None = None,
        *,
        precision: str = "auto",
        threads: int | None = None,
        block: int | None = None,
        progress: Progress | None = None,
        group: Group | None = None,
    ) -> Compute:
        """Turn what a user says into a `Compute`.

        Args:
            device: `auto`, `cpu`, `cuda` or `cuda:1`.
            memory: bytes; by default 2 GiB, and half of what is free on a CUDA device.
            precision: see the class.
            threads: CPU threads of this process, which is set here; by default as they are.
            block: see the class.
            progress: see the class.
            group: see the class.

        Raises:
            ParameterError: for a block or a number of threads below 1, or an unknown device.
            BlurrerankError: for a device that is not available.
        """
        if block is not None and block < 1:
            raise ParameterError(f"block must be at least 1, not {block}")
        if threads is not None:
            if threads < 1:
                raise ParameterError(f"threads must be at least 1, not {threads}")
            torch.set_num_threads(threads)
        chosen = pick_device(device)
        return cls(chosen, budget(memory, chosen), precision, block, progress, group=group)

    @property
    def leads(self) -> bool:
        """Whether this process writes and measures: the only one, or the first of its group."""
        return self.group is None or self.group.rank == 0

    def halved(self, reason: str, going_on: str) -> Compute:
        """Return the same with half of the budget, after the device was out of memory, and warn of it.

        To be called outside of the handler of the error, which holds on to all that was on the device.

        Raises:
            BlurrerankError: with the `reason` that the device gave, where half is too little for anything.
        """
        if self.memory < 2 * _LEAST_MEMORY:
            raise BlurrerankError(f"{self.device} is out of memory: {reason}")
        fewer = replace(self, memory=self.memory // 2)
        budget = f"half of the budget, {fewer.memory:,} bytes"
        warnings.warn(
            f"{self.device} is out of memory: continuing {going_on} with {budget}",
            BlurrerankWarning,
            stacklevel=3,
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return fewer

    def advance(self, done: int, total: int) -> None:
        """Report progress, if anybody wants to know."""
        if self.progress is not None:
            self.progress(done, total)
