"""The parts of a feature set as other tools keep them, and how they become arrays; no change goes untold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .containers import Opened
from .pickles import of_objects


@dataclass
class Part:
    """One array of a side as it was found.

    Attributes:
        origin: the name it has where it was found, such as `query_label`.
        values: what is there.
        told: what was done to it, such as `transposed`.
        doubts: what in it is probably not meant.
    """

    origin: str
    values: Any
    told: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join([self.origin, *self.told])


Entry = TypeVar("Entry", bound=tuple[Any, ...])

Parts = dict[str, Part]
"""`features`, and `ids`, `cams` and `names` where they are."""


@dataclass
class Layout:
    """What was recognised.

    Attributes:
        name: whose layout it is.
        probe: the parts of the probes.
        gallery: the parts of the gallery.
        notes: what else there is to say of it.
        doubts: what is probably not meant, or was not taken.
        unsure: what could be read in two ways: nothing is read so unless somebody looks at it.
        settled: whether `settle` has seen the parts.
    """

    name: str
    probe: Parts
    gallery: Parts
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)
    settled: bool = False


def as_array(values: Any, where: str) -> Any:
    """An array of whatever holds numbers or text; arrays on disk stay there.

    Raises:
        InputError: if rows have different lengths, say.
    """
    if not isinstance(values, list | tuple):
        return values
    try:
        # Where one text is long, NumPy would make all others as long as that.
        return np.array(values, dtype=object if _has_text(values) else None)
    except ValueError:
        raise InputError(f"{where}: its {len(values)} rows are of different lengths") from None


def _has_text(values: Iterable[Any]) -> bool:
    return any(
        isinstance(value, str | bytes) or (isinstance(value, list | tuple) and _has_text(value))
        for value in values
    )


_LARGEST = np.iinfo(np.int64).max
_FITTING = "a value that fits int64"


# Python reads no numbers of thousands of digits.
_DIGITS = 100


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+", text) is not None


def settle(sides: Sequence[Parts], where: str) -> list[str]:
    """Bring what was found into form, in place: features (N, D), labels and names (N,), each N times of a side.

    Labels become int64, or stay text until `numbered` has seen that of both sides. Arrays of MATLAB programs
    may be (D, N), and are turned round where labels, or the other sides, say so.

    Args:
        sides: what belongs together: all features are of one D, and lie the same way.
        where: names the files in messages.

    Returns:
        What could be read in two ways, one line each.

    Raises:
        InputError: for labels that are none, and where a side has not one of each for each image.
    """
    for parts in sides:
        for kind, part in parts.items():
            if kind == "features":
                part.values = _as_matrix(part, where)
            elif kind == "names":
                part.values = of_objects(as_texts(part.values))
            else:
                if kind == "ids" and (doubt := _wrapped(part)):
                    part.doubts.append(doubt)
                part.values = as_labels(part, where)
    unsure = _turn(sides, where)
    for parts in sides:
        features = parts["features"]
        for part in parts.values():
            if part.values.shape[0] != features.values.shape[0]:
                raise InputError(
                    f"{where}: {features.origin} has {features.values.shape[0]} images and {part.origin} "
                    f"{part.values.shape[0]}: they are not of the same images"
                )
    return unsure


def taken(parts: Parts, rows: Any) -> Parts:
    """Some rows, an index or a slice, of a side that is settled."""
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
    if len(shape) > 2 and np.prod(shape[2:]) == 1:
        values, shape = values.reshape(shape[:2]), shape[:2]
        part.told.append("flattened")
    if len(shape) != 2:
        raise InputError(f"{where}: {part.origin} has shape {tuple(shape)}: expected a vector for each image")
    if np.dtype(values.dtype).kind in "iu":
        wide = np.float32 if values.dtype.itemsize <= 2 else np.float64
        part.told.append(f"{values.dtype} made {np.dtype(wide).name}")
        values = np.asarray(values[:]).astype(wide)
    return values


def _turn(sides: Sequence[Parts], where: str) -> list[str]:
    """Turn features round where their rows are no images, and say where that cannot be told."""
    features = [parts["features"] for parts in sides]
    # Of each side, whether it may be turned round -> the dimension of its features then.
    ways: list[dict[bool, int]] = []
    for parts, part in zip(sides, features, strict=True):
        rows = next((len(parts[kind].values) for kind in ("ids", "cams", "names") if kind in parts), None)
        upright, lying = part.values.shape
        ways.append(
            {
                turned: (lying, upright)[turned]
                for turned in (False, True)
                if rows in (None, part.values.shape[turned])
            }
        )
        if not ways[-1]:
            raise InputError(
                f"{where}: {part.origin} is {upright} x {lying}, and there are {rows} labels: "
                "they are not of the same images"
            )
    alike = [
        turned
        for turned in (False, True)
        if all(turned in way for way in ways) and len({way[turned] for way in ways}) == 1
    ]
    unsure = []
    for part, way in zip(features, ways, strict=True):
        upright, lying = part.values.shape
        if upright == lying and len(alike) == 2:
            unsure.append(f"{part.origin} is square: rows were taken for images")
        elif upright == lying and alike:
            part.told.append("square, read as the other side is")
        if alike[0] if alike else next(iter(way)):
            part.told.append(f"transposed from {upright} x {lying}")
            part.values = np.asarray(part.values[:]).T
    if len(alike) == 2 and len(features) > 1 and not unsure:
        unsure = ["both arrays have one shape: rows were taken for images"]
    return unsure


def as_labels(part: Part, where: str) -> NDArray[Any]:
    """(N,) labels: int64 where they are whole numbers of whatever type, or text.

    Raises:
        InputError: for numbers that are not whole, or anything that is neither.
    """
    values = np.asarray(as_array(part.values, where))
    if values.ndim > 1 and max(values.shape) == values.size:
        part.told.append(f"flattened from {' x '.join(map(str, values.shape))}")
    elif values.ndim != 1:
        raise InputError(f"{where}: {part.origin} has shape {values.shape}: expected one label for each image")
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
        part.told.append(f"{values.dtype} made integers")
    return values.astype(np.int64)


def as_integers(part: Part, where: str) -> NDArray[np.int64]:
    """(N,) whole numbers of whatever type, or as text.

    Raises:
        InputError: for anything else.
    """
    values = as_labels(part, where)
    if not is_text(values):
        return values
    if not are_whole(values):
        raise InputError(f"{where}: {part.origin} is text: expected whole numbers")
    return _from_text(values, part, where)


def is_text(labels: NDArray[Any]) -> bool:
    """Whether `as_labels` found text."""
    return labels.dtype.kind == "O"


def are_whole(texts: NDArray[Any]) -> bool:
    """Whether all of these are whole numbers, written as text."""
    return all(map(_is_whole, texts))


def _from_text(texts: NDArray[Any], part: Part, where: str) -> NDArray[np.int64]:
    for row, text in enumerate(texts):
        if len(text) > _DIGITS:
            raise InputError(f"{where}: {part.origin} has {len(text)} digits in row {row}: expected {_FITTING}")
    values = of_objects([int(text) for text in texts])
    _refuse(values, np.array([abs(value) > _LARGEST for value in values], dtype=bool), part, where, _FITTING)
    part.told.append("text made integers")
    return values.astype(np.int64)


def _refuse(values: NDArray[Any], outside: NDArray[np.bool_], part: Part, where: str, why: str) -> None:
    if outside.any():
        row = int(np.argmax(outside))
        raise InputError(f"{where}: {part.origin} has {values[row]} in row {row}: expected {why}")


def _wrapped(part: Part) -> str | None:
    """A line if the labels hold what -1 becomes in the unsigned type they have."""
    values = np.asarray(as_array(part.values, part.origin))
    if values.dtype.kind != "u":
        return None
    largest = int(np.iinfo(values.dtype).max)
    number = int((values == largest).sum())
    if not number:
        return None
    return (
        f"{part.origin} is {values.dtype} and has {largest} in {number} rows, which is what -1 becomes there: "
        "if these are junk, save the labels as signed integers"
    )


def as_texts(values: Any) -> list[str]:
    """Strings, without the spaces that MATLAB pads them with; its cells are opened."""
    found = []
    for value in np.asarray(as_array(values, "names")).ravel().tolist():
        while isinstance(value, np.ndarray | list | tuple) and len(value) == 1:
            value = value[0]
        if isinstance(value, np.ndarray) and not value.size:
            value = ""
        found.append((value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).rstrip())
    return found


def numbered(parts: Sequence[Part], where: str, *, keep: Sequence[int] = ()) -> list[NDArray[np.int64]]:
    """Settled labels of all sides as integers.

    Text that is whole numbers throughout becomes these. Other text is numbered from 1, in sorted order, over
    all sides; what says a number in `keep` stays that.

    Raises:
        InputError: for names on one side and numbers on the other.
    """
    labels = [part.values for part in parts]
    texts = [is_text(some) for some in labels]
    names = [is_text(some) and not are_whole(some) for some in labels]
    if not any(names):
        return [
            _from_text(some, part, where) if text else some
            for part, some, text in zip(parts, labels, texts, strict=True)
        ]
    if not all(texts):
        one, other = parts[names.index(True)].origin, parts[texts.index(False)].origin
        raise InputError(f"{where}: {one} is text and {other} is numbers: one kind of label is needed")
    whole = {text for some in labels for text in some if len(text) <= _DIGITS and _is_whole(text)}
    number = {text: int(text) for text in whole if int(text) in keep}
    distinct = sorted(set().union(*(some.tolist() for some in labels)) - set(number))
    number |= {text: place for place, text in enumerate(distinct, start=1)}
    for part, some in zip(parts, labels, strict=True):
        kept = sorted(set(some) - set(distinct))
        part.told.append(
            f"{len(distinct)} texts numbered from 1{', but for ' * bool(kept)}{' and '.join(kept)}"
        )
    return [np.array([number[text] for text in some], dtype=np.int64) for some in labels]


def listed(things: Iterable[Any]) -> str:
    """One after another."""
    return ", ".join(map(str, things))


def shown(file: Opened) -> str:
    """What a file holds, in words."""
    found = f"{file.container}, {_shape(file.content)}"
    if file.fields:
        fields = [f"{name} {_shape(value)}" for name, value in file.fields.items()]
        found = f"{file.container} with {_some(fields)}"
    if file.unread:
        found += f"; not read, as sparse, complex or struct: {_some(file.unread)}"
    return found


def _some(things: Sequence[str]) -> str:
    return f"{listed(things[:12])}{', ...' * (len(things) > 12)}"


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None:
        return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else repr(value)
    return " x ".join(map(str, shape)) or "number"


def plain(name: Any) -> str:
    """A name, which in a pickle may be a number, without case and signs."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def is_matrix(value: Any) -> bool:
    """Whether this may be features."""
    shape = getattr(value, "shape", ())
    kind = getattr(value, "dtype", None)
    floats = "float" in str(kind)
    return len(shape) == 2 and min(shape) > 0 and floats


def is_vector(value: Any) -> bool:
    """Whether this is one row or one column: labels, unless there is nothing larger."""
    return min(getattr(value, "shape", ()), default=0) < 2


def matrices(entries: Iterable[Entry]) -> list[Entry]:
    """Those whose last part may be features; MATLAB's labels are doubles in a row or a column too."""
    found = [entry for entry in entries if is_matrix(entry[-1])]
    return [entry for entry in found if not is_vector(entry[-1])] or found


def entries(file: Opened) -> list[tuple[str, Any]]:
    """The arrays of a file, each with its name."""
    return list(file.fields.items()) if file.fields else [(file.path.name, file.content)]


def only_matrix(file: Opened) -> Part:
    """The features in a file that has nothing else that could be."""
    found = matrices(entries(file))
    if len(found) != 1:
        raise InputError(f"{file.path}: expected one array of features, found {shown(file)}")
    return Part(*found[0])


def two_sides(files: Sequence[Opened]) -> tuple[Opened, Opened, list[str]]:
    """Which of two files has the probes: their names say it, or their order."""

    def says(file: Opened) -> str | None:
        stem = file.path.stem.lower()
        found = [
            side
            for side, words in (("probe", ("query", "probe")), ("gallery", ("gallery", "test")))
            if any(word in stem for word in words)
        ]
        return found[0] if len(found) == 1 else None

    one, other = files
    if says(one) == "gallery" and says(other) == "probe":
        return other, one, [f"probes are those of {other.path.name}, as its name says"]
    return one, other, [f"probes are those of {one.path.name}, gallery that of {other.path.name}"]
