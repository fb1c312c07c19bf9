"""Index files, `blurrerank-index` version 1: a gallery that stands, and all it knows of itself.

    features                    (G, D) float32, L2-normalised
    digests                     (G, 16) uint8: the start of the SHA-256 of each row as it came
    ids, cams                   (G,) int64, optional
    names                       (G,) utf-8 strings, optional
    neighbours/lists            (G, K) int32: each item itself, then its nearest by cosine similarity
    neighbours/similarities     (G, K) float32
    neighbours/lowest           (G,) float32: similarity to the farthest
    encoded/group, blur         (G, B) int32, float32
    encoded/reach               (G,) float32
    encoded/halves/...          offsets (G + 1,) int64, columns, weights (T,) int32
    encoded/encodings/...       likewise
    encoded/inverted/...        likewise

`methods/k_reciprocal_online.py` and docs/online.md say what the parts of `encoded` mean. Columns and lists are
int64 in a gallery of 2^31 items. Root attributes: `format`, `format_version`, `method`, `params` (JSON),
`digest` of the gallery, `crc32` of these three, `versions` (JSON). Every dataset of numbers is stored in one
piece, so that it can be mapped into memory, and all datasets have an attribute `crc32`.

While an index is built, `NAME.partial` holds what is known so far: `neighbours` of the first items, with the
root attributes `format` (`blurrerank-index-partial`), `format_version`, `pool` and `digest`.
"""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from ..data.features import JUNK, Side, digest_of
from ..errors import BlurrerankWarning, InputError
from ..files.features_h5 import decoded, open_group
from ..files.hdf5 import attributes, check_dataset, member, open_hdf5
from ..files.hdf5 import read as read_values
from ..files.ranking_h5 import versions
from ..files.sink import new_hdf5
from ..files.targets import replacing
from ..files.watched import Watched
from ..graph.encoding import CHUNK_BYTES, ONE, SparseRows
from ..graph.neighbours import Neighbours
from ..methods.k_reciprocal_online import EncodedGallery
from ..search.rows import UnitRows

FORMAT = "blurrerank-index"
PARTIAL = "blurrerank-index-partial"
VERSION = 1

# Rows measured at a time; and how far the length of a unit row in float32, or a cosine of two, may be off.
_ROWS, _OFF = 4096, 1e-3
_COSINES = (-1 - _OFF, 1 + _OFF)
# A weight of blurring is at most 1, divided by a norm of at least 1e-6.
_MOST_BLUR = 1.01e6


@dataclass(frozen=True, eq=False)
class Labels:
    """What an index records of each row beside its features; see `Side` for the fields."""

    digests: NDArray[np.uint8]
    ids: NDArray[Any] | None
    cams: NDArray[Any] | None
    names: NDArray[Any] | None

    @classmethod
    def of(cls, side: Side) -> Labels:
        """Those of a side."""
        return cls(side.row_digests(), side.ids, side.cams, side.names)

    def joined(self, new: Labels, where: str, new_where: str) -> Labels:
        """These and those of further rows; messages call the two `where` and `new_where`.

        Raises:
            InputError: if only one of them has a kind of labels, or if the features of all new rows are here
                already; if those of some are, it warns.
        """
        joined = {}
        for name in ("ids", "cams", "names"):
            before, after = getattr(self, name), getattr(new, name)
            if (before is None) != (after is None):
                has, lacks = (where, new_where) if after is None else (new_where, where)
                raise InputError(f"{has} has {name} and {lacks} has none: they cannot be joined")
            joined[name] = None if before is None else np.concatenate([before, after])
        here = {row.tobytes() for row in self.digests}
        twice = sum(row.tobytes() in here for row in new.digests)
        if twice == len(new.digests):
            raise InputError(f"every row of {new_where} is in {where} already: there is nothing to append")
        if twice:
            told = f"{twice} of {len(new.digests)} rows of {new_where} are in {where} already"
            warnings.warn(f"{told}; they are there twice now", BlurrerankWarning, stacklevel=3)
        return Labels(np.concatenate([self.digests, new.digests]), **joined)


@dataclass(frozen=True)
class Stored:
    """What an index file holds.

    Attributes:
        features: (G, D) float32, L2-normalised.
        labels: of the gallery.
        digest: `Side.digest()` of the features as they came.
        method: the name of the method it was encoded for.
        params: that method's parameters.
        near: who is near whom.
        encoded: what the method made of it.
        source: the file, from which all of this is mapped.
    """

    features: torch.Tensor
    labels: Labels
    digest: str
    method: str
    params: Mapping[str, Any]
    near: Neighbours
    encoded: EncodedGallery
    source: Watched


def write(
    path: Path,
    rows: UnitRows,
    labels: Labels,
    method: str,
    params: Mapping[str, Any],
    near: Neighbours,
    encoded: EncodedGallery,
) -> None:
    """Write an index.

    Args:
        path: a new file.
        rows: the features, normalised.
        labels: what to record of them.
        method: what it was encoded for.
        params: the method's parameters.
        near: who is near whom.
        encoded: what the method made of it.
    """
    settings, digest = json.dumps(dict(params)), digest_of(labels.digests)
    with new_hdf5(path) as file:
        features = file.create_dataset("features", (len(rows), rows.dim), np.float32)
        checksum = 0
        for start, block in rows.blocks():
            values = block.cpu().contiguous().numpy()
            features[start : start + len(block)] = values
            checksum = zlib.crc32(values.data, checksum)
        features.attrs["crc32"] = checksum
        _put(file, "digests", labels.digests)
        for name in ("ids", "cams"):
            if getattr(labels, name) is not None:
                _put(file, name, getattr(labels, name))
        if labels.names is not None:
            names = file.create_dataset("names", data=list(labels.names), dtype=h5py.string_dtype())
            names.attrs["crc32"] = _checksum_of(labels.names)
        _put_neighbours(file, near)
        _put_encoded(file, encoded)
        _describe(
            file,
            {
                "format": FORMAT,
                "format_version": VERSION,
                "method": method,
                "params": settings,
                "digest": digest,
                "crc32": zlib.crc32(f"{method} {settings} {digest}".encode()),
                "versions": json.dumps(versions()),
            },
        )


def write_partial(path: Path, near: Neighbours, *, pool: int, digest: str) -> None:
    """Write, or replace, what is known while an index is built.

    Raises:
        OutputError: if it cannot be written there.
    """
    with replacing(path, force=True) as temporary, new_hdf5(temporary) as file:
        _put_neighbours(file, near)
        _describe(file, {"format": PARTIAL, "format_version": VERSION, "pool": pool, "digest": digest})


def _describe(file: Any, about: Mapping[str, str | int]) -> None:
    """Set attributes. Text has its length in its type: that of any length would lie in a heap, and to look for
    heaps without an end takes a pass over the file."""
    for name, value in about.items():
        file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value


def is_index(path: Path) -> bool:
    """Whether this is an index, sound or not."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    try:
        with open_hdf5(path) as file:
            return bool(attributes(file).get("format") == FORMAT)
    except InputError:
        return False


def read_partial(path: Path) -> tuple[Neighbours, int, str]:
    """What is known so far, the pool, and the digest of the gallery.

    Raises:
        InputError: if it is no such file, or is damaged.
    """
    with _reading(path, PARTIAL, verify=True) as file:
        return file.neighbours(), int(file.attrs["pool"]), str(file.attrs["digest"])


def read(path: Path, *, verify: bool = True) -> Stored:
    """Map an index into memory.

    Args:
        path: the file.
        verify: read all of it and compare checksums.

    Raises:
        InputError: if it is none, is of a newer version, or is damaged.
    """
    with _reading(path, FORMAT, verify=verify) as file:
        features = file.take("features", ("G", "D"), np.float32)
        if verify and not _are_unit(features):
            raise InputError("features has rows that are not normalised")
        digests = file.take("digests", ("G", 16), np.uint8).numpy()
        digest = str(file.attrs["digest"])
        if verify and digest_of(digests) != digest:
            raise InputError("its rows are not those of its digest")
        labels = Labels(digests, file.labels("ids"), file.labels("cams"), file.names())
        encoded = EncodedGallery(
            file.take("encoded/group", ("G", "B"), within=file.items),
            file.take("encoded/blur", ("G", "B"), np.float32, within=(0, _MOST_BLUR)),
            file.take("encoded/reach", ("G",), np.float32, within=(-np.inf, np.inf)),
            *map(file.sparse_rows, ("encoded/halves", "encoded/encodings", "encoded/inverted")),
        )
        if verify and not (_weigh_one(encoded.encodings) and _weigh_one(encoded.inverted, by_column=True)):
            raise InputError("encodings weigh more than they can")
        method, settings = str(file.attrs["method"]), str(file.attrs["params"])
        if zlib.crc32(f"{method} {settings} {digest}".encode()) != file.attrs.get("crc32"):
            raise InputError("its attributes have another checksum than when they were written")
        params, near = json.loads(settings), file.neighbours()
        return Stored(features, labels, digest, method, params, near, encoded, file.source)


@contextmanager
def _reading(path: Path, form: str, *, verify: bool) -> Iterator[_File]:
    """The open file, whose faults become `InputError`."""
    file = open_group(path)[0].file
    try:
        known = attributes(file)
        stated, version = known.get("format"), known.get("format_version")
        if stated != form:
            kind = f"a {stated} file" if stated else "an HDF5 file"
            raise InputError(f"{path} is {kind}: expected a {form} file, such as `blurrerank index` writes")
        if not isinstance(version, int | np.integer) or not 1 <= version <= VERSION:
            raise InputError(f"{path} has format_version {version}: this program reads {VERSION}")
        try:
            # The same file, whatever stands at its path by now.
            with os.fdopen(os.dup(file.id.get_vfd_handle()), "rb") as stream:
                yield _File(file, stream, Watched.same(stream.fileno(), str(path)), verify)
        except Exception as error:  # of a damaged file h5py raises what it likes
            raise InputError(f"{path} is a damaged {form} file: {error}; build it again") from error
    finally:
        file.close()


class _File:
    """Datasets of an open file as tensors that are mapped into memory, checked as far as they are asked for."""

    def __init__(self, file: Any, stream: BinaryIO, source: Watched, verify: bool) -> None:
        self.attrs = attributes(file)
        self.source = source
        self._file, self._stream, self._verify = file, stream, verify
        self._sizes: dict[str, int] = {}

    @property
    def items(self) -> tuple[int, int]:
        """The first item of the gallery and the last."""
        return 0, self._sizes["G"] - 1

    def take(
        self,
        name: str,
        shape: tuple[int | str, ...],
        dtype: Any = None,
        *,
        within: tuple[float, float] | None = None,
    ) -> torch.Tensor:
        """One dataset; a size that has a name must be the same wherever it appears.

        Checksums say that nothing was damaged, not that the file was made here: `within` are the least and the
        greatest value it may have.
        """
        dataset = self._dataset(name)
        expected = [
            self._sizes.setdefault(n, found) if isinstance(n, str) else n
            for n, found in zip(shape, dataset.shape, strict=True)
        ]
        if list(dataset.shape) != expected or (dtype is not None and dataset.dtype != dtype):
            raise InputError(f"{name} is {dataset.dtype} {dataset.shape}")
        offset = dataset.id.get_offset()
        if not dataset.size:
            values = np.empty(dataset.shape, dataset.dtype)
        elif offset is None:
            raise InputError(f"{name} is not stored in one piece")
        else:
            # Private pages are shared with every other reader until somebody writes, which nobody does.
            values = np.memmap(self._stream, dataset.dtype, mode="c", offset=offset, shape=dataset.shape)
        if self._verify and zlib.crc32(values.data) != attributes(dataset).get("crc32"):
            raise InputError(f"{name} has another checksum than when it was written")
        if within is not None:
            self._check(name, values, within)
        return torch.from_numpy(values)

    def _check(self, name: str, values: NDArray[Any], within: tuple[float, float]) -> None:
        if self._verify and values.size:
            low, high = within
            if not (values.min() >= low and values.max() <= high):  # nan is neither
                raise InputError(f"{name} has values that no index has")

    def _dataset(self, name: str) -> Any:
        dataset = member(self._file, name)
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise InputError(f"it has no {name}")
        check_dataset(dataset, name)
        return dataset

    def labels(self, name: str) -> NDArray[Any] | None:
        """`ids` or `cams`, if they are there."""
        if member(self._file, name) is None:
            return None
        most = np.iinfo(np.int64)
        least = JUNK if name == "ids" else most.min
        return self.take(name, ("G",), np.int64, within=(least, most.max)).numpy()

    def names(self) -> NDArray[Any] | None:
        """The names of the gallery."""
        if member(self._file, "names") is None:
            return None
        stored = self._dataset("names")
        names = decoded(read_values(stored, "names"), "names")
        if names.shape != (self._sizes["G"],):
            raise InputError(f"names are {names.shape}")
        if self._verify and _checksum_of(names) != attributes(stored).get("crc32"):
            raise InputError("names have another checksum than when they were written")
        return names

    def neighbours(self) -> Neighbours:
        """Who is near whom."""
        lists = self.take("neighbours/lists", ("G", "K"))
        self._check("neighbours/lists", lists.numpy(), self.items)
        return Neighbours(
            lists,
            self.take("neighbours/similarities", ("G", "K"), np.float32, within=_COSINES),
            self.take("neighbours/lowest", ("G",), np.float32, within=_COSINES),
        )

    def sparse_rows(self, name: str) -> SparseRows:
        """Sparse rows, one for each of the gallery."""
        offsets = self.take(f"{name}/offsets", (self._sizes["G"] + 1,), np.int64)
        if self._verify and not (offsets[0] == 0 and bool((offsets.diff() >= 0).all())):
            raise InputError(f"{name}/offsets has values that no index has")
        entries = (int(offsets[-1]),)
        columns = self.take(f"{name}/columns", entries, within=self.items)
        weights = self.take(f"{name}/weights", entries, np.int32, within=(0, ONE))
        return SparseRows(offsets, columns, weights)


def _are_unit(features: torch.Tensor) -> bool:
    """Whether all rows have length 1, but for rounding; not those with nan."""
    lengths = (torch.linalg.vector_norm(some, dim=1) for some in torch.split(features, _ROWS))
    return all(bool(((some - 1).abs() < _OFF).all()) for some in lengths)


def _weigh_one(encodings: SparseRows, *, by_column: bool = False) -> bool:
    """Whether the weights of each row, or column, sum to no more than `ONE`, but for their rounding."""
    sums = torch.zeros(len(encodings), dtype=torch.int64)
    for start, stop in encodings.cut(CHUNK_BYTES["cpu"]):
        some = encodings.rows(start, stop)
        owners = some.columns.long() if by_column else start + torch.repeat_interleave(some.counts)
        sums.index_add_(0, owners, some.weights.long() - 1)
    return bool((sums <= ONE).all())


def _checksum_of(names: NDArray[Any]) -> int:
    return zlib.crc32("\0".join(names).encode())


def _put(file: Any, name: str, values: NDArray[Any]) -> None:
    """One dataset with its checksum."""
    dataset = file.create_dataset(name, data=values)
    dataset.attrs["crc32"] = zlib.crc32(np.ascontiguousarray(values).data)


def _put_neighbours(file: Any, near: Neighbours) -> None:
    for name in ("lists", "similarities", "lowest"):
        _put(file, f"neighbours/{name}", getattr(near, name).cpu().numpy())


def _put_encoded(file: Any, encoded: EncodedGallery) -> None:
    for field in fields(encoded):
        values = getattr(encoded, field.name)
        parts = {"": values}
        if isinstance(values, SparseRows):
            parts = {f"/{part.name}": getattr(values, part.name) for part in fields(values)}
        for part, numbers in parts.items():
            _put(file, f"encoded/{field.name}{part}", numbers.cpu().numpy())
