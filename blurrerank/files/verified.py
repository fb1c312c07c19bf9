"""Files whose checksums were found right before: large ones are not read again while they are unchanged.

What is known of a file is its path, device, inode, size and times, in the user's cache folder
(`$XDG_CACHE_HOME/blurrerank/verified`, by default below `~/.cache`).
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path


def state_of(path: Path) -> str:
    """Return what changes when anybody writes to the file at `path`, or puts another in its place."""
    found = path.stat()
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def was_verified(path: Path) -> bool:
    """Return whether the file at `path` is as it was when it was last verified."""
    with suppress(OSError, RuntimeError, UnicodeDecodeError):
        return _record(path).read_text() == state_of(path)
    return False


def remember(path: Path, state: str) -> None:
    """Note that the file was verified in a state, if it still is in it and there is room."""
    with suppress(OSError, RuntimeError):  # no home, no room, no right to write
        if state_of(path) != state:
            return
        record = _record(path)
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary = record.with_name(f"{record.name}.{os.getpid()}")
        temporary.write_text(state)
        temporary.replace(record)


def _record(path: Path) -> Path:
    """Where it is noted."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    return Path(cache, "blurrerank", "verified", name)
