"""Write index files; `index_h5.py` has the format."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ..data.side import digest_of
from ..files.mapped_h5 import VERSION, checksum_of, describe, put, put_neighbours
from ..files.ranking_h5 import versions
from ..files.sink import new_hdf5
from ..graph.encoding import BlurredEncoding, Encoding
from ..graph.neighbour_graph import NeighbourGraph
from ..graph.sparse_rows import SparseRows
from ..methods import AnyMethod
from ..search.rows import UnitRows
from .contents import Approximation, Changes, Labels
from .index_h5 import BLURRED, CHANGES, FORMAT, PLAIN, checksum


def write(
    path: Path,
    rows: UnitRows,
    labels: Labels,
    method: AnyMethod,
    near: NeighbourGraph,
    encoded: Encoding,
    fitted: Sequence[Mapping[str, torch.Tensor]] = (),
    approximation: Approximation | None = None,
) -> None:
    """Write an index.

    Args:
        path: a new file.
        rows: the features, normalised.
        labels: what to record of them.
        method: what it was encoded for.
        near: who is near whom.
        encoded: what the method made of it.
        fitted: what each of its feature steps knows of it.
        approximation: how it is searched, if not everything is.
    """
    settings, digest = json.dumps(method.params()), digest_of(labels.digests)
    searched = None if approximation is None else approximation.describe()
    with new_hdf5(path) as file:
        features = file.create_dataset("features", (len(rows), rows.dim), np.float32)
        written = 0
        for start, block in rows.blocks():
            values = block.cpu().contiguous().numpy()
            features[start : start + len(block)] = values
            written = zlib.crc32(values.data, written)
        features.attrs["crc32"] = written
        _put_labels(file, labels)
        put_neighbours(file, near)
        _put_encoded(file, encoded, BLURRED if isinstance(encoded, BlurredEncoding) else PLAIN)
        for number, found in enumerate(fitted):
            for name, known in found.items():
                put(file, f"steps/{number}/{name}", known.cpu().numpy())
        if approximation is not None:
            put(file, "search/axes", approximation.search.axes.numpy())
            put(file, "search/faiss", approximation.search.stored)
        about: dict[str, str | int] = {} if searched is None else {"search": searched}
        describe(
            file,
            about
            | {
                "format": FORMAT,
                "format_version": VERSION,
                "method": method.name,
                "params": settings,
                "digest": digest,
                "crc32": checksum(method.name, settings, digest, searched),
                "versions": json.dumps(versions()),
            },
        )


def write_changes(path: Path, base: str, method: AnyMethod, digest: str, changes: Changes) -> None:
    """Write an index of changes to another.

    Args:
        path: a new file.
        base: the attribute `crc32` of the other.
        method: what that was encoded for.
        digest: of the rows that there are now.
        changes: what was added and removed.
    """
    settings = json.dumps(method.params())
    with new_hdf5(path) as file:
        put(file, "features", changes.features.numpy())
        _put_labels(file, changes.labels)
        put_neighbours(file, changes.near)
        parts = BLURRED[:-1] if isinstance(changes.encoded, BlurredEncoding) else ()
        _put_encoded(file, changes.encoded, ("rows", *parts))
        put(file, "removed", changes.removed.numpy())
        describe(
            file,
            {
                "format": CHANGES,
                "format_version": VERSION,
                "method": method.name,
                "params": settings,
                "digest": digest,
                "base": base,
                "stale": changes.drift.stale,
                "crc32": checksum(method.name, settings, digest, base),
                "versions": json.dumps(versions()),
            },
        )


def _put_labels(file: Any, labels: Labels) -> None:
    put(file, "digests", labels.digests)
    for name in ("ids", "cams"):
        if getattr(labels, name) is not None:
            put(file, name, getattr(labels, name))
    if labels.names is not None:
        names = file.create_dataset("names", data=list(labels.names), dtype=h5py.string_dtype())
        names.attrs["crc32"] = checksum_of(labels.names)


def _put_encoded(file: Any, encoded: Encoding, names: Sequence[str]) -> None:
    for name in names:
        values = getattr(encoded, name)
        parts = {"": values}
        if isinstance(values, SparseRows):
            parts = {f"/{part}": getattr(values, part) for part in SparseRows.ARRAYS}
        for part, numbers in parts.items():
            put(file, f"encoded/{name}{part}", numbers.cpu().numpy())
