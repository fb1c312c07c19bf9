"""How much a packed file may become."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

from ..errors import InputError

_LARGE, _TIMES = 256 << 20, 100
"""Bytes that anything may unpack to, and how many times what is stored if it is more."""

_MOST = 1032
"""How many times its size deflate can unpack anything to."""


def is_too_much(unpacked: int, packed: int) -> bool:
    """Return whether `packed` bytes that decompress to `unpacked` look like a decompression bomb."""
    return unpacked > _LARGE and unpacked > _TIMES * packed


def check_unpacked(unpacked: int, packed: int, where: str) -> None:
    """Refuse what was made to fill the memory: no features, labels or lists are packed so tightly.

    Args:
        unpacked: bytes that it becomes.
        packed: bytes that it takes.
        where: how messages call it.

    Raises:
        InputError: if it is large, and more than a hundred times what is stored.
    """
    if is_too_much(unpacked, packed):
        raise InputError(
            f"{where} would decompress {packed:,} bytes to {unpacked:,}, which looks like a decompression "
            "bomb: if the file is genuine, write it uncompressed"
        )


def may_be_large(packed: int) -> bool:
    """Whether deflate could make more of so many bytes than is read without asking."""
    return packed * _MOST > _LARGE


def check_archive(path: Path, where: str) -> list[str]:
    """The names in a zip archive, which does not unpack to more than it may.

    Args:
        path: the archive.
        where: how messages call it.

    Raises:
        InputError: as `check_unpacked`, or if its parts overlap, or are packed by anything but deflate.
        zipfile.BadZipFile: if it is none.
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
    """Unpack a gzip file and forget it, unless it is too small to become large.

    Args:
        path: the file.
        where: how messages call it.

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
