"""HDF5 files that are mapped into memory: each dataset is contiguous and has a checksum."""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from ..data.labels import JUNK
from ..errors import InputError, ParameterError
from ..graph.neighbour_graph import CAMERA_LISTS, NeighbourGraph, NeighbourLists
from ..graph.sparse_rows import ONE, SparseRows
from ..methods.kinds.steps import Transform
from .features_h5 import decoded, open_group
from .hdf5 import attributes, check_dataset, member
from .hdf5 import read as read_values
from .watched import Watched

VERSION = 1
OFF = 1e-3
"""Allowed rounding error of the norm of a float32 unit row, or of the cosine of two such rows."""
_COSINES = (-1 - OFF, 1 + OFF)
# Labels that are text have smaller numbers, so that others can follow.
_MOST_LABEL = 1 << 62


def describe(file: Any, about: Mapping[str, str | int]) -> None:
    """Set attributes; text in a type of fixed length."""
    for name, value in about.items():
        file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value


@contextmanager
def reading_mapped(path: Path, form: str, *, verify: bool) -> Iterator[MappedFile]:
    """Open a mapped file of format `form`; errors while reading become `InputError`, with the file's name."""
    with opened_mapped(path, form, verify=verify) as file, telling_of_damage(path, form):
        yield file


@contextmanager
def opened_mapped(path: Path, form: str, *, verify: bool) -> Iterator[MappedFile]:
    """Open a mapped file of format `form`; the caller tells of damage."""
    file = open_group(path)[0].file
    try:
        known = attributes(file)
        stated, version = known.get("format"), known.get("format_version")
        if stated != form:
            kind = f"a {stated} file" if stated else "an HDF5 file"
            raise InputError(f"{path} is {kind}: expected a {form} file, as written by `blurrerank index`")
        if not isinstance(version, int | np.integer) or not 1 <= version <= VERSION:
            raise InputError(f"{path} has format_version {version}: this program reads {VERSION}")
        # The same file, whatever stands at its path by now.
        with os.fdopen(os.dup(file.id.get_vfd_handle()), "rb") as stream:
            yield MappedFile(file, stream, Watched.same(stream.fileno(), str(path)), verify)
    finally:
        file.close()


@contextmanager
def telling_of_damage(path: Path, form: str) -> Iterator[None]:
    """Let errors while a file is read become `InputError`, with its name."""
    try:
        yield
    except ParameterError as error:  # what a method says, which may be one of a package that is not here
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # of a damaged file h5py raises what it likes
        raise InputError(f"{path} is a damaged {form} file: {error}; build it again") from error


class MappedFile:
    """Datasets of an open file as memory-mapped tensors, each verified when it is requested."""

    def __init__(self, file: Any, stream: BinaryIO, source: Watched, verify: bool) -> None:
        self.attrs = attributes(file)
        self.source = source
        self._file, self._stream, self._verify = file, stream, verify
        self._sizes: dict[str, int] = {}
        self._before = 0
        self._after: MappedFile | None = None

    def continued_by(self, after: MappedFile) -> None:
        """Let the items of `after` follow those of this file, in datasets of the same names."""
        self._sizes["G"], self._sizes["D"] = self._dataset("features").shape
        after._sizes["G"] = after._dataset("features").shape[0]
        after._before = self.size
        self._after = after

    def identity(self) -> str:
        """Return what is the same for the same content: SHA-256 of the checksums."""
        sums = [f"{self.attrs.get('crc32')}"]

        def note(name: str, item: Any) -> None:
            sums.append(f"{name} {attributes(item).get('crc32')}")

        self._file.visititems(note)
        return hashlib.sha256("\n".join(sums).encode()).hexdigest()

    @property
    def before(self) -> int:
        """How many items come before those of this file."""
        return self._before

    @property
    def size(self) -> int:
        """How many items this file has."""
        return self._sizes["G"]

    @property
    def items(self) -> tuple[int, int]:
        """The first and the last gallery index."""
        return 0, self.total - 1

    @property
    def total(self) -> int:
        """How many items there are, in this file, before and after it."""
        return self.before + self.size + (0 if self._after is None else self._after.size)

    def take(
        self,
        name: str,
        shape: tuple[int | str, ...],
        dtype: Any = None,
        *,
        within: tuple[float, float] | None = None,
    ) -> torch.Tensor:
        """Return one dataset; a named size must be the same wherever it appears.

        Checksums detect damage, but not files from other programs: `within` are the smallest and the largest
        value allowed.
        """
        dataset = self._dataset(name)
        expected = [
            self._sizes.setdefault(n, found) if isinstance(n, str) else n
            for n, found in zip(shape, dataset.shape, strict=True)
        ]
        if list(dataset.shape) != expected or (dtype is not None and dataset.dtype != dtype):
            raise InputError(f"{name} is {dataset.dtype} {dataset.shape}")
        if not dataset.size:
            values = np.empty(dataset.shape, dataset.dtype)
        elif dataset.id.get_offset() is None:
            raise InputError(f"{name} is not stored contiguously")
        else:
            values = self._mapped(dataset, dataset.shape)
        if self._verify and zlib.crc32(values.data) != attributes(dataset).get("crc32"):
            raise InputError(f"{name} does not match its checksum")
        if within is not None:
            self._check(name, values, within)
        if self._after is not None and shape[0] == "G":
            values = self._followed(dataset, values, self._after.take(name, shape, dtype, within=within))
        return torch.from_numpy(values)

    def _mapped(self, dataset: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """What the file has from the beginning of a dataset on."""
        # Private pages are shared with every other reader until somebody writes to them.
        return np.memmap(self._stream, dataset.dtype, mode="c", offset=dataset.id.get_offset(), shape=shape)

    def _followed(self, dataset: Any, values: NDArray[Any], after: torch.Tensor) -> NDArray[Any]:
        """The values of a dataset and others, in one piece."""
        others = after.numpy()
        if others.shape[1:] != values.shape[1:] or others.dtype != values.dtype:
            raise InputError(f"its {dataset.name} is {others.dtype} {others.shape}, unlike that of its base")
        if not len(others):
            return values
        shape, offset = (len(values) + len(others), *values.shape[1:]), dataset.id.get_offset()
        room = os.fstat(self._stream.fileno()).st_size - (offset or 0)
        if offset is None or others.itemsize * math.prod(shape) > room:
            return np.concatenate([values, others])
        # What lies behind the dataset is mapped with it, and only its last pages are copied.
        joined = self._mapped(dataset, shape)
        joined[len(values) :] = others
        return joined

    def _check(self, name: str, values: NDArray[Any], within: tuple[float, float]) -> None:
        if self._verify and values.size:
            low, high = within
            if not (values.min() >= low and values.max() <= high):  # nan is neither
                raise InputError(f"{name} has values that are invalid in an index")

    def _dataset(self, name: str) -> Any:
        dataset = member(self._file, name)
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise InputError(f"it has no {name}")
        check_dataset(dataset, name)
        return dataset

    def labels(self, name: str) -> NDArray[Any] | None:
        """Return `ids` or `cams`, or None."""
        if not self.has(name):
            return None
        most = np.iinfo(np.int64)
        least = JUNK if name == "ids" else most.min
        return self.take(name, ("G",), np.int64, within=(least, most.max)).numpy()

    def names(self) -> NDArray[Any] | None:
        """Return the names of the gallery, or None."""
        return self._strings_of_items("names") if self.has("names") else None

    def tracks(self) -> NDArray[Any] | None:
        """Return the tracks of the gallery, int64 or text, or None."""
        if not self.has("tracks"):
            return None
        if self._dataset("tracks").dtype == np.int64:
            return self.take("tracks", ("G",), np.int64).numpy()
        return self._strings_of_items("tracks")

    def texts(self, kind: str) -> dict[int, str]:
        """Return the text of each number, of labels that are text; none of others."""
        at = f"texts/{kind}"
        if not self.has(at):
            return {}
        numbers = self.take(f"{at}/numbers", (f"{kind} texts",), np.int64)
        texts = self._strings(f"{at}/texts", len(numbers)).tolist()
        known = dict(zip(numbers.tolist(), texts, strict=True))
        distinct = len(known) == len(set(texts)) == len(numbers)
        if not distinct or not all(0 < number < _MOST_LABEL for number in known):
            raise InputError(f"{at} has values that are invalid in an index")
        return known

    def _strings(self, name: str, count: int) -> NDArray[Any]:
        """A dataset of text."""
        stored = self._dataset(name)
        texts = decoded(read_values(stored, name), name)
        if texts.shape != (count,):
            raise InputError(f"{name} are {texts.shape}")
        if self._verify and checksum_of(texts) != attributes(stored).get("crc32"):
            raise InputError(f"{name} do not match their checksum")
        return texts

    def _strings_of_items(self, name: str) -> NDArray[Any]:
        """A dataset of text, one for each item."""
        texts = self._strings(name, self.size)
        if self._after is None:
            return texts
        if not self._after.has(name):
            raise InputError(f"it has no {name}, and its base has")
        return np.concatenate([texts, self._after._strings_of_items(name)])

    def neighbours(self, *, farthest: bool = False) -> NeighbourGraph:
        """Return the neighbour lists, with the similarity to the farthest if it is there and wanted."""
        lists, lowest = self.take("neighbours/lists", ("G", "K")), "neighbours/lowest"
        self._check("neighbours/lists", lists.numpy(), self.items)
        return NeighbourGraph(
            lists,
            self.take("neighbours/similarities", ("G", "K"), np.float32, within=_COSINES),
            self.take(lowest, ("G",), np.float32, within=_COSINES) if farthest and self.has(lowest) else None,
            self._camera_lists("within"),
            self._camera_lists("across"),
        )

    def _camera_lists(self, kind: str) -> NeighbourLists | None:
        """Lists within or across cameras, if there are any."""
        name = f"neighbours/{kind}"
        if not self.has(name):
            return None
        items = self.take(f"{name}/items", ("G", f"{kind} K"), within=(-1, self.items[1]))
        ends = (-np.inf, _COSINES[1])
        return NeighbourLists(
            items, self.take(f"{name}/similarities", ("G", f"{kind} K"), np.float32, within=ends)
        )

    def has(self, name: str) -> bool:
        """Return whether there is a dataset or group of that name."""
        return member(self._file, name) is not None

    def fitted(self, name: str, step: Transform) -> dict[str, torch.Tensor]:
        """Return what a feature step knows of the gallery, from a group."""
        found = {}
        for key, kept in step.keeps.items():
            part, dtype = f"{name}/{key}", np.dtype(kept.dtype)
            shape = tuple(axis if axis == "D" else f"{name} {axis}" for axis in kept.axes)
            within = (kept.least, np.finfo(dtype).max) if dtype.kind == "f" else None
            values = self.take(part, shape, dtype, within=within)
            if not values.numel():
                raise InputError(f"{part} is empty")
            if self._verify and dtype.kind == "i" and not bool((values.diff() > 0).all()):
                raise InputError(f"{part} has values that are invalid in an index")
            found[key] = values
        return found

    def sparse_rows(self, name: str, *, inverted: bool = False) -> SparseRows:
        """Return sparse rows, one for each gallery item.

        Args:
            name: of the group.
            inverted: whether they are those of columns: items that come after the file have none in it.
        """
        offsets = self.take(f"{name}/offsets", (self.size + 1,), np.int64)
        if self._verify and not (offsets[0] == 0 and bool((offsets.diff() >= 0).all())):
            raise InputError(f"{name}/offsets has values that are invalid in an index")
        entries = (int(offsets[-1]),)
        columns = self.take(f"{name}/columns", entries, within=self.items)
        weights = self.take(f"{name}/weights", entries, np.int32, within=(0, ONE))
        if self._after is None:
            return SparseRows(offsets, columns, weights)
        if inverted:
            more = offsets[-1:].expand(self._after.size)
            return SparseRows(torch.cat([offsets, more]), columns, weights)
        after = self._after.sparse_rows(name)
        columns, weights = (
            torch.from_numpy(self._followed(self._dataset(f"{name}/{part}"), mine.numpy(), theirs))
            for part, mine, theirs in (
                ("columns", columns, after.columns),
                ("weights", weights, after.weights),
            )
        )
        return SparseRows(torch.cat([offsets, offsets[-1] + after.offsets[1:]]), columns, weights)


def checksum_of(names: Iterable[str]) -> int:
    """Return the CRC-32 of (N,) strings."""
    return zlib.crc32("\0".join(names).encode())


def put(file: Any, name: str, values: NDArray[Any]) -> None:
    """Write one dataset with its checksum."""
    dataset = file.create_dataset(name, data=values)
    dataset.attrs["crc32"] = zlib.crc32(np.ascontiguousarray(values).data)


def put_neighbours(file: Any, near: NeighbourGraph) -> None:
    """Write the datasets of `near` to the group `neighbours`."""
    for name in ("lists", "similarities", "lowest"):
        values = getattr(near, name)
        if values is not None:
            put(file, f"neighbours/{name}", values.cpu().numpy())
    for kind in CAMERA_LISTS:
        lists = getattr(near, kind)
        if lists is not None:
            put(file, f"neighbours/{kind}/items", lists.items.cpu().numpy())
            put(file, f"neighbours/{kind}/similarities", lists.similarities.cpu().numpy())
