"""An index that changes: items are added to it, or taken from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.compute import Compute, Progress
from ..data.features import FeatureSet
from ..data.side import Side
from ..engine.transforms import apply_fitted
from ..errors import InputError, ParameterError
from ..methods import AnyMethod
from . import index_files
from .contents import Labels
from .encoding import Items, check_memory, encode
from .gallery_index import Chosen, GalleryIndex, UnitSide
from .growing import shrink


def added(old: GalleryIndex, gallery: Side, method: AnyMethod, compute: Compute) -> Items:
    """Return the items of an index and further ones, with the features that its steps give these.

    Args:
        old: the index.
        gallery: the further items.
        method: one of the index, with parameters that may be others than it has.
        compute: how.

    Raises:
        InputError: for labels that only one of them has, or rows that are all there already.
    """
    labels = Labels.of(old.gallery).joined(Labels.of(gallery), str(old.path), gallery.label)
    steps, fitted = method.feature_steps, old.gallery.fitted
    if steps:
        gallery = apply_fitted(FeatureSet(gallery, old.gallery), steps, fitted, compute).probe
    ann, effort = _search_of(old)
    known = old.near if ann is None else None
    methods = tuple(method if one.name == method.name else one for one in old.methods)
    return Items([old.gallery, gallery], labels, methods, fitted, known=known, ann=ann, effort=effort)


def remove_from_index(
    path: str | Path,
    *,
    rows: Sequence[int] = (),
    names: Sequence[str] = (),
    tracks: Sequence[str] = (),
    device: str = "auto",
    memory: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
) -> GalleryIndex:
    """Take items from an index. Those that stay are counted anew, in the same order.

    What is left is encoded anew: the result is that of indexing it alone; but what feature steps know of the
    gallery stays as it was. Where the index is searched approximately, the items are no longer found, and the
    rest stays as it is: `GalleryIndex.drift` has how far that is from a build, and `compact_index` does one.
    The index is replaced when that is complete, and readers that have it open keep the old one.

    Args:
        path: the index.
        rows: gallery rows, as the index counts them now.
        names: names of items; all that are called so.
        tracks: tracks, as text; all their items.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget in bytes, by default 2 GiB, beside lists and encodings.
        precision: see `build_index`.
        progress: called with (images done, images in all).

    Raises:
        InputError: for rows, names or tracks that the index has not, or a damaged index.
        ParameterError: if nothing is named, or nothing would be left, or for a budget that is too small.
        OutputError: if the index cannot be written.
    """
    path, compute = Path(path), Compute.choose(device, memory, precision=precision, progress=progress)
    with index_files.changing(path) as temporary:
        old = GalleryIndex.open(path, device=device)
        stays = _stays(old, rows, {"names": names, "tracks": tracks})
        check_memory(memory, old.dim)
        if old.approximation is None:
            _encode_left(old, stays, temporary, compute)
        else:
            leaves = np.setdiff1d(np.arange(len(old)), stays, assume_unique=True)
            shrink(old, torch.from_numpy(leaves), temporary)
    return GalleryIndex.open(path, device=device, verify=False)


def compact_index(
    path: str | Path,
    *,
    device: str = "auto",
    memory: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
) -> GalleryIndex:
    """Encode an index anew that was changed since it was encoded: the result is that of a build.

    What feature steps know of the gallery stays as it was. An index without changes is left as it is.

    Args:
        path: the index.
        device: see `build_index`.
        memory: see `build_index`.
        precision: see `build_index`.
        progress: called with (images done, images in all).

    Raises:
        InputError: for a damaged index.
        ParameterError: for a budget that is too small.
        OutputError: if the index cannot be written.
    """
    path, compute = Path(path), Compute.choose(device, memory, precision=precision, progress=progress)
    old = GalleryIndex.open(path, device=device)
    if old.drift is None:
        return old
    check_memory(memory, old.dim)
    with index_files.changing(path) as temporary:
        old = GalleryIndex.open(path, device=device)  # as it is now that no one else changes it
        _encode_left(old, np.arange(len(old)), temporary, compute)
    return GalleryIndex.open(path, device=device, verify=False)


def _encode_left(old: GalleryIndex, stays: NDArray[np.int64], temporary: Path, compute: Compute) -> None:
    """Encode the items of an index that stay, and write an index of them."""
    gallery = old.gallery
    labels = Labels.of(gallery).at(stays).without_unused_texts()
    features = old.stored.block(0, len(old.stored))
    kept = torch.from_numpy(stays) if gallery.kept is None else gallery.kept[stays]
    left = UnitSide(Chosen(features, kept), label=str(old.path), sources=gallery.sources)
    ann, effort = _search_of(old)
    encode(Items([left], labels, old.methods, gallery.fitted, ann=ann, effort=effort), temporary, compute)


def _search_of(index: GalleryIndex) -> tuple[str | None, int | None]:
    """The kind and the effort of an approximate search."""
    if index.approximation is None:
        return None, None
    return index.approximation.search.kind, index.approximation.search.effort


def _stays(index: GalleryIndex, rows: Sequence[int], named: Mapping[str, Sequence[str]]) -> NDArray[np.int64]:
    """(N,) the rows that stay."""
    size, leaves = len(index), np.zeros(len(index), dtype=bool)
    for kind, wanted in named.items():
        if isinstance(wanted, str):
            raise ParameterError(f"{kind} is a single string: pass a list of {kind}")
    numbers = np.asarray(rows)
    if not numbers.size and not any(map(len, named.values())):
        raise ParameterError("there is nothing to remove: give rows, names or tracks")
    if numbers.size and (numbers.dtype.kind not in "iu" or numbers.ndim != 1):
        raise ParameterError(f"rows are {numbers.dtype} {numbers.shape}: pass a list of row numbers")
    wrong = numbers[(numbers < 0) | (numbers >= size)] if numbers.size else numbers
    if wrong.size:
        raise InputError(f"{index.path} has no row {wrong[0]}: it has {size} items, counted from 0")
    leaves[numbers.astype(np.int64)] = True
    for kind, wanted in named.items():
        own = getattr(index.gallery, kind)
        if not len(wanted):
            continue
        if own is None:
            raise InputError(f"{index.path} has no {kind}: remove items by row")
        own = own.astype(str).astype(object)
        found = np.isin(own, np.asarray(wanted, dtype=object))
        missing = set(wanted).difference(own[found])
        if missing:
            what = "item called" if kind == "names" else "track"
            others = f", nor {len(missing) - 1} others that are named" if len(missing) > 1 else ""
            raise InputError(f"{index.path} has no {what} {min(missing)!r}{others}; nothing was removed")
        leaves |= found
    if leaves.all():
        raise ParameterError(f"this would remove all items of {index.path}: delete the file instead")
    return np.flatnonzero(~leaves)
