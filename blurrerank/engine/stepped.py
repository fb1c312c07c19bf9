"""Sides with new features, and what makes them."""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.compute import Compute
from ..data.features import FeatureSet
from ..data.sharded import ShardedSet
from ..data.side import Side
from ..errors import OutputError
from ..search.rows import unit_rows

# New features shorter than this are rounding: what they are a sum of cancels out.
_LEAST_NORM = 1e-6


@dataclass(frozen=True, eq=False)
class Room:
    """Where new features are.

    Attributes:
        rows: (N, D) float32.
        mapping: the file they are in, if that is not memory alone.
    """

    rows: torch.Tensor
    mapping: mmap.mmap | None = None

    def let_go(self) -> None:
        """Let the pages of the file go from memory; those that are asked for come back."""
        if self.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, eq=False, kw_only=True)
class SteppedSide(Side):
    """New features, L2-normalised, with the labels and the digest of the side that they were made from."""

    unit = True

    origin: Side
    room: Room

    def let_go(self) -> None:
        """See `Side.let_go`."""
        self.room.let_go()

    def row_digests(self) -> NDArray[np.uint8]:
        """Return those of the features as they came."""
        return self.origin.row_digests()

    def digest(self) -> str:
        """Return that of the features as they came."""
        return self.origin.digest()


def unit(new: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return new features, L2-normalised; those of `rows` where they cancel out."""
    short = torch.linalg.vector_norm(new, dim=1, keepdim=True) < _LEAST_NORM
    return unit_rows(torch.where(short, rows, new) if new.shape == rows.shape else new)


def held_gallery(data: FeatureSet) -> Side:
    """Return the gallery, or what this process has of it."""
    return data.shard if isinstance(data, ShardedSet) else data.gallery


def with_sides(data: FeatureSet, probe: Side | None = None, gallery: Side | None = None) -> FeatureSet:
    """Return the same with other sides; of a `ShardedSet`, `gallery` is the shard of this process."""
    if gallery is not None and isinstance(data, ShardedSet):
        gallery = replace(data.gallery, shard=gallery)
    return replace(data, probe=probe or data.probe, gallery=gallery or data.gallery)


def room_for(rows: int, dim: int, compute: Compute) -> Room:
    """Return room for (rows, dim) float32: in memory, or above a quarter of the budget in a temporary file.

    Raises:
        OutputError: if there is no room for the file.
    """
    if 4 * rows * dim <= compute.memory // 4:
        return Room(torch.empty(rows, dim))
    size = 4 * rows * dim
    with tempfile.TemporaryFile() as file:  # mapped, it stays until the last user lets go of it
        try:
            # A mapping beyond what the disk has room for would end the process when it is written to.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            where = tempfile.gettempdir()
            raise OutputError(
                f"{where} has no room for {size:,} bytes of features: {error.strerror}; free some, raise "
                "--memory, or name another folder with TMPDIR"
            ) from error
        mapping = mmap.mmap(file.fileno(), size)
    return Room(torch.frombuffer(mapping, dtype=torch.float32).view(rows, dim), mapping)


def stepped_side(side: Side, room: Room) -> SteppedSide:
    """Return the labels of `side` with other features."""
    return SteppedSide(
        room.rows,
        **side.labels,
        label=side.label,
        first=side.first,
        sources=side.sources,
        texts=side.texts,
        origin=side,
        room=room,
    )
