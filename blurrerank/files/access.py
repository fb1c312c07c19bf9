"""Check read permission before a library opens a file and reports it in its own words."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError


def check_readable(path: Path) -> None:
    """Raise `InputError` if this process has no permission to read the file."""
    if path.is_file() and not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: permission denied")
