"""Index files, `blurrerank-index` version 1: a gallery, its neighbours and its encoding.

    features                    (G, D) float32, L2-normalised
    digests                     (G, 16) uint8: the start of the SHA-256 of each row as it came
    ids, cams                   (G,) int64, optional
    names                       (G,) utf-8 strings, optional
    neighbours/lists            (G, K) int32: each item itself, then its nearest by cosine similarity
    neighbours/similarities     (G, K) float32
    neighbours/lowest           (G,) float32: similarity to the farthest
    encoded/group, blur         (G, B) int32, float32
    encoded/reach               (G,) float32
    encoded/halves/...          offsets (G + 1,) int64, columns, weights (T,) int32
    encoded/encodings/...       likewise
    encoded/inverted/...        likewise

`methods/k_reciprocal_online.py` and docs/online.md say what the parts of `encoded` mean; of other rankers they
are `rows` and `inverted`, likewise sparse rows. With lists by camera, `neighbours` has the groups `within` and
`across`, each `items` and `similarities`. Where feature steps come first, `features` are what they gave, and
`steps/0/...`, `steps/1/...` what each of them knows of the gallery. An index with approximate search has

    search/axes                 (D, d) float32: what rows are projected on before they are searched
    search/faiss                (B,) uint8: the FAISS index of the projected rows

and the root attribute `search` (JSON): its kind, the effort that is usual, the recall of the neighbour lists,
and how many entries the rows of the encoding are cut to, if they are. The lists are approximate then, with -1
where one ends early, and `lowest` is -1. Columns and lists are int64 in a gallery of 2^31 items. Root
attributes: `format`, `format_version`, `method`, `params` (JSON), `digest` of the gallery, `crc32` of these
three, `versions` (JSON). Every dataset of numbers is stored in one piece, so that it can be mapped into memory,
and all datasets have an attribute `crc32`.

While an index is built, `NAME.partial` holds what is known so far: `neighbours` of the first items, with the
root attributes `format` (`blurrerank-index-partial`), `format_version`, `pool` and `digest`.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from ..data.side import Side, digest_of
from ..engine.request import check_indexes
from ..errors import BlurrerankWarning, InputError
from ..files.guard import guarded, trying
from ..files.hdf5 import attributes, open_hdf5
from ..files.mapped_h5 import (
    OFF,
    VERSION,
    MappedFile,
    checksum_of,
    describe,
    put,
    put_neighbours,
    reading_mapped,
)
from ..files.ranking_h5 import versions
from ..files.sink import new_hdf5
from ..files.watched import Watched
from ..graph.encoding import BlurredEncoding, Encoding
from ..graph.neighbour_graph import NeighbourGraph
from ..graph.sparse_rows import ONE, SparseRows
from ..methods import AnyMethod, create
from ..methods.kinds.steps import Transform
from ..search.ann import KINDS, ApproximateSearch
from ..search.approximate import load_faiss
from ..search.rows import UnitRows

FORMAT = "blurrerank-index"


# Rows measured at a time.
_ROWS = 4096


# A weight of blurring is at most 1, divided by a norm of at least 1e-6.
_MOST_BLUR = 1.01e6
# The parts of encodings, in the order in which they are written.
_BLURRED = ("group", "blur", "reach", "halves", "encodings", "inverted")
_PLAIN = ("rows", "inverted")


@dataclass(frozen=True, eq=False)
class Labels:
    """What an index records of each row beside its features; see `Side` for the fields."""

    digests: NDArray[np.uint8]
    ids: NDArray[Any] | None
    cams: NDArray[Any] | None
    names: NDArray[Any] | None

    @classmethod
    def of(cls, side: Side) -> Labels:
        """Those of a side."""
        return cls(side.row_digests(), side.ids, side.cams, side.names)

    def joined(self, new: Labels, where: str, new_where: str) -> Labels:
        """These and those of further rows; messages call the two `where` and `new_where`.

        Raises:
            InputError: if only one of them has a kind of labels, or if the features of all new rows are here
                already; if those of some are, it warns.
        """
        joined = {}
        for name in ("ids", "cams", "names"):
            before, after = getattr(self, name), getattr(new, name)
            if (before is None) != (after is None):
                has, lacks = (where, new_where) if after is None else (new_where, where)
                raise InputError(f"{has} has {name} and {lacks} has none: they cannot be joined")
            joined[name] = None if before is None else np.concatenate([before, after])
        here = {row.tobytes() for row in self.digests}
        twice = sum(row.tobytes() in here for row in new.digests)
        if twice == len(new.digests):
            raise InputError(f"every row of {new_where} is in {where} already: there is nothing to append")
        if twice:
            repeated = f"{twice} of {len(new.digests)} rows of {new_where} are in {where} already"
            warnings.warn(f"{repeated}; they are in the index twice now", BlurrerankWarning, stacklevel=3)
        return Labels(np.concatenate([self.digests, new.digests]), **joined)


@dataclass(frozen=True, eq=False)
class Approximation:
    """How an index is searched, where not everything is.

    Attributes:
        search: what finds candidates.
        recall: the measured share of the exact lists that the neighbour lists have, for each kind of list.
        entries: how many entries the rows of the encoding are cut to, if they are.
    """

    search: ApproximateSearch
    recall: Mapping[str, float]
    entries: int | None = None

    def describe(self) -> str:
        """Return what it is and how good, as JSON."""
        about = {"kind": self.search.kind, "effort": self.search.effort, "recall": dict(self.recall)}
        return json.dumps(about | {"entries": self.entries})


@dataclass(frozen=True)
class Stored:
    """What an index file holds.

    Attributes:
        features: (G, D) float32, L2-normalised.
        labels: of the gallery.
        digest: `Side.digest()` of the features as they came.
        method: what it was encoded for.
        near: who is near whom.
        encoded: what the method made of it.
        fitted: what each feature step knows of it.
        source: the file, from which all of this is mapped.
        approximation: how it is searched, if not everything is.
    """

    features: torch.Tensor
    labels: Labels
    digest: str
    method: AnyMethod
    near: NeighbourGraph
    encoded: Encoding
    fitted: Sequence[Mapping[str, torch.Tensor]]
    source: Watched
    approximation: Approximation | None = None


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
        checksum = 0
        for start, block in rows.blocks():
            values = block.cpu().contiguous().numpy()
            features[start : start + len(block)] = values
            checksum = zlib.crc32(values.data, checksum)
        features.attrs["crc32"] = checksum
        put(file, "digests", labels.digests)
        for name in ("ids", "cams"):
            if getattr(labels, name) is not None:
                put(file, name, getattr(labels, name))
        if labels.names is not None:
            names = file.create_dataset("names", data=list(labels.names), dtype=h5py.string_dtype())
            names.attrs["crc32"] = checksum_of(labels.names)
        put_neighbours(file, near)
        _put_encoded(file, encoded)
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
                "crc32": _checksum(method.name, settings, digest, searched),
                "versions": json.dumps(versions()),
            },
        )


def _checksum(name: str, settings: str, digest: str, searched: str | None) -> int:
    """CRC-32 of the attributes."""
    return zlib.crc32(" ".join([name, settings, digest, *filter(None, [searched])]).encode())


def is_index(path: Path) -> bool:
    """Whether this is an index, sound or not."""
    return method_of(path) is not None


def read(path: Path, *, verify: bool = True) -> Stored:
    """Map an index into memory.

    Args:
        path: the file.
        verify: read all of it and compare checksums.

    Raises:
        InputError: if it is none, is of a newer version or of a method that is not known, or is damaged.
    """
    return guarded(lambda: _read(path, verify and not trying()), path)


def _read(path: Path, verify: bool) -> Stored:
    with reading_mapped(path, FORMAT, verify=verify) as file:
        features = file.take("features", ("G", "D"), np.float32)
        if verify and not _are_unit(features):
            raise InputError("features has rows that are not normalised")
        digests = file.take("digests", ("G", 16), np.uint8).numpy()
        digest = str(file.attrs["digest"])
        if verify and digest_of(digests) != digest:
            raise InputError("its rows are not those of its digest")
        labels = Labels(digests, file.labels("ids"), file.labels("cams"), file.names())
        encoded = _blurred(file, verify) if file.has("encoded/group") else _plain(file, verify)
        method = _method(file, digest)
        near, ranker = file.neighbours(), check_indexes(method)
        if not near.serves(ranker.list_sizes()):
            raise InputError(f"its neighbour lists are shorter than those of {ranker.name}")
        if isinstance(encoded, BlurredEncoding) != ranker.blurs:
            raise InputError(f"its encodings are not those of {ranker.name}")
        if method.needs_cameras and labels.cams is None:
            raise InputError(f"it has no cams, which {method.name} needs")
        steps = [step for step in method.feature_steps if isinstance(step, Transform)]
        if file.has(f"steps/{len(steps)}"):
            raise InputError(f"it has more feature steps than {method.name}")
        fitted = [file.fitted(f"steps/{number}", step) for number, step in enumerate(steps)]
        found = _approximation(file, features, path)
        if found is not None:
            encoded = replace(encoded, entries=found.entries)
        return Stored(features, labels, digest, method, near, encoded, fitted, file.source, found)


def _method(file: MappedFile, digest: str) -> AnyMethod:
    """What the index was built for."""
    name, settings = str(file.attrs["method"]), str(file.attrs["params"])
    searched = file.attrs.get("search")
    if _checksum(name, settings, digest, searched and str(searched)) != file.attrs.get("crc32"):
        raise InputError("its attributes have another checksum than when they were written")
    params = json.loads(settings)
    if not isinstance(params, dict):
        raise InputError("its params are no JSON object")
    return create(name, **params)


def _approximation(file: MappedFile, features: torch.Tensor, path: Path) -> Approximation | None:
    """How the index is searched, if not everything is."""
    if "search" not in file.attrs:
        return None
    about = _searched(file)
    kind, effort, recall = (about[name] for name in ("kind", "effort", "recall"))
    stored = file.take("search/faiss", ("bytes",), np.uint8).numpy()
    axes = file.take("search/axes", ("D", "axes"), np.float32)
    if trying():
        return None  # a process with little memory cannot load FAISS
    load_faiss()

    def opened() -> ApproximateSearch:
        search = ApproximateSearch(kind, axes, stored, effort)
        search.check(*features.shape)
        return search

    shares = {str(name): float(share) for name, share in recall.items()}
    return Approximation(guarded(opened, path), shares, about["entries"])


def _searched(file: MappedFile) -> dict[str, Any]:
    """The attribute `search`."""
    about: dict[str, Any] = json.loads(str(file.attrs["search"]))
    counts = [about["effort"], 1 if about["entries"] is None else about["entries"]]
    whole = all(type(count) is int and count > 0 for count in counts)
    if about["kind"] not in KINDS or not whole or not isinstance(about["recall"], dict):
        raise InputError("its attribute search has values that are invalid")
    return about


def method_of(path: Path) -> str | None:
    """Return the method that an index was built for, without looking at the rest of it; None if it is none."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return None

    def read() -> Mapping[str, Any]:
        with open_hdf5(path) as file:
            return attributes(file)

    try:
        stated = guarded(read, path)
    except InputError:
        return None
    return str(stated.get("method")) if stated.get("format") == FORMAT else None


def _blurred(file: MappedFile, verify: bool) -> BlurredEncoding:
    halves, encodings, inverted = (file.sparse_rows(f"encoded/{name}") for name in _BLURRED[3:])
    if verify and not (_weigh_one(encodings) and _weigh_one(inverted, by_column=True)):
        raise InputError("encodings weigh more than they can")
    return BlurredEncoding(
        group=file.take("encoded/group", ("G", "B"), within=file.items),
        blur=file.take("encoded/blur", ("G", "B"), np.float32, within=(0, _MOST_BLUR)),
        reach=file.take("encoded/reach", ("G",), np.float32, within=(-np.inf, np.inf)),
        halves=halves,
        encodings=encodings,
        inverted=inverted,
    )


def _plain(file: MappedFile, verify: bool) -> Encoding:
    rows, inverted = (file.sparse_rows(f"encoded/{name}") for name in _PLAIN)
    if verify and not (_have_norm_one(rows) and _have_norm_one(inverted, by_column=True)):
        raise InputError("encodings weigh more than they can")
    return Encoding(rows=rows, inverted=inverted)


def _are_unit(features: torch.Tensor) -> bool:
    """Whether all rows have length 1, but for rounding; not those with nan."""
    lengths = (torch.linalg.vector_norm(some, dim=1) for some in torch.split(features, _ROWS))
    return all(bool(((some - 1).abs() < OFF).all()) for some in lengths)


def _weigh_one(encodings: SparseRows, *, by_column: bool = False) -> bool:
    """Whether the weights of each row, or column, sum to no more than `ONE`, but for their rounding."""
    return bool((_summed(encodings, lambda weights: weights.long() - 1, by_column) <= ONE).all())


def _have_norm_one(encodings: SparseRows, *, by_column: bool = False) -> bool:
    """Whether the Euclidean norm of each row, or column, is no more than `ONE`, but for rounding."""
    squares = _summed(encodings, lambda weights: (weights.double() / ONE) ** 2, by_column)
    return bool((squares <= (1 + OFF) ** 2).all())


def _summed(encodings: SparseRows, of: Callable[[torch.Tensor], torch.Tensor], by_column: bool) -> torch.Tensor:
    """(G,) the sum over each row, or column, of what `of` makes of weights."""
    sums = torch.zeros(len(encodings), dtype=of(encodings.weights[:0]).dtype)
    for start, stop in encodings.blocks():
        some = encodings.rows(start, stop)
        owners = some.columns.long() if by_column else start + torch.repeat_interleave(some.counts)
        sums.index_add_(0, owners, of(some.weights))
    return sums


def _put_encoded(file: Any, encoded: Encoding) -> None:
    for name in _BLURRED if isinstance(encoded, BlurredEncoding) else _PLAIN:
        values = getattr(encoded, name)
        parts = {"": values}
        if isinstance(values, SparseRows):
            parts = {f"/{part}": getattr(values, part) for part in SparseRows.ARRAYS}
        for part, numbers in parts.items():
            put(file, f"encoded/{name}{part}", numbers.cpu().numpy())
