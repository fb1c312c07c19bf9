"""What a graph ranker computes for images, and what it is given about probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..data.candidates import Candidates
from .sparse_rows import SparseRows


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The encodings of images. A ranker that works online adds what it needs to encode a probe.

    Attributes:
        rows: the row of each of N images; None once they are inverted.
        inverted: for each image j, the gallery items with j in their row; None before.
    """

    rows: SparseRows | None = None
    inverted: SparseRows | None = None

    def invert(self, items: slice) -> Encoding:
        """Return the same with the rows of the gallery `items` inverted, and all other rows dropped."""
        assert self.rows is not None
        inverted = self.rows.rows(items.start, items.stop).transposed(len(self.rows))
        return replace(self, rows=None, inverted=inverted)

    def to(self, device: torch.device) -> Any:
        """Return the same on `device`; what is there already is shared."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: None if part is None else part.to(device) for name, part in parts.items()}
        return replace(self, **moved)


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
        lowest: (p,) float32, transductive, the similarity to the farthest of all images.
    """

    cosine: torch.Tensor
    near: Candidates | None = None
    cosine_at: Callable[[torch.Tensor], torch.Tensor] | None = None
    lowest: torch.Tensor | None = None
