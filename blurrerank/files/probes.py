"""Probes on a stream: JSON lines, or rows of consecutive `.npy` arrays.

A JSON line is an array of numbers, or an object with such an array as `features` and, if wanted, `name` and
`cam`, the camera. Empty lines are skipped. An `.npy` array has one row or several; more arrays of the same
dimension may follow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Arrived:
    """One probe from the stream, or the problem with it.

    Attributes:
        features: (1, D) float, if the probe is valid.
        name: its name, if it has one.
        cam: its camera, if it is known.
        problem: what is wrong, if it is not valid.
    """

    features: NDArray[Any] | None = None
    name: str | None = None
    cam: int | str | None = None
    problem: str | None = None


# Bytes of a line: of each number, and of what else is in it.
_NUMBER, _REST = 64, 1 << 16


def arriving(stream: BufferedReader, width: int) -> Iterator[Arrived]:
    """Yield each probe, of `width` dimensions, as soon as it arrives.

    Raises:
        InputError: if the stream cannot be read any further.
    """
    if stream.peek(1)[:1] == b"\x93":
        yield from _arrays(stream, width)
        return
    most = _NUMBER * width + _REST
    while line := stream.readline(most):
        if len(line) == most and not line.endswith(b"\n"):
            yield Arrived(problem=f"longer than {most:,} bytes: expected {width} numbers and a name")
            while line and not line.endswith(b"\n"):
                line = stream.readline(most)
        elif line.strip():
            yield _parsed(line)


def _parsed(line: bytes) -> Arrived:
    name = cam = None
    try:
        values = json.loads(line)
        if isinstance(values, dict):
            values, name, cam = values["features"], values.get("name"), values.get("cam")
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or not isinstance(name, str | None):
            raise ValueError
        (name or "").encode()  # a lone surrogate could not be written again
        number = isinstance(cam, int | float) and not isinstance(cam, bool) and -(2**63) <= cam < 2**63
        if cam is not None and not isinstance(cam, str) and not (number and cam == int(cam)):
            return Arrived(name=name, problem=f"cam must be a whole number or text, not {json.dumps(cam)[:50]}")
        cam = int(cam) if isinstance(cam, float) else cam
        return Arrived(np.array([values], dtype=np.float64), name, cam)
    except (ValueError, KeyError, OverflowError, RecursionError):
        return Arrived(problem='expected [number, ...] or {"features": [number, ...], "name": "...", "cam": 1}')


def _arrays(stream: BufferedReader, width: int) -> Iterator[Arrived]:
    while stream.peek(1):
        try:
            version = np.lib.format.read_magic(stream)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, by_columns, dtype = header[version](stream)
        except (ValueError, KeyError, SyntaxError, TokenError) as error:
            raise InputError(f"standard input has an invalid .npy header: {error}") from None
        if dtype.kind != "f" or dtype.itemsize > 8 or len(shape) not in (1, 2):
            raise InputError(f"standard input has an array of {dtype} {shape}: expected rows of floats")
        if by_columns and len(shape) == 2 and min(shape) > 1:
            raise InputError("standard input has an array in Fortran order: write np.ascontiguousarray of it")
        count, dim = (1, *shape)[-2:]
        if dim != width:
            raise InputError(f"standard input has rows of {dim} numbers: expected {width}")
        for row in range(count):
            data = stream.read(dim * dtype.itemsize)
            if len(data) < dim * dtype.itemsize:
                raise InputError(f"standard input ends in row {row} of an array of {count}")
            yield Arrived(np.frombuffer(data, dtype)[None].astype(dtype.newbyteorder("=")))
