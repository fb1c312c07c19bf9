"""Looking at features without their identities: the graph of their images, and what follows from its lists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from ..compute.compute import Compute
from ..data.features import FeatureSet
from ..data.sharded import ShardedSet
from ..graph.find import find_graph
from ..graph.neighbour_graph import NeighbourGraph
from ..graph.neighbourhoods import EQUAL, Neighbourhoods, chance_curve, list_sizes, neighbourhoods
from ..graph.spread import ALL_EQUAL
from ..search.rows import UnitRows, evenly_spread
from ..spectral.transform import temperature
from .plans import images_plan
from .workspace import cameras_of, open_workspace

# Images that generated points are like, at most; and images whose lists give temperatures.
_SAMPLE, _LISTS = 2000, 50


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        near: the estimates.
        graph: the lists that they are of, without rows in memory; None if rows are shared by processes.
    """

    near: Neighbourhoods
    graph: NeighbourGraph | None


def look(
    data: FeatureSet,
    compute: Compute,
    *,
    together: bool,
    nearest: bool,
    by_camera: bool,
    wanted_by: str = "auto",
) -> Look:
    """Find the neighbours of images, and estimate how many images an identity has.

    Generated points, and the images that they are like, take up to 70 MB beside the budget at 2,048 dimensions.

    Args:
        data: the features.
        compute: how; progress is that of the search.
        together: whether the images are probes and gallery, or the gallery alone.
        nearest: whether to look at neighbours of all cameras.
        by_camera: whether to look at those within and across cameras apart.
        wanted_by: the method that asks.

    Raises:
        InputError: if there are no cameras and they are to be told apart.
        ParameterError: for a budget that is too small.
    """
    count = len(data.gallery) + (len(data.probe) if together else 0)
    plan = images_plan(data, count, compute)
    images = open_workspace(data, plan, together=together).rows
    cams = cameras_of(data, count, wanted_by) if by_camera else None
    sizes = list_sizes(nearest=nearest, by_camera=by_camera)
    graph = find_graph(images, sizes, cams=cams, progress=compute.progress)
    rows = _rows(images, torch.from_numpy(evenly_spread(count, _SAMPLE)))
    found = neighbourhoods(graph, chance_curve(rows, count))
    if len(rows) > 1 and 2 * float((rows - rows.mean(dim=0)).square().sum(dim=1).mean()) < ALL_EQUAL:
        found = replace(found.unclear(), why=EQUAL)
    if nearest:
        lists = graph.lists[evenly_spread(count, _LISTS)].long()
        near = _rows(images, lists.flatten()).view(*lists.shape, -1)
        found = replace(found, temperature=partial(temperature, near))
    if isinstance(data, ShardedSet):
        return Look(found, None)
    return Look(found, replace(graph, images=images.unread()))


def _rows(images: UnitRows, which: torch.Tensor) -> torch.Tensor:
    table, places = images.gather(which.to(images.device))
    return table[places]
