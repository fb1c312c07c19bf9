"""Limits on what packed data may become."""

from __future__ import annotations

from ..errors import InputError

FREE = 256 << 20
"""Bytes that data may always take unpacked."""
# Above that, so many times what is stored.
_TIMES = 100


def check_unpacked(unpacked: int, packed: int, where: str) -> None:
    """Check that data does not look like a decompression bomb.

    Args:
        unpacked: decompressed size in bytes.
        packed: stored size in bytes.
        where: name of the data in messages.

    Raises:
        InputError: if the data is large, and more than a hundred times its stored size.
    """
    if unpacked > FREE and unpacked > _TIMES * packed:
        raise InputError(
            f"{where} would decompress {packed:,} bytes to {unpacked:,}, which looks like a decompression "
            "bomb: if the file is genuine, write it uncompressed"
        )
