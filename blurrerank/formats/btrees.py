"""Trees in HDF5 files, by which it finds the members of a group and the chunks of a dataset.

HDF5 goes down a tree of the first version without asking whether it comes back to where it was: a node that is
its own child ends the process. What is here goes down first. (Trees of later versions say how deep they are.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import h5py

from ..errors import InputError
from .same_file import open_same

# Kinds of messages in the header of a group or dataset.
_LAYOUT, _CONTINUED, _SYMBOLS = 0x08, 0x10, 0x11
_CHUNKED = 2
# Blocks that a header may be continued in, and bytes of one, or of a node.
_BLOCKS, _MOST = 1000, 16 << 20


def check_tree(item: Any) -> None:
    """Refuse a group or dataset whose tree is none.

    Args:
        item: an h5py group or dataset.

    Raises:
        InputError: if a node has others of its own depth, or deeper ones, below it, or is below two.
    """
    file = item.file
    with open_same(item) as opened:
        tree = _Tree(opened, file.userblock_size, *map(int, file.id.get_create_plist().get_sizes()))
        # To ask for more of it than where it begins makes HDF5 go down the tree.
        low, high = h5py.h5g.get_objinfo(item.id, b".").objno
        if not tree.ends(low + (high << 32)):
            raise InputError(f"{file.filename}::{item.name} lies in a tree without an end: the file is damaged")


class _Tree:
    """Looks through headers and nodes; what it does not know is HDF5's to complain of."""

    def __init__(self, file: BinaryIO, base: int, address: int, length: int) -> None:
        """Of a file that begins at `base`, and has addresses and lengths of so many bytes."""
        self._file, self._base, self._address, self._length = file, base, address, length

    def ends(self, header: int) -> bool:
        for kind, body in self._messages(header):
            if kind == _SYMBOLS:
                if not self._goes_down(self._number(body), self._length):
                    return False
            elif kind == _LAYOUT and len(body) > 2:
                # Version 3 has the class, the number of dimensions and the tree; those before begin otherwise.
                dimensions, chunked, place = (body[2], body[1], 3) if body[0] == 3 else (body[1], body[2], 8)
                known = body[0] <= 3 and chunked == _CHUNKED
                if known and not self._goes_down(self._number(body[place:]), 8 + 8 * dimensions):
                    return False
        return True

    def _goes_down(self, root: int, key: int) -> bool:
        """Whether each node is one deeper than the one above, and below no other; keys have so many bytes."""
        seen = {root}
        left: list[tuple[int, int | None]] = [(root, None)]
        while left:
            address, expected = left.pop()
            head = self._read(address, 8 + 2 * self._address)
            if head[:4] != b"TREE" or len(head) < 8:
                continue
            level, count = head[5], int.from_bytes(head[6:8], "little")
            if expected is not None and level != expected:
                return False
            if not level:
                continue
            width = key + self._address
            entries = self._read(address + len(head), count * width)
            for start in range(key, len(entries), width):
                child = self._number(entries[start:])
                if child in seen:
                    return False
                seen.add(child)
                left.append((child, level - 1))
        return True

    def _messages(self, header: int) -> Iterator[tuple[int, bytes]]:
        """Kinds and bodies of the messages of a group or dataset."""
        head = self._read(header, 64).ljust(64, b"\0")
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
        blocks = [self._read(header + place, size)]
        for number, block in enumerate(blocks):
            place = 4 * (newer and number > 0)  # behind a signature
            while place + before.size <= len(block):
                kind, length, _ = before.unpack_from(block, place)
                place += before.size
                body = block[place : place + length]
                place += length
                if kind == _CONTINUED and len(blocks) < _BLOCKS:
                    size = int.from_bytes(body[self._address : self._address + self._length], "little")
                    blocks.append(self._read(self._number(body), size))
                yield kind, body

    def _number(self, data: bytes) -> int:
        return int.from_bytes(data[: self._address], "little")

    def _read(self, address: int, size: int) -> bytes:
        """What is there of so many bytes."""
        try:
            self._file.seek(self._base + address)
        except (OSError, ValueError):  # no place in any file
            return b""
        return self._file.read(min(size, _MOST))
