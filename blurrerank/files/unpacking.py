"""Limits on the decompressed size of files."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

from ..errors import InputError

_LARGE, _TIMES = 256 << 20, 100
"""Decompressed size in bytes that is always allowed, and the maximum compression ratio above it."""

_MOST = 1032
"""Maximum compression ratio of deflate."""


def is_too_much(unpacked: int, packed: int) -> bool:
    """Return whether `packed` bytes that decompress to `unpacked` look like a decompression bomb."""
    return unpacked > _LARGE and unpacked > _TIMES * packed


def check_unpacked(unpacked: int, packed: int, where: str) -> None:
    """Check that data does not look like a decompression bomb.

    Args:
        unpacked: decompressed size in bytes.
        packed: stored size in bytes.
        where: name of the data in messages.

    Raises:
        InputError: if the data is large, and more than a hundred times its stored size.
    """
    if is_too_much(unpacked, packed):
        raise InputError(
            f"{where} would decompress {packed:,} bytes to {unpacked:,}, which looks like a decompression "
            "bomb: if the file is genuine, write it uncompressed"
        )


def may_be_large(packed: int) -> bool:
    """Return whether `packed` bytes of deflate data could exceed the size that is always allowed."""
    return packed * _MOST > _LARGE


def check_archive(path: Path, where: str) -> list[str]:
    """Check the decompressed size of a zip archive and return the names of its members.

    Args:
        path: the archive.
        where: name of the archive in messages.

    Raises:
        InputError: as `check_unpacked`, or if members overlap, or are compressed by anything but deflate.
        zipfile.BadZipFile: if it is not a zip archive.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    # Python unpacks the other kinds without a bound, whatever size is declared; nobody writes features so.
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise InputError(
            f"{where} is compressed by a method other than deflate: write it with np.savez or torch.save"
        )
    packed, size = sum(member.compress_size for member in members), path.stat().st_size
    if packed > size:
        raise InputError(f"{where} contains more data than its size allows: it is damaged or malicious")
    check_unpacked(sum(member.file_size for member in members), packed, where)
    return [member.filename for member in members]


def check_gzip(path: Path, where: str) -> None:
    """Check the decompressed size of a gzip file by decompressing it, unless it is too small to become large.

    Args:
        path: the file.
        where: name of the file in messages.

    Raises:
        InputError: as `check_unpacked`.
        OSError, EOFError, zlib.error: if it is damaged.
    """
    packed, unpacked = path.stat().st_size, 0
    if not may_be_large(packed):
        return
    with gzip.open(path) as file:
        while some := file.read(1 << 20):
            unpacked += len(some)
            check_unpacked(unpacked, packed, where)
