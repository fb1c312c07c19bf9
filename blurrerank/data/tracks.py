"""Tracklets: images of one object that one camera saw one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from .side import Side


def by_track(side: Side) -> Side:
    """Return a side whose images are tracks: features are means, in the order of their first images.

    Args:
        side: with tracks; features are averaged as they are, in float64, and become float32.

    Returns:
        The side, named by its tracks.

    Raises:
        InputError: if there are no tracks, or images of one differ in identity or camera.
    """
    numbers, first = numbers_of(side)
    labels: dict[str, Any] = {}
    for kind, word in (("ids", "identities"), ("cams", "cameras")):
        values = getattr(side, kind)
        if values is None:
            continue
        labels[kind] = values[first]
        other = values != labels[kind][numbers]
        if other.any():
            row = int(np.argmax(other))
            assert side.tracks is not None
            raise InputError(
                f"{side.label}: track {side.tracks[row]} has images of {word} {labels[kind][numbers[row]]} and "
                f"{values[row]} (row {row}): give each its own track"
            )
    sums = torch.zeros(len(first), side.dim, dtype=torch.float64)
    for start, block in side.blocks(side.scan_rows()):
        rows = torch.from_numpy(numbers[start : start + len(block)])
        sums.index_add_(0, rows, block.detach().cpu().double())
    means = sums / torch.from_numpy(np.bincount(numbers)).unsqueeze(1)
    assert side.tracks is not None
    names = np.array([str(track) for track in side.tracks[first].tolist()], dtype=object)
    return Side(means.float().numpy(), names=names, label=side.label, texts=side.texts, **labels)


def numbers_of(side: Side) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (N,) which track each image is of, counted by their first images, and (T,) these.

    Raises:
        InputError: if there are no tracks.
    """
    if side.tracks is None:
        raise InputError(f"{side.label} has no tracks: store (N,) tracks beside its features")
    _, first, found = np.unique(side.tracks.astype(str), return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[found.ravel()], first[order]
