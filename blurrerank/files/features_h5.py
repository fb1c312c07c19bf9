"""Native feature files, `blurrerank-features` version 1.

    /probe, /gallery        one group per side
        features            (N, D) float16, float32 or float64
        ids, cams           (N,) integers or strings, optional
        names               (N,) utf-8 strings, optional
        tracks              (N,) integers or strings, equal for images of one tracklet, optional
        images              (N, H, W) or (N, H, W, 3) uint8 thumbnails, optional

Root attributes: `format` and `format_version`, always written but not required; others are provenance.
`file.h5::/group` addresses a group inside a file, which is then used as the root. Where only one side is
needed, its group may also be addressed directly. Other common names of sides and datasets are understood, such
as query, pids and camids. Features that are stored as (D, N) are transposed if the labels show it, and empty
labels count as missing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..compute.device import DEFAULT_MEMORY
from ..data.arguments import check_features
from ..data.features import FeatureSet
from ..data.side import Side
from ..data.similarities import SimilaritySet
from ..data.validation import find_problems
from ..errors import BlurrerankWarning, InputError
from .guard import guarded, trying
from .hdf5 import Budget, UnreadableError, check_dataset, dtype_of, is_text, member, open_hdf5, reading
from .hdf5 import attributes as attributes_of
from .names import kind_of, side_of
from .sink import new_hdf5
from .stored_features import StoredFeatures
from .targets import replacing

if TYPE_CHECKING:
    from ..compute.processes import Group
    from ..data.sharded import ShardedGallery, ShardedSet
    from .foreign import Imported


FORMAT = "blurrerank-features"
VERSION = 1


@dataclass(frozen=True)
class Contents:
    """The content of one or two feature files, valid or not.

    Attributes:
        probe: the probe side, if it can be read at all.
        gallery: the gallery side, if it can be read at all.
        data: both sides, if there are no problems.
        problems: all problems that keep the sides from forming a `FeatureSet`.
        attributes: root attributes of the probe file.
        images: side name -> shape of its thumbnails.
        imported: the import result, if the files come from another tool.
    """

    probe: Side | None
    gallery: Side | None
    data: FeatureSet | None
    problems: list[str]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    imported: Imported | None = None


def load_sharded(
    path: str | Path, gallery: str | Path | None = None, *, group: Group, memory: int | None = None
) -> ShardedSet:
    """Load features in all processes of `group`; each reads the probes and its shard of the gallery.

    Each process reads the gallery ids of its shard; the first process reads all gallery labels. Arguments are
    as for `load`.

    Raises:
        InputError: in all processes, listing the problems that any of them found.
    """
    from ..data.sharded import ShardedSet, raise_everywhere

    problems: list[str] = []
    try:
        for one in (path, gallery):
            _refuse_foreign(one)
        reader, attributes, probe, found = _both(path, gallery, memory, group)
        problems = reader.problems
    except InputError as error:
        problems = error.problems
    raise_everywhere(problems, group)
    assert probe is not None
    assert found is not None
    return ShardedSet(probe, found, attributes)


def _both(
    path: str | Path, gallery: str | Path | None, memory: int | None, group: Group | None = None
) -> tuple[_Reader, dict[str, Any], Any, Any]:
    """What is there of both sides, and the root attributes of the probes' file."""

    def read() -> tuple[_Reader, dict[str, Any], Any, Any]:
        reader, alone = _Reader(memory), gallery is not None
        attributes = reader.open(path)
        probe = reader.side("probe", alone=alone)
        if gallery is not None:
            reader.open(gallery)
        found = reader.side("gallery", alone=alone) if group is None else reader.sharded(group, alone=alone)
        reader.check()
        return reader, attributes, probe, found

    return guarded(read, *(str(one).partition("::")[0] for one in (path, gallery) if one is not None))


def load_side(path: str | Path, name: str, *, memory: int | None = None) -> Side:
    """Read one side of a native HDF5 file, without validating its values.

    Args:
        path: `feats.h5`, with a group of that name or with the side's datasets in the root; or
            `feats.h5::/group`.
        name: `probe` or `gallery`.
        memory: budget in bytes (2 GiB by default); features above a quarter of it stay on disk.

    Raises:
        InputError: if it cannot be read.
    """
    _refuse_foreign(path)

    def read() -> Side:
        reader = _Reader(memory)
        reader.open(path)
        side = reader.side(name, alone=True)
        if reader.problems or side is None:
            raise InputError(reader.problems)
        return side

    return guarded(read, str(path).partition("::")[0])


def inspect(path: str | Path, gallery: str | Path | None = None, *, memory: int | None = None) -> Contents:
    """Read native files and collect all problems instead of raising them.

    Arguments and errors are as for `load`, except that only a file that cannot be opened raises `InputError`.
    """
    reader, attributes, probe, found = _both(path, gallery, memory)
    data, problems = None, reader.problems
    if problems or probe is None or found is None:
        problems = problems + find_problems(probe, found)
    else:
        try:
            data = FeatureSet(probe, found, attributes)
        except InputError as error:
            problems = error.problems
    return Contents(probe, found, data, problems, attributes, reader.images)


def save_features(data: FeatureSet, path: str | Path, *, force: bool = False, **provenance: Any) -> None:
    """Write a native feature file, block by block.

    Args:
        data: the features and labels, written in their dtype.
        path: the file; written beside itself and renamed into place.
        force: replace an existing file.
        **provenance: further root attributes.

    Raises:
        OutputError: if it cannot be written there.
        InputError: for a `SimilaritySet`, or anything else than a `FeatureSet`.
    """
    check_features(data)
    if isinstance(data, SimilaritySet):
        raise InputError("these are similarities, not features: there is nothing to save")
    with replacing(Path(path), force=force) as temporary, new_hdf5(temporary) as file:
        file.attrs.update({**data.provenance, **provenance, "format": FORMAT, "format_version": VERSION})
        for name, side in (("probe", data.probe), ("gallery", data.gallery)):
            group = file.create_group(name)
            dtype = str(side.features.dtype).removeprefix("torch.")
            features = group.create_dataset("features", (len(side), side.dim), dtype)
            for start, block in side.blocks(side.scan_rows()):
                features[start : start + len(block)] = block.cpu().numpy()
            for label in ("ids", "cams"):
                if getattr(side, label) is not None:
                    group[label] = getattr(side, label)
            for label in ("names", "tracks"):
                values = getattr(side, label)
                if values is not None and values.dtype.kind in "iu":
                    group[label] = values
                elif values is not None:
                    group.create_dataset(label, data=list(values), dtype=h5py.string_dtype())


class _Reader:
    """Collects sides, their problems and their images from one or two files."""

    def __init__(self, memory: int | None) -> None:
        self.budget = (DEFAULT_MEMORY if memory is None else memory) // 4
        self.unpacked: dict[str, Budget] = {}
        self.unreadable = False
        self.problems: list[str] = []
        self.images: dict[str, tuple[int, ...]] = {}

    def open(self, address: str | Path) -> dict[str, Any]:
        """Go on with another file, or a group in it; return its attributes."""
        self.root, self.label = open_group(address)
        return _check_format(self.root, self.label, self.problems)

    def check(self) -> None:
        """In a trial, refuse files of which something made HDF5 fail: that would be tried again outside."""
        if trying() and self.unreadable:
            raise InputError(self.problems)

    def _note(self, error: InputError) -> None:
        self.problems += error.problems
        self.unreadable |= isinstance(error, UnreadableError)

    def side(self, name: str, *, alone: bool) -> Side | None:
        """A side, which has the file to itself if it is `alone`; None if it cannot be read."""
        group, where, stored = self._stored(name, alone=alone)
        if stored is None:
            return None
        try:
            ids, cams, names, tracks = (
                self._labels(group, where, kind) for kind in ("ids", "cams", "names", "tracks")
            )
            turned = _is_turned(stored, [ids, cams, names], where)
            if stored.shape:
                self._look_at_images(group, where, name, stored.shape[1 if turned else 0])
            features = self._held(stored, StoredFeatures(stored, f"{where}/features", turned=turned))
        except InputError as error:
            self._note(error)
            return None
        return Side(features, ids, cams, names, label=where.removesuffix("::"), tracks=tracks)

    def sharded(self, processes: Group, *, alone: bool) -> ShardedGallery | None:
        """A gallery of which this process reads its share, and all labels if it is the first."""
        from ..data.sharded import ShardedGallery

        group, where, stored = self._stored("gallery", alone=alone)
        if stored is None:
            return None
        whole = StoredFeatures(stored, f"{where}/features")
        if len(stored.shape) != 2 or 0 in stored.shape:
            # Nothing can be shared out, and the problem is told when the side is checked.
            return ShardedGallery(whole, label=where, shard=Side(whole, label=where), group=processes)
        self._look_at_images(group, where, "gallery", len(stored))
        mine = processes.share(len(stored))
        ids = cams = names = None
        try:
            features = self._held(stored, StoredFeatures(stored, f"{where}/features", mine))
            if processes.rank == 0:
                ids, cams, names = (self._labels(group, where, kind) for kind in ("ids", "cams", "names"))
                held_ids = None if ids is None else np.atleast_1d(ids)[mine]
            else:
                held_ids = self._labels(group, where, "ids", mine)
        except InputError as error:
            self._note(error)
            return None
        shard = Side(features, held_ids, label=where, first=mine.start)
        return ShardedGallery(whole, ids, cams, names, label=where, shard=shard, group=processes)

    def _stored(self, name: str, *, alone: bool) -> tuple[Any, str, Any]:
        """The group of a side, its name in messages, and its features, None if they cannot be read."""
        root, label = self.root, self.label
        called = _called(root, name, side_of)
        group, where = member(root, called), f"{label}/{called}"
        if group is None and alone and member(root, _called(root, "features", kind_of)) is not None:
            group, where = root, label
        if not isinstance(group, h5py.Group):
            hint = "; address a group inside it as FILE::/GROUP" if member(root, "features") is None else ""
            if group is not None:
                hint = f"; /{called} is no group: write its columns as datasets, such as {called}/features"
            self.problems.append(
                f"{label.removesuffix('::')} has no group /{name} (it has {_listed(root)}){hint}"
            )
            return None, where, None
        stored = member(group, _called(group, "features", kind_of))
        if not isinstance(stored, h5py.Dataset) or stored.shape is None:
            pandas = "; of a pandas table write to_numpy() of its columns" * ("pandas_type" in group.attrs)
            self.problems.append(f"{where} has no dataset 'features'{pandas}")
            return group, where, None
        try:
            check_dataset(stored, f"{where}/features")
        except InputError as error:
            self._note(error)
            return group, where, None
        return group, where, stored

    def _unpacked(self, stored: Any) -> Budget:
        """What was read of a file, of both sides if it has both."""
        path = stored.file.filename
        return self.unpacked.setdefault(path, Budget(path))

    def _held(self, stored: Any, features: StoredFeatures) -> Any:
        """The features in memory, if they fit."""
        size = math.prod(features.shape) * features.dtype.itemsize
        if size > self.budget or features.shape == () or trying():
            return features
        self._unpacked(stored).take(size)
        self.budget -= size
        return features[:]

    def _labels(self, group: Any, where: str, name: str, part: slice | None = None) -> NDArray[Any] | None:
        called = _called(group, name, kind_of)
        where = f"{where}/{called}"
        try:
            stored = member(group, called)
            if stored is None:
                return None
            if not isinstance(stored, h5py.Dataset):
                raise InputError(f"{where} is not an array")
            if stored.shape is None or stored.size == 0:
                return None  # which says that there are none
            if name == "names" and not is_text(stored):
                warnings.warn(f"{where} is not text, and is left out", BlurrerankWarning, stacklevel=2)
                return None
            selection = part if part is not None and stored.shape else ()
            values = self._unpacked(stored).read(stored, where, selection)
            values = values.ravel() if max(values.shape, default=0) == values.size else values
            return decoded(values, where) if is_text(stored) else values
        except InputError as error:
            self._note(error)
            return None

    def _look_at_images(self, group: Any, where: str, name: str, count: int) -> None:
        images = member(group, "images")
        if not isinstance(images, h5py.Dataset):
            return
        shape = tuple(images.shape or ())
        if not are_thumbnails(images) or shape[0] != count:
            self.problems.append(
                f"{where}/images is {dtype_of(images)} {shape}: expected uint8 (N, H, W) or (N, H, W, 3), one "
                "per row"
            )
        else:
            self.images[name] = shape


def _refuse_foreign(path: str | Path | None) -> None:
    """What reads one side, or a share of it, reads native files alone."""
    from .foreign import is_foreign

    if path is not None and "::" not in str(path) and is_foreign(Path(path)):
        raise InputError(f"{path} is not a native file: convert it with `blurrerank convert` first")


def open_group(address: str | Path) -> tuple[Any, str]:
    """Open the file, or the group in it, at `address`; return it with its name in messages."""
    path, _, group = str(address).partition("::")
    file = open_hdf5(path)
    if group.strip("/") == "":
        return file, f"{path}::"
    root = member(file, group)
    if not isinstance(root, h5py.Group):
        raise InputError(f"{path} has no group {group} (it has {_listed(file)})")
    return root, f"{path}::/{group.strip('/')}"


def are_thumbnails(images: Any) -> bool:
    """Return whether a dataset is uint8 (N, H, W) or (N, H, W, 3)."""
    shape = tuple(images.shape or ())
    return dtype_of(images) == np.uint8 and (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3))


def _called(group: Any, name: str, means: Callable[[str], str | None]) -> str:
    """What the member of a group is called that `name` stands for: that, or the only other word for it."""
    if not isinstance(group, h5py.Group):
        return name
    with reading(f"{group.file.filename}::{group.name}"):
        if name in group:
            return name
        found = [other for other in group if means(other) == name]
    if len(found) > 1:
        raise InputError(
            f"{group.file.filename}::{group.name} has {' and '.join(found)}, which could both be the {name}: "
            "keep one of them"
        )
    return found[0] if found else name


def _is_turned(stored: Any, labels: list[NDArray[Any] | None], where: str) -> bool:
    """Whether features are (D, N), as programs write them that have columns first; the labels show it."""
    counts = {values.shape for values in labels if values is not None and values.ndim == 1}
    if len(stored.shape) != 2 or counts != {stored.shape[1:]} or stored.shape[0] == stored.shape[1]:
        return False
    rows, columns = stored.shape
    warnings.warn(
        f"{where}/features is {rows} x {columns}, and there are {columns} labels: it is read as transposed",
        BlurrerankWarning,
        stacklevel=2,
    )
    return True


def _listed(root: Any) -> str:
    with reading(root.file.filename):
        return ", ".join(f"/{key}" for key in root) or "nothing"


def _check_format(root: Any, label: str, problems: list[str]) -> dict[str, Any]:
    """The root's attributes, with a problem for each that says this is something else."""
    attributes = attributes_of(root)
    stated = attributes.pop("format", FORMAT)
    version = attributes.pop("format_version", VERSION)
    name = label.removesuffix("::")
    if stated == "blurrerank-index":
        problems.append(f"{name} is an index: pass it to `run` with --index")
    elif stated == "blurrerank-ranking":
        raise InputError(f"{name} is a ranking, not features: `blurrerank eval {name} FEATS` measures it")
    elif not isinstance(stated, str) or stated != FORMAT:
        problems.append(f"{name} is a {stated} file: expected {FORMAT}")
    elif not isinstance(version, int | np.integer) or version > VERSION:
        shown = repr(version) if isinstance(version, str) else version
        problems.append(f"{name} has format_version {shown}: this program reads {VERSION}")
    return attributes


def decoded(names: NDArray[Any], where: str) -> NDArray[Any]:
    """Decode the bytes of HDF5 strings as utf-8."""
    decoded = np.empty(names.size, dtype=object)
    try:
        decoded[:] = [name.decode() if isinstance(name, bytes) else name for name in names.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not utf-8: {error}") from None
    return decoded.reshape(names.shape)
