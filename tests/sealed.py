"""Checksums in HDF5 files of the newer format: where they are, and how they are made true again.

Bob Jenkins' lookup3 (public domain, http://burtleburtle.net/bob/c/lookup3.c), as HDF5 has it.
"""

from __future__ import annotations

import functools
import re

_ALL = 0xFFFFFFFF
_BLOCKS = re.compile(
    rb"\x89HDF\r\n\x1a\n[\2\3]|OHDR|OCHK|BTHD|BTLF|BTIN|FRHP|FHDB|FHIB|FAHD|FADB|EAHD|EAIB|EASB|EADB|FSHD|FSSE|SMTB|SMLI"
)
_LONGEST = 1024


def lookup3(data: bytes) -> int:
    """The checksum of these bytes."""
    a = b = c = (0xDEADBEEF + len(data)) & _ALL

    def turned(value: int, by: int) -> int:
        return ((value << by) | (value >> (32 - by))) & _ALL

    start = 0
    while start < len(data):
        last = len(data) - start <= 12
        words = data[start : start + 12].ljust(12, b"\0")
        a, b, c = (
            (value + int.from_bytes(words[4 * place : 4 * place + 4], "little")) & _ALL
            for place, value in enumerate((a, b, c))
        )
        start += 12
        if not last:
            a, c = (a - c & _ALL) ^ turned(c, 4), c + b & _ALL
            b, a = (b - a & _ALL) ^ turned(a, 6), a + c & _ALL
            c, b = (c - b & _ALL) ^ turned(b, 8), b + a & _ALL
            a, c = (a - c & _ALL) ^ turned(c, 16), c + b & _ALL
            b, a = (b - a & _ALL) ^ turned(a, 19), a + c & _ALL
            c, b = (c - b & _ALL) ^ turned(b, 4), b + a & _ALL
            continue
        c = (c ^ b) - turned(b, 14) & _ALL
        a = (a ^ c) - turned(c, 11) & _ALL
        b = (b ^ a) - turned(a, 25) & _ALL
        c = (c ^ b) - turned(b, 16) & _ALL
        a = (a ^ c) - turned(c, 4) & _ALL
        b = (b ^ a) - turned(a, 14) & _ALL
        c = (c ^ b) - turned(b, 24) & _ALL
    return c


@functools.lru_cache(64)
def blocks(data: bytes) -> list[tuple[int, int]]:
    """Where what has a checksum begins, and where its checksum is, in a sound file."""
    found = []
    for match in _BLOCKS.finditer(data):
        start = match.start()
        for end in range(start + 8, min(len(data) - 3, start + _LONGEST)):
            if lookup3(data[start:end]) == int.from_bytes(data[end : end + 4], "little"):
                found.append((start, end))
                break
    return found


def seal(data: bytearray, start: int, end: int) -> None:
    """Write the checksum of a block behind it."""
    data[end : end + 4] = lookup3(bytes(data[start:end])).to_bytes(4, "little")
