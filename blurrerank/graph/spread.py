"""Whether images differ enough for distances that are divided by an image's largest."""

from __future__ import annotations

import warnings

import torch

from ..errors import BlurrerankWarning, InputError

# What rounding makes of squared distances, which are differences of float32 similarities (5e-7 was seen, and
# 1e-6 at 20,000 dimensions).
_ROUNDING = 1e-6
# Relative to an image's largest distance: above the first, rounding is worth a warning; above the second, the
# features are refused.
_WARNED, _REFUSED = 1e-5, 1e-2

ALL_EQUAL = 4 * _ROUNDING
"""Where squared distances between images are below this, they are equal but for rounding."""


def check_spread(lowest: torch.Tensor, method: str) -> None:
    """Warn of images that are so alike that rounding shows in distances over the largest, or refuse them.

    Args:
        lowest: (N,) float32, the cosine similarity of each image to the farthest.
        method: whose distances they are.

    Raises:
        InputError: for images that float32 cannot tell apart well enough.
    """
    largest = 2 - 2 * lowest
    least, image = (value.item() for value in largest.min(dim=0))
    rounding = _ROUNDING / max(least, _ROUNDING)
    if rounding <= _WARNED or largest.max() < ALL_EQUAL:
        return
    alike = (
        "features are nearly equal (none of probes and gallery has a cosine similarity below "
        f"{1 - least / 2:.6f} with image {image} of these)"
    )
    remedy = "if that is intended, subtract the gallery's mean from all features"
    if rounding > _REFUSED:
        raise InputError(f"{alike}: float32 cannot tell how far apart they are for {method}; {remedy}")
    warnings.warn(
        f"{alike}: scores of {method} may be off by {rounding:.0e}; {remedy}", BlurrerankWarning, stacklevel=2
    )
