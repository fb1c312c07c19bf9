"""Writing a file so that it is either there whole or not there at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError


def check_target(path: Path, *, force: bool) -> None:
    """Refuse a target that could not be written, before any work is done for it.

    Raises:
        OutputError: if the folder is missing or read-only, or something is there and `force` is not set.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no ordinary file: write to standard output with -o - and redirect it")
    if path.exists() and not force:
        raise OutputError(f"{path} exists: pass --force (force=True) to replace it, or choose another name")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: the folder {path.parent} is read-only; choose another with -o")


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well and removed when it does not.

    Of a symbolic link, the file it points to is replaced.

    Raises:
        OutputError: as `check_target`; if something appeared at `path` meanwhile; if writing fails, for lack of
            room, say.
    """
    check_target(path, force=force)
    target = path.resolve()
    temporary = target.with_name(f".blurrerank-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        if force:
            os.replace(temporary, target)
        else:
            _publish(temporary, target)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    """Give the file its name unless another process took it meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise OutputError(f"{path} was written by another process meanwhile; choose another name") from None
    except OSError:  # a file system without hard links
        check_target(path, force=False)
        os.replace(temporary, path)
