"""How many images an identity has, estimated from neighbour lists alone.

Let m(k) be the share of the k nearest neighbours of an image that count it among their own k nearest, averaged
over images. As long as lists fill up with images of the same identity m(k) rises fast, and from then on as
slowly as among points without any groups. With m0(k) of generated points of the same mean and covariance, a
cubic in log k, and D = m - m0, the size is the k at which D bends most, on a scale of octaves:

    bend(k) = 2 D(k) - D(k / 2) - D(2 k),    bend(1) = D(1) - D(2)

with D(k / 2) interpolated for odd k. To compare with what data without groups give is the idea of the gap
statistic (Tibshirani, Walther, Hastie, "Estimating the number of clusters in a data set via the gap statistic",
2001); the rest is this project's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..search.rows import blocks_of, unit_rows
from .neighbour_graph import ListSizes, NeighbourGraph
from .sparse_rows import CHUNK_BYTES

KINDS = {"nearest": "all cameras", "within": "within cameras", "across": "across cameras"}
"""Of which cameras neighbours are looked at, and what a figure calls that."""

EQUAL = "features are equal except for rounding"
"""Why the neighbours of some images mean nothing."""

LONGEST, LONGEST_BY_CAMERA = 50, 36
"""How many neighbours are looked at, of all cameras or by camera: sizes below half of that can be told."""

# Clouds of generated points, and points in each at most: more clouds instead of larger ones, which cost more.
# Then the degree of the curve that takes their noise away.
_CLOUDS, _POINTS, _CUBIC = 4, 1000, 3
# A size is sure from this bend on, and from so many times what chance does to a mean over all images.
_BEND, _ERRORS = 0.05, 1.5


@dataclass(frozen=True)
class SizeEstimate:
    """How many other images of its identity an image has, of some kind of cameras.

    Attributes:
        size: the estimate, up to half of the neighbours looked at; 0 if lists are too short to tell.
        bend: how much D bends there.
        needed: from which bend on the estimate is sure; 4, which none reaches, where features cannot tell.
        curve: m(k) for k = 1, 2, ...
        chance: m0(k) for the same k.
    """

    size: int
    bend: float
    needed: float
    curve: tuple[float, ...] = field(repr=False)
    chance: tuple[float, ...] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {**asdict(self), "sure": self.sure}

    @property
    def sure(self) -> bool:
        """Whether the curve bends enough there, and not only where the lists end."""
        return self.bend >= self.needed and 0 < self.size < len(self.curve) // 2

    def __str__(self) -> str:
        return self.words()

    def words(self, where: str = "") -> str:
        """Return the estimate, with words such as "within a camera" that say where."""
        if self.sure:
            return f"about {self.size}{where}"
        return f"unclear{where} (perhaps {self.size})" if self.size else f"unclear{where}"


@dataclass(frozen=True)
class Neighbourhoods:
    """Estimated sizes, of images whose lists were looked at.

    Attributes:
        images: how many they are.
        nearest: others of an image's identity, whatever their cameras.
        within: those of its own camera.
        across: those of all other cameras.
        steps: names of the feature steps that came before.
        why: why neighbours tell nothing, in words; empty if they may.
        temperature: given a number of images, the temperature sigma at which a row of transition probabilities
            within a neighbourhood spreads over as many.
    """

    images: int
    nearest: SizeEstimate | None = None
    within: SizeEstimate | None = None
    across: SizeEstimate | None = None
    steps: tuple[str, ...] = ()
    why: str = ""
    temperature: Callable[[float], float] | None = field(default=None, repr=False, compare=False)

    def size(self, kind: str) -> int:
        """Return the size of a kind, `nearest`, `within` or `across`; 0 if it is not sure."""
        found: SizeEstimate | None = getattr(self, kind)
        return found.size if found is not None and found.sure else 0

    def summary(self) -> dict[str, Any]:
        """Return the estimates there are, ready for JSON."""
        found = {kind: one.summary() for kind, one in self.estimates().items()}
        return {"images": self.images, "why": self.why, "steps": list(self.steps), **found}

    def __str__(self) -> str:
        if self.why:
            return f"unclear, since {self.why}"
        where = {"nearest": " in all", "within": " within a camera", "across": " across cameras"}
        return ", ".join(found.words(where[kind]) for kind, found in self.estimates().items())

    def unclear(self) -> Neighbourhoods:
        """Return the same estimates, none of them sure."""
        return replace(self, **{kind: replace(found, needed=4.0) for kind, found in self.estimates().items()})  # type: ignore[arg-type]

    def estimates(self) -> dict[str, SizeEstimate]:
        """Return the estimates there are, by kind."""
        every = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: found for kind, found in every.items() if found is not None}


def list_sizes(*, nearest: bool, by_camera: bool) -> ListSizes:
    """Return how long lists must be that sizes of those kinds are estimated from."""
    camera = LONGEST_BY_CAMERA if by_camera else 0
    # The farthest too, as the graph may serve a ranker next; none of those by camera that are chosen needs it.
    return ListSizes(LONGEST if nearest else 0, camera, camera, farthest=nearest)


def neighbourhoods(graph: NeighbourGraph, chance: NDArray[np.float64]) -> Neighbourhoods:
    """Estimate the sizes of the kinds that a graph has lists of.

    Args:
        graph: of the images.
        chance: (K,) float64, m0(k), such as `chance_curve` gives.
    """
    lists = {
        "nearest": graph.lists[:, 1:],
        "within": None if graph.within is None else graph.within.items,
        "across": None if graph.across is None else graph.across.items,
    }
    found = {
        kind: size_estimate(reciprocity(items), chance, len(graph))
        for kind, items in lists.items()
        if items is not None and items.shape[1]
    }
    return Neighbourhoods(len(graph), found.get("nearest"), found.get("within"), found.get("across"))


def size_estimate(curve: NDArray[np.float64], chance: NDArray[np.float64], images: int) -> SizeEstimate:
    """Return where a curve of m(k) bends most against m0(k).

    Args:
        curve: (K,) float64, m(k) for k = 1 .. K.
        chance: (K',) float64, m0(k).
        images: how many images the curve is a mean over.
    """
    length = min(len(curve), len(chance))
    above = np.concatenate([[0.0], curve[:length] - chance[:length]])
    bends = np.array(
        [
            above[1] - above[2]
            if k == 1
            else 2 * above[k] - (above[k // 2] + above[-(-k // 2)]) / 2 - above[2 * k]
            for k in range(1, length // 2 + 1)
        ]
    )
    best = int(bends.argmax()) if len(bends) else -1
    return SizeEstimate(
        best + 1,
        float(bends[best]) if len(bends) else 0.0,
        max(_BEND, _ERRORS / math.sqrt(max(1, images))),
        tuple(curve[:length].tolist()),
        tuple(chance[:length].tolist()),
    )


def chance_curve(rows: torch.Tensor, images: int) -> NDArray[np.float64]:
    """Return m0(k) of points without groups, with the mean and covariance of images.

    Args:
        rows: (n, D) float32, some of the images.
        images: how many there are in all; of fewer there are as many points.

    Returns:
        (K,) float64, k = 1 .. K.
    """
    count = min(images, _POINTS)
    found = []
    for cloud in range(_CLOUDS):
        points = unit_rows(torch.from_numpy(like_images(rows, count, cloud)))
        similarities = (points @ points.T).fill_diagonal_(-torch.inf)
        found.append(reciprocity(similarities.topk(min(LONGEST, count - 1), dim=1).indices))
    return smooth(np.mean(found, axis=0))


def smooth(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cubic in log k that is nearest to a curve of (K,) float64, without its noise."""
    octaves = np.log2(np.arange(1, len(curve) + 1))
    if len(curve) <= _CUBIC:
        return curve
    return np.asarray(np.polyval(np.polyfit(octaves, curve, _CUBIC), octaves), dtype=np.float64)


def reciprocity(lists: torch.Tensor) -> NDArray[np.float64]:
    """Return m(k) for every k for which some image has k neighbours.

    Args:
        lists: (N, K) int32 or int64, the others that each image is listed with, nearest first; -1 pads.

    Returns:
        (K',) float64, K' at most K.
    """
    count, longest = lists.shape
    if not longest:
        return np.zeros(0)
    mutual, listed = (torch.zeros(longest, dtype=torch.int64, device=lists.device) for _ in range(2))
    places = torch.arange(longest, device=lists.device)
    step = max(1, CHUNK_BYTES[lists.device.type] // (16 * longest**2))
    for start, stop in blocks_of(count, step):
        items = lists[start:stop].long()
        there = items >= 0
        own = torch.arange(start, stop, device=lists.device).view(-1, 1, 1)
        back = lists[items.clamp_min(0)] == own
        # The larger of the places that two images have in each other's lists.
        place = torch.maximum(back.byte().argmax(dim=2), places)
        mutual += torch.bincount(place[back.any(dim=2) & there], minlength=longest)
        listed += there.sum(dim=0)
    some = int((listed > 0).sum())
    share = mutual.cumsum(0).double() / listed.cumsum(0).clamp_min(1).double()
    return share[:some].cpu().numpy()


def like_images(rows: torch.Tensor, count: int, cloud: int) -> NDArray[np.float32]:
    """Return points that have the mean and covariance of images, and no groups.

    Args:
        rows: (n, D) float32, some of the images.
        count: how many points.
        cloud: which of several sets of points.

    Returns:
        (count, D) float32, the same for the same rows.
    """
    known = rows.cpu().numpy()
    mean = known.mean(axis=0)
    spread = (known - mean) / math.sqrt(len(known))
    drawn = np.random.default_rng(cloud)
    # Sums of deviations with normal weights have their covariance.
    parts = [
        drawn.standard_normal((stop - start, len(known)), np.float32) @ spread + mean
        for start, stop in blocks_of(count, 256)
    ]
    return np.concatenate(parts)
