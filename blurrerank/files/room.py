"""A limit for what HDF5 takes in memory before it looks whether there is so much."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_STATM = Path("/proc/self/statm")
# The limit is the process's: threads that set it at the same time would take each other's for what was before.
_ONE_LIMIT = threading.Lock()
# What is needed beside the file.
_BESIDE = 64 << 20
# What the system's allocator sets aside for a thread that begins to allocate, and something for itself.
_THREAD_BYTES = 256 << 20


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Memory for text of a file of so many bytes, of which HDF5 takes what its length says, up to 4 GiB.

    Other threads have little to go on with meanwhile, and processes that they start keep the limit.
    """
    if resource is None or not _STATM.exists():
        yield
        return
    with _ONE_LIMIT:
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(_STATM.read_text().split()[0]) * resource.getpagesize()
        most = used + size + _BESIDE + (threading.active_count() - 1) * _THREAD_BYTES
        if before[0] == resource.RLIM_INFINITY or most < before[0]:
            resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
