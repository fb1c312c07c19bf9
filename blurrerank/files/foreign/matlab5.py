"""Validate the variables of MATLAB v5 files before scipy reads them.

scipy trusts the tags in such a file, and invalid ones can crash the process. Layout: The MathWorks, "MAT-File
Format", Level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import InputError
from ..unpacking import check_unpacked

_MATRIX, _PACKED = 14, 15
_CELL, _CHAR, _NUMBERS = 1, 4, range(6, 16)
# Kinds of data: numbers of all widths, and what text may be.
_KINDS = {_CHAR: {1, 2, 3, 4, 16, 17, 18}} | {kind: {1, 2, 3, 4, 5, 6, 7, 9, 12, 13} for kind in _NUMBERS}
# What comes before the numbers of a variable takes no more.
_HEAD = 1024
# Cells in cells, and characters for which there may be no bytes.
DEEPEST, _BLANKS = 16, 1024


class _DamagedError(Exception):
    """Tags that contradict each other."""


def read_matlab_5(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the arrays, text and cells in a MATLAB v5 file, and the names of its other variables.

    Raises:
        InputError: if it is damaged, or looks like a decompression bomb.
    """
    from scipy.io import loadmat

    with open(path, "rb") as file:
        file.seek(126)
        order = "<" if file.read(2) == b"IM" else ">"
        try:
            found = list(_variables(file, path.stat().st_size, order, str(path)))
        except (_DamagedError, struct.error, zlib.error):
            raise InputError(f"{path} is a damaged MATLAB file: copy or write it again") from None
    if len(dict(found)) < len(found):
        # scipy would read the first of them, whichever was looked at.
        raise InputError(f"{path} has two variables of the same name: write it again with unique names")
    names = [name for name, sound in found if sound]
    values = {name: value for name, value in loadmat(path, variable_names=names).items() if name in names}
    return values, [name for name, sound in found if not sound]


def _variables(file: BinaryIO, size: int, order: str, where: str) -> Iterator[tuple[str, bool]]:
    """The name of each variable, and whether it can be read or is of another kind."""
    unpacked = 0
    while len(tag := file.read(8)) == 8:
        kind, length = struct.unpack(f"{order}II", tag)
        start = file.tell()
        if kind not in (_MATRIX, _PACKED) or start + length > size:
            raise _DamagedError
        if kind == _PACKED:
            stream = zlib.decompressobj()
            data = stream.decompress(file.read(min(length, _HEAD)), _HEAD)
            kind, inner = struct.unpack_from(f"{order}II", data)
            unpacked += inner
            check_unpacked(unpacked, size, where)
            if kind != _MATRIX:
                raise _DamagedError
            variable = _Matrix(data[8:], inner, order)
            if variable.kind == _CELL:
                file.seek(start)
                data = zlib.decompressobj().decompress(file.read(length), inner + 8)
                variable = _Matrix(data[8:], inner, order)
        else:
            variable = _Matrix(file.read(min(length, _HEAD)), length, order)
            if variable.kind == _CELL:
                file.seek(start)
                variable = _Matrix(file.read(length), length, order)
        yield variable.name, variable.is_sound()
        file.seek(start + length)


class _Matrix:
    """A variable, or what is in a cell: `size` bytes, which begin with `data`."""

    def __init__(self, data: bytes, size: int, order: str, depth: int = 0) -> None:
        self._data, self._size, self._order, self._depth = data, size, order, depth
        self._place = 0
        kind, flags = self._element()
        if kind != 6 or len(flags) != 8:
            raise _DamagedError
        word = struct.unpack_from(f"{order}I", flags)[0]
        self.kind, self._is_complex = word & 0xFF, bool(word >> 11 & 1)
        kind, sizes = self._element()
        if kind != 5 or len(sizes) % 4 or not 8 <= len(sizes) <= 128:
            raise _DamagedError
        shape = np.frombuffer(sizes, f"{order}i4")
        if (shape < 0).any():
            raise _DamagedError
        self._count = math.prod(shape.tolist())
        kind, name = self._element()
        if kind not in (1, 2):
            raise _DamagedError
        self.name = name.decode("latin1")

    def is_sound(self) -> bool:
        """Whether scipy can read it; False if it is of a kind that is no use here.

        Raises:
            _DamagedError: if it would go wrong.
        """
        if self.kind == _CELL:
            return self._cells_are_sound()
        if self.kind not in _KINDS or self._is_complex:
            return False
        kind, length, small = self._tag()
        if kind not in _KINDS[self.kind] or self._place + (0 if small else length) > self._size:
            raise _DamagedError
        # Blanks that are not there are made up, as many as the shape says.
        if self.kind == _CHAR and self._count > max(length, _BLANKS):
            raise _DamagedError
        return True

    def _cells_are_sound(self) -> bool:
        if self._depth > DEEPEST or self._count > self._size // 8:
            raise _DamagedError
        sound = True
        for _ in range(self._count):
            kind, data = self._element()
            if kind != _MATRIX:
                raise _DamagedError
            # MATLAB writes an empty matrix without anything in it.
            sound &= not data or _Matrix(data, len(data), self._order, self._depth + 1).is_sound()
        return sound

    def _tag(self) -> tuple[int, int, bool]:
        """Kind and length of what comes, and whether it is small, in the second half of the tag."""
        kind, length = struct.unpack_from(f"{self._order}II", self._data, self._place)
        self._place += 8
        if kind >> 16:
            return kind & 0xFFFF, kind >> 16, True
        return kind, length, False

    def _element(self) -> tuple[int, bytes]:
        kind, length, small = self._tag()
        if small:
            if length > 4:
                raise _DamagedError
            return kind, self._data[self._place - 4 : self._place - 4 + length]
        data = self._data[self._place : self._place + length]
        if len(data) < length:
            raise _DamagedError
        # Elements end on whole words, but for those in packed variables of some writers.
        self._place += length + -length % 8
        return kind, data
