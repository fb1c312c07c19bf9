"""Affinity maps: the similarities among a probe and the items of its lists, small enough for a page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..studies.affinities import affinities
from ..studies.before_after import BeforeAfter

MOST = 5000
"""Maximum number of maps on a page."""
ITEMS = 20
"""Maximum number of gallery items on a map."""


@dataclass(frozen=True)
class Maps:
    """Affinity maps of some probes.

    Attributes:
        count: number of maps.
        levels: (T,) uint8, the upper triangle of each map, row by row and one map after another; without the
            diagonal, on which everything is like itself.
        starts: (P,) int32, where the map of each probe begins in `levels`; -1 for a probe without one.
        low: the cosine similarity that level 0 stands for.
        high: that of level 255.
    """

    count: int
    levels: NDArray[np.uint8]
    starts: NDArray[np.int32]
    low: float
    high: float


def make_maps(comparison: BeforeAfter, *, device: str = "auto", memory: int | None = None) -> Maps:
    """Make the maps of the probes that changed most.

    A map has the probe, the shown items of the ranking in their order, and those that left the shown list.

    Args:
        comparison: what is shown.
        device: where similarities are computed.
        memory: budget for working memory in bytes.
    """
    probes = np.sort(comparison.by_change()[:MOST])
    members = np.full((len(probes), ITEMS), -1, dtype=np.int64)
    counts = np.zeros(len(probes), dtype=np.int64)
    shown = comparison.after.shape[1]
    for row, probe in enumerate(probes.tolist()):
        after, before = comparison.after[probe], comparison.before[probe]
        ranks = comparison.ranks_after[probe]
        left = (before >= 0) & ((ranks < 0) | (ranks > shown))
        some = np.concatenate([after[after >= 0], before[left]])[:ITEMS]
        members[row, : len(some)], counts[row] = some, len(some)
    found = affinities(comparison.data, probes, members, device=device, memory=memory)
    # The script of the page finds who is on a map by the same rule.
    triangles = [
        similarities[np.triu_indices(1 + count, 1)] for similarities, count in zip(found, counts, strict=True)
    ]
    values = np.concatenate([np.zeros(0, np.float32), *triangles])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    starts = np.full(len(comparison.data.probe), -1, dtype=np.int32)
    starts[probes] = np.cumsum([0, *map(len, triangles)])[:-1]
    levels = np.rint((values - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    return Maps(len(probes), levels, starts, low, high)
