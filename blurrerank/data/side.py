"""One side of the comparison: features with their labels, read by blocks.

Features stay as they came (an array, a tensor, or a dataset on disk) and are converted block by block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .labels import beyond_int64

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
            if labels is not None and labels.dtype.kind in "iu" and not beyond_int64(labels).any():
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


def digest_of(rows: NDArray[np.uint8]) -> str:
    """`Side.digest()` of the side whose `row_digests()` are `rows`."""
    return hashlib.sha256(rows.data).hexdigest()
