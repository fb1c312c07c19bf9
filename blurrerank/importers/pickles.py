"""Reading pickles without running what is in them.

A pickle is a program: it names functions and calls them. Here the only names it may use are those that rebuild
NumPy arrays and ordered dictionaries, and even these stand for functions of ours, which look at what they get
before NumPy sees it. Numbers, strings, lists, tuples, dictionaries and sets need no names.
"""

from __future__ import annotations

import io
import pickle
import re
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


class NotData(Exception):
    """What a file holds that is no array of numbers, text or objects; its message goes on after "holds"."""


# How many values there may be for each byte of the program, and how many anyhow.
_SHARED, _MANY = 16, 1_000_000

_SIMPLE = re.compile(r"[<>|=]?(?:f[248]|[iu][1248]|b1|[US]\d{0,6}|O8?)")


class _Type:
    """A NumPy dtype in the making: of numbers, text or objects, in either byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not _SIMPLE.fullmatch(text):
            raise NotData(f"an array of type {reprlib.repr(code)}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        """(version, byte order, three None, sizes and flags): the order is all that a simple type needs."""
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise NotData("an array with fields")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")


class _Array:
    """A NumPy array in the making."""

    values: Any = None

    def __setstate__(self, state: Any) -> None:
        """(version, shape, type, whether in Fortran's order, bytes or a list)."""
        _, shape, kind, fortran, data = state
        self.values = _filled(data, kind, shape, "F" if fortran else "C")


def _filled(data: Any, kind: Any, shape: Any, order: Any) -> Any:
    if not isinstance(kind, _Type) or not all(isinstance(size, int) for size in shape):
        raise NotData("an array without a type or a shape")
    if order not in ("C", "F"):
        raise NotData("an array in no order")
    if kind.dtype.hasobject:
        flat = of_objects(list(data))
    else:
        # Python 2 wrote bytes as text.
        raw = data.encode("latin1") if isinstance(data, str) else data
        flat = np.frombuffer(raw, dtype=kind.dtype)
    return flat.reshape(tuple(shape), order=order)


def _reconstruct(*_: Any) -> _Array:
    """An array that `_Array.__setstate__` fills."""
    return _Array()


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any, *_: Any) -> Any:
    array = _Array()
    array.values = _filled(data, kind, shape, order)
    return array


def _scalar(kind: Any, data: Any) -> Any:
    array = _Array()
    array.values = _filled(data, kind, (1,), "C")[0]
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes as protocols before 3 hold them."""
    if encoding != "latin1" or not isinstance(text, str):
        raise NotData(f"text as {reprlib.repr(encoding)}")
    return text.encode("latin1")


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse what a dictionary or set would work at forever: containers in containers that it asks for a number
    again and again, and numbers that were chosen to collide."""
    for key in keys:
        if isinstance(key, int) and not -(1 << 64) < key < 1 << 64:
            raise NotData("numbers without end as keys")
        if not isinstance(key, str | bytes | int | float | complex | _Array | _Anything | None):
            raise NotData(f"{type(key).__name__}s as keys")


def _ordered(*pairs: Any) -> Any:
    """An ordered dictionary, which protocols before 2 fill with a list of pairs."""
    if len(pairs) > 1 or not all(isinstance(part, list) for part in pairs):
        raise NotData("an ordered dictionary of something else than pairs")
    known = [tuple(pair) for part in pairs for pair in part]
    _check_keys(pair[0] for pair in known)
    return OrderedDict(known)


def _no_bytes(*arguments: Any) -> bytes:
    """What protocols before 3 call for empty bytes."""
    if arguments:
        raise NotData("bytes of something else")
    return b""


class _Maker:
    """A function of ours, which a program can call and do nothing else with."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise NotData("a change of what reads it")


# What NumPy's names stand for, here and in what torch reads: its own would take an array of objects from raw
# bytes, and follow them as pointers.
NUMPY: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    **{
        (f"numpy.{core}.{module}", name): maker
        for core in ("core", "_core")
        for module, name, maker in (
            ("multiarray", "_reconstruct", _Maker(_reconstruct)),
            ("multiarray", "scalar", _Maker(_scalar)),
            ("numeric", "_frombuffer", _Maker(_from_buffer)),
        )
    },
}
_KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = NUMPY | {
    ("collections", "OrderedDict"): _Maker(_ordered),
    ("_codecs", "encode"): _Maker(_encode),
    ("__builtin__", "bytes"): _Maker(_no_bytes),
}


def _check_state(stack: Sequence[Any]) -> None:
    """Refuse attributes for what is no array and no type of one."""
    if not hasattr(stack[-2], "__setstate__"):
        raise NotData(f"{type(stack[-2]).__name__} with attributes")


def _after(check: Callable[[list[Any]], None], code: bytes) -> Callable[[Any], None]:
    """What a code of a program does, after a look at what it works on."""
    load = pickle._Unpickler.dispatch[code[0]]

    def checked(unpickler: Any) -> None:
        check(unpickler.stack)
        load(unpickler)

    return checked


class _Unpickler(pickle._Unpickler):
    """The one written in Python: the other takes as much memory as a program numbers its objects up to."""

    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch.copy()

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file, encoding="latin1")
        self._size = size

    def load_bytearray8(self) -> None:
        """Bytes that can be written to, which are there before they are filled."""
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise pickle.UnpicklingError("more bytes than the file has")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch |= {
        code[0]: _after(check, code)
        for check, code in (
            (lambda stack: _check_keys(stack[-2:-1]), pickle.SETITEM),
            (lambda stack: _check_keys(stack[::2]), pickle.SETITEMS),
            (lambda stack: _check_keys(stack[::2]), pickle.DICT),
            (_check_keys, pickle.ADDITEMS),
            (_check_keys, pickle.FROZENSET),
            (_check_state, pickle.BUILD),
        )
    }

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for; nothing is imported."""
        found = _KNOWN.get((module, name))
        if found is None:
            raise NotData(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Nothing is kept elsewhere."""
        raise NotData("a reference to something outside the file")


class _Anything:
    """What a name or a reference stands for where a program is only tried."""

    def __init__(self, *parts: Any) -> None:
        """Of some parts, which may become keys."""
        for part in parts:
            if isinstance(part, list | tuple | dict | set | frozenset):
                _check_keys(entry[0] if isinstance(entry, list | tuple) and entry else entry for entry in part)

    def __setstate__(self, _: Any) -> None:
        """Nothing changes."""

    def __setitem__(self, *_: Any) -> None:
        """Nothing is kept."""


class _Trial(_Unpickler):
    """A run of a program of torch in which nothing is made."""

    def find_class(self, module: str, name: str) -> Any:
        """Torch itself says what it does not know."""
        return _Maker(_Anything if (module, name) in _KEYED else _ignored)

    def persistent_load(self, pid: Any) -> Any:
        """Numbers of a tensor, which torch has by its name."""
        if not isinstance(pid, tuple):
            raise NotData("a reference to something that is no tensor")
        _check_keys(part for part in pid if not isinstance(part, _Maker))
        return _Anything()


def _ignored(*_: Any) -> _Anything:
    return _Anything()


# What looks up the parts that it is made of.
_KEYED = {
    ("collections", "OrderedDict"),
    ("collections", "Counter"),
    ("builtins", "set"),
    ("__builtin__", "set"),
}


def check_program(file: IO[bytes], size: int, programs: int = 1) -> None:
    """Refuse a pickle that would keep torch busy forever, as torch looks at no more than the names in it.

    Args:
        file: where the pickle begins.
        size: bytes of the file.
        programs: how many stand there, one behind another.

    Raises:
        NotData: naming what there is as a key.
    """
    for _ in range(programs):
        _Trial(file, size).load()


def read_pickle(data: bytes, where: str) -> Any:
    """The object in a pickle of NumPy arrays, numbers, text and plain containers.

    Args:
        data: the whole file.
        where: how messages call it.

    Raises:
        InputError: if it holds anything else, which is neither imported nor called, or is damaged.
    """
    try:
        return finished(_Unpickler(io.BytesIO(data), len(data)).load(), len(data))
    except NotData as error:
        why = str(error)
        hint = ": save tensors with torch.save" if why.startswith("torch") else ""
        raise InputError(
            f"{where} holds {why}, and only NumPy arrays, numbers, text and plain containers are read of a "
            f"pickle{hint}; nothing in it was run"
        ) from None
    except RecursionError:
        raise InputError(f"{where} is nested too deeply, or holds itself") from None
    except MemoryError:
        raise InputError(f"{where} is damaged: it claims more memory than there is") from None
    except Exception as error:  # whatever a damaged program of a stranger may do to the machine that reads it
        raise InputError(f"{where} is a damaged pickle: {type(error).__name__}: {error}") from None


def of_objects(values: Sequence[Any]) -> NDArray[Any]:
    """A (N,) array of objects, which NumPy would otherwise look into."""
    found = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        found[place] = value
    return found


def finished(value: Any, size: int) -> Any:
    """What was read, with its arrays in the place of what stood for them.

    Args:
        value: what a program of `size` bytes made.
        size: bounds what is in it: by naming a container again and again, a short program can make one that
            takes forever to look through.

    Raises:
        NotData: if it holds itself, or more than such a program can spell out.
    """
    known: dict[int, tuple[Any, int] | None] = {}

    def of(value: Any) -> tuple[Any, int]:
        """The same, and how many values it holds."""
        if not isinstance(value, dict | list | tuple | _Array):
            return value, 1
        if id(value) in known:
            found = known[id(value)]
            if found is None:
                raise NotData("a container that is in itself")
            return found
        known[id(value)] = None
        if isinstance(value, dict):
            parts = [of(part) for pair in value.items() for part in pair]
            made: Any = dict(
                zip((key for key, _ in parts[::2]), (item for item, _ in parts[1::2]), strict=True)
            )
        elif isinstance(value, _Array):
            made, parts = value.values, []
            if isinstance(made, np.ndarray) and made.dtype.hasobject:
                parts = [of(item) for item in made.flat]
                made = of_objects([item for item, _ in parts]).reshape(made.shape)
        else:
            parts = [of(item) for item in value]
            made = type(value)(item for item, _ in parts)
        count = 1 + sum(count for _, count in parts)
        if count > _MANY + _SHARED * size:
            raise NotData("more than it can spell out: containers in containers, again and again")
        known[id(value)] = made, count
        return made, count

    return of(value)[0]
