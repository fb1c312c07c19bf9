"""The neighbour graph of features, for everybody who wants to build on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..compute.compute import Compute, Progress
from ..data.arrays import as_array
from ..data.features import FeatureSet
from ..data.side import Side
from ..data.validation import find_problems
from ..errors import InputError, ParameterError
from ..graph.find import find_graph
from ..graph.neighbour_graph import ListSizes, NeighbourGraph
from ..search.plan import Plan


def neighbour_graph(
    data: FeatureSet | Side | ArrayLike | torch.Tensor,
    nearest: int = 50,
    *,
    within: int = 0,
    across: int = 0,
    device: str = "auto",
    memory: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
) -> NeighbourGraph:
    """Find the nearest others of every image by cosine similarity, exactly.

    Args:
        data: a `FeatureSet`, whose images are its probes and then its gallery; or the images of one side, or
            (N, D) features, float16, float32 or float64.
        nearest: how many others each image is listed with, 0 or more; as many as there are, if that is less.
        within: likewise of the image's own camera, which needs cameras.
        across: likewise of all other cameras.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget for working memory in bytes, beside the lists; by default 2 GiB.
        precision: of the products that candidates are found by; the lists are the same.
        progress: called with (images' worth of work done, N).

    Returns:
        The graph. `rerank(..., graph=...)` takes that of a `FeatureSet` for methods that look at probes and
        gallery together, and that of its gallery for methods that work online.

    Raises:
        InputError: for features that cannot be compared, or cameras that are asked for and not there.
        ParameterError: for a negative number of neighbours.
        BlurrerankError: for a device that is not available.
    """
    for name, count in (("nearest", nearest), ("within", within), ("across", across)):
        if isinstance(count, bool) or not hasattr(count, "__index__") or count < 0:
            raise ParameterError(f"{name} must be a whole number of at least 0, not {count!r}")
    if isinstance(data, FeatureSet):
        sides = [data.probe, data.gallery]
    else:
        sides = [data if isinstance(data, Side) else Side(as_array(data, "images"), label="images")]
        problems = find_problems(sides[0], None)
        if problems:
            raise InputError(problems)
    compute = Compute.choose(device, memory, precision=precision, progress=progress)
    return find_neighbours(sides, ListSizes(nearest, within, across, farthest=True), compute)


def find_neighbours(sides: Sequence[Side], sizes: ListSizes, compute: Compute) -> NeighbourGraph:
    """Return the graph of the images of one side, or of probes and gallery together.

    Raises:
        InputError: if there are no cameras and lists by camera are asked for.
    """
    cams = None
    if sizes.within or sizes.across:
        if any(side.cams is None for side in sides):
            raise InputError("lists within or across cameras need cameras: pass a Side or FeatureSet with cams")
        cams = torch.from_numpy(np.concatenate([side.cams for side in sides if side.cams is not None]))
    count = sum(map(len, sides))
    images = Plan.of_images(count, count, sides[0].dim, compute).rows(*sides)
    return find_graph(images, sizes, cams=cams, progress=compute.progress)
