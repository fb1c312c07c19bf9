"""Chains: any number of feature steps, and then one ranker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from .base import FeatureStep, Ranker


@dataclass(frozen=True)
class Chain:
    """Feature steps, each applied to the features that the one before it gave, and a ranker.

    Attributes:
        feature_steps: at least one.
        ranker: what makes the lists.
    """

    feature_steps: tuple[FeatureStep, ...]
    ranker: Ranker

    @property
    def name(self) -> str:
        """The names of its parts, such as `dba+k-reciprocal`."""
        return "+".join(part.name for part in (*self.feature_steps, self.ranker))

    def params(self) -> dict[str, Any]:
        """Return every parameter of every part, such as `dba.k`."""
        parts = part_names([*self.feature_steps, self.ranker])
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.params().items()}

    def notes(self, probes: int, gallery: int) -> list[str]:
        """Return what any part says of a set of that size."""
        return [note for part in (*self.feature_steps, self.ranker) for note in part.notes(probes, gallery)]

    @property
    def needs_cameras(self) -> bool:
        """Whether any part looks at cameras."""
        return any(part.needs_cameras for part in (*self.feature_steps, self.ranker))

    def depth(self, gallery: int) -> int:
        """As deep as the ranker's lists."""
        return self.ranker.depth(gallery)

    def reranked(self, gallery: int) -> int:
        """Everything: with other features every item may change place."""
        return gallery


def part_names(parts: list[Any]) -> dict[str, Any]:
    """Return the parts of a chain by name; the second `dba` is `dba-2`."""
    seen: Counter[str] = Counter()
    named = {}
    for part in parts:
        seen[part.name] += 1
        named[part.name if seen[part.name] == 1 else f"{part.name}-{seen[part.name]}"] = part
    return named
