"""What steps that know cameras have in common."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import BlurrerankWarning

if TYPE_CHECKING:
    import torch

    from .steps import CameraSums


def first_seen(samples: Sequence[CameraSums]) -> list[torch.Tensor]:
    """Return, for each sample, (C,) bool: which of its cameras no sample before it has."""
    import torch

    known, found = samples[0].cams[:0], []
    for sample in samples:
        found.append(~torch.isin(sample.cams, known))
        known = torch.cat([known, sample.cams])
    return found


def places_of(cams: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each of (n,) cameras is among those that are `known`, ascending, and whether it is."""
    import torch

    places = torch.searchsorted(known, cams).clamp_max_(len(known) - 1)
    return places, known[places] == cams


def camera_name(cam: int, texts: Mapping[int, str]) -> str:
    """Return how messages call a camera, whose text is known if it is not a number."""
    return f"camera {texts[cam]!r}" if cam in texts else f"camera {cam}"


def warn_of_unknown(cams: torch.Tensor, known: torch.Tensor, texts: Mapping[int, str]) -> None:
    """Warn of probes whose (n,) cameras are not among those that are `known`."""
    unknown = cams[~places_of(cams, known)[1]]
    if len(unknown):
        several = len(cams) > 1
        left = (
            f"{len(unknown)} of {len(cams)} probes are left unchanged"
            if several
            else "the probe is left unchanged"
        )
        name = camera_name(int(unknown[0]), texts)
        warnings.warn(
            f"{name} has no images in the gallery: {left}; pass earlier images of this camera with "
            "--camera-images (for an index, when it is built)",
            BlurrerankWarning,
            stacklevel=2,
        )
