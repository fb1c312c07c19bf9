"""Parse HDF5 superblocks and the object headers of groups and datasets.

HDF5 trusts most of their content, so other modules validate it with this one before HDF5 reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError

_BEGIN = b"\x89HDF\r\n\x1a\n"
# Kinds of messages: the rest is elsewhere; tables of what headers share; a copy of HDF5's cache.
_CONTINUED, _SHARED, _CACHED = 0x10, 0x0F, 0x18
# Bytes of one header, or of a node of a tree.
_MOST = 64 << 20


class Headers:
    """Reads object headers; it leaves unknown content to HDF5."""

    def __init__(self, file: BinaryIO, base: int, address: int, length: int) -> None:
        """Read from a file that begins at `base`, with addresses and lengths of the given sizes in bytes."""
        self._file, self._base, self.address, self.length = file, base, address, length

    def messages(self, header: int) -> Iterator[tuple[int, bytes]]:
        """Yield kind and body of each message of a group or dataset.

        Raises:
            InputError: if the messages are longer than the file, or a block occurs twice.
        """
        head = self.read(header, 64).ljust(64, b"\0")
        newer = head[:4] == b"OHDR"
        if newer:
            flags = head[5]
            place = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
            width = 1 << (flags & 3)
            size, place = int.from_bytes(head[place : place + width], "little"), place + width
            before = struct.Struct("<BHB" + "xx" * bool(flags & 4))
        else:
            size, place = int.from_bytes(head[8:12], "little"), 16
            before = struct.Struct("<HHBxxx")
        left, seen = min(self._file.seek(0, 2), _MOST), set()
        pieces = [(header + place, size)]
        for number, (start, size) in enumerate(pieces):
            left -= size
            if left < 0 or start in seen:
                raise InputError("has a malformed header: the file is damaged")
            seen.add(start)
            block = self.read(start, size)
            if newer and number:
                block = block[4:-4]  # between a signature and a checksum
            place = 0
            while place + before.size <= len(block):
                kind, length, _ = before.unpack_from(block, place)
                place += before.size
                body = block[place : place + length]
                place += length
                if kind == _CONTINUED:
                    size = int.from_bytes(body[self.address : self.address + self.length], "little")
                    pieces.append((self.number(body), size))
                yield kind, body

    def number(self, data: bytes) -> int:
        """Return the address at the start of `data`."""
        return int.from_bytes(data[: self.address], "little")

    def defined(self, data: bytes) -> bool:
        """Return whether `data` begins with a defined address."""
        return len(data) >= self.address and data[: self.address] != b"\xff" * self.address

    def read(self, address: int, size: int) -> bytes:
        """Read up to `size` bytes at `address`."""
        try:
            self._file.seek(self._base + address)
        except (OSError, ValueError):  # no place in any file
            return b""
        return self._file.read(min(size, _MOST))


def check_beginning(path: str | Path) -> None:
    """Check that a file has none of the tables that HDF5 reads on opening it.

    Raises:
        InputError: for a table of shared messages or a metadata cache image; features need neither.
    """
    with open(path, "rb") as file:
        size, base = file.seek(0, 2), 0
        # As HDF5 looks for it: at the beginning, or behind a block of the user, whose size is a power of two.
        while base < size:
            file.seek(base)
            head = file.read(64)
            if head.startswith(_BEGIN):
                break
            base = 2 * base or 512
        else:
            return
        if len(head) < 64 or head[8] < 2:  # the first versions have none
            return
        headers = Headers(file, base, head[9], head[10])
        extension = head[12 + head[9] :]
        if not headers.defined(extension):
            return
        try:
            kinds = {kind for kind, _ in headers.messages(headers.number(extension))}
        except InputError as error:
            raise InputError(f"{path} {error}") from None
    if kinds & {_SHARED, _CACHED}:
        raise InputError(
            f"{path} has file-level tables, in which damage can crash HDF5: "
            "copy its content into a file made by h5py.File(NAME, 'w')"
        )
