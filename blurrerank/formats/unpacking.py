"""How much a packed file may become."""

from __future__ import annotations

from ..errors import InputError

_LARGE, _TIMES = 256 << 20, 100
"""Bytes that anything may unpack to, and how many times what is stored if it is more."""


def check_unpacked(unpacked: int, packed: int, where: str) -> None:
    """Refuse what was made to fill the memory: no features, labels or lists are packed so tightly.

    Args:
        unpacked: bytes that it becomes.
        packed: bytes that it takes.
        where: how messages call it.

    Raises:
        InputError: if it is large, and more than a hundred times what is stored.
    """
    if unpacked > _LARGE and unpacked > _TIMES * packed:
        raise InputError(
            f"{where} would unpack {packed:,} bytes to {unpacked:,}: no features are packed so tightly; if it "
            "is what you mean, write it unpacked"
        )
