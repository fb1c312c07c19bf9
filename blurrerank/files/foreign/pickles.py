"""Read pickles and files of torch.save with a closed list of names.

A pickle is a program that looks up functions by name and calls them. Here it finds those that rebuild NumPy
arrays, tensors and plain containers, and nothing else. What it may come to harm over is tried first, see
`guard`.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

_PLAIN = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)


class _Maker:
    """A function of ours, which a program can call and do nothing else with."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("it tries to change the unpickler")


class _NotDataError(pickle.UnpicklingError):
    """Something that is not read; the message continues a sentence after "contains"."""


_SIMPLE = re.compile(r"[<>|=]?(?:f[248]|[iu][1248]|b1|[US]\d{0,6}|O8?)")


class Dtype:
    """A dtype in the making: of numbers, text or objects, in either byte order.

    NumPy's own would believe a program that describes fields or objects in raw bytes, and follow them.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not _SIMPLE.fullmatch(text):
            raise _NotDataError(f"an array of type {str(code)[:50]!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        """(version, byte order, three None, sizes and flags): the order is all that a simple type needs."""
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise _NotDataError("an array with fields")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")


class Array:
    """An array in the making."""

    values: Any = None

    def __setstate__(self, state: Any) -> None:
        """(version, shape, type, whether in Fortran's order, bytes or a list)."""
        _, shape, kind, fortran, data = state
        self.values = _filled(data, kind, shape, "F" if fortran else "C")


def _filled(data: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    if not isinstance(kind, Dtype):
        raise _NotDataError("an array without a type")
    if order == "K" and axes is not None:
        # Neither rows nor columns first, but in another order of the axes.
        return _filled(data, kind, shape, "C").transpose(axes)
    if kind.dtype.hasobject:
        flat = of_objects(list(data))
    else:
        # Python 2 wrote bytes as text.
        flat = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype=kind.dtype)
    return flat.reshape(tuple(shape), order=order)


def _reconstruct(*_: Any) -> Array:
    """An array that `Array.__setstate__` fills."""
    return Array()


def _from_buffer(*arguments: Any) -> Array:
    array = Array()
    array.values = _filled(*arguments)
    return array


def _scalar(kind: Any, data: Any) -> Array:
    if isinstance(kind, Dtype) and kind.dtype.hasobject:
        raise _NotDataError("an object instead of a number")
    array = Array()
    array.values = _filled(data, kind, (1,), "C")[0]
    return array


def _text(*parts: str) -> str:
    """A path as text; a program that pickles one gives its parts."""
    first, *rest = parts
    return "/".join([first.rstrip("/") if rest else first, *rest])


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocols before 3 hold them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


def _dict(*_: Any) -> dict[Any, Any]:
    """A dictionary with a default, which is filled later."""
    return {}


def _storage(data: bytes) -> Any:
    """What a tensor keeps its numbers in."""
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(*arguments: Any) -> Any:
    from torch._utils import _rebuild_tensor_v2

    return _rebuild_tensor_v2(*arguments)  # type: ignore[no-untyped-call]


_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
_KNOWN: Mapping[tuple[str, str], Any] = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _PLAIN},
    **{(module, name): _Maker(_text) for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{
        (f"numpy.{core}.{module}", name): _Maker(make)
        for core in ("core", "_core")
        for module, name, make in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _Maker(_dict),
    ("_codecs", "encode"): _Maker(_encode),
    ("torch._utils", "_rebuild_tensor_v2"): _Maker(_tensor),
    ("torch.storage", "_load_from_bytes"): _Maker(_storage),
}


class _Unpickler(pickle.Unpickler):
    """Finds the names that are known."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name stands for; nothing is imported."""
        found = _KNOWN.get((module, name))
        if found is None:
            raise _NotDataError(f"{module}.{name}")
        return found


def read_pickle(file: IO[bytes], where: str) -> Any:
    """Return the object in a pickle of arrays, tensors, numbers, text and plain containers.

    Args:
        file: the program.
        where: name of the file in messages.

    Raises:
        InputError: if it is damaged or contains anything else, which is neither imported nor called.
    """
    try:
        return _as_plain(_Unpickler(file, encoding="latin1").load(), where)
    except _NotDataError as error:
        raise InputError(
            f"{where} contains {error}, but only arrays, tensors, numbers, text and plain containers are read "
            "from a pickle; no code in it was executed"
        ) from None
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{where} is nested too deeply or contains itself") from None
    except Exception as error:  # whatever a damaged program may do to what it calls
        raise InputError(f"{where} is a damaged pickle: {type(error).__name__}: {error}") from None


def read_torch(path: Path) -> Any:
    """Return the saved object, with tensors as arrays; bfloat16 becomes float32.

    Args:
        path: a torch.save file of any version.

    Raises:
        InputError: if it is damaged, or contains anything but tensors, arrays and plain containers.
    """
    import torch

    names: list[Any] = [(found, f"{module}.{name}") for (module, name), found in _KNOWN.items()]
    with torch.serialization.safe_globals(names):
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of a damaged file torch raises what it likes
            name = re.search(r"GLOBAL (\S+)", str(error))
            if name is not None:
                raise InputError(
                    f"{path} contains {name[1]}, but only tensors, NumPy arrays and plain containers are read "
                    "from a file of torch.save; no code in it was executed"
                ) from None
            why = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
            said = why[1] if why else (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{path} is a damaged file of torch.save: {said}") from None
    return _as_plain(found, str(path))


def _as_plain(value: Any, where: str) -> Any:
    """Containers with tensors replaced by arrays, bfloat16 by float32, and paths by text."""
    if isinstance(value, Mapping):
        return {_as_plain(key, where): _as_plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_as_plain(item, where) for item in value)
    if isinstance(value, Array):
        value = value.values
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return of_objects([_as_plain(item, where) for item in value.ravel()]).reshape(value.shape)
    if isinstance(value, int) and value.bit_length() > 64:
        raise InputError(f"{where} contains a number of more than 64 bits")
    torch = sys.modules.get("torch")
    return _array(value, where) if torch is not None and isinstance(value, torch.Tensor) else value


def _array(tensor: Any, where: str) -> Any:
    import torch

    layout, dtype = (str(one).removeprefix("torch.") for one in (tensor.layout, tensor.dtype))
    for wrong, what, instead in (
        (tensor.is_quantized, "quantised tensor", "dequantize"),
        (layout != "strided", f"{layout} tensor", "to_dense"),
        (tensor.device.type != "cpu", f"tensor on device {tensor.device.type}", "cpu"),
        (dtype.startswith("float8"), f"{dtype} tensor", "float"),
    ):
        if wrong:
            raise InputError(f"{where} contains a {what}: save it .{instead}()")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def of_objects(values: Sequence[Any]) -> NDArray[Any]:
    """Return an (N,) object array; np.array would convert nested sequences."""
    found = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        found[place] = value
    return found
