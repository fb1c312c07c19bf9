"""How much more alike images of one camera are than chance would have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..data.features import FeatureSet
from ..search.rows import evenly_spread, unit_rows

# Images looked at, at most and at least, and how many of the nearest of each.
_SAMPLE, _FEWEST, _NEAREST = 2000, 300, 10
# From here on the cameras are worth a word, if it is by more than luck: so many standard errors.
_MUCH, _ERRORS = 1.15, 3


@dataclass(frozen=True)
class CameraBias:
    """Whether the nearest images are those of the own camera.

    Attributes:
        share: of the 10 nearest images of an image, how many are of its own camera, on average; 0 to 1.
        chance: what that would be if cameras did not matter.
        error: the standard error of `share`.
    """

    share: float
    chance: float
    error: float

    @property
    def matters(self) -> bool:
        """Whether methods that know cameras are worth a try."""
        return self.share > max(_MUCH * self.chance, self.chance + _ERRORS * self.error)

    def __str__(self) -> str:
        return (
            f"{self.share:.0%} of the {_NEAREST} nearest neighbours of an image are from its own camera, where "
            f"chance gives {self.chance:.0%}"
        )


def camera_bias(data: FeatureSet) -> CameraBias | None:
    """Measure the bias of the cameras on up to 2,000 images of both sides, evenly spread.

    Args:
        data: the features.

    Returns:
        What was found; None without cameras, with a single one, or with too few images.
    """
    if data.probe.cams is None or data.gallery.cams is None:
        return None
    count = len(data.probe) + len(data.gallery)
    chosen = evenly_spread(count, _SAMPLE)
    cams = torch.from_numpy(np.concatenate([data.probe.cams, data.gallery.cams])[chosen])
    found, sizes = torch.unique(cams, return_counts=True)
    if len(found) < 2 or len(chosen) < _FEWEST:
        return None
    probes = chosen < len(data.probe)
    sides = (data.probe, chosen[probes]), (data.gallery, chosen[~probes] - len(data.probe))
    rows = torch.cat(
        [unit_rows(torch.cat([side.block(row, row + 1) for row in own.tolist()]).cpu()) for side, own in sides]
    )
    similarities = (rows @ rows.T).fill_diagonal_(-torch.inf)
    alike = cams[similarities.topk(_NEAREST, dim=1).indices] == cams.unsqueeze(1)
    each = alike.double().mean(dim=1)
    part = sizes.double() / len(chosen)
    return CameraBias(
        share=each.mean().item(),
        chance=(part * (sizes - 1) / (len(chosen) - 1)).sum().item(),
        error=each.std().item() / len(chosen) ** 0.5,
    )
