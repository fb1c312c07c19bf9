"""`FeatureSet`: probe and gallery features with their labels, checked once, read by blocks.

Features stay as they came (an array, a tensor, or a dataset on disk) and are converted block by block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError

JUNK = -1
DISTRACTOR = 0

DEFAULT_MEMORY = 2 << 30
"""Budget for what is held in memory at a time, in bytes: a quarter for features as they are stored, three
eighths for the normalised gallery, half as much for its bfloat16 copy, an eighth for two batches of probes, and
another for working on them. Features that take all of their share leave some of the others' over."""

# Bytes read at a time, as float64, while checking or digesting.
_SCAN_BYTES = 4 << 20


class FeatureArray(Protocol):
    """What features must offer: a NumPy array, a tensor and an HDF5 dataset all do."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    @property
    def dtype(self) -> Any:
        """float16, float32 or float64, of NumPy or torch."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Rows as an array or a tensor."""


class Source(Protocol):
    """Where features lie that are read as they are needed."""

    def check(self) -> None:
        """See that they are what they were.

        Raises:
            InputError: if they were changed.
        """


@dataclass(frozen=True, eq=False)
class Side:
    """One side of the comparison, probe or gallery. Checked by the `FeatureSet` it enters.

    Attributes:
        features: (N, D) float16, float32 or float64, in memory or on disk.
        ids: (N,) integers, -1 junk, 0 distractor; or None.
        cams: (N,) integers, only compared for equality; or None.
        names: (N,) strings; or None.
        label: how messages call this side, such as `feats.h5::/probe`.
        first: the number that messages give row 0, where these rows are a part of a file's.
        sources: the files that features are mapped from, if they are.
    """

    unit: ClassVar[bool] = False
    """Whether the features are L2-normalised float32 rows that were checked before: those of an index are."""

    features: FeatureArray
    ids: NDArray[Any] | None = None
    cams: NDArray[Any] | None = None
    names: NDArray[Any] | None = None
    label: str = "features"
    first: int = 0
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        """Store integer labels as int64, so that nothing downstream asks which integer they were."""
        for name in ("ids", "cams"):
            labels = getattr(self, name)
            if labels is not None and labels.dtype.kind in "iu" and not _beyond(labels).any():
                object.__setattr__(self, name, labels.astype(np.int64))

    def __len__(self) -> int:
        return int(self.features.shape[0])

    @property
    def dim(self) -> int:
        """D, the number of dimensions of a feature vector."""
        return int(self.features.shape[1])

    def check(self) -> None:
        """See that features are what they were.

        Raises:
            InputError: if the file that they are mapped from was changed.
        """
        for source in self.sources:
            source.check()

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop` in their stored dtype, (stop - start, D).

        Raises:
            InputError: if the file that they lie in was changed.
        """
        self.check()
        rows = self.features[start:stop]
        if isinstance(rows, torch.Tensor):
            return rows.detach()
        native = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("="))
        found = torch.from_numpy(native if native.flags.writeable else native.copy())
        self.check()
        return found

    def blocks(self, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """All rows in order, `rows` at a time, each block with the index of its first row."""
        for start in range(0, len(self), rows):
            yield start, self.block(start, min(start + rows, len(self)))

    def row_digests(self) -> NDArray[np.uint8]:
        """(N, 16) uint8: the start of the SHA-256 of each row's bytes."""
        found = bytearray()
        for _, block in self.blocks(self.scan_rows()):
            for row in block.cpu().contiguous().numpy():
                found += hashlib.sha256(row.data).digest()[:16]
        return np.frombuffer(found, dtype=np.uint8).reshape(len(self), 16)

    def digest(self) -> str:
        """SHA-256 over the `row_digests()`: which features these are."""
        return digest_of(self.row_digests())

    def encoded_for(self, method: Any) -> Any:
        """What a `GalleryMethod` knows of this gallery already: nothing, unless it is of an index."""
        return None

    def scan_rows(self) -> int:
        """How many rows to read at a time in a pass that only looks."""
        return max(1, _SCAN_BYTES // (8 * max(1, self.dim)))


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Probe and gallery, validated: whoever holds one need not check again.

    Raises:
        InputError: naming every problem at once, with the side and the first rows concerned.
    """

    probe: Side
    gallery: Side
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse anything that later stages would have to check."""
        problems = find_problems(self.probe, self.gallery)
        if problems:
            raise InputError(problems)

    def __repr__(self) -> str:
        labels = [name for name in ("ids", "cams", "names") if getattr(self.gallery, name) is not None]
        return (
            f"FeatureSet({len(self.probe)} probes x {len(self.gallery)} gallery x {self.dim}, "
            f"{self.gallery.features.dtype}, with {', '.join(labels) or 'no labels'})"
        )

    @classmethod
    def from_arrays(
        cls,
        probe: ArrayLike | torch.Tensor,
        gallery: ArrayLike | torch.Tensor,
        *,
        probe_ids: ArrayLike | None = None,
        gallery_ids: ArrayLike | None = None,
        probe_cams: ArrayLike | None = None,
        gallery_cams: ArrayLike | None = None,
        probe_names: ArrayLike | None = None,
        gallery_names: ArrayLike | None = None,
    ) -> FeatureSet:
        """Build from arrays or tensors; nothing is copied where that can be helped.

        Args:
            probe: (P, D) float16, float32 or float64.
            gallery: (G, D), the same dimension.
            probe_ids: (P,) integers, likewise `gallery_ids` (G,), and the cameras.
            gallery_ids: see `probe_ids`.
            probe_cams: see `probe_ids`.
            gallery_cams: see `probe_ids`.
            probe_names: (P,) strings, likewise `gallery_names`.
            gallery_names: see `probe_names`.

        Raises:
            InputError: see the class.

        >>> probe, gallery = np.eye(2, 3), np.eye(3)
        >>> FeatureSet.from_arrays(probe, gallery, probe_ids=[1, 2], gallery_ids=[1, 2, 0])
        FeatureSet(2 probes x 3 gallery x 3, float64, with ids)
        >>> FeatureSet.from_arrays(probe, gallery, probe_ids=[1, 2.5])
        Traceback (most recent call last):
        blurrerank.errors.InputError: probe/ids has 2.5 in row 1: expected integers
        """
        return cls(
            Side(
                _features(probe), _labels(probe_ids), _labels(probe_cams), _labels(probe_names), label="probe"
            ),
            Side(
                _features(gallery),
                _labels(gallery_ids),
                _labels(gallery_cams),
                _labels(gallery_names),
                label="gallery",
            ),
        )

    @property
    def dim(self) -> int:
        """D, the number of dimensions both sides share."""
        return self.probe.dim

    @property
    def has_ids(self) -> bool:
        """Whether both sides carry identities, so that a ranking can be measured."""
        return self.probe.ids is not None and self.gallery.ids is not None

    @property
    def has_cams(self) -> bool:
        """Whether both sides carry cameras."""
        return self.probe.cams is not None and self.gallery.cams is not None

    def lacking(self, labels: str) -> str:
        """Which side has no `ids` or `cams`, in words; for a set that lacks them on one side at least."""
        word = {"ids": "ids", "cams": "cameras"}[labels]
        probe, gallery = (getattr(side, labels) is None for side in (self.probe, self.gallery))
        if probe and gallery:
            return f"there are no {word}"
        return f"the probes have no {word}" if probe else f"the gallery has no {word}"

    def check(self) -> None:
        """See that the features of both sides are what they were; see `Side.check`."""
        self.probe.check()
        self.gallery.check()

    def digest(self) -> str:
        """SHA-256 of both sides' digests: what a ranking was made from."""
        return hashlib.sha256(f"{self.probe.digest()} {self.gallery.digest()}".encode()).hexdigest()

    def labels_digest(self) -> str:
        """SHA-256 over ids and cameras of both sides: what a measurement was made from."""
        digest = hashlib.sha256()
        for labels in (self.probe.ids, self.probe.cams, self.gallery.ids, self.gallery.cams):
            digest.update(b"none" if labels is None else np.asarray(labels, dtype="<i8").tobytes())
        return digest.hexdigest()


def digest_of(rows: NDArray[np.uint8]) -> str:
    """`Side.digest()` of the side whose `row_digests()` are `rows`."""
    return hashlib.sha256(rows.data).hexdigest()


def find_problems(probe: Side | None, gallery: Side | None) -> list[str]:
    """Everything that keeps two sides from being a `FeatureSet`, one line each; empty when nothing does."""
    sides = [side for side in (probe, gallery) if side is not None]
    problems = [problem for side in sides for problem in _side_problems(side)]
    flat = [side for side in sides if len(side.features.shape) == 2]
    if len({side.dim for side in flat}) == 2:
        dims = " and ".join(
            f"{side.label} has {side.dim}{' dimensions' if side is probe else ''}" for side in flat
        )
        problems.append(f"{dims}: both must come from the same model")
    return problems


def _side_problems(side: Side) -> list[str]:
    if side.unit:
        return []
    problems = label_problems(side)
    where, shape = f"{side.label}/features", tuple(side.features.shape)
    if len(shape) != 2:
        problems.insert(0, f"{where} has shape {shape}: expected (rows, dimensions)")
    elif 0 in shape:
        problems.insert(0, f"{where} is empty, shape {shape}: at least one row and one dimension are needed")
    elif not _is_float(side.features.dtype):
        hint = " (astype('float32') makes it so)" if "int" in str(side.features.dtype) else ""
        problems.insert(0, f"{where} is {side.features.dtype}: expected float16, float32 or float64{hint}")
    else:
        problems[:0] = _value_problems(side)
    return problems


def label_problems(side: Side) -> list[str]:
    """What is wrong with the labels of a side, one line each."""
    return list(_label_problems(side))


def _label_problems(side: Side) -> Iterator[str]:
    rows = side.features.shape[0] if len(side.features.shape) else 0
    for name, kinds, expected in (
        ("ids", "iu", "integers"),
        ("cams", "iu", "integers"),
        ("names", "OUT", "strings"),
    ):
        labels = getattr(side, name)
        if labels is None:
            continue
        if labels.shape != (rows,):
            hint = " (reshape(-1) makes it so)" if labels.size == rows else ""
            yield f"{side.label}/{name} has shape {labels.shape}: expected ({rows},), one for each row{hint}"
        elif labels.dtype.kind == "f" and kinds == "iu" and (labels % 1 != 0).any():
            row = int(np.argmax(labels % 1 != 0))
            yield f"{side.label}/{name} has {labels[row]} in row {row}: expected integers"
        elif labels.dtype.kind not in kinds:
            hints = {"f": " (astype('int64') makes them so)"} | dict.fromkeys("OSU", " (number them from 1)")
            hint = hints.get(labels.dtype.kind, "")
            what = "text" if kinds == "iu" and labels.dtype.kind in "OSU" else labels.dtype
            yield f"{side.label}/{name} is {what}: expected {expected}{hint}"
        elif name != "names" and _beyond(labels).any():
            row = int(np.argmax(_beyond(labels)))
            yield f"{side.label}/{name} has {labels[row]} in row {row}: expected what fits int64"
        elif name == "ids" and (labels < JUNK).any():
            row = int(np.argmax(labels < JUNK))
            yield (
                f"{side.label}/ids has {labels[row]} in row {row}: expected -1 (junk), 0 (distractor) or more"
            )
        elif name == "names" and not all(map(_is_text, labels)):
            row = next(row for row, label in enumerate(labels) if not _is_text(label))
            what = "a string" if not isinstance(labels[row], str) else "text that utf-8 can hold, without NUL"
            yield f"{side.label}/names has {labels[row]!r} in row {row}: expected {what}"


def _beyond(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Which numbers are too large for int64; only unsigned ones can be."""
    return labels > np.iinfo(np.int64).max if labels.dtype.kind == "u" else np.zeros(labels.shape, bool)


def _is_text(label: Any) -> bool:
    """Whether it is a string that files can hold."""
    try:
        return isinstance(label, str) and "\0" not in label and bool(label.encode() or True)
    except UnicodeEncodeError:
        return False


def _value_problems(side: Side) -> Iterator[str]:
    """One pass over the features for values that have no direction."""
    not_finite: list[int] = []
    zero: list[int] = []
    for start, block in side.blocks(side.scan_rows()):
        norms = torch.linalg.vector_norm(block.to(torch.float32), dim=1)
        # A float32 norm that overflows or vanishes is suspicious, not guilty: look at the values themselves.
        suspects = torch.nonzero(~(torch.isfinite(norms) & (norms > 0))).flatten()
        if len(suspects):
            rows = block[suspects]
            finite = torch.isfinite(rows).all(dim=1)
            nonzero = (rows != 0).any(dim=1)
            not_finite += (side.first + start + suspects[~finite]).tolist()
            zero += (side.first + start + suspects[finite & ~nonzero]).tolist()
    where = f"{side.label}/features"
    if not_finite:
        yield f"{where} has NaN or infinity in {_rows(not_finite)}: mend or remove them"
    if zero:
        yield f"{where} is all zero in {_rows(zero)}: such a row has no direction; remove it"


def _rows(rows: list[int], show: int = 5) -> str:
    listed = ", ".join(map(str, rows[:show])) + (", ..." if len(rows) > show else "")
    return f"row {listed}" if len(rows) == 1 else f"{len(rows)} rows ({listed})"


def _is_float(dtype: Any) -> bool:
    if isinstance(dtype, torch.dtype):
        return dtype in (torch.float16, torch.float32, torch.float64)
    stored = np.dtype(dtype)
    return bool(stored.kind == "f" and stored.itemsize <= 8)


def _features(values: ArrayLike | torch.Tensor) -> FeatureArray:
    return values if isinstance(values, torch.Tensor) else np.asarray(values)


def _labels(values: ArrayLike | None) -> NDArray[Any] | None:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return None if values is None else np.asarray(values)
