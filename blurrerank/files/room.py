"""A memory limit for HDF5, which allocates declared sizes before it checks them."""

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
    """Limit the memory of the process while HDF5 reads text from a file of `size` bytes.

    HDF5 allocates the length that a text declares, up to 4 GiB. The limit also applies to other threads, and to
    processes that they start meanwhile.
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
