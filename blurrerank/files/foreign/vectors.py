"""Read files of plain vectors: safetensors, .fvecs, and .fbin and .hbin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

_SAFE = {
    f"{kind.upper()}{8 * int(size)}": f"<{kind}{size}"
    for kind, size in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1")
}
"""Types of safetensors, such as F64, and those of NumPy."""


def read_vectors(path: Path, head: bytes) -> tuple[str, Any] | None:
    """Return what a file of vectors is, and its content, mapped into memory; None if it is none.

    Args:
        path: the file.
        head: its first bytes.

    Raises:
        InputError: if it is damaged, or contains neighbour lists.
    """
    return _safetensors(path, head) or _fvecs(path) or _vectors(path, head)


def _safetensors(path: Path, head: bytes) -> tuple[str, Any] | None:
    """A length, a JSON header with type, shape and place of each tensor, and the numbers."""
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or not 2 <= length <= path.stat().st_size - 8:
        return None
    with open(path, "rb") as file:
        header = json.loads(file.read(8 + length)[8:])
    fields = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        start, stop = (8 + length + int(place) for place in about["data_offsets"])
        brain = about["dtype"] == "BF16"
        dtype = np.dtype("<u2" if brain else _SAFE[about["dtype"]])
        shape = tuple(map(int, about["shape"]))
        values: NDArray[Any] = np.memmap(path, dtype, "r", start, ((stop - start) // dtype.itemsize,))
        values = (values.astype("<u4") << 16).view("<f4") if brain else values
        fields[name] = values.reshape(shape)
    return "safetensors", fields


def _fvecs(path: Path) -> tuple[str, Any] | None:
    """Each row behind its length, as TEXMEX has it."""
    if path.suffix.lower() != ".fvecs":
        return None
    size = path.stat().st_size
    columns = int(np.fromfile(path, "<i4", 1)[0]) if size >= 4 else 0
    if columns < 1 or size % (4 * columns + 4):
        raise InputError(
            f"{path} is {size:,} bytes long, not a number of rows of {columns} float32: it is damaged"
        )
    rows: NDArray[Any] = np.memmap(path, "<f4", "r", shape=(size // (4 * columns + 4), columns + 1))
    if (rows[:, 0].view("<i4") != columns).any():
        raise InputError(f"{path} has rows of different lengths: it is damaged, or holds something else")
    return "vectors of float32", rows[:, 1:]


def _vectors(path: Path, head: bytes) -> tuple[str, Any] | None:
    """Rows and columns as int32, then the numbers, as cuVS and big-ann-benchmarks have it."""
    if len(head) < 8:
        return None
    rows, columns = np.frombuffer(head[:8], dtype="<u4").tolist()
    size = path.stat().st_size - 8
    width = size // (rows * columns) if rows > 0 and columns > 0 and size % (rows * columns) == 0 else 0
    if width not in (2, 4):
        expected = {".fbin": 4, ".hbin": 2}.get(path.suffix.lower())
        if expected is None:
            return None
        if not rows or not columns:
            raise InputError(f"{path} has no values: its header says {rows:,} rows of {columns:,}")
        raise InputError(
            f"{path} is {size + 8:,} bytes long, but its header says {rows:,} x {columns:,}, which takes "
            f"{8 + expected * rows * columns:,}: it was truncated or is not a vector file"
        )
    values: NDArray[Any] = np.memmap(path, dtype=f"<f{width}", mode="r", offset=8, shape=(rows, columns))
    some = np.abs(values[:16].astype(np.float64))
    # Whole numbers below 2^23 are no normal numbers when they are taken for float32.
    if path.suffix.lower() == ".ibin" or (width == 4 and (some < 1.2e-38).all() and some.any()):
        raise InputError(f"{path} contains neighbour lists, not features: pass it to `run` with --candidates")
    return f"vectors of {'float16' if width == 2 else 'float32'}", values
