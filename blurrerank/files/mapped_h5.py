"""HDF5 files that are mapped into memory: each dataset is contiguous and has a checksum."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
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


def describe(file: Any, about: Mapping[str, str | int]) -> None:
    """Set attributes; text in a type of fixed length."""
    for name, value in about.items():
        file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value


@contextmanager
def reading_mapped(path: Path, form: str, *, verify: bool) -> Iterator[MappedFile]:
    """Open a mapped file of format `form`; errors while reading become `InputError`, with the file's name."""
    file = open_group(path)[0].file
    try:
        known = attributes(file)
        stated, version = known.get("format"), known.get("format_version")
        if stated != form:
            kind = f"a {stated} file" if stated else "an HDF5 file"
            raise InputError(f"{path} is {kind}: expected a {form} file, as written by `blurrerank index`")
        if not isinstance(version, int | np.integer) or not 1 <= version <= VERSION:
            raise InputError(f"{path} has format_version {version}: this program reads {VERSION}")
        try:
            # The same file, whatever stands at its path by now.
            with os.fdopen(os.dup(file.id.get_vfd_handle()), "rb") as stream:
                yield MappedFile(file, stream, Watched.same(stream.fileno(), str(path)), verify)
        except ParameterError as error:  # what a method says, which may be one of a package that is not here
            raise InputError(f"{path}: {error}") from error
        except Exception as error:  # of a damaged file h5py raises what it likes
            raise InputError(f"{path} is a damaged {form} file: {error}; build it again") from error
    finally:
        file.close()


class MappedFile:
    """Datasets of an open file as memory-mapped tensors, each verified when it is requested."""

    def __init__(self, file: Any, stream: BinaryIO, source: Watched, verify: bool) -> None:
        self.attrs = attributes(file)
        self.source = source
        self._file, self._stream, self._verify = file, stream, verify
        self._sizes: dict[str, int] = {}

    @property
    def items(self) -> tuple[int, int]:
        """The first and the last gallery index."""
        return 0, self._sizes["G"] - 1

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
        offset = dataset.id.get_offset()
        if not dataset.size:
            values = np.empty(dataset.shape, dataset.dtype)
        elif offset is None:
            raise InputError(f"{name} is not stored contiguously")
        else:
            # Private pages are shared with every other reader until somebody writes, which nobody does.
            values = np.memmap(self._stream, dataset.dtype, mode="c", offset=offset, shape=dataset.shape)
        if self._verify and zlib.crc32(values.data) != attributes(dataset).get("crc32"):
            raise InputError(f"{name} does not match its checksum")
        if within is not None:
            self._check(name, values, within)
        return torch.from_numpy(values)

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
        if not self.has("names"):
            return None
        stored = self._dataset("names")
        names = decoded(read_values(stored, "names"), "names")
        if names.shape != (self._sizes["G"],):
            raise InputError(f"names are {names.shape}")
        if self._verify and checksum_of(names) != attributes(stored).get("crc32"):
            raise InputError("names do not match their checksum")
        return names

    def neighbours(self) -> NeighbourGraph:
        """Return the neighbour lists."""
        lists = self.take("neighbours/lists", ("G", "K"))
        self._check("neighbours/lists", lists.numpy(), self.items)
        return NeighbourGraph(
            lists,
            self.take("neighbours/similarities", ("G", "K"), np.float32, within=_COSINES),
            self.take("neighbours/lowest", ("G",), np.float32, within=_COSINES),
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

    def sparse_rows(self, name: str) -> SparseRows:
        """Return sparse rows, one per gallery item."""
        offsets = self.take(f"{name}/offsets", (self._sizes["G"] + 1,), np.int64)
        if self._verify and not (offsets[0] == 0 and bool((offsets.diff() >= 0).all())):
            raise InputError(f"{name}/offsets has values that are invalid in an index")
        entries = (int(offsets[-1]),)
        columns = self.take(f"{name}/columns", entries, within=self.items)
        weights = self.take(f"{name}/weights", entries, np.int32, within=(0, ONE))
        return SparseRows(offsets, columns, weights)


def checksum_of(names: NDArray[Any]) -> int:
    """Return the CRC-32 of (N,) strings."""
    return zlib.crc32("\0".join(names).encode())


def put(file: Any, name: str, values: NDArray[Any]) -> None:
    """Write one dataset with its checksum."""
    dataset = file.create_dataset(name, data=values)
    dataset.attrs["crc32"] = zlib.crc32(np.ascontiguousarray(values).data)


def put_neighbours(file: Any, near: NeighbourGraph) -> None:
    """Write the datasets of `near` to the group `neighbours`."""
    for name in ("lists", "similarities", "lowest"):
        put(file, f"neighbours/{name}", getattr(near, name).cpu().numpy())
    for kind in CAMERA_LISTS:
        lists = getattr(near, kind)
        if lists is not None:
            put(file, f"neighbours/{kind}/items", lists.items.cpu().numpy())
            put(file, f"neighbours/{kind}/similarities", lists.similarities.cpu().numpy())
