"""Validate the B-trees in HDF5 files, which locate the members of a group and the chunks of a dataset.

HDF5 walks version 1 B-trees without cycle detection: a node that is its own child crashes the process. This
module walks them first. The newer structures (version 2 B-trees, heaps of links and attributes, arrays of
chunks) are trusted just as much by HDF5 2.0: if damaged, it crashes, hangs or takes gigabytes. They are too
many to validate here, so they are refused.
"""

from __future__ import annotations

from typing import Any

import h5py

from ..errors import InputError
from .headers import Headers
from .same_file import open_same

# Kinds of messages in the header of a group or dataset.
_LINKS, _LAYOUT, _SYMBOLS, _ATTRIBUTES = 0x02, 0x08, 0x11, 0x15
_CHUNKED, _VIRTUAL = 2, 3
# How the newer format finds chunks: by a fixed or a growing array, or by a tree of the second version.
_NEWER = (3, 4, 5)
ELSEWHERE = "is stored in another file, which is not opened: copy its values into this file"
_ENDLESS = "is stored in a malformed B-tree: the file is damaged"


def check_tree(item: Any, link: str | None = None) -> None:
    """Check that a group or dataset has a valid B-tree and none of the newer structures.

    Args:
        item: an h5py group or dataset.
        link: name of a hard link in that group; its target is checked before HDF5 opens it.

    Raises:
        InputError: if the children of a node are not one level lower, or a node has two parents; for content in
            heaps or trees of the newer format; for a malformed header.
    """
    file = item.file
    if link is None:
        # To ask for more of it than where it begins makes HDF5 go down the tree.
        low, high = h5py.h5g.get_objinfo(item.id, b".").objno
        header = low + (high << 32)
    else:
        header = item.id.links.get_info(link.encode("utf-8", "surrogateescape")).u
    with open_same(item) as opened:
        tree = _Tree(opened, file.userblock_size, *map(int, file.id.get_create_plist().get_sizes()))
        try:
            tree.check(header)
        except InputError as error:
            name = item.name if link is None else f"{item.name.rstrip('/')}/{link}"
            raise InputError(f"{file.filename}::{name} {error}") from None


class _Tree(Headers):
    """Looks through headers and nodes; what is wrong is raised without the name of what it is wrong with."""

    def check(self, header: int) -> None:
        for kind, body in self.messages(header):
            if kind == _SYMBOLS:
                self._go_down(self.number(body), self.length)
            elif kind == _LAYOUT and len(body) > 2:
                self._check_layout(body)
            elif kind == _LINKS and self._names_a_heap(body, 8):
                raise _newer("its links")
            elif kind == _ATTRIBUTES and self._names_a_heap(body, 2):
                raise _newer("its attributes")

    def _names_a_heap(self, body: bytes, numbered: int) -> bool:
        """Behind version, flags and, where links or attributes are numbered, the largest number."""
        return len(body) > 2 and self.defined(body[2 + numbered * (body[1] & 1) :])

    def _check_layout(self, body: bytes) -> None:
        if body[0] > 3:
            if body[1] == _VIRTUAL:  # to open it, HDF5 walks through a heap
                raise InputError(ELSEWHERE)
            # Version, class, flags, how many dimensions, bytes of the size of each, these, the kind of index.
            place = 5 + body[3] * body[4] if len(body) > 4 else len(body)
            if body[1] == _CHUNKED and place < len(body) and body[place] in _NEWER:
                raise _newer("its chunks")
            return
        # Version 3 has the class, the number of dimensions and the tree; those before begin otherwise.
        dimensions, chunked, place = (body[2], body[1], 3) if body[0] == 3 else (body[1], body[2], 8)
        if chunked == _CHUNKED:
            self._go_down(self.number(body[place:]), 8 + 8 * dimensions)

    def _go_down(self, root: int, key: int) -> None:
        """Refuse a node that is not one deeper than the one above, or is below two; keys have so many bytes."""
        seen = {root}
        left: list[tuple[int, int | None]] = [(root, None)]
        while left:
            address, expected = left.pop()
            head = self.read(address, 8 + 2 * self.address)
            if head[:4] != b"TREE" or len(head) < 8:
                continue
            level, count = head[5], int.from_bytes(head[6:8], "little")
            if expected is not None and level != expected:
                raise InputError(_ENDLESS)
            if not level:
                continue
            width = key + self.address
            entries = self.read(address + len(head), count * width)
            for start in range(key, len(entries), width):
                child = self.number(entries[start:])
                if child in seen:
                    raise InputError(_ENDLESS)
                seen.add(child)
                left.append((child, level - 1))


def _newer(what: str) -> InputError:
    return InputError(
        f"stores {what} in the newer HDF5 format, in which damage can crash HDF5: write the file again with "
        "h5py's default libver and without track_order, as in new[name] = old[name][()] "
        "(h5repack and copies of groups may keep the newer format)"
    )
