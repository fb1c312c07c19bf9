"""Open files of other tools; the format is detected from the content, not from the name."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .. import hdf5
from ..access import check_readable
from ..stored_features import StoredFeatures
from ..unpacking import check_archive
from ..watched import Watched
from . import pickles
from .matlab5 import DEEPEST, read_matlab_5
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
        unread: names of further content of unsupported types.
    """

    path: Path
    container: str
    content: Mapping[str, Any] | Sequence[Any] | Any
    attributes: Mapping[str, Any]
    source: Watched | None = None
    unread: Sequence[str] = ()

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
    try:
        with hdf5.open_hdf5(path) as file:
            names = set(file)
            if "format" in file.attrs or names & {"probe", "gallery"}:
                return False
            if "features" in names and "num_query" not in names:
                return False  # one side
            return any(isinstance(item, h5py.Dataset) for item in hdf5.members(file).values())
    except (InputError, OSError, RuntimeError, ValueError, KeyError):
        return False


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
            return Opened(path, "folder of CSV files", _folder(path), {})
        if not path.is_file():
            raise InputError(f"{where} is not a regular file")
        head = _head(path, 4096)
        if not head:
            raise InputError(f"{where} is empty")
        if head[:10] == b"MATLAB 7.3" or h5py.is_hdf5(path):
            return _hdf5(path, head)
        if head.startswith(b"MATLAB 5.0"):
            fields, unread = read_matlab_5(path)
            return Opened(path, "MATLAB v5", fields, {}, unread=unread)
        if head.startswith(b"\x93NUMPY"):
            source = Watched.open(path)
            return Opened(path, "NumPy array", np.load(path, mmap_mode="r", allow_pickle=False), {}, source)
        if head.startswith(b"PK\x03\x04"):
            return _zip(path)
        if head.startswith(_TORCH_LEGACY):
            return Opened(path, "torch.save", read_torch(path), {})
        if _is_pickle(path, head):
            if not allow_pickle:
                raise InputError(
                    f"{where} is a pickle, which could execute code when loaded: `blurrerank convert "
                    "--allow-pickle` reads arrays and containers from it and executes nothing"
                )
            return Opened(path, "pickle", pickles.read_pickle(path.read_bytes(), where), {})
        source = Watched.open(path)
        vectors = _vectors(path, head)
        if vectors is not None:
            return Opened(path, *vectors, {}, source)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as unzipped:
                _refuse_lists(unzipped.read(4096), where)
            raise InputError(f"{where} is compressed: decompress it with gunzip first")
        return _text(path, head)


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
            variables = {name: item for name, item in items.items() if not name.startswith("#")}
            cells = _Cells(path, file)
            values = {name: cells.value(item, f"{path}::/{name}") for name, item in variables.items()}
            known = {name: value for name, value in values.items() if value is not None}
            return Opened(path, "MATLAB v7.3", known, {}, unread=sorted(values.keys() - known.keys()))
    if any(isinstance(items.get(side), h5py.Group) for side in ("probe", "gallery")):
        raise InputError(f"{path} is already a native file: use it directly")
    fields: dict[str, Any] = {}
    budget = hdf5.Budget(path)
    for name, item in items.items():
        where = f"{path}::/{name}"
        if isinstance(item, h5py.Dataset) and item.ndim == 2 and item.dtype.kind == "f":
            # What is large stays in the file; the reader of blocks keeps it open.
            hdf5.check_dataset(item, where)
            fields[name] = StoredFeatures(item, where)
        elif isinstance(item, h5py.Dataset) and item.shape is not None:
            fields[name] = budget.read(item, where)
    return Opened(path, "HDF5", fields, hdf5.attributes(file))


class _Cells:
    """Variables of MATLAB v7.3 the way MATLAB shows them; HDF5 has their dimensions the other way round."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file, self._budget = path, file, hdf5.Budget(path)
        # A cell may be in many others, or in itself: no file has more of them than it has bytes for.
        self._left = path.stat().st_size // 8

    def value(self, item: Any, where: str, depth: int = 0) -> Any:
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            return None  # a struct, or sparse
        if item.dtype.kind == "V":
            return None  # complex
        known = hdf5.attributes(item, where)
        if "MATLAB_empty" in known:
            return np.empty((0, 0))
        values = self._budget.read(item, where)
        if known.get("MATLAB_class") == "cell":
            self._left -= values.size
            if depth > DEEPEST or self._left < 0:
                raise InputError(f"{where} has cells that are nested too deeply: it is damaged")
            cells = [
                self.value(hdf5.at(self._file, reference, where), where, depth + 1)
                for reference in values.T.ravel()
            ]
            return pickles.of_objects(cells).reshape(values.T.shape)
        if known.get("MATLAB_class") == "char":
            return np.array(["".join(map(chr, row)) for row in np.atleast_2d(values.T)])
        return values.T


# Archives of NumPy and torch


def _zip(path: Path) -> Opened:
    names = check_archive(path, str(path))
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return Opened(path, "torch.save", read_torch(path), {})
    if not names or not all(name.endswith(".npy") for name in names):
        raise InputError(f"{path} is a zip archive, but not one from NumPy or torch")
    with np.load(path, allow_pickle=False) as arrays:
        fields = {}
        for name in arrays.files:
            try:
                fields[name] = arrays[name]
            except ValueError:
                raise InputError(
                    f"{path}: array '{name}' contains Python objects, which would need unpickling: "
                    "save it again as numbers or text, np.asarray(values, dtype=...)"
                ) from None
    return Opened(path, "NumPy archive", fields, {})


def _is_pickle(path: Path, head: bytes) -> bool:
    if head[0] == 0x80 and 2 <= head[1] <= 5:
        return True
    # The first protocols are text and have no mark; they end with a stop sign.
    return path.suffix.lower() in (".pkl", ".pickle", ".p") and path.read_bytes()[-1:] == b"."


# Plain vectors


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


# Text


def _text(path: Path, head: bytes) -> Opened:
    _refuse_lists(head, str(path))
    if b"\0" in head:
        raise InputError(
            f"{path} is not a recognised feature file: see `blurrerank help other-tools` for what can be read"
        )
    begun = (line for line in head.decode("utf-8-sig", "replace").splitlines() if line.strip())
    first = next(begun, "").split(",")
    if all(map(_is_number, first)):
        return Opened(path, "CSV without a header", _numbers(path), {})
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        # Where each row ends, since lines may be empty, and text may go over several.
        found = [(lines.line_num, row) for row in lines if row]
    if not found:
        raise InputError(f"{path} is empty")
    header, rows = [name.strip() for name in found[0][1]], [row for _, row in found[1:]]
    wrong = next((number for number, row in found if len(row) != len(header)), None)
    if len(header) < 2 or wrong is not None:
        where = "" if wrong is None else f": line {wrong} does not have the {len(header)} columns of the header"
        raise InputError(
            f"{path} is text, but not a table of features{where}: see `blurrerank help other-tools` for what "
            "can be read"
        )
    if not rows:
        raise InputError(f"{path} has a header and no rows")
    return Opened(path, "CSV with a header", _columns(header, rows), {})


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}


def _refuse_lists(head: bytes, where: str) -> None:
    lines = head.split(b"\n", 1)
    columns = lines[0].split()
    if len(columns) == 6 and columns[1].upper() == b"Q0":
        raise InputError(
            f"{where} is a TREC run, which has lists but no features: see `blurrerank eval` and "
            "`run --candidates`"
        )
    if len(columns) == 4 and columns[1] == b"0" and columns[3].lstrip(b"-").isdigit():
        raise InputError(f"{where} contains TREC judgements (qrels), not features: labels must be identities")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(path: Path) -> NDArray[Any]:
    try:
        return np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float64, encoding="utf-8-sig")
    except ValueError as error:
        # What follows is advice to whoever calls NumPy.
        raise InputError(f"{path} is not a table of numbers: {str(error).partition(';')[0]}") from error


def _folder(path: Path) -> dict[str, Any]:
    """`query/features.csv` as field `query_features`; of a folder of one side, `features`."""
    fields = {}
    for file in sorted(path.glob("*.csv")) + sorted(path.glob("*/*.csv")):
        name = "_".join(file.relative_to(path).with_suffix("").parts)
        if not file.is_file():
            raise InputError(f"{file} is not a regular file")
        fields[name] = _numbers(file)
    if not fields:
        raise InputError(f"{path} has no CSV files in it or its subfolders: name a file")
    return fields
