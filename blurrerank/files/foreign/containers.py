"""Open files of other tools; the format is detected from the content, not from the name."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Any, TypeVar

import h5py
import numpy as np

from ...errors import InputError
from .. import hdf5
from ..access import check_readable
from ..guard import guarded
from ..limits import check_unpacked
from ..names import side_of
from ..stored_features import StoredFeatures
from ..watched import Watched
from . import matlab, pickles, tables, vectors

T = TypeVar("T")

_TORCH_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
"""How files of torch.save begin that were written before 1.6: a pickle of a number."""


@dataclass(frozen=True, eq=False)
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
    attributes: Mapping[str, Any] = field(default_factory=dict)
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
        with hdf5.open_hdf5(path) as file, hdf5.reading(str(path)):
            names = set(file)
            one_side = "features" in names and "num_query" not in names
            if "format" in file.attrs or names & {"probe", "gallery"} or one_side:
                return False
            items = hdf5.members(file)
            return not _has_sides(items) and any(isinstance(item, h5py.Dataset) for item in items.values())

    try:
        return guarded(read, path)
    except (InputError, OSError, RuntimeError, ValueError, KeyError):
        return False


def _may_do_harm(path: Path) -> bool:
    """Return whether the file is of a format that is read by more than a few lines of ours.

    Imports what reads it, for the limits of a trial have no room for that.
    """
    head = _head(path, 14) if path.is_file() else b""
    if head.startswith(b"PK\x03\x04") and _is_plain_archive(path):
        return False
    needed = {b"MATLAB 5.0": "scipy.io", b"PAR1": "pyarrow.parquet", b"ARROW1": "pyarrow.feather"}
    for begin, library in needed.items():
        if head.startswith(begin):
            with suppress(ImportError):  # which is told when the file is read
                import_module(library)
                if library.startswith("pyarrow"):
                    # Arrow's allocator reserves up to 1 GiB of addresses at its first use, which has no room
                    # in a trial.
                    import_module("pyarrow").allocate_buffer(1)
    begins = (b"\x89HDF", b"MATLAB", b"PK\x03\x04", b"\x80", b"\x93NUMPY", b"PAR1", b"ARROW1")
    return head.startswith(begins) or path.suffix.lower() in _PICKLES or (bool(head) and h5py.is_hdf5(path))


def read_tried(read: Callable[[], T], *paths: Path) -> T:
    """Return what `read` returns, after a trial if any of the files that it reads may do harm.

    Raises:
        InputError: as `guarded`.
    """
    harmful = [_may_do_harm(path) for path in paths]  # of all, for what they import
    return guarded(read, *paths) if any(harmful) else read()


def _is_plain_archive(path: Path) -> bool:
    """Whether a zip archive holds arrays of numbers alone, which Python and NumPy read without harm."""
    try:
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                if not item.filename.endswith(".npy") or item.compress_type not in _HARMLESS:
                    return False
                with archive.open(item) as file:
                    if _holds_objects(file):
                        return False
    except Exception:  # a trial tells what is wrong with it
        return False
    return True


_PICKLES = (".pkl", ".pickle", ".p")
# Others may ask for much memory before they give anything.
_HARMLESS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


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
            return Opened(path, "folder of CSV files", fields, notes=notes)
        if not path.is_file():
            raise InputError(f"{where} is not a regular file")
        head = _head(path, 4096)
        if not head:
            raise InputError(f"{where} is empty")
        if head[:10] == b"MATLAB 7.3" or h5py.is_hdf5(path):
            return _hdf5(path, head)
        if head.startswith(b"MATLAB 5.0"):
            known, unread = matlab.read_v5(path)
            return Opened(path, "MATLAB v5", known, unread=unread)
        if head.startswith(b"\x93NUMPY"):
            return _npy(path, allow_pickle)
        if head.startswith(b"PK\x03\x04"):
            return _zip(path, allow_pickle)
        if head.startswith(_TORCH_LEGACY):
            return Opened(path, "torch.save", pickles.read_torch(path))
        if _is_pickle(path, head):
            if not allow_pickle:
                raise _not_allowed(f"{where} is a pickle")
            with open(path, "rb") as file:
                return Opened(path, "pickle", pickles.read_pickle(file, where))
        source = Watched.open(path)
        found = vectors.read_vectors(path, head)
        if found is not None:
            return Opened(path, *found, source=source)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as unzipped:
                tables.refuse_lists(unzipped.read(4096), where)
            raise InputError(f"{where} is compressed: decompress it with gunzip first")
        container, content, notes = tables.read_table(path, head)
        return Opened(path, container, content, notes=notes)


def _not_allowed(what: str) -> InputError:
    return InputError(
        f"{what}, which could execute code when loaded: `blurrerank convert --allow-pickle` reads arrays and "
        "containers from it and executes nothing"
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


def _hdf5(path: Path, head: bytes) -> Opened:
    file = hdf5.open_hdf5(path)
    items = hdf5.members(file)
    if head[:10] == b"MATLAB 7.3":
        with file:
            known, unread = matlab.read_v7(items, path)
            return Opened(path, "MATLAB v7.3", known, unread=unread)
    if _has_sides(items):
        raise InputError(f"{path} is already a native file: use it directly")
    fields: dict[str, Any] = {}
    budget = hdf5.Budget(path)
    for name, item in items.items():
        try:
            if isinstance(item, h5py.Dataset) and item.shape is not None:
                fields[name] = _dataset(item, f"{path}::/{name}", budget)
            elif isinstance(item, hdf5.UnfitError):
                fields[name] = item
        except hdf5.UnfitError as error:
            fields[name] = error  # whoever needs it is told why
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


def _npy(path: Path, allow_pickle: bool) -> Opened:
    with open(path, "rb") as file:
        if _holds_objects(file):
            if not allow_pickle:
                raise _not_allowed(f"{path} holds Python objects, a pickle")
            found = pickles.read_pickle(file, str(path))
            if isinstance(found, np.ndarray):  # one object, or a row in each place
                found = np.stack(found.tolist()) if found.shape else found.item()
            return Opened(path, "NumPy array of objects", found)
    source = Watched.open(path)
    return Opened(path, "NumPy array", np.load(path, mmap_mode="r", allow_pickle=False), source=source)


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
            return Opened(path, "torch.save", pickles.read_torch(path))
        if not names or not all(name.endswith(".npy") for name in names):
            raise InputError(f"{path} is a zip archive, but not one from NumPy or torch")
        size = sum(item.file_size for item in archive.infolist())
        check_unpacked(size, path.stat().st_size, str(path))
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
    return Opened(path, "NumPy archive", fields, unread=unread)


def _is_pickle(path: Path, head: bytes) -> bool:
    if head[0] == 0x80 and 2 <= head[1] <= 5:
        return True
    # The first protocols are text and have no mark; they end with a stop sign.
    return path.suffix.lower() in _PICKLES and path.read_bytes()[-1:] == b"."
