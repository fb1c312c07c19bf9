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
from .index_files import CHANGES, FORMAT
from .index_h5 import BLURRED, CHECKED, PLAIN, checksum, encoded_at


def write(
    path: Path,
    rows: UnitRows,
    labels: Labels,
    methods: Sequence[AnyMethod],
    near: NeighbourGraph,
    encoded: Sequence[Encoding],
    fitted: Sequence[Mapping[str, torch.Tensor]] = (),
    approximation: Approximation | None = None,
) -> None:
    """Write an index.

    Args:
        path: a new file.
        rows: the features, normalised.
        labels: what to record of them.
        methods: what it was encoded for, the usual one first.
        near: who is near whom.
        encoded: what each of them made of it.
        fitted: what each of its feature steps knows of it.
        approximation: how it is searched, if not everything is.
    """
    stated, digest = _stated(methods), digest_of(labels.digests)
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
        for number, one in enumerate(encoded):
            _put_encoded(file, encoded_at(number), one, BLURRED if isinstance(one, BlurredEncoding) else PLAIN)
        for number, found in enumerate(fitted):
            for name, known in found.items():
                put(file, f"steps/{number}/{name}", known.cpu().numpy())
        if approximation is not None:
            put(file, "search/axes", approximation.search.axes.numpy())
            put(file, "search/faiss", approximation.search.stored)
        _describe(file, FORMAT, stated | {"digest": digest, "search": searched})


def write_changes(path: Path, base: str, methods: Sequence[AnyMethod], digest: str, changes: Changes) -> None:
    """Write an index of changes to another.

    Args:
        path: a new file.
        base: the `identity` of the other.
        methods: what that was encoded for.
        digest: of the rows that there are now.
        changes: what was added and removed.
    """
    with new_hdf5(path) as file:
        put(file, "features", changes.features.numpy())
        _put_labels(file, changes.labels)
        put_neighbours(file, changes.near)
        for number, one in enumerate(changes.encoded):
            parts = BLURRED[:-1] if isinstance(one, BlurredEncoding) else ()
            _put_encoded(file, encoded_at(number), one, ("rows", *parts))
        put(file, "removed", changes.removed.numpy())
        about = {"digest": digest, "base": base, "stale": str(changes.drift.stale)}
        _describe(file, CHANGES, _stated(methods) | about)


def _stated(methods: Sequence[AnyMethod]) -> dict[str, str | None]:
    """The attributes that name methods."""
    first, *others = methods
    also = json.dumps([[method.name, method.params()] for method in others]) if others else None
    return {"method": first.name, "params": json.dumps(first.params()), "also": also}


def _describe(file: Any, form: str, stated: Mapping[str, str | None]) -> None:
    """Write the attributes, of `stated` those that there are."""
    known = {name: text for name, text in stated.items() if text is not None}
    crc32 = checksum(*(stated.get(name) for name in CHECKED))
    about: dict[str, str | int] = {
        "format": form,
        "format_version": VERSION,
        "crc32": crc32,
        "versions": json.dumps(versions()),
    }
    describe(file, known | about)


def _put_labels(file: Any, labels: Labels) -> None:
    put(file, "digests", labels.digests)
    for name in ("ids", "cams"):
        if getattr(labels, name) is not None:
            put(file, name, getattr(labels, name))
    for name in ("names", "tracks"):
        values = getattr(labels, name)
        if values is not None and values.dtype.kind in "iu":
            put(file, name, values.astype(np.int64))
        elif values is not None:
            _put_texts(file, name, list(values))
    for kind, known in labels.texts.items():
        if not known:
            continue
        put(file, f"texts/{kind}/numbers", np.array(list(known), dtype=np.int64))
        _put_texts(file, f"texts/{kind}/texts", list(known.values()))


def _put_texts(file: Any, name: str, values: Sequence[str]) -> None:
    texts = file.create_dataset(name, data=values, dtype=h5py.string_dtype())
    texts.attrs["crc32"] = checksum_of(values)


def _put_encoded(file: Any, group: str, encoded: Encoding, names: Sequence[str]) -> None:
    for name in names:
        values = getattr(encoded, name)
        parts = {"": values}
        if isinstance(values, SparseRows):
            parts = {f"/{part}": getattr(values, part) for part in SparseRows.ARRAYS}
        for part, numbers in parts.items():
            put(file, f"{group}/{name}{part}", numbers.cpu().numpy())
