"""Read pickles without executing their code.

A pickle is a program that looks up functions by name and calls them. Here it may only use the names that
rebuild NumPy arrays and ordered dictionaries, and even these are mapped to functions of this module, which
validate their arguments before NumPy sees them. Numbers, strings, lists, tuples, dictionaries and sets need no
names.
"""

from __future__ import annotations

import io
import pickle
import re
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..unpacking import is_too_much


class NotData(Exception):
    """Unsupported content of a file; the message continues a sentence after "contains"."""


# Parts of a key, and bits of a number.
_KEY_PARTS, _BITS = 16, 64
_TOO_MUCH = "far more data than its size, by repeated references"
# What a value takes in memory, about: a reference, and what it refers to.
_VALUE_BYTES = 64
# What a set takes, and a place in the table of what is named again, for which a program has a byte each; and an
# entry of a dictionary or set that a function makes.
_SET_BYTES, _NAMED_BYTES, _ENTRY_BYTES = 216, 128, 256

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


class Array:
    """A NumPy array in the making."""

    values: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(getattr(self.values, "nbytes", 0))

    def __setstate__(self, state: Any) -> None:
        """(version, shape, type, whether in Fortran's order, bytes or a list)."""
        _, shape, kind, fortran, data = state
        self.values = _filled(data, kind, shape, "F" if fortran else "C")


def _filled(data: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    if not isinstance(kind, _Type) or not all(isinstance(size, int) for size in shape):
        raise NotData("an array without a type or a shape")
    if order == "K" and isinstance(axes, tuple) and sorted(axes) == list(range(len(shape))):
        # Neither rows nor columns first, but in another order of the axes.
        return _filled(data, kind, shape, "C").transpose(axes)
    if order not in ("C", "F"):
        raise NotData("an array in no order")
    if kind.dtype.hasobject:
        flat = of_objects(list(data))
    else:
        # Python 2 wrote bytes as text.
        raw = data.encode("latin1") if isinstance(data, str) else data
        flat = np.frombuffer(raw, dtype=kind.dtype)
    return flat.reshape(tuple(shape), order=order)


def _reconstruct(*_: Any) -> Array:
    """An array that `Array.__setstate__` fills."""
    return Array()


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    array = Array()
    array.values = _filled(data, kind, shape, order, axes)
    return array


def _scalar(kind: Any, data: Any) -> Any:
    if isinstance(kind, _Type) and kind.dtype.hasobject:
        raise NotData("an object in the place of a number")
    array = Array()
    array.values = _filled(data, kind, (1,), "C")[0]
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes as protocols before 3 hold them."""
    if encoding != "latin1" or not isinstance(text, str):
        raise NotData(f"text as {reprlib.repr(encoding)}")
    return text.encode("latin1")


class _Int(int):
    """A key that cannot be chosen to collide with others: text is hashed in another way by each process."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(int.__repr__(self))


class _Float(float):
    """Likewise; what is no number is equal to nothing, and must not collide with others of its kind."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(float.__repr__(self)) if self == self else object.__hash__(self)


def _as_key(key: Any) -> Any:
    """What a dictionary or set gets instead, which would work forever at some keys: containers in containers,
    which it asks for a number again and again, and numbers that were chosen to collide."""
    if isinstance(key, tuple) and len(key) <= _KEY_PARTS and not any(isinstance(part, tuple) for part in key):
        return tuple(map(_as_key, key))
    if isinstance(key, float):
        return _Float(key)
    if isinstance(key, int) and not isinstance(key, bool):
        if key.bit_length() > _BITS:
            raise NotData(f"numbers of more than {_BITS} bits as keys")
        return _Int(key)
    if not isinstance(key, str | bytes | bool | Array | None):
        raise NotData(f"{type(key).__name__}s as keys")
    return key


def _ordered(*values: Any) -> Any:
    """An ordered dictionary, which protocols before 2 fill with a list of pairs."""
    if len(values) > 1 or not all(isinstance(part, list) for part in values):
        raise NotData("an ordered dictionary of something else than pairs")
    return OrderedDict((_as_key(key), value) for part in values for key, value in part)


def _set(*values: Any) -> Any:
    """A set, frozen or not, which protocols before 4 make of a list."""
    if len(values) > 1 or not all(isinstance(part, list) for part in values):
        raise NotData("a set of something else than a list")
    return frozenset(_as_key(key) for part in values for key in part)


def _no_bytes(*arguments: Any) -> bytes:
    """What protocols before 3 call for empty bytes."""
    if arguments:
        raise NotData("bytes of something else")
    return b""


class Maker:
    """A function of ours, which a program can call and do nothing else with."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        """Of a function that is safe with whatever arguments."""
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        """What the function makes."""
        return self._make(*arguments)

    def __setstate__(self, _: Any) -> None:
        """Not changed by programs."""
        raise NotData("a change of what reads it")


# NumPy's own functions would take an array of objects from raw bytes, and follow them as pointers.
KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _Type,
    **{
        (f"numpy.{core}.{module}", name): maker
        for core in ("core", "_core")
        for module, name, maker in (
            ("multiarray", "_reconstruct", Maker(_reconstruct)),
            ("multiarray", "scalar", Maker(_scalar)),
            ("numeric", "_frombuffer", Maker(_from_buffer)),
        )
    },
    ("collections", "OrderedDict"): Maker(_ordered),
    ("_codecs", "encode"): Maker(_encode),
    ("__builtin__", "bytes"): Maker(_no_bytes),
    **{(module, name): Maker(_set) for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
}


def _with_keys(code: bytes, keys: slice) -> Callable[[Any], None]:
    """What a code of a program does, after `_as_key` has seen the keys on the stack."""
    load = pickle._Unpickler.dispatch[code[0]]

    def checked(unpickler: Any) -> None:
        unpickler.stack[keys] = list(map(_as_key, unpickler.stack[keys]))
        load(unpickler)

    return checked


def _counted(code: bytes, size: int) -> Callable[[Any], None]:
    """What a code of a program does, counted as so many bytes."""
    load = pickle._Unpickler.dispatch[code[0]]

    def counted(unpickler: Any) -> None:
        unpickler.spend(size)
        load(unpickler)

    return counted


class Unpickler(pickle._Unpickler):
    """The one written in Python: the other takes as much memory as a program numbers its objects up to.

    What functions make of what they get is counted: a program of a few bytes may call one with a large thing
    again and again. Whatever else it makes takes no more than some ten times its own bytes.
    """

    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    stack: list[Any]
    names: Mapping[tuple[str, str], Any] = KNOWN
    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch.copy()

    def __init__(self, file: IO[bytes], size: int) -> None:
        """For a program in a file of `size` bytes."""
        super().__init__(file, encoding="latin1")
        self._size, self._made = size, 0

    def spend(self, size: int) -> None:
        """Count so many bytes."""
        self._made += size
        if is_too_much(self._made, self._size):
            raise NotData(_TOO_MUCH)

    def _spend_on(self, arguments: Any) -> None:
        for value in arguments if isinstance(arguments, tuple | list) else ():
            if isinstance(value, str | bytes | bytearray):
                self.spend(len(value))
            elif isinstance(value, list | tuple):
                self.spend(_ENTRY_BYTES * len(value))

    def load_reduce(self) -> None:
        """Call a function."""
        self._spend_on(self.stack[-1])
        super().load_reduce()  # type: ignore[misc]

    def _instantiate(self, klass: Any, arguments: Any) -> None:
        """Likewise, as the first protocols do."""
        self._spend_on(arguments)
        super()._instantiate(klass, arguments)  # type: ignore[misc]

    def load_bytearray8(self) -> None:
        """Bytes that can be written to, which are there before they are filled."""
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise pickle.UnpicklingError("more bytes than the file has")
        self.append(bytearray(self.read(size)))

    def load_build(self) -> None:
        """Attributes of what is here: an ordered dictionary's are left out, others must know what to do."""
        if isinstance(self.stack[-2], OrderedDict):
            self.stack.pop()
            return
        self._spend_on(self.stack[-1])
        if not hasattr(self.stack[-2], "__setstate__"):
            raise NotData(f"{type(self.stack[-2]).__name__} with attributes")
        super().load_build()  # type: ignore[misc]

    dispatch |= {
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.BUILD[0]: load_build,
        pickle.REDUCE[0]: load_reduce,
        pickle.EMPTY_SET[0]: _counted(pickle.EMPTY_SET, _SET_BYTES),
        pickle.MEMOIZE[0]: _counted(pickle.MEMOIZE, _NAMED_BYTES),
        pickle.SETITEM[0]: _with_keys(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _with_keys(pickle.SETITEMS, slice(0, None, 2)),
        pickle.DICT[0]: _with_keys(pickle.DICT, slice(0, None, 2)),
        pickle.ADDITEMS[0]: _with_keys(pickle.ADDITEMS, slice(None)),
        pickle.FROZENSET[0]: _with_keys(pickle.FROZENSET, slice(None)),
    }

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for; nothing is imported."""
        found = self.names.get((module, name))
        if found is None:
            raise NotData(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Nothing is kept elsewhere."""
        raise NotData("a reference to something outside the file")


def read_pickle(data: bytes, where: str) -> Any:
    """Return the object in a pickle of NumPy arrays, numbers, text and plain containers.

    Args:
        data: the content of the file.
        where: name of the file in messages.

    Raises:
        InputError: if it is damaged or contains anything else, which is neither imported nor called.
    """
    return run(
        lambda: Unpickler(io.BytesIO(data), len(data)).load(),
        len(data),
        where,
        "pickle",
        "NumPy arrays, numbers, text and plain containers (tensors only from torch.save files)",
    )


def run(load: Callable[[], Any], size: int, where: str, kind: str, known: str) -> Any:
    """Return the object that a pickle program builds, with placeholders replaced by arrays.

    Args:
        load: runs the program.
        size: size of the file in bytes, which limits what the program may build.
        where: name of the file in messages.
        kind: kind of the file, for messages.
        known: what is read from such files, for messages.

    Raises:
        InputError: if it builds anything else, or is damaged.
    """
    try:
        return _finished(load(), size)
    except NotData as error:
        raise InputError(
            f"{where} contains {error}, but only {known} are read from a {kind}; no code in it was executed"
        ) from None
    except RecursionError:
        raise InputError(f"{where} is nested too deeply or contains itself") from None
    except MemoryError:
        raise InputError(f"{where} is damaged: it declares more data than fits into memory") from None
    except Exception as error:  # whatever a damaged program of a stranger may do to the machine that reads it
        raise InputError(f"{where} is a damaged {kind}: {type(error).__name__}: {error}") from None


def of_objects(values: Sequence[Any]) -> NDArray[Any]:
    """Return an (N,) object array; np.array would convert nested sequences."""
    found = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        found[place] = value
    return found


def _finished(value: Any, size: int) -> Any:
    """What a file of `size` bytes made, with its arrays in the place of what stood for them.

    By naming a thing again and again, a short program can make one that takes forever to look through, or
    gigabytes to copy: what it names is counted as often as it names it.
    """
    known: dict[int, tuple[Any, int] | None] = {}
    made_of_arrays = 0

    def of(value: Any) -> tuple[Any, int]:
        """The same, and how many bytes it would take if nothing was shared."""
        nonlocal made_of_arrays
        if not isinstance(value, dict | list | tuple | Array):
            if isinstance(value, int) and value.bit_length() > _BITS:
                raise NotData(f"a number of more than {_BITS} bits")
            letters = len(value) if isinstance(value, str | bytes | bytearray) else 0
            return value, _VALUE_BYTES + letters
        if id(value) in known:
            found = known[id(value)]
            if found is None:
                raise NotData("a container that is in itself")
            return found
        known[id(value)] = None
        total = _VALUE_BYTES
        if isinstance(value, dict):
            parts = [of(part) for pair in value.items() for part in pair]
            keys = (key.item() if isinstance(key, np.generic) else key for key, _ in parts[::2])
            made: Any = dict(zip(map(_as_key, keys), (item for item, _ in parts[1::2]), strict=True))
        elif isinstance(value, Array):
            # Before there are any.
            made_of_arrays += value.nbytes
            if is_too_much(made_of_arrays, size):
                raise NotData(_TOO_MUCH)
            made, parts = value.values, []
            if isinstance(made, np.ndarray) and made.dtype.hasobject:
                parts = [of(item) for item in made.flat]
                made = of_objects([item for item, _ in parts]).reshape(made.shape)
            elif isinstance(made, np.ndarray):
                total += made.nbytes
        else:
            parts = [of(item) for item in value]
            made = type(value)(item for item, _ in parts)
        total += sum(bytes_of for _, bytes_of in parts)
        if is_too_much(total, size):
            raise NotData(_TOO_MUCH)
        known[id(value)] = made, total
        return made, total

    return of(value)[0]
