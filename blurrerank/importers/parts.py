"""The parts of a feature set as other tools keep them, and how they become arrays; no change goes untold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from .containers import Opened


@dataclass
class Part:
    """One array of a side as it was found.

    Attributes:
        origin: the name it has where it was found, such as `query_label`.
        values: what is there.
        told: what was done to it, such as `transposed`.
    """

    origin: str
    values: Any
    told: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join([self.origin, *self.told])


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
    """

    name: str
    probe: Parts
    gallery: Parts
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)


def as_array(values: Any, where: str) -> Any:
    """An array of whatever holds numbers or text; arrays on disk stay there.

    Raises:
        InputError: if rows have different lengths, say.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, list | tuple):
        if values and all(isinstance(value, torch.Tensor) for value in values):
            values = [as_array(value, where) for value in values]
        try:
            return np.asarray(values)
        except ValueError:
            raise InputError(f"{where}: its {len(values)} rows are of different lengths") from None
    return values


_LARGEST = np.iinfo(np.int64).max


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+", text) is not None


def as_features(part: Part, rows: int | None, where: str) -> Any:
    """(N, D) features; `rows` is N where labels say it.

    Arrays of MATLAB programs may be (D, N), and are turned round when the labels say so.

    Raises:
        InputError: if neither dimension fits.
    """
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
    if rows is None or shape[0] == rows:
        return values
    if shape[1] == rows:
        part.told.append(f"transposed from {shape[0]} x {shape[1]}")
        return np.asarray(values[:]).T
    raise InputError(
        f"{where}: {part.origin} is {shape[0]} x {shape[1]}, and there are {rows} labels: "
        "they are not of the same images"
    )


def as_labels(part: Part, where: str) -> NDArray[Any]:
    """(N,) labels, as integers where they are whole numbers in whatever form, otherwise as text.

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
        texts = as_texts(values)
        if not all(map(_is_whole, texts)):
            return np.array(texts, dtype=object)
        part.told.append("text made integers")
        values = np.array([int(text) for text in texts], dtype=object)
        outside = np.array([abs(value) > _LARGEST for value in values], dtype=bool)
    elif kind == "f":
        # Beyond this the next whole number is no longer another float: identities may have run together.
        exact = 2.0 ** (np.finfo(values.dtype).nmant + 1)
        outside = ~(np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < exact))
    elif kind in "iub":
        outside = values > _LARGEST if kind == "u" else np.zeros(len(values), dtype=bool)
    else:
        raise InputError(f"{where}: {part.origin} is {values.dtype}: expected numbers or text")
    if outside.any():
        row = int(np.argmax(outside))
        why = f"whole numbers that {values.dtype} holds exactly" if kind == "f" else "what fits int64"
        raise InputError(f"{where}: {part.origin} has {values[row]} in row {row}: expected {why}")
    if kind in "fb":
        part.told.append(f"{values.dtype} made integers")
    return values.astype(np.int64)


def wrapped(part: Part) -> str | None:
    """A line if the labels hold what -1 becomes in the unsigned type they have."""
    values = as_array(part.values, part.origin)
    kind = np.asarray(values).dtype
    if kind.kind != "u":
        return None
    largest = int(np.iinfo(kind).max)
    number = int((np.asarray(values) == largest).sum())
    if not number:
        return None
    return (
        f"{part.origin} is {kind} and has {largest} in {number} rows, which is what -1 becomes there: if "
        "these are junk, save the labels as signed integers"
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


def numbered(
    parts: Sequence[Part], labels: Sequence[NDArray[Any]], where: str, *, keep: Sequence[str] = ()
) -> list[NDArray[np.int64]]:
    """Labels of both sides as integers: text is numbered from 1, in sorted order, over both.

    Text in `keep` is the number that it says.

    Raises:
        InputError: for text on one side and numbers on the other.
    """
    texts = [some.dtype.kind == "O" for some in labels]
    if not any(texts):
        return list(labels)
    if not all(texts):
        one, other = (parts[texts.index(is_text)].origin for is_text in (True, False))
        raise InputError(f"{where}: {one} is text and {other} is numbers: one kind of label is needed")
    distinct = sorted(set().union(*(some.tolist() for some in labels)) - set(keep))
    number = {text: place for place, text in enumerate(distinct, start=1)} | {text: int(text) for text in keep}
    found = [np.array([number[text] for text in some], dtype=np.int64) for some in labels]
    for part, some in zip(parts, labels, strict=True):
        kept = [text for text in keep if text in some.tolist()]
        part.told.append(
            f"{len(distinct)} texts numbered from 1{', but for ' * bool(kept)}{' and '.join(kept)}"
        )
    return found


def listed(things: Iterable[Any]) -> str:
    """One after another."""
    return ", ".join(map(str, things))


def shown(file: Opened) -> str:
    """What a file holds, in words."""
    if file.fields:
        fields = list(file.fields.items())
        shown = [f"{name} {_shape(value)}" for name, value in fields[:12]]
        return f"{file.container} with {', '.join(shown)}{', ...' * (len(fields) > 12)}"
    return f"{file.container}, {_shape(file.content)}"


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None:
        return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else repr(value)
    return " x ".join(map(str, shape)) or "number"


def plain(name: str) -> str:
    """A name without case and signs."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_matrix(value: Any) -> bool:
    """Whether this may be features."""
    shape = getattr(value, "shape", ())
    kind = getattr(value, "dtype", None)
    floats = "float" in str(kind)
    return len(shape) == 2 and min(shape) > 0 and floats


def features_of(file: Opened) -> list[tuple[str, Any]]:
    """What in a file may be features, with its name."""
    if file.fields:
        return [(name, value) for name, value in file.fields.items() if is_matrix(value)]
    return [(file.path.name, file.content)] if is_matrix(file.content) else []


def only_matrix(file: Opened) -> Part:
    """The features in a file that has nothing else that could be."""
    found = features_of(file)
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
