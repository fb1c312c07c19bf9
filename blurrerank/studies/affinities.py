"""How alike a probe and the items of its list are among each other: why re-ranking moves an item."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.compute import Compute
from ..data.features import FeatureSet
from ..engine.plans import images_plan
from ..search.rows import UnitRows, blocks_of


def affinities(
    data: FeatureSet,
    probes: NDArray[np.int64],
    items: NDArray[Any],
    *,
    device: str = "auto",
    memory: int | None = None,
) -> NDArray[np.float32]:
    """Return the cosine similarities among each probe and some gallery items.

    Args:
        data: the features.
        probes: (n,) rows of probes.
        items: (n, m) gallery rows for each of them; -1 pads.
        device: where to compute.
        memory: budget for working memory in bytes.

    Returns:
        (n, 1 + m, 1 + m) float32, the probe first; what belongs to padding means nothing.

    Raises:
        InputError: if there are similarities and no features.
        ParameterError: for an unknown device.
    """
    rows = torch.from_numpy(np.maximum(items, 0).astype(np.int64))
    found = torch.empty(len(rows), 1 + rows.shape[1], 1 + rows.shape[1])
    compute = Compute.choose(device, memory)
    plan = images_plan(data, len(data.gallery), compute)
    sources = [plan.probes(data.probe), plan.rows(data.gallery)]
    wanted = [torch.from_numpy(probes).unsqueeze(1), rows]
    at_once = max(1, plan.budget.working_bytes // (16 * data.dim * found.shape[1]))
    for start, stop in blocks_of(len(rows), at_once):
        parts = [_rows(source, some[start:stop]) for source, some in zip(sources, wanted, strict=True)]
        images = torch.cat(parts, dim=1)
        found[start:stop] = images @ images.mT
    return found.numpy()


def _rows(source: UnitRows, which: torch.Tensor) -> torch.Tensor:
    table, places = source.gather(which.to(source.device))
    return table[places]
