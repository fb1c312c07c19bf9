"""What an index holds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.side import LABELS, Side, Source
from ..errors import BlurrerankWarning, InputError
from ..graph.encoding import Encoding
from ..graph.neighbour_graph import NeighbourGraph
from ..methods import AnyMethod
from ..search.ann import ApproximateSearch


@dataclass(frozen=True, eq=False)
class Labels:
    """What an index records of each row beside its features; see `Side` for the fields."""

    digests: NDArray[np.uint8]
    ids: NDArray[Any] | None
    cams: NDArray[Any] | None
    names: NDArray[Any] | None
    tracks: NDArray[Any] | None = None
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, side: Side) -> Labels:
        """Those of a side."""
        return cls(side.row_digests(), side.ids, side.cams, side.names, side.tracks, side.texts)

    def at(self, rows: NDArray[Any] | slice) -> Labels:
        """Those of some rows."""
        parts = {name: getattr(self, name) for name in LABELS}
        chosen = {name: None if part is None else part[rows] for name, part in parts.items()}
        return Labels(self.digests[rows], **chosen, texts=self.texts)

    def without_unused_texts(self) -> Labels:
        """The same without the texts of identities that no row has; of cameras, steps may know more."""
        known = self.texts.get("ids")
        if not known or self.ids is None:
            return self
        used = set(np.unique(self.ids).tolist())
        texts = {number: text for number, text in known.items() if number in used}
        return replace(self, texts={**self.texts, "ids": texts})

    def joined(self, new: Labels, where: str, new_where: str) -> Labels:
        """These and those of further rows; messages call the two `where` and `new_where`.

        Raises:
            InputError: if only one of them has a kind of labels, or if all new rows are here already, with the
                same labels; if the features of some are, it warns.
        """
        for name in LABELS:
            before, after = getattr(self, name), getattr(new, name)
            if (before is None) != (after is None):
                has, lacks = (where, new_where) if after is None else (new_where, where)
                raise InputError(f"{has} has {name} and {lacks} has none: they cannot be joined")
        added = [row.tobytes() for row in new.digests]
        here: dict[bytes, set[tuple[Any, ...]]] = {digest: set() for digest in added}
        for row, digest in enumerate(map(bytes, self.digests)):
            if digest in here:
                here[digest].add(self._labels_at(row))
        if all(new._labels_at(row) in here[digest] for row, digest in enumerate(added)):
            raise InputError(f"every row of {new_where} is in {where} already: there is nothing to append")
        twice = sum(bool(here[digest]) for digest in added)
        if twice:
            repeated = f"the features of {twice} of {len(added)} rows of {new_where} are in {where} already"
            warnings.warn(f"{repeated}; they are in the index twice now", BlurrerankWarning, stacklevel=3)
        return self.followed_by(new)

    def _labels_at(self, row: int) -> tuple[Any, ...]:
        """What is known of a row beside its features."""
        parts = (getattr(self, name) for name in LABELS)
        return tuple(None if part is None else part[row] for part in parts)

    def followed_by(self, new: Labels) -> Labels:
        """These and those of further rows, which have the same kinds, and the texts of these too."""
        parts = {name: (getattr(self, name), getattr(new, name)) for name in LABELS}
        joined = {
            name: None if before is None else np.concatenate([before, after])
            for name, (before, after) in parts.items()
        }
        return Labels(np.concatenate([self.digests, new.digests]), **joined, texts=new.texts)


@dataclass(frozen=True, eq=False)
class Approximation:
    """How an index is searched, where not everything is.

    Attributes:
        search: what finds candidates.
        recall: the measured share of the exact lists that the neighbour lists have, for each kind of list.
        entries: how many entries rows that are compared by their products are cut to, if there are any.
    """

    search: ApproximateSearch
    recall: Mapping[str, float]
    entries: int | None = None

    def describe(self) -> str:
        """Return what it is and how good, as JSON."""
        about = {"kind": self.search.kind, "effort": self.search.effort, "recall": dict(self.recall)}
        return json.dumps(about | {"entries": self.entries})


@dataclass(frozen=True, eq=False)
class Changes:
    """What was added to an index that is searched approximately, and taken from it, since it was encoded.

    Attributes:
        features: (A, D) float32, L2-normalised, of the items that were added.
        labels: theirs.
        near: who is near them; items are numbered as they are stored, those that were added last.
        encoded: their encodings, with `rows`, one for each method of the index.
        removed: (R,) int64, ascending, the items that were taken from it, as they are stored.
        drift: how much of the rest a build would find differently.
    """

    features: torch.Tensor
    labels: Labels
    near: NeighbourGraph
    encoded: tuple[Encoding, ...]
    removed: torch.Tensor
    drift: Drift


@dataclass(frozen=True)
class Drift:
    """How far an index is from one that is built of the items it has now.

    Attributes:
        added: items that were added since it was encoded, and are there.
        removed: items that it was encoded with, and that were taken from it.
        stale: items in whose neighbour lists a build would find some of the first, or not find some of the
            second; at least so many.
        encoded: items that it was encoded with.
    """

    added: int
    removed: int
    stale: int
    encoded: int

    @classmethod
    def of(cls, gone: torch.Tensor, stale: int, encoded: int) -> Drift:
        """That of (N,) stored items, of which those that are `gone` were taken."""
        lost = int(gone[encoded:].sum())
        return cls(len(gone) - encoded - lost, int(gone[:encoded].sum()), stale, encoded)

    def __str__(self) -> str:
        left = max(1, self.encoded - self.removed)
        return (
            f"{self.added} items added and {self.removed} removed since it was encoded; at least "
            f"{self.stale / left:.2%} of the other neighbour lists are out of date"
        )


@dataclass(frozen=True)
class Stored:
    """What an index file holds, with what was added to it and taken from it.

    Attributes:
        features: (N, D) float32, L2-normalised, of all items that are stored.
        labels: theirs.
        digest: `Side.digest()` of the features as they came, of the items that are there.
        methods: what it was encoded for, the usual one first.
        near: who is near whom.
        encoded: what each of them made of it.
        fitted: what each feature step knows of it.
        sources: the files from which all of this is mapped.
        approximation: how it is searched, if not everything is.
        gone: (N,) bool, the items that were taken from it; None if none were.
        drift: how far it is from one that is built anew, if it was changed.
    """

    features: torch.Tensor
    labels: Labels
    digest: str
    methods: tuple[AnyMethod, ...]
    near: NeighbourGraph
    encoded: tuple[Encoding, ...]
    fitted: Sequence[Mapping[str, torch.Tensor]]
    sources: tuple[Source, ...]
    approximation: Approximation | None = None
    gone: torch.Tensor | None = None
    drift: Drift | None = None
