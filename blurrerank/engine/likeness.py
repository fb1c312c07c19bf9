"""Features that are so much alike that rounding decides their order."""

from __future__ import annotations

import warnings

import torch

from ..data.features import FeatureSet
from ..errors import BlurrerankWarning
from ..methods import AnyMethod
from ..methods.kinds.steps import Transform
from ..search.rows import blocks_of

# Squared distances of unit rows below which float32, which is off by 1e-7, leaves a hundred steps or less.
_ALIKE = 1e-5
# Rows of each side that are looked at: so many runs of so many, spread evenly.
_RUNS, _LENGTH = 4, 16
# A few images may be alike by chance.
_LEAST = 8


def warn_of_likeness(data: FeatureSet, method: AnyMethod) -> None:
    """Warn of features that no step of `method` centres and that differ by little more than rounding."""
    if (
        not data.dim
        or len(data.gallery) < _LEAST
        or any(isinstance(step, Transform) for step in method.feature_steps)
    ):
        return
    rows = []
    for side in (data.probe, data.gallery):
        step = max(_LENGTH, -(-len(side) // _RUNS))
        rows += [side.block(start, min(start + _LENGTH, len(side))) for start, _ in blocks_of(len(side), step)]
    units = torch.nn.functional.normalize(torch.cat([block.cpu().double() for block in rows]), dim=1)
    largest = float((units - units[0]).square().sum(dim=1).max())
    if 0 < largest < _ALIKE:
        warnings.warn(
            f"features are nearly equal (cosine similarities above {1 - largest:.7f}), so rounding affects "
            f"their order: try center:by=gallery+{method.name}, which subtracts what they have in common",
            BlurrerankWarning,
            stacklevel=3,
        )
