"""Convert the arrays of other tools' files to the parts of a feature set, and record every conversion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...data import numbering as labels
from ...data.checks import flat_shape
from ...data.numbering import number_of
from ...errors import InputError
from ..hdf5 import UnfitError
from .containers import Opened
from .pickles import of_objects


@dataclass
class Part:
    """One array of a side.

    Attributes:
        origin: its name in the file, such as `query_label`.
        values: the array.
        told: descriptions of the conversions made, such as `transposed`.
        doubts: warnings about likely mistakes.
        texts: the text of each number, of labels that were text.
    """

    origin: str
    values: Any
    told: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join([self.origin, *self.told])


Entry = TypeVar("Entry", bound=tuple[Any, ...])

Parts = dict[str, Part]
"""`features`, and `ids`, `cams` and `names` if present."""


@dataclass
class Layout:
    """A recognised layout and its parts.

    Attributes:
        name: name of the layout.
        probe: the parts of the probes.
        gallery: the parts of the gallery.
        notes: further remarks.
        doubts: warnings about likely mistakes and about content that was ignored.
        unsure: ambiguities; only `convert`, whose output a user checks, accepts them.
        settled: whether `settle` has processed the parts.
        matrices: `between`, `among_probes` and `among_gallery`, similarities in the place of features.
    """

    name: str
    probe: Parts
    gallery: Parts
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)
    settled: bool = False
    matrices: dict[str, Part] = field(default_factory=dict)

    @property
    def sides(self) -> dict[str, Parts]:
        """The parts of both sides, by the name of the side."""
        return {"probe": self.probe, "gallery": self.gallery}

    @property
    def matrix_names(self) -> list[str]:
        """What the matrices are called."""
        return [part.origin for part in self.matrices.values()]


def as_array(values: Any, where: str) -> Any:
    """Convert lists and tuples of numbers or text to an array; return arrays as they are, also those on disk.

    Raises:
        InputError: if this is not possible, as for rows of different lengths.
    """
    if isinstance(values, np.ndarray) and values.dtype.hasobject and values.ndim == 1:
        some = values[0] if len(values) else None
        values = list(values) if isinstance(some, np.ndarray) and some.ndim else values
    if not isinstance(values, list | tuple):
        return values
    try:
        # Where one text is long, NumPy would make all others as long as that.
        return np.array(values, dtype=object if _has_text(values) else None)
    except ValueError:
        shapes = {np.shape(value)[1:] for value in values}
        batches = len(shapes) == 1 and shapes != {()}
        hint = ": of batches save torch.cat(batches), of tracklets the mean of each" if batches else ""
        raise InputError(f"{where}: its {len(values)} rows are of different lengths{hint}") from None


def _has_text(values: Iterable[Any]) -> bool:
    return any(
        isinstance(value, str | bytes) or (isinstance(value, list | tuple) and _has_text(value))
        for value in values
    )


_LARGEST = np.iinfo(np.int64).max
_FITTING = "a value that fits int64"


def settle(sides: Sequence[Parts], where: str) -> list[str]:
    """Bring the parts of all sides into standard form, in place: features (N, D), labels and names (N,).

    Labels become int64, or stay text until `numbered` has seen those of both sides. Arrays from MATLAB may be
    (D, N); they are transposed if the labels or the other sides show that.

    Args:
        sides: the parts of all sides; all features have the same D and orientation.
        where: name of the files in messages.

    Returns:
        Ambiguities, one line each.

    Raises:
        InputError: for invalid labels, or if a side does not have one of each part per image.
    """
    for parts in sides:
        settle_labels(parts, where)
        parts["features"].values = _as_matrix(parts["features"], where)
    unsure = _turn(sides, where)
    for parts in sides:
        features = parts["features"]
        for part in parts.values():
            if part.values.shape[0] != features.values.shape[0]:
                raise InputError(
                    f"{where}: {features.origin} has {features.values.shape[0]} images and {part.origin} "
                    f"{part.values.shape[0]}: they do not describe the same images"
                )
    return unsure


def settle_labels(parts: Parts, where: str) -> None:
    """Do what `settle` does with the labels and names of a side.

    Raises:
        InputError: for invalid labels, or a field that cannot be read.
    """
    for kind, part in parts.items():
        if isinstance(part.values, UnfitError):
            raise part.values
        if kind == "names":
            part.values = of_objects(as_texts(part.values))
        elif kind != "features":
            if kind == "ids" and (doubt := _wrapped(part)):
                part.doubts.append(doubt)
            part.values = as_labels(part, where)


def taken(parts: Parts, rows: Any) -> Parts:
    """Select rows, by index array or slice, of a settled side."""
    return {
        kind: replace(
            part,
            values=(part.values if isinstance(rows, slice) else np.asarray(part.values[:]))[rows],
            told=[*part.told],
            doubts=[*part.doubts],
        )
        for kind, part in parts.items()
    }


def _as_matrix(part: Part, where: str) -> Any:
    """Features as an array of floats with two dimensions, whichever of these is that of the images."""
    values = as_array(part.values, f"{where} ({part.origin})")
    shape: tuple[int, ...] = tuple(getattr(values, "shape", ()))
    flat = flat_shape(shape)
    if flat is not None and flat != shape:
        values, shape = values.reshape(flat), flat
        part.told.append("flattened")
    if len(shape) != 2:
        hint = " (use reshape(len(x), -1), or the mean of each tracklet)" if len(shape) > 2 else ""
        raise InputError(
            f"{where}: {part.origin} has shape {tuple(shape)}: expected one vector per image{hint}"
        )
    if np.dtype(values.dtype).kind in "iu":
        wide = np.float32 if values.dtype.itemsize <= 2 else np.float64
        part.told.append(f"{values.dtype} converted to {np.dtype(wide).name}")
        values = np.asarray(values[:]).astype(wide)
    return values


def _turn(sides: Sequence[Parts], where: str) -> list[str]:
    """Turn features round where their rows are no images, and say where that cannot be told."""
    features = [parts["features"] for parts in sides]
    ways: list[list[bool]] = []  # of each side, whether it may stay, and whether it may be turned round
    for parts, part in zip(sides, features, strict=True):
        rows = next((len(parts[kind].values) for kind in ("ids", "cams", "names") if kind in parts), None)
        shape = part.values.shape
        ways.append([turned for turned in (False, True) if rows in (None, shape[turned])])
        if not ways[-1]:
            raise InputError(
                f"{where}: {part.origin} is {shape[0]} x {shape[1]}, and there are {rows} labels: "
                "they do not describe the same images"
            )
    alike = [
        turned
        for turned in (False, True)
        if all(turned in way for way in ways) and len({part.values.shape[not turned] for part in features}) == 1
    ]
    unsure = []
    for part, way in zip(features, ways, strict=True):
        rows, columns = part.values.shape
        if rows == columns and len(alike) == 2:
            unsure.append(f"{part.origin} is square: rows were assumed to be images")
        elif rows == columns and alike:
            part.told.append("square, oriented like the other side")
        if (alike or way)[0]:
            part.told.append(f"transposed from {rows} x {columns}")
            part.values = np.asarray(part.values[:]).T
    if len(alike) == 2 and len(features) > 1 and not unsure:
        unsure = ["both arrays have the same shape: rows were assumed to be images"]
    return unsure


def as_labels(part: Part, where: str) -> NDArray[Any]:
    """Return (N,) labels: int64 for whole numbers of any dtype, otherwise text.

    Raises:
        InputError: for numbers that are not whole, or values that are neither numbers nor text.
    """
    values = np.asarray(as_array(part.values, where))
    if values.ndim > 1 and max(values.shape) == values.size:
        part.told.append(f"flattened from {' x '.join(map(str, values.shape))}")
    elif values.ndim != 1:
        raise InputError(f"{where}: {part.origin} has shape {values.shape}: expected one label per image")
    values = values.ravel()
    kind = values.dtype.kind
    if kind in "OSU":
        return of_objects(as_texts(values))
    if kind == "f":
        # Beyond this the next whole number is no longer another float: identities may have run together.
        exact = 2.0 ** (np.finfo(values.dtype).nmant + 1)
        outside = ~(np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < exact))
    elif kind in "iub":
        outside = values > _LARGEST if kind == "u" else np.zeros(len(values), dtype=bool)
    else:
        raise InputError(f"{where}: {part.origin} is {values.dtype}: expected numbers or text")
    why = f"whole numbers that {values.dtype} holds exactly" if kind == "f" else _FITTING
    _refuse(values, outside, part, where, why)
    if kind in "fb":
        part.told.append(f"{values.dtype} converted to integers")
    return values.astype(np.int64)


def as_integers(part: Part, where: str) -> NDArray[np.int64]:
    """Return (N,) int64 from whole numbers of any dtype, or written as text.

    Raises:
        InputError: for anything else.
    """
    values = as_labels(part, where)
    if is_text(values) and not are_whole(values):
        raise InputError(f"{where}: {part.origin} is text: expected whole numbers")
    (found,) = numbered([replace(part, values=values)], where)
    return found


def is_text(labels: NDArray[Any]) -> bool:
    """Return whether `labels`, from `as_labels`, are text."""
    return labels.dtype.kind == "O"


def are_whole(texts: NDArray[Any]) -> bool:
    """Return whether all texts are whole numbers."""
    return all(number_of(text) is not None for text in texts)


def _refuse(values: NDArray[Any], outside: NDArray[np.bool_], part: Part, where: str, why: str) -> None:
    if outside.any():
        row = int(np.argmax(outside))
        raise InputError(f"{where}: {part.origin} has {values[row]} in row {row}: expected {why}")


def _wrapped(part: Part) -> str | None:
    """A line if the labels hold what -1 becomes in the unsigned type they have."""
    values = np.asarray(as_array(part.values, part.origin))
    if values.dtype.kind != "u":
        return None
    largest = np.iinfo(values.dtype).max
    number = (values == largest).sum()
    if not number:
        return None
    return (
        f"{part.origin} is {values.dtype} and has {largest} in {number} rows, which is -1 stored as unsigned: "
        "if these are junk, save the labels as signed integers"
    )


def as_texts(values: Any) -> list[str]:
    """Return strings, without the trailing spaces that MATLAB adds, and with the content of its cells."""
    found = []
    for value in np.asarray(as_array(values, "names")).ravel().tolist():
        while isinstance(value, np.ndarray | list | tuple) and len(value) == 1:
            value = value[0]
        if isinstance(value, np.ndarray) and not value.size:
            value = ""
        found.append((value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).rstrip())
    return found


def numbered(parts: Sequence[Part], where: str, *, keep: Sequence[int] = ()) -> list[NDArray[np.int64]]:
    """Return the settled labels of all sides as int64, text as `data.numbering` has it.

    Raises:
        InputError: for text on one side and numbers on the other, and for numbers that do not fit int64.
    """
    texts = [part for part in parts if is_text(part.values)]
    if len(texts) == len(parts):
        return _numbered_texts(parts, where, keep)
    names = [part.origin for part in texts if not are_whole(part.values)]
    if names:
        other = next(part.origin for part in parts if not is_text(part.values))
        raise InputError(
            f"{where}: {names[0]} is text and {other} is numbers: labels must be all text or all numbers"
        )
    found = []
    for part in parts:
        if is_text(part.values):  # beside numbers, 5, 05 and 5.0 are the number 5
            plain = of_objects([str(number_of(text)) for text in part.values])
            found += _numbered_texts([replace(part, values=plain)], where)
        else:
            found.append(part.values)
    return found


def _numbered_texts(parts: Sequence[Part], where: str, keep: Sequence[int] = ()) -> list[NDArray[np.int64]]:
    for part in parts:
        for row, text in enumerate(part.values):
            if text.isdecimal() and len(text) > len(str(_LARGEST)) + 1:
                digits = f"{len(text)} digits" if len(text) > 40 else text
                raise InputError(f"{where}: {part.origin} has {digits} in row {row}: expected {_FITTING}")
    found = labels.numbered([part.values for part in parts], keep=keep)
    for part, numbers in zip(parts, found.labels, strict=True):
        outside = np.array([abs(number) > _LARGEST for number in numbers.tolist()], bool)
        _refuse(numbers, outside, part, where, _FITTING)
        told = "text converted to integers"
        if found.texts:
            kept = [text for text in found.kept if text in part.values.tolist()]
            told = f"{len(found.texts)} text labels numbered from 1"
            if kept:
                told += f", except {' and '.join(kept)}"
        part.told.append(told)
    if found.texts:
        parts[0].texts = found.texts
        parts[0].doubts += labels.unidentified([part.values for part in parts], "id" if keep else "camera")
    return [numbers.astype(np.int64) for numbers in found.labels]


def listed(things: Iterable[Any]) -> str:
    """Join items with commas."""
    return ", ".join(map(str, things))


def shown(file: Opened) -> str:
    """Describe the content of a file."""
    fields = [f"{name} {_shape(value)}" for name, value in file.fields.items()]
    found = f"{file.container} with {_some(fields)}" if fields else f"{file.container}, {_shape(file.content)}"
    return f"{found}; not read: {_some(file.unread)}" if file.unread else found


def _some(things: Sequence[str]) -> str:
    return f"{listed(things[:12])}{', ...' * (len(things) > 12)}"


def _shape(value: Any) -> str:
    if isinstance(value, UnfitError):
        return "(not read)"
    shape = getattr(value, "shape", None)
    if shape is None:
        return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else repr(value)
    return " x ".join(map(str, shape)) or "number"


def is_matrix(value: Any) -> bool:
    """Return whether `value` can be features."""
    shape, kind = getattr(value, "shape", ()), str(getattr(value, "dtype", None))
    # Whole numbers may be quantised features, but in one row or column they are labels.
    return len(shape) == 2 and (("float" in kind and min(shape) > 0) or ("int" in kind and min(shape) > 1))


def is_vector(value: Any) -> bool:
    """Return whether `value` is one row or one column: labels, unless there is nothing larger."""
    return min(getattr(value, "shape", ()), default=0) < 2


def matrices(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries whose last element can be features.

    MATLAB labels are doubles too, in one row or column: these are left out if there is anything larger.
    """
    found = [entry for entry in entries if is_matrix(entry[-1])]
    return [entry for entry in found if not is_vector(entry[-1])] or found


def entries(file: Opened) -> list[tuple[str, Any]]:
    """Return the arrays of a file as (name, array)."""
    return list(file.fields.items()) if file.fields else [(file.path.name, file.content)]


def only_matrix(file: Opened) -> Part:
    """Return the features of a file with exactly one candidate array."""
    found = matrices(entries(file))
    if len(found) != 1:
        raise InputError(f"{file.path}: expected one array of features, found {shown(file)}")
    return Part(*found[0])


def two_sides(files: Sequence[Opened]) -> tuple[Opened, Opened, list[str]]:
    """Return (probe file, gallery file, notes), decided by file names, or else by order."""

    def says(file: Opened) -> str | None:
        stem = file.path.stem.lower()
        is_probe, is_gallery = "query" in stem or "probe" in stem, "gallery" in stem
        if is_probe != is_gallery:
            return "probe" if is_probe else "gallery"
        # Which stands for the gallery, or beside either word for the set.
        return "gallery" if "test" in stem and not is_probe else None

    one, other = files
    if says(one) == "gallery" and says(other) == "probe":
        return other, one, [f"probes are those of {other.path.name}, as its name says"]
    return one, other, [f"probes are those of {one.path.name}, gallery that of {other.path.name}"]
