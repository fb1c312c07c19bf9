"""Open files of other tools; the format is detected from the content, not from the name."""

from __future__ import annotations

import gzip
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .. import hdf5
from ..access import check_readable
from ..guard import guarded
from ..names import side_of
from ..stored_features import StoredFeatures
from ..watched import Watched
from . import pickles, tables
from .torch_files import read_torch

_TORCH_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
"""How files of torch.save begin that were written before 1.6: a pickle of a number."""


@dataclass(frozen=True)
class Opened:
    """A file of another tool and its content.

    Attributes:
        path: the file.
        container: description of the file format.
        content: fields by name, values by position, or a single array; for a table, columns of text.
        attributes: the root attributes, if any.
        source: the open file, if the content is mapped from it.
        unread: names of further content of unsupported types, with the reason if there is one.
        notes: remarks about how it was read.
    """

    path: Path
    container: str
    content: Mapping[str, Any] | Sequence[Any] | Any
    attributes: Mapping[str, Any]
    source: Watched | None = None
    unread: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields by name; empty if the content has no fields."""
        return self.content if isinstance(self.content, Mapping) else {}


def is_foreign(path: Path) -> bool:
    """Return whether this looks like a file of another tool; native files are HDF5 with groups."""
    if not path.is_file():
        return path.is_dir()
    check_readable(path)
    if not h5py.is_hdf5(path):
        # A damaged or empty file is no other tool's: the native reader says what is wrong with it.
        return path.stat().st_size > 0 and _head(path, 8) != b"\x89HDF\r\n\x1a\n"
    if _head(path, 10) == b"MATLAB 7.3":
        return True

    def read() -> bool:
        with hdf5.open_hdf5(path) as file:
            names = set(file)
            if "format" in file.attrs or names & {"probe", "gallery"}:
                return False
            if "features" in names and "num_query" not in names:
                return False  # one side
            items = hdf5.members(file)
            if _has_sides(items):
                return False
            return any(isinstance(item, h5py.Dataset) for item in items.values())

    try:
        return guarded(read, path)
    except (InputError, OSError, RuntimeError, ValueError, KeyError):
        return False


def may_do_harm(path: Path) -> bool:
    """Return whether the file is of a format that is read by more than a few lines of ours.

    Imports what reads it, for the limits of a trial have no room for that.
    """
    head = _head(path, 14) if path.is_file() else b""
    needed = {b"MATLAB 5.0": "scipy.io", b"PAR1": "pyarrow.parquet", b"ARROW1": "pyarrow.feather"}
    for begin, library in needed.items():
        if head.startswith(begin):
            with suppress(ImportError):  # which is told when the file is read
                import_module(library)
    begins = (b"\x89HDF", b"MATLAB", b"PK\x03\x04", b"\x80", b"\x93NUMPY", b"PAR1", b"ARROW1")
    return head.startswith(begins) or path.suffix.lower() in _PICKLES or (bool(head) and h5py.is_hdf5(path))


_PICKLES = (".pkl", ".pickle", ".p")


def open_file(path: Path, *, allow_pickle: bool = False) -> Opened:
    """Read a file of another tool.

    Args:
        path: the file, or a folder of CSV files as ECN writes it.
        allow_pickle: whether to read pickles, through the restricted reader in `pickles`.

    Raises:
        InputError: if it cannot be read, or does not contain features.
    """
    where = str(path)
    if not path.exists():
        raise InputError(f"{where}: no such file")
    with _told(where):
        if path.is_dir():
            fields, notes = tables.folder(path)
            return Opened(path, "folder of CSV files", fields, {}, notes=notes)
        if not path.is_file():
            raise InputError(f"{where} is not a regular file")
        head = _head(path, 4096)
        if not head:
            raise InputError(f"{where} is empty")
        if head[:10] == b"MATLAB 7.3" or h5py.is_hdf5(path):
            return _hdf5(path, head)
        if head.startswith(b"MATLAB 5.0"):
            return _matlab(path)
        if head.startswith(b"\x93NUMPY"):
            return _npy(path, allow_pickle)
        if head.startswith(b"PK\x03\x04"):
            return _zip(path, allow_pickle)
        if head.startswith(_TORCH_LEGACY):
            return Opened(path, "torch.save", read_torch(path), {})
        if _is_pickle(path, head):
            if not allow_pickle:
                raise _not_allowed(where)
            with open(path, "rb") as file:
                return Opened(path, "pickle", pickles.read_pickle(file, where), {})
        source = Watched.open(path)
        vectors = _safetensors(path, head) or _fvecs(path) or _vectors(path, head)
        if vectors is not None:
            return Opened(path, *vectors, {}, source)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as unzipped:
                tables.refuse_lists(unzipped.read(4096), where)
            raise InputError(f"{where} is compressed: decompress it with gunzip first")
        container, content, notes = tables.read_table(path, head)
        return Opened(path, container, content, {}, notes=notes)


def _not_allowed(where: str) -> InputError:
    return InputError(
        f"{where} is a pickle, which could execute code when loaded: `blurrerank convert --allow-pickle` reads "
        "arrays and containers from it and executes nothing"
    )


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Whatever a library says of a file that it cannot read, in one line."""
    try:
        yield
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{where} cannot be read: permission denied") from None
    except MemoryError:
        raise InputError(f"{where} does not fit into memory, or is damaged") from None
    except RecursionError:
        raise InputError(f"{where} is nested too deeply, or contains itself") from None
    except Exception as error:
        why = str(error).strip().splitlines()
        said = why[0] if why else type(error).__name__
        raise InputError(f"{where} cannot be read; it may be damaged or truncated: {said}") from error


def _head(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


# HDF5 and MATLAB


def _hdf5(path: Path, head: bytes) -> Opened:
    file = hdf5.open_hdf5(path)
    items = hdf5.members(file)
    if head[:10] == b"MATLAB 7.3":
        with file:
            budget = hdf5.Budget(path)
            variables = {name: item for name, item in items.items() if not name.startswith("#")}
            values = {name: _cell(item, f"{path}::/{name}", budget) for name, item in variables.items()}
            known = {name: value for name, value in values.items() if not isinstance(value, _Unread)}
            unread = sorted(
                f"{name}{value.why}" for name, value in values.items() if isinstance(value, _Unread)
            )
            return Opened(path, "MATLAB v7.3", known, {}, unread=unread)
    if _has_sides(items):
        raise InputError(f"{path} is already a native file: use it directly")
    fields: dict[str, Any] = {}
    budget = hdf5.Budget(path)
    for name, item in items.items():
        try:
            if isinstance(item, h5py.Dataset) and item.shape is not None:
                fields[name] = _dataset(item, f"{path}::/{name}", budget)
            elif isinstance(item, hdf5.UnfitError):
                raise item
        except hdf5.UnfitError as error:
            fields[name] = Unfit(error)
    return Opened(path, "HDF5", fields, hdf5.attributes(file))


def _has_sides(items: Mapping[str, Any]) -> bool:
    """Whether there are groups of probes and of a gallery, as in native files."""
    sides = {side_of(name) for name, item in items.items() if isinstance(item, h5py.Group)}
    return {"probe", "gallery"} <= sides


def _dataset(item: Any, where: str, budget: hdf5.Budget) -> Any:
    if item.ndim == 2 and min(item.shape) > 1 and item.id.get_type().get_class() == h5py.h5t.FLOAT:
        # What is large stays in the file; the reader of blocks keeps it open.
        hdf5.check_dataset(item, where)
        return StoredFeatures(item, where)
    return budget.read(item, where)


class Unfit:
    """A field that is not read: whoever needs it is told why."""

    def __init__(self, why: hdf5.UnfitError) -> None:
        """Keep the reason."""
        self.why = why


@dataclass(frozen=True)
class _Unread:
    """A variable of MATLAB that is not read, and why."""

    why: str


_OTHER = " (sparse or complex)"
_OBJECTS = {
    "string": "save cellstr({0}) or double({0})",
    "categorical": "save cellstr({0}) or double({0})",
    "datetime": "save datenum({0})",
    "table": "save its columns, each as a variable",
    "struct": "save its fields, save(file, '-struct', '{0}')",
}
"""Kinds of MATLAB variables that only MATLAB reads, and what to save instead."""


def _cell(item: Any, where: str, budget: hdf5.Budget) -> Any:
    """A variable of MATLAB v7.3 the way MATLAB shows it; HDF5 has its dimensions the other way round."""
    name = where.rpartition("/")[2]
    if isinstance(item, hdf5.UnfitError):
        raise item
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        is_struct = "MATLAB_sparse" not in hdf5.attributes(item, where)
        return _Unread(_advice("struct", name) if is_struct else _OTHER)
    if item.dtype.kind == "V":
        return _Unread(_OTHER)
    known = hdf5.attributes(item, where)
    if "MATLAB_empty" in known:
        return np.empty((0, 0))
    kind = known.get("MATLAB_class")
    if "MATLAB_object_decode" in known or kind in _OBJECTS:
        return _Unread(_advice(str(kind), name))
    values = budget.read(item, where)
    if kind == "cell":
        cells = [_cell(hdf5.at(item.file, one, where), where, budget) for one in values.T.ravel()]
        return pickles.of_objects(cells).reshape(values.T.shape)
    if kind == "char":
        return np.array(["".join(map(chr, row)) for row in np.atleast_2d(values.T)])
    return values.T


def _advice(kind: str, name: str) -> str:
    what = _OBJECTS.get(kind, "save it as numbers or as a cell array of text")
    return f" (a {kind} of MATLAB: {what.format(name)})"


def _matlab(path: Path) -> Opened:
    """A MATLAB v5 file."""
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of two variables of one name, and of what scipy cannot read
            found = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    except Exception as error:  # scipy raises what it likes
        raise InputError(f"{path} is a damaged MATLAB file: {error}; copy or write it again") from None
    known = {
        name: value
        for name, value in found.items()
        if isinstance(value, np.ndarray) and value.dtype.names is None and value.dtype.kind != "c"
    }
    structs = {name for name, value in found.items() if getattr(value, "dtype", np.dtype("f4")).names}
    unread = [
        name + (_advice("struct", name) if name in structs else _OTHER) for name in found if name not in known
    ]
    return Opened(path, "MATLAB v5", known, {}, unread=unread)


# Archives of NumPy and torch


def _npy(path: Path, allow_pickle: bool) -> Opened:
    with open(path, "rb") as file:
        if _holds_objects(file):
            if not allow_pickle:
                raise InputError(
                    f"{path} holds Python objects, a pickle, which could execute code when loaded: `blurrerank "
                    "convert --allow-pickle` reads arrays and containers from it and executes nothing"
                )
            found = pickles.read_pickle(file, str(path))
            if isinstance(found, np.ndarray):  # one object, or a row in each place
                found = np.stack(found.tolist()) if found.shape else found.item()
            return Opened(path, "NumPy array of objects", found, {})
    source = Watched.open(path)
    return Opened(path, "NumPy array", np.load(path, mmap_mode="r", allow_pickle=False), {}, source)


def _holds_objects(file: IO[bytes]) -> bool:
    """Whether an array in the format of NumPy holds objects; the file is then where their pickle begins."""
    start = file.tell()
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    if version < (3, 0) and read(file)[2].hasobject:
        return True
    file.seek(start)
    return False


def _zip(path: Path, allow_pickle: bool) -> Opened:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.rpartition("/")[2] == "data.pkl" for name in names):
            return Opened(path, "torch.save", read_torch(path), {})
        if not names or not all(name.endswith(".npy") for name in names):
            raise InputError(f"{path} is a zip archive, but not one from NumPy or torch")
        fields: dict[str, Any] = {}
        unread = []
        for member in names:
            name = member.removesuffix(".npy")
            with archive.open(member) as file:
                if not _holds_objects(file):
                    fields[name] = np.lib.format.read_array(file, allow_pickle=False)
                elif allow_pickle:
                    found = pickles.read_pickle(file, f"{path}::{name}")
                    fields[name] = found.item() if isinstance(found, np.ndarray) and not found.shape else found
                else:
                    unread.append(
                        f"{name} (Python objects: save np.asarray(values, dtype=...), or --allow-pickle)"
                    )
    return Opened(path, "NumPy archive", fields, {}, unread=unread)


def _is_pickle(path: Path, head: bytes) -> bool:
    if head[0] == 0x80 and 2 <= head[1] <= 5:
        return True
    # The first protocols are text and have no mark; they end with a stop sign.
    return path.suffix.lower() in _PICKLES and path.read_bytes()[-1:] == b"."


# Plain vectors

_SAFE = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
}


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
