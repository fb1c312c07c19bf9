"""Measure the peak memory use of this process."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Measures the peak memory use between construction and `stop`.

    Attributes:
        host: peak of resident memory in bytes, beyond what was resident at the start, without the page cache;
            None if the system does not report it.
        device: peak of tensor memory on a CUDA device in bytes; None on other devices.
    """

    def __init__(self, device: torch.device) -> None:
        """Start counting."""
        self.host: int | None = None
        self.device: int | None = None
        self._cuda = device if device.type == "cuda" else None
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        self._before = _resident("VmRSS")
        if _STATUS.exists():
            try:
                # Reset the peak, which a process inherits from the one it was forked from.
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self._before = None

    def stop(self) -> None:
        """Record the peak."""
        peak = _resident("VmHWM")
        if peak is not None and self._before is not None:
            self.host = peak - self._before
        if self._cuda is not None:
            self.device = torch.cuda.max_memory_allocated(self._cuda)


def _resident(field: str) -> int | None:
    """Return resident memory in bytes, current (VmRSS) or peak (VmHWM)."""
    if _STATUS.exists():
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
