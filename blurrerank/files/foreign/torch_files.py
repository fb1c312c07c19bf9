"""Read torch.save files without torch.

Torch's own reader allows only known names, but a crafted file can still make it run forever or fill the memory.
Here the restricted pickle reader runs the program in such a file, and tensors become arrays.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .pickles import KNOWN, Array, Maker, NotData, Unpickler, run

_READ = "tensors, NumPy arrays and plain containers"
# Programs before the one of the object: a number, the version, and the machine.
_BEFORE = 3


@dataclass(frozen=True)
class _Type:
    """A type of numbers: NumPy's code, and whether they are the upper half of a float32."""

    code: str
    brain: bool = False

    def __setstate__(self, _: Any) -> None:
        raise NotData("a change of what reads it")


_TYPES = {
    "float16": _Type("f2"),
    "bfloat16": _Type("u2", brain=True),
    "float32": _Type("f4"),
    "float64": _Type("f8"),
    "complex64": _Type("c8"),
    "complex128": _Type("c16"),
    "bool": _Type("b1"),
    **{f"int{8 * size}": _Type(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"uint{8 * size}": _Type(f"u{size}") for size in (1, 2, 4, 8)},
}
# What of types without a storage of their own is kept in.
_RAW = _Type("u1")
_STORED = {
    "FloatStorage": _TYPES["float32"],
    "DoubleStorage": _TYPES["float64"],
    "HalfStorage": _TYPES["float16"],
    "BFloat16Storage": _TYPES["bfloat16"],
    "ComplexFloatStorage": _TYPES["complex64"],
    "ComplexDoubleStorage": _TYPES["complex128"],
    "BoolStorage": _TYPES["bool"],
    "ByteStorage": _TYPES["uint8"],
    "CharStorage": _TYPES["int8"],
    "ShortStorage": _TYPES["int16"],
    "IntStorage": _TYPES["int32"],
    "LongStorage": _TYPES["int64"],
}


class _Storage:
    """Numbers that tensors share, which are read when the program has ended."""

    __slots__ = ("count", "kind", "raw")

    def __init__(self, kind: _Type, count: int) -> None:
        self.kind, self.count, self.raw = kind, count, b""


class _Tensor(Array):
    """A tensor in the making."""

    def __init__(
        self, storage: _Storage, kind: _Type, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self._storage, self._kind = storage, kind
        self._offset, self._shape, self._strides = offset, shape, strides

    def __setstate__(self, _: Any) -> None:
        raise NotData("a tensor with attributes")

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers, each for itself."""
        return math.prod(self._shape) * (4 if self._kind.brain else np.dtype(self._kind.code).itemsize)

    @property
    def values(self) -> NDArray[Any]:
        """The numbers, as the storage has them."""
        flat = np.frombuffer(self._storage.raw, self._kind.code)
        if 0 in self._shape:
            return np.empty(self._shape, "f4" if self._kind.brain else self._kind.code)
        steps = zip(self._shape, self._strides, strict=True)
        if self._offset + sum((size - 1) * step for size, step in steps) >= len(flat):
            raise ValueError("a tensor of more numbers than there are")
        view: NDArray[Any] = np.lib.stride_tricks.as_strided(
            flat[self._offset :], self._shape, [step * flat.itemsize for step in self._strides], writeable=False
        )
        return (view.astype(np.uint32) << 16).view(np.float32) if self._kind.brain else view


def _is_sizes(values: Any) -> bool:
    return isinstance(values, tuple) and all(isinstance(size, int) and 0 <= size < 1 << 62 for size in values)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> _Tensor:
    """A tensor; behind its strides is what is said of learning, hooks, and signs."""
    return _strided(storage, offset, shape, strides, more[2:])


def _strided(
    storage: Any, offset: Any, shape: Any, strides: Any, signs: Any, kind: _Type | None = None
) -> _Tensor:
    if any(signs):
        raise NotData("a tensor whose signs are still to be changed (save it .resolve_neg().resolve_conj())")
    if not isinstance(storage, _Storage) or not _is_sizes((offset,)) or not _is_sizes(shape):
        raise NotData("a tensor without numbers or a shape")
    if not _is_sizes(strides) or len(strides) != len(shape):
        raise NotData("a tensor without strides")
    return _Tensor(storage, kind or storage.kind, offset, shape, strides)


def _typed(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Any:
    """A tensor of a type without a storage of its own: it comes behind what is said of learning, and hooks."""
    if len(more) < 3 or not isinstance(more[2], _Type):
        raise NotData("a tensor without a type")
    return _strided(storage, offset, shape, strides, more[3:], kind=more[2])


def _first(value: Any, *_: Any) -> Any:
    """What is wrapped, without what is said of it: whether it is learned, and hooks."""
    return value


def _with_attributes(make: Any, _kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor that has attributes, which are left out."""
    if make not in _TENSORS or not isinstance(arguments, tuple):
        raise NotData("something else than a tensor with attributes")
    return make(*arguments)


_TENSORS = (Maker(_tensor), Maker(_typed))

_NAMES: Mapping[tuple[str, str], Any] = {
    **KNOWN,
    **{("torch", name): kind for name, kind in _TYPES.items()},
    **{(module, name): kind for module in ("torch", "torch.cuda") for name, kind in _STORED.items()},
    ("torch.storage", "UntypedStorage"): _RAW,
    ("torch._utils", "_rebuild_tensor"): _TENSORS[0],
    ("torch._utils", "_rebuild_tensor_v2"): _TENSORS[0],
    ("torch._utils", "_rebuild_tensor_v3"): _TENSORS[1],
    ("torch._utils", "_rebuild_parameter"): Maker(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): Maker(_first),
    ("torch._tensor", "_rebuild_from_type_v2"): Maker(_with_attributes),
    ("torch", "Tensor"): Maker(_first),
    ("torch", "Size"): Maker(_first),
    ("torch", "device"): Maker(_first),
    ("torch.nn.parameter", "Parameter"): Maker(_first),
}


class _Program(Unpickler):
    """A program of torch, which names its storages by text."""

    names = _NAMES

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file, size)
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> Any:
        """A storage: the word, its type, its name, where it was, how many numbers, and of old files a view."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise NotData("a reference to something that is no tensor")
        _, kind, name, _, count, *view = pid
        if not isinstance(kind, _Type) or not isinstance(name, str) or not _is_sizes((count,)) or any(view):
            raise NotData("a storage that is none")
        found = self.storages.setdefault(name, _Storage(kind, count))
        if (found.kind, found.count) != (kind, count):
            raise NotData("a storage of two kinds")
        return found


def read_torch(path: Path) -> Any:
    """Return the saved object, with tensors as arrays; bfloat16 becomes float32.

    Args:
        path: a torch.save file of any version; a zip archive must have passed `check_archive`.

    Raises:
        InputError: if it is damaged, or contains anything but tensors, arrays and plain containers.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
        file.seek(0)
        load = _from_archive if zipped else _from_stream
        return run(lambda: load(file, size), size, str(path), "file of torch.save", _READ)


def _from_archive(file: IO[bytes], size: int) -> Any:
    """As torch writes since 1.6: a program, and a file for each storage."""
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise NotData("a program that is packed")
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise NotData("numbers of another machine, their bytes the other way round")
        program = _Program(io.BytesIO(archive.read(name)), size)
        found = program.load()
        for key, storage in program.storages.items():
            storage.raw = archive.read(f"{folder}data/{key}")
    return found


def _from_stream(file: IO[bytes], size: int) -> Any:
    """As torch wrote before: a few programs, one for the names of storages, and these in that order."""
    for _ in range(_BEFORE):
        Unpickler(file, size).load()
    program = _Program(file, size)
    found = program.load()
    names: Sequence[Any] = Unpickler(file, size).load()
    for name in names:
        storage = program.storages[name]
        length = int.from_bytes(file.read(8), "little") * np.dtype(storage.kind.code).itemsize
        if length > size:
            raise ValueError("numbers without end")
        storage.raw = file.read(length)
    return found
