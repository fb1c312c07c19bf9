"""`SimilaritySet`: similarities or distances of images in the place of features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, ParameterError
from .arrays import as_array
from .features import FeatureSet, labels_of
from .side import Side, Source
from .validation import label_problems

KINDS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "similarity": lambda values: values,
    "distance": lambda values: 1 - values.square() / 2,
    "squared-distance": lambda values: 1 - values / 2,
    "cosine-distance": lambda values: 1 - values,
}
"""What a matrix can hold -> the cosine similarity that it is of unit vectors."""

ROUNDED = 1e-3
"""Distances may be as far below 0, relative to the largest, and similarities above 1, by rounding."""

_SCAN_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class Matrix:
    """Similarities of some images, the rows, to others, the columns; converted when they are read.

    Attributes:
        values: (n, m) numbers, an array or a tensor, in memory or mapped.
        kind: a name of `KINDS`.
        label: its name in messages.
    """

    values: Any
    kind: str = "similarity"
    label: str = "similarities"

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return int(self.values.shape[0]), int(self.values.shape[1])

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return the similarities of rows `start:stop`, (stop - start, m) float32."""
        return self._converted(self.values[start:stop])

    def columns(self, start: int, stop: int) -> torch.Tensor:
        """Return the similarities of columns `start:stop`, (stop - start, n) float32."""
        return self._converted(self.values[:, start:stop]).T.contiguous()

    def at(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the similarities at places that are broadcast against each other, float32."""
        if isinstance(self.values, torch.Tensor):
            device = self.values.device
            return self._converted(self.values[rows.to(device), columns.to(device)])
        return self._converted(self.values[rows.cpu().numpy(), columns.cpu().numpy()])

    def blocks(self) -> Iterator[tuple[int, Any]]:
        """Yield all rows as they are stored, some at a time, each with the index of the first."""
        step = max(1, _SCAN_BYTES // (8 * max(1, self.shape[1])))
        for start in range(0, self.shape[0], step):
            yield start, self.values[start : start + step]

    def digest(self) -> bytes:
        """Return the SHA-256 of kind and values."""
        found = hashlib.sha256(self.kind.encode())
        for _, rows in self.blocks():
            found.update(np.ascontiguousarray(_as_array(rows)).data)
        return found.digest()

    def _converted(self, values: Any) -> torch.Tensor:
        found = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values))
        return KINDS[self.kind](found.detach().double()).float()


@dataclass(frozen=True, eq=False)
class SimilaritySet(FeatureSet):
    """Similarities of probes and gallery items, with their labels, validated on construction.

    It takes the place of a `FeatureSet` in `rerank` and `evaluate`, for methods that compare images by
    similarities alone. Both sides have features of no dimensions.

    Attributes:
        between: of probes, the rows, and gallery items.
        among_probes: of the probes; None if unknown.
        among_gallery: of the gallery items; None if unknown.
        largest: the largest similarity in any of them.

    Raises:
        InputError: listing all problems at once.
    """

    between: Matrix = field(kw_only=True)
    among_probes: Matrix | None = field(kw_only=True, default=None)
    among_gallery: Matrix | None = field(kw_only=True, default=None)
    largest: float = field(init=False, default=0.0)

    def _problems(self) -> list[str]:
        """What is wrong with labels and matrices, one line each."""
        problems = [line for side in (self.probe, self.gallery) for line in label_problems(side)]
        probes, items = len(self.probe), len(self.gallery)
        for matrix, shape, square in (
            (self.between, (probes, items), False),
            (self.among_probes, (probes, probes), True),
            (self.among_gallery, (items, items), True),
        ):
            if matrix is not None:
                largest = _check(matrix, shape, problems, square=square)
                object.__setattr__(self, "largest", max(self.largest, largest))
        return problems

    def __repr__(self) -> str:
        among = [name for name in ("probes", "gallery") if getattr(self, f"among_{name}") is not None]
        more = f", also among {' and '.join(among)}" if among else ""
        return f"SimilaritySet({len(self.probe)} probes x {len(self.gallery)} gallery{more})"

    @classmethod
    def from_matrices(
        cls,
        between: ArrayLike | torch.Tensor | Matrix,
        *,
        among_probes: ArrayLike | torch.Tensor | Matrix | None = None,
        among_gallery: ArrayLike | torch.Tensor | Matrix | None = None,
        kind: str = "similarity",
        provenance: Mapping[str, Any] | None = None,
        sources: tuple[Source, ...] = (),
        **labels: ArrayLike | None,
    ) -> SimilaritySet:
        """Build a set from arrays or tensors, which are not copied.

        Args:
            between: (P, G) of any float or integer type, probes by gallery items.
            among_probes: (P, P), which methods need that look at all probes together.
            among_gallery: (G, G), which all methods but `cosine` need.
            kind: `similarity`, larger is nearer, at most 1 for graph rankers; `distance`, Euclidean;
                `squared-distance`; or `cosine-distance`, 1 - cosine.
            provenance: where they came from.
            sources: the files that they are mapped from.
            **labels: `probe_ids`, `gallery_ids`, `probe_cams`, `gallery_cams`, `probe_names`, `gallery_names`,
                as in `FeatureSet.from_arrays`.

        Raises:
            InputError: see the class.
            ParameterError: for an unknown kind or label.

        Examples:
            >>> SimilaritySet.from_matrices([[0.9, 0.1]], probe_ids=[1], gallery_ids=[1, 2])
            SimilaritySet(1 probes x 2 gallery)
        """
        if kind not in KINDS:
            raise ParameterError(f"kind {kind!r} is not known: use {' or '.join(KINDS)}")
        found = _matrix("between", between, kind)
        assert found is not None
        sides = []
        for name, count in zip(("probe", "gallery"), found.shape, strict=True):
            mine: dict[str, Any] = {
                part: labels_of(labels.pop(f"{name}_{part}", None)) for part in ("ids", "cams", "names")
            }
            sides.append(Side(np.empty((count, 0), np.float32), **mine, label=name, sources=sources))
        if labels:
            raise ParameterError(f"{next(iter(labels))} is not a label: use probe_ids, gallery_cams and so on")
        probe, gallery = sides
        return cls(
            probe,
            gallery,
            provenance or {},
            between=found,
            among_probes=_matrix("among_probes", among_probes, kind),
            among_gallery=_matrix("among_gallery", among_gallery, kind),
        )

    def digest(self) -> str:
        """Return the SHA-256 of all matrices, which identifies what a ranking was made from."""
        whole = hashlib.sha256()
        for matrix in (self.between, self.among_probes, self.among_gallery):
            whole.update(b"none" if matrix is None else matrix.digest())
        return whole.hexdigest()


def _matrix(name: str, values: ArrayLike | torch.Tensor | Matrix | None, kind: str) -> Matrix | None:
    if isinstance(values, Matrix):
        return Matrix(_array(values.label, values.values), kind, values.label)
    return None if values is None else Matrix(_array(name, values), kind, name)


def _array(name: str, values: ArrayLike | torch.Tensor) -> Any:
    found = as_array(values, name)
    if isinstance(found, torch.Tensor) and found.dtype == torch.bfloat16:
        found = found.float()
    if len(found.shape) != 2 or 0 in found.shape:
        raise InputError(f"{name} has shape {tuple(found.shape)}: expected a matrix that is not empty")
    if np.dtype(str(found.dtype).removeprefix("torch.")).kind not in "iuf":
        raise InputError(f"{name} is {found.dtype}: expected numbers")
    return found


def _as_array(rows: Any) -> NDArray[Any]:
    return rows.detach().cpu().numpy() if isinstance(rows, torch.Tensor) else np.asarray(rows)


def _check(matrix: Matrix, shape: tuple[int, int], problems: list[str], *, square: bool) -> float:
    """Add what is wrong with a matrix; return its largest similarity. `square` are those among one side."""
    name = matrix.label
    if matrix.shape != shape:
        has, wanted = (" x ".join(map(str, one)) for one in (matrix.shape, shape))
        problems.append(f"{name} is {has}, but the labels and other matrices imply {wanted}")
        return 0.0
    low, high, total, own = np.inf, -np.inf, 0.0, 0.0
    for start, rows in matrix.blocks():
        values = _as_array(rows)
        wrong = ~np.isfinite(values)
        if wrong.any():
            row, column = (int(place[0]) for place in np.nonzero(wrong))
            problems.append(
                f"{name} is {values[row, column]} at row {start + row}, column {column}: expected finite values"
            )
            return 0.0
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        total += float(values.sum(dtype=np.float64))
        own += float(values.diagonal(start).sum(dtype=np.float64)) if square else 0.0
    distances = matrix.kind != "similarity"
    if distances and low < -ROUNDED * max(1.0, abs(low), abs(high)):
        problems.append(f"{name} has values below 0, down to {low:.4g}, so it holds no distances")
    elif square and shape[0] > 1:
        nearer = own / shape[0] - total / (shape[0] * shape[1])
        if distances and nearer > 0:
            problems.append(
                f"{name} holds similarities, since an image is farther from itself than from others: say so, "
                "with kind (--matrix), as similarity"
            )
        elif not distances and nearer < 0:
            problems.append(
                f"{name} holds distances, since an image is less similar to itself than to others: say so, "
                "with kind (--matrix), as distance"
            )
    return float(KINDS[matrix.kind](torch.tensor(low if distances else high, dtype=torch.float64)))
