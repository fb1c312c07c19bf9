"""How much memory the work of this process took at its peak."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Starts with what the process holds now; `stop` takes the most it held since, beyond that.

    Attributes:
        host: bytes of resident memory, None where the system does not tell. Pages of the page cache are no
            part of it.
        device: bytes of tensors on a CUDA device, None on others.
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
                # Without this, the peak of whatever this process was forked from would count.
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self._before = None

    def stop(self) -> None:
        """Note the peak."""
        peak = _resident("VmHWM")
        if peak is not None and self._before is not None:
            self.host = peak - self._before
        if self._cuda is not None:
            self.device = torch.cuda.max_memory_allocated(self._cuda)


def _resident(field: str) -> int | None:
    """Bytes resident now (VmRSS) or at the most so far (VmHWM)."""
    if _STATUS.exists():
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
