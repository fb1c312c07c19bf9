"""What a graph ranker computes for images, and what it is given about probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..data.candidates import Candidates
from .sparse_rows import SparseRows, stacked


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The encodings of images. A ranker that works online adds what it needs to encode a probe.

    Attributes:
        rows: the row of each of N images; None once they are inverted.
        inverted: for each column j, the gallery items with j in their row; None before.
        added: likewise, items that were added since.
        asking: the row of each image where it is a probe, if that is not the one it has in the gallery.
        columns: how many columns rows have, if not one for each image.
        entries: how many entries rows are cut to, the largest of each; None if they are whole.
    """

    rows: SparseRows | None = None
    inverted: SparseRows | None = None
    added: SparseRows | None = None
    asking: SparseRows | None = None
    columns: int | None = None
    entries: int | None = None

    @property
    def lists(self) -> list[SparseRows]:
        """The inverted lists of all items, to compare rows with."""
        return [lists for lists in (self.inverted, self.added) if lists is not None]

    def part(self, items: slice) -> Any:
        """Return what compares rows with some gallery items alone, numbered from the first of these."""
        inverted, added = (
            None if lists is None else lists.columns_within(items) for lists in (self.inverted, self.added)
        )
        return replace(self, inverted=inverted, added=added)

    def since(self, first: int) -> Any:
        """Return the encoding of the gallery items from `first` on, which were added, with `rows`."""
        assert self.inverted is not None
        total = len(self.inverted)
        found = {name: _part(part, first, total) for name, part in self._by_item().items()}
        if self.rows is None:
            none = self.inverted.rows(0, 0)
            found["rows"] = none if self.added is None else self.added.transposed(total).rows(first, total)
        return replace(self, inverted=None, added=None, **found)

    def followed_by(self, other: Encoding) -> Any:
        """Return the encoding of these items and further ones, before they are inverted."""
        theirs = other._by_item()
        return replace(self, **{name: _joined(part, theirs[name]) for name, part in self._by_item().items()})

    def _by_item(self) -> dict[str, Any]:
        """The attributes that have something for each item."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        shared = ("inverted", "added", "asking", "columns", "entries")
        return {name: part for name, part in parts.items() if name not in shared and part is not None}

    def cut_rows(self, entries: int | None) -> Any:
        """Return the same with the `entries` largest of each row, before they are inverted; None keeps all."""
        if entries is None:
            return self
        assert self.rows is not None
        return replace(self, rows=self.rows.largest(entries))

    def cut(self, rows: SparseRows) -> SparseRows:
        """Return rows of probes with as many entries as those of the images may have."""
        return rows if self.entries is None else rows.largest(self.entries)

    def invert(self, items: slice, *, keep_rows: bool = False) -> Encoding:
        """Return the same with the rows of the gallery `items` inverted, all rows dropped unless kept."""
        assert self.rows is not None
        width = len(self.rows) if self.columns is None else self.columns
        inverted = self.rows.rows(items.start, items.stop).transposed(width)
        return replace(self, rows=self.rows if keep_rows else None, asking=None, inverted=inverted)

    def to(self, device: torch.device) -> Any:
        """Return the same on `device`; what is there already is shared."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: part.to(device) if hasattr(part, "to") else part for name, part in parts.items()}
        return replace(self, **moved)


def _part(part: Any, start: int, stop: int) -> Any:
    return part.rows(start, stop) if isinstance(part, SparseRows) else part[start:stop]


def _joined(part: Any, other: Any) -> Any:
    return stacked([part, other]) if isinstance(part, SparseRows) else torch.cat([part, other])


@dataclass(frozen=True, kw_only=True)
class BlurredEncoding(Encoding):
    """The encoding of a gallery, with all that is needed to encode a probe by similarities to blurred items.

    Attributes:
        group: (G, B) int32 or int64: each item and the others it is blurred with, in ascending order.
        blur: (G, B) float32: T(i, j) of these over the norm of the sum, so that b(a, i) is the sum of
            blur[i] * c(a, group[i]).
        reach: (G,) float32: the similarity b that a probe must exceed to be among an item's k1 nearest; minus
            infinity where it need not.
        halves: r of each item, with weights 0.
        encodings: V of each item.
    """

    group: torch.Tensor
    blur: torch.Tensor
    reach: torch.Tensor
    halves: SparseRows
    encodings: SparseRows


@dataclass(frozen=True)
class Probes:
    """What is known of some probes.

    Attributes:
        cosine: (p, g) float32 cosine similarities to the gallery items that are scored.
        near: online, the nearest items of the whole gallery, as many as the ranker asks for.
        cosine_at: given (p, ...) int64 items of the whole gallery, the cosine similarities to these.
        lowest: (p,) float32, transductive, the similarity to the farthest of all images, where asked for.
        within: online, the nearest items of the probe's camera, where asked for; -1 and -inf pad.
        across: online, the nearest items of all other cameras, likewise.
    """

    cosine: torch.Tensor
    near: Candidates | None = None
    cosine_at: Callable[[torch.Tensor], torch.Tensor] | None = None
    lowest: torch.Tensor | None = None
    within: Candidates | None = None
    across: Candidates | None = None
