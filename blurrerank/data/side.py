"""`Side`: the features and labels of the probes or of the gallery, read block by block.

Features stay in their original form (an array, a tensor, a dataset on disk) and are converted block by block.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import BlurrerankWarning, InputError
from .labels import DISTRACTOR, JUNK, beyond_int64, is_storable
from .numbering import is_text, numbered, numbered_further, unidentified

LABELS = ("ids", "cams", "names", "tracks")
"""What may be known of each row beside its features."""

KEPT = {"ids": (JUNK, DISTRACTOR), "cams": ()}
"""The labels that are numbered if they are text, and the numbers that mean something among them."""

# Bytes read at a time, as float64, for validation and digests.
_SCAN_BYTES = 4 << 20


class FeatureArray(Protocol):
    """The interface of features: NumPy arrays, tensors and HDF5 datasets all have it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    @property
    def dtype(self) -> Any:
        """float16, float32 or float64, a NumPy or torch dtype."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return rows as an array or a tensor."""


class FeatureRows:
    """Consecutive rows of features, read when they are asked for.

    Args:
        features: (N, D).
        rows: which of them.
    """

    def __init__(self, features: FeatureArray, rows: slice) -> None:
        self._features, self._first = features, rows.start
        self.shape = (rows.stop - rows.start, *features.shape[1:])
        self.dtype = features.dtype

    def __getitem__(self, rows: slice) -> Any:
        start, stop, _ = rows.indices(self.shape[0])
        return self._features[self._first + start : self._first + stop]


class Source(Protocol):
    """A file that features are mapped from and read on demand."""

    def check(self) -> None:
        """Check that the file is unchanged.

        Raises:
            InputError: if it was changed.
        """


@dataclass(frozen=True, eq=False)
class Side:
    """The features and labels of the probes or of the gallery. `FeatureSet` validates them.

    Attributes:
        features: (N, D) float16, float32 or float64, in memory or on disk.
        ids: (N,) integers, -1 junk, 0 distractor; or None.
        cams: (N,) integers, only compared for equality; or None. Like `ids`, they may be strings, which
            `FeatureSet` and an index number.
        names: (N,) strings; or None.
        label: name of this side in messages, such as `feats.h5::/probe`.
        first: the number of row 0 in messages, where these rows are a slice of a file's.
        sources: the files that the features are mapped from, if any.
        tracks: (N,) integers or strings, equal for images of one tracklet; or None.
        texts: the text of each number, for `ids` and `cams` that were text and have been numbered.
    """

    unit: ClassVar[bool] = False
    """Whether the features are L2-normalised float32 rows that were validated before, as in an index."""

    features: FeatureArray
    ids: NDArray[Any] | None = None
    cams: NDArray[Any] | None = None
    names: NDArray[Any] | None = None
    label: str = "features"
    first: int = 0
    sources: tuple[Source, ...] = ()
    tracks: NDArray[Any] | None = None
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Convert lists of labels to arrays, and integer labels to int64."""
        for name in LABELS:
            if isinstance(getattr(self, name), list | tuple):
                object.__setattr__(self, name, np.array(getattr(self, name)))
        for name in KEPT:
            labels = getattr(self, name)
            if labels is not None and labels.dtype.kind in "iu" and not beyond_int64(labels).any():
                object.__setattr__(self, name, labels.astype(np.int64))

    def __len__(self) -> int:
        return int(self.features.shape[0])

    @property
    def dim(self) -> int:
        """D, the number of dimensions of a feature vector."""
        return int(self.features.shape[1])

    def check(self) -> None:
        """Check that the features are unchanged.

        Raises:
            InputError: if a file that they are mapped from was changed.
        """
        for source in self.sources:
            source.check()

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Return rows `start:stop` in their stored dtype, (stop - start, D).

        Raises:
            InputError: if the file that holds them was changed.
        """
        self.check()
        rows = self.features[start:stop]
        if isinstance(rows, torch.Tensor):
            return rows.detach()
        native = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("="))
        found = torch.from_numpy(native if native.flags.writeable else native.copy())
        self.check()
        return found

    def numbered(self, other: Side | None = None) -> Side:
        """Return the side with `ids` and `cams` that are text as numbers, whose `texts` have the text of each.

        Args:
            other: a side whose numbers are to be used for the same text; it has been numbered.

        Raises:
            InputError: for text where the labels of the other side are numbers, or the other way round.
        """
        changes: dict[str, Any] = {}
        texts = dict(self.texts)
        for kind in KEPT:
            labels, known = self._numbered(kind, other)
            if labels is not getattr(self, kind):
                changes[kind] = labels
            texts.pop(kind, None)
            if known:
                texts[kind] = known
        return replace(self, **changes, texts=texts) if changes or texts != self.texts else self

    def _numbered(self, kind: str, other: Side | None) -> tuple[NDArray[Any] | None, Mapping[int, str]]:
        """The labels of a kind as numbers, and the text of each if they are text; see `numbered`."""
        labels, keep = self.as_text(kind), KEPT[kind]
        known = {} if other is None else other.texts.get(kind, {})
        if not is_text(labels):
            if labels is not None and known and labels.dtype.kind in "iu":
                raise self._differs(kind, "are numbers", other, "text")
            return labels, known
        if not all(map(is_storable, labels)):
            row = next(row for row, label in enumerate(labels) if not is_storable(label))
            raise InputError(
                f"{self.label}/{kind} has {labels[row]!r} in row {row}: expected text that utf-8 can encode, "
                "without NUL"
            )
        if other is None and not self.texts:
            for doubt in unidentified([labels], kind[:-1]):
                warnings.warn(doubt, BlurrerankWarning, stacklevel=4)
        if known:
            return numbered_further(labels, known, keep=keep)
        whole = numbered([labels], keep=keep)
        if not whole.texts:
            return whole.labels[0], {}
        if other is not None and getattr(other, kind) is not None:
            raise self._differs(kind, "are text", other, "numbers")
        return numbered_further(labels, {}, keep=keep)

    def cameras_like(self, other: Side) -> Side:
        """Return the side with cameras, and no other labels, numbered as those of another side.

        Raises:
            InputError: see `numbered`.
        """
        return replace(self, ids=None, names=None, tracks=None).numbered(other)

    def as_text(self, kind: str) -> NDArray[Any] | None:
        """Return `ids` or `cams`; as text again if that is what they were numbered from."""
        labels: NDArray[Any] | None = getattr(self, kind)
        own = self.texts.get(kind)
        if labels is None or not own or labels.dtype.kind not in "iu":
            return labels
        if not all(number in own or number in KEPT[kind] for number in np.unique(labels).tolist()):
            return labels  # others have taken their place
        return np.array([own.get(number, str(number)) for number in labels.tolist()], dtype=object)

    def _differs(self, kind: str, what: str, other: Side | None, theirs: str) -> InputError:
        assert other is not None
        return InputError(
            f"{self.label}/{kind} {what}, and those of {other.label} are {theirs}: use the same kind in both"
        )

    @property
    def labels(self) -> dict[str, Any]:
        """What is known of the rows beside their features, by the names in `LABELS`; None where nothing is."""
        return {name: getattr(self, name) for name in LABELS}

    def part(self, rows: slice) -> Any:
        """Return some rows, with their labels; features on disk stay there."""
        held = isinstance(self.features, np.ndarray | torch.Tensor)
        parts: dict[str, Any] = {
            name: None if values is None else values[rows] for name, values in self.labels.items()
        }
        features = self.features[rows] if held else FeatureRows(self.features, rows)
        return replace(self, features=features, first=self.first + rows.start, **parts)

    def blocks(self, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield all rows in order, `rows` at a time, as (index of the first row, block)."""
        for start in range(0, len(self), rows):
            yield start, self.block(start, min(start + rows, len(self)))

    def row_digests(self) -> NDArray[np.uint8]:
        """Return (N, 16) uint8: the first 16 bytes of the SHA-256 of each row."""
        found = bytearray()
        for _, block in self.blocks(self.scan_rows()):
            for row in block.cpu().contiguous().numpy():
                found += hashlib.sha256(row.data).digest()[:16]
        return np.frombuffer(found, dtype=np.uint8).reshape(len(self), 16)

    def digest(self) -> str:
        """Return the SHA-256 of `row_digests()`, which identifies the features."""
        return digest_of(self.row_digests())

    def cameras_digest(self) -> str | None:
        """Return the SHA-256 of the cameras; None without any."""
        return cameras_digest(self.cams)

    def encoded_for(self, method: Any) -> Any:
        """Return what `method` has precomputed for this gallery: None unless it comes from an index."""
        return None

    def fitted_for(self, steps: Sequence[Any]) -> Sequence[Any] | None:
        """Return what feature steps found out about this gallery, if its features are what they gave.

        None, since they are to be applied yet, unless it comes from an index that was built of them.
        """
        return None

    def all_stored(self) -> tuple[Side, Any] | None:
        """Return the side that an index stores, and (N,) int64 which of its rows these are.

        None unless it is another, as it is of an index from which items were taken.
        """
        return None

    def let_go(self) -> None:
        """Say that the features are not needed for a while, where they can be read again."""

    def scan_rows(self) -> int:
        """Return how many rows to read at a time in a pass over the features."""
        return max(1, _SCAN_BYTES // (8 * max(1, self.dim)))


def digest_of(rows: NDArray[np.uint8]) -> str:
    """Return the `Side.digest()` of a side with these `row_digests()`."""
    return hashlib.sha256(rows.data).hexdigest()


def cameras_digest(cams: NDArray[Any] | None) -> str | None:
    """Return the `Side.cameras_digest()` of a side with these cameras."""
    return None if cams is None else hashlib.sha256(np.asarray(cams, dtype="<i8").tobytes()).hexdigest()
