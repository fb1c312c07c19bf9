"""Candidate lists from an approximate index or a vector database, in any of these formats.

    native ranking, .npz        `indices` (P, R), or in an archive `neighbors`; scores are not needed
    .npy                        (P, R) integers, as numpy.save writes them
    ann-benchmarks (HDF5)       `neighbors` (P, R) integers; `distances` are not read
    .ibin (big-ann-benchmarks)  uint32 P, uint32 R, then P x R int32, all little-endian; ground truth files
                                continue with P x R float32 distances, which are not read
    TREC run, JSON lines, CSV   as for rankings, also compressed as .gz

The format is detected from the content, that of text files from the extension. Rows count from 0, the order
within a list does not matter, and -1 pads shorter lists.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from ..data.arguments import check_features
from ..data.features import FeatureSet
from ..data.given_lists import GivenLists
from ..errors import BlurrerankWarning, InputError
from . import ranking_h5
from .access import check_readable
from .guard import guarded
from .hdf5 import attributes, member, open_hdf5, read, reading
from .rankings import FORMATS, GZIP_ERRORS, open_text, read_ranking

_TEXT_ENDINGS = {ending: name for name in ("trec", "jsonl", "csv") for ending in FORMATS[name]}
_KNOWN = "a native ranking, .npz, .npy, .ibin, ann-benchmarks HDF5, a TREC run, JSON lines or CSV"


def read_candidates(source: str | Path | BinaryIO, data: FeatureSet) -> GivenLists:
    """Read the candidate lists of the probes of `data`.

    Args:
        source: the file, or a binary stream such as standard input.
        data: the features the lists refer to; text formats may use its names of probes and gallery items.

    Returns:
        Lists in the order of the probes; a probe that does not occur in a text file has an empty list.

    Raises:
        InputError: if the file cannot be read or does not fit `data`; names the line or the probe.
    """
    check_features(data)
    if not isinstance(source, str | Path):
        with tempfile.NamedTemporaryFile() as spooled:
            copyfileobj(source, spooled)
            spooled.flush()
            return _read(Path(spooled.name), "standard input", data)
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it")
    check_readable(path)
    return _read(path, str(path), data)


def _read(path: Path, where: str, data: FeatureSet) -> GivenLists:
    try:
        with open_text(path) as file:
            start = file.read(4096)
    except GZIP_ERRORS as error:
        raise InputError(f"{where} is a damaged gzip file: {error}") from None
    if not start:
        raise InputError(f"{where} is empty: expected {_KNOWN}")
    name = where
    if h5py.is_hdf5(path):
        lists, name = guarded(lambda: _hdf5(path, where, data), path)
    elif start.startswith(b"PK\x03\x04"):
        lists, name = guarded(lambda: _archive(path, where, data), path)
    elif start.startswith(b"\x93NUMPY"):
        lists = _array(path, where)
    elif start.startswith(b"\x89HDF"):
        raise InputError(f"{where} is a truncated HDF5 file: copy it again")
    elif path.suffix.lower() == ".ibin" or _ibin_parts(path.stat().st_size, start):
        lists = _ibin(path, where)
    else:
        lists = _text(path, where, start, data)
    return GivenLists.of(lists, len(data.probe), len(data.gallery), name)


def _hdf5(path: Path, where: str, data: FeatureSet) -> tuple[NDArray[Any], str]:
    """The lists, and what messages call them."""
    try:
        with open_hdf5(path) as file:
            native = attributes(file).get("format") == ranking_h5.FORMAT
            found = member(file, "neighbors")
            if not native and isinstance(found, h5py.Dataset):
                return read(found, f"{where}::/neighbors"), f"{where}::/neighbors"
            with reading(where):
                listed = ", ".join(sorted(file)) or "nothing"
    except InputError as error:
        raise InputError(str(error).replace(str(path), where)) from error
    if not native:
        raise InputError(
            f"{where} is an HDF5 file with {listed}: expected a {ranking_h5.FORMAT} file, or neighbors as "
            "ann-benchmarks writes them"
        )
    return _ranking(path, where, "h5", data), where


def _archive(path: Path, where: str, data: FeatureSet) -> tuple[NDArray[Any], str]:
    """The lists, and what messages call them."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            names = list(archive)
            if "info" not in names:
                name = next((name for name in ("indices", "neighbors") if name in names), None)
                if name is None:
                    listed = ", ".join(names) or "nothing"
                    raise InputError(f"{where} contains {listed}: expected indices (probes, candidates)")
                return archive[name], f"{where}::{name}"
    except InputError:
        raise
    except Exception as error:  # of a damaged one, zipfile and NumPy raise what they like
        raise InputError(f"{where} is not a readable NumPy archive: {error}") from error
    return _ranking(path, where, "npz", data), where


def _ranking(path: Path, where: str, form: str, data: FeatureSet) -> NDArray[Any]:
    """What was written here; a stream is read from a copy, whose name says nothing."""
    try:
        found = read_ranking(path, data, format=form)
    except InputError as error:
        raise InputError([problem.replace(str(path), where) for problem in error.problems]) from error
    if found.digest is not None and found.digest != data.digest():
        warnings.warn(
            f"{where} was made from other features: its lists are valid only if probes and gallery "
            "are the same images in the same order",
            BlurrerankWarning,
            stacklevel=2,
        )
    return found.indices


def _array(path: Path, where: str) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except Exception as error:  # the header of an array is a piece of Python, which may be wrong in any way
        raise InputError(f"{where} is not a readable NumPy array: {error}") from error


def _ibin_parts(size: int, start: bytes) -> int:
    """How many tables follow the header: 1, or 2 with distances; 0 if the size says something else."""
    if len(start) < 8:
        return 0
    rows, columns = np.frombuffer(start[:8], dtype="<u4").tolist()
    part = 4 * rows * columns
    return {8 + part: 1, 8 + 2 * part: 2}.get(size, 0) if part else 0


def _ibin(path: Path, where: str) -> NDArray[Any]:
    size = path.stat().st_size
    if size < 8:
        raise InputError(
            f"{where} is {size} bytes long: expected an .ibin header of two uint32, lists and their length"
        )
    header = np.fromfile(path, dtype="<u4", count=2)
    rows, columns = header.tolist()
    if not _ibin_parts(size, header.tobytes()):
        part = 4 * rows * columns
        raise InputError(
            f"{where} is {size:,} bytes long, but its header says {rows} lists of {columns}: expected "
            f"{8 + part:,} bytes, or {8 + 2 * part:,} with distances; it is damaged or not an .ibin file"
        )
    return np.fromfile(path, dtype="<i4", count=rows * columns, offset=8).reshape(rows, columns)


def _text(path: Path, where: str, start: bytes, data: FeatureSet) -> NDArray[Any]:
    """By its ending, and where that says nothing by its first characters."""
    form = _TEXT_ENDINGS.get(Path(path.name.removesuffix(".gz")).suffix.lower())
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if form is None and b"\0" in start:
        raise InputError(f"{where} has an unrecognised format: expected {_KNOWN}")
    if form is None and first.startswith(b"{"):
        form = "jsonl"
    elif form is None and b"," in first.partition(b"\n")[0]:
        form = "csv"
    with open_text(path) as file:
        try:
            return read_ranking(file, data, format=form or "trec", ordered=False).indices
        except InputError as error:
            # Readers of streams call every stream so.
            told = [problem.replace("standard input", where) for problem in error.problems]
            raise InputError(told) from None
