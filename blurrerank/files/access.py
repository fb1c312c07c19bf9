"""Whether a file may be read, asked before libraries that have words of their own for it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError


def check_readable(path: Path) -> None:
    """Raise `InputError` for a file that this process has no permission to read."""
    if path.is_file() and not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: permission denied")
