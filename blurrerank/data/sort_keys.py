"""Integer sort keys for the project's tie rule: higher score first, then lower gallery index."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

_LOW = 0xFFFFFFFF


NOBODY = torch.iinfo(torch.int64).min
"""A sort key that sorts after all others."""


Bits = TypeVar("Bits", torch.Tensor, NDArray[np.int32])


def _monotone(bits: Bits) -> Bits:
    """Map the bits of float32 numbers to int32 that sort as the numbers do; the map is its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def index_dtype(gallery_size: int) -> type[np.signedinteger[Any]]:
    """Return the dtype for gallery indices: int32 if they fit, otherwise int64."""
    return np.int32 if gallery_size <= 2**31 else np.int64


def sort_keys(scores: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return integers that sort as the lists do: descending by score, then ascending by gallery index.

    All keys are distinct, so any sort and any top-n gives the same order on any device.

    Args:
        scores: float32, any shape.
        indices: int64 below 2^32, broadcastable to `scores`.

    Returns:
        int64, the shape of `scores`: the monotone bits of the score in the upper half, the complement of the
        index in the lower half.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    return (_monotone(bits).to(torch.int64) << 32) | (_LOW - indices)


def from_sort_keys(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Invert `sort_keys` exactly: return gallery indices (int64) and scores (float32)."""
    return _LOW - (keys & _LOW), _monotone((keys >> 32).to(torch.int32)).view(torch.float32)


def fine_keys(scores: torch.Tensor, indices: torch.Tensor, total: int) -> torch.Tensor:
    """Return sort keys that give the score all bits that the indices do not need.

    Args:
        scores: float64 between -1.5 and 1.5, or -inf, any shape.
        indices: int64 below `total`, of the same shape.
        total: number of possible indices, up to 2^32; scores get the rest of 63 bits.

    Returns:
        int64, sorting as `sort_keys` do; `NOBODY` for -inf.
    """
    bits = max(1, (total - 1).bit_length())
    fixed = (scores.clamp_min(-1.5) * 2.0 ** (62 - bits)).round().to(torch.int64)
    keys = (fixed << bits) | ((1 << bits) - 1 - indices)
    return keys.masked_fill_(scores == -torch.inf, NOBODY)


def from_fine_keys(keys: torch.Tensor, total: int) -> torch.Tensor:
    """Return the indices that `fine_keys` encoded."""
    low = (1 << max(1, (total - 1).bit_length())) - 1
    return low - (keys & low)


def strictly_decreasing(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lower each score that is not below its predecessor to the next smaller float32.

    Tools that read a ranking sort it by score again and break ties in different ways; strictly decreasing
    scores make all of them restore the same list. Other scores are unchanged.

    Args:
        scores: (P, R) float32 in list order.

    Returns:
        (P, R) float32, strictly decreasing along each row.

    >>> bool(strictly_decreasing(np.array([[1, 1]], dtype=np.float32))[0, 1] == np.nextafter(np.float32(1), 0))
    True
    """
    bits = (scores + np.float32(0)).view(np.int32)
    monotone = _monotone(bits).astype(np.int64)
    # -0.0 and 0.0 differ by one as integers but are equal as numbers: close that gap here, reopen it below.
    monotone += monotone < 0
    steps = np.arange(scores.shape[1])
    monotone = np.minimum.accumulate(monotone + steps, axis=1) - steps
    monotone -= monotone < 0
    return _monotone(monotone.astype(np.int32)).view(np.float32)
