"""Which gallery item is a probe's own image, where images are probes and gallery items at once."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..data.features import FeatureSet
from ..data.side import Side

# Values of a row that tell most rows apart.
_TELLING = 8
# What was found of sets that are still in use: metrics ask several times.
_known: WeakKeyDictionary[FeatureSet, tuple[NDArray[np.int64], NDArray[np.int64]]] = WeakKeyDictionary()


def image_codes(data: FeatureSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (P,) and (G,) int64, equal where a probe and a gallery item are one image.

    Images are told by their names, or where no name is on both sides by equal features, of all their values; of
    similarities without features, by their rows, if both sides have the same ids.
    """
    if data not in _known:
        _known[data] = _image_codes(data)
    return _known[data]


def _image_codes(data: FeatureSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    probe, gallery = data.probe, data.gallery
    if probe.names is not None and gallery.names is not None:
        rows = {name: row for row, name in enumerate(gallery.names.tolist())}
        named = [rows.get(name, -1) for name in probe.names.tolist()]
        if max(named, default=-1) >= 0:
            own = [rows[name] for name in gallery.names.tolist()]
            return np.array(named, dtype=np.int64), np.array(own, dtype=np.int64)
    if not data.dim:
        rows_of = np.arange(len(probe)), np.arange(len(gallery))
        same = probe.ids is not None and gallery.ids is not None and np.array_equal(probe.ids, gallery.ids)
        return rows_of[0], rows_of[1] if same else rows_of[1] + len(probe)
    sides = (probe, gallery)
    begins = [_begins(side) for side in sides]
    shared = np.intersect1d(begins[0], begins[1])
    # Of rows that begin alike on both sides all values count; others are images of their own.
    known: dict[bytes, int] = {}
    coded = []
    for number, (side, keys) in enumerate(zip(sides, begins, strict=True)):
        codes = np.full(len(side), -1 - number)
        for row in np.flatnonzero(np.isin(keys, shared)).tolist():
            whole = side.block(row, row + 1).double().cpu().numpy().tobytes()
            codes[row] = known.setdefault(whole, len(known))
        coded.append(codes.astype(np.int64))
    return coded[0], coded[1]


def count_own(data: FeatureSet) -> int:
    """Return how many probes are in the gallery too, under the same identity; `data` must have ids."""
    assert data.probe.ids is not None
    assert data.gallery.ids is not None
    probe, gallery = image_codes(data)
    pairs = set(zip(gallery.tolist(), data.gallery.ids.tolist(), strict=True))
    return sum(pair in pairs for pair in zip(probe.tolist(), data.probe.ids.tolist(), strict=True))


def _begins(side: Side) -> NDArray[np.void]:
    """(N,) the bytes of the first values of each row."""
    parts = [
        np.ascontiguousarray(block[:, :_TELLING].double().cpu().numpy())
        for _, block in side.blocks(side.scan_rows())
    ]
    rows = np.concatenate(parts)
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
