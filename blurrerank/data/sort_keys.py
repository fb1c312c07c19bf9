"""The one tie rule of the project: the better score first, and of equal scores the lower gallery index."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

_LOW = 0xFFFFFFFF


NOBODY = torch.iinfo(torch.int64).min
"""A sort key that comes after every other."""


Bits = TypeVar("Bits", torch.Tensor, NDArray[np.int32])


def _monotone(bits: Bits) -> Bits:
    """The bits of float32 numbers as int32 that order as the numbers do; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def index_dtype(gallery_size: int) -> type[np.signedinteger[Any]]:
    """What gallery indices are kept as: int32 as long as that reaches."""
    return np.int32 if gallery_size <= 2**31 else np.int64


def sort_keys(scores: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Integers that order as the lists do: descending by score, then ascending by gallery index.

    Being all different, they give the same order under any sort and any top-n, on any device.

    Args:
        scores: float32, any shape.
        indices: int64 below 2^32, broadcastable to `scores`.

    Returns:
        int64, the shape of `scores`: the score's bits made monotone above, the index reversed below.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes one zero of the two
    return (_monotone(bits).to(torch.int64) << 32) | (_LOW - indices)


def from_sort_keys(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gallery indices (int64) and scores (float32) back from `sort_keys`, exactly."""
    return _LOW - (keys & _LOW), _monotone((keys >> 32).to(torch.int32)).view(torch.float32)


def fine_keys(scores: torch.Tensor, indices: torch.Tensor, total: int) -> torch.Tensor:
    """Sort keys that tell scores apart as finely as the indices leave room for.

    Args:
        scores: float64 between -1.5 and 1.5, or -inf, any shape.
        indices: int64 below `total`, of the same shape.
        total: how many there may be, up to 2^32: of 63 bits a score has what these do not need.

    Returns:
        int64, ordered as `sort_keys`; `NOBODY` for -inf.
    """
    bits = max(1, (total - 1).bit_length())
    fixed = (scores.clamp_min(-1.5) * 2.0 ** (62 - bits)).round().to(torch.int64)
    keys = (fixed << bits) | ((1 << bits) - 1 - indices)
    return keys.masked_fill_(scores == -torch.inf, NOBODY)


def from_fine_keys(keys: torch.Tensor, total: int) -> torch.Tensor:
    """The indices back from `fine_keys`."""
    low = (1 << max(1, (total - 1).bit_length())) - 1
    return low - (keys & low)


def strictly_decreasing(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lower each score that does not lie below its predecessor to the next float32 that does.

    Tools that read a ranking sort it by score again, each with its own idea of ties: with this they all
    restore the list. A score without a tie before it is untouched.

    Args:
        scores: (P, R) float32 in list order.

    Returns:
        (P, R) float32, strictly decreasing along each row.

    >>> bool(strictly_decreasing(np.array([[1, 1]], dtype=np.float32))[0, 1] == np.nextafter(np.float32(1), 0))
    True
    """
    bits = (scores + np.float32(0)).view(np.int32)
    monotone = _monotone(bits).astype(np.int64)
    # The two zeros are neighbours as integers but equal as numbers: close the gap, reopen it below.
    monotone += monotone < 0
    steps = np.arange(scores.shape[1])
    monotone = np.minimum.accumulate(monotone + steps, axis=1) - steps
    monotone -= monotone < 0
    return _monotone(monotone.astype(np.int32)).view(np.float32)
