"""Index files, `blurrerank-index` version 1: a gallery, its neighbours and its encoding.

    features                    (G, D) float32, L2-normalised
    digests                     (G, 16) uint8: the start of the SHA-256 of each row before normalisation
    ids, cams                   (G,) int64, optional
    names                       (G,) utf-8 strings, optional
    tracks                      (G,) int64 or utf-8 strings, optional
    texts/ids/numbers           (K,) int64, if ids were text: the numbers that stand for it
    texts/ids/texts             (K,) utf-8 strings: what each of them stands for
    texts/cams/...              likewise
    neighbours/lists            (G, K) int32: each item itself, then its nearest by cosine similarity
    neighbours/similarities     (G, K) float32
    encoded/group, blur         (G, B) int32, float32
    encoded/reach               (G,) float32
    encoded/halves/...          sparse rows: offsets (G + 1,) int64, columns, weights (T,) int32
    encoded/encodings/...       likewise
    encoded/inverted/...        likewise

Root attributes:

    format, format_version      `blurrerank-index`, 1
    method, params              text and JSON
    digest                      digest of the gallery
    search                      JSON, with approximate search: its kind, the default effort, the recall of the
                                neighbour lists, and the length that encodings are cut to, if they are
    also                        JSON, for further methods: the name and the parameters of each
    versions                    JSON: versions of the libraries
    crc32                       checksum of the other attributes

Every dataset has a checksum as well, its attribute `crc32`. Datasets of numbers are stored contiguously, so
that they can be mapped into memory. Columns and lists are int64 in a gallery of 2^31 items or more.

`methods/k_reciprocal_online.py` and docs/online.md explain the parts of `encoded`. Other rankers have `rows`
and `inverted` instead, which are also sparse rows. Encodings for further methods are in `also/0/...`,
`also/1/...`. For methods that need lists by camera, `neighbours` has groups `within` and `across`, each with
`items` and `similarities`. If the method has feature steps, `features` are the transformed features, and
`steps/0/...`, `steps/1/...` hold what each step has computed from the gallery.

An index with approximate search also has

    search/axes                 (D, d) float32: the axes that rows are projected on before a search
    search/faiss                (B,) uint8: the FAISS index of the projected rows

Its neighbour lists are approximate, with -1 at the end of short ones.

Adding or removing items of such an index leaves its file as it is, under the name `NAME.base`, and writes a
file of format `blurrerank-index-changes` in its place. This has `features`, `digests`, labels, `neighbours`
and `encoded` of the added items, which are numbered after those of the base. Its `texts` replace those of the
base. Two datasets differ:

    encoded/rows/...            the encodings of the added items, instead of `inverted`
    removed                     (R,) int64, ascending: the stored numbers of the removed items

Its root attribute `base` is a digest of the checksums of the base, `digest` is that of the current rows, and
`stale` is a lower bound of how many neighbour lists of the base would change if they were computed again.

During a build, `NAME.partial` holds the `neighbours` of the first items, with the root attributes `format`
(`blurrerank-index-partial`), `format_version`, `pool` and `digest`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.side import KEPT, digest_of
from ..engine.request import check_indexes
from ..errors import InputError
from ..files.guard import guarded, trying
from ..files.hdf5 import attributes, open_hdf5
from ..files.mapped_h5 import OFF, MappedFile, opened_mapped, reading_mapped, telling_of_damage
from ..files.verified import remember, state_of, was_verified
from ..graph.encoding import BlurredEncoding, Encoding
from ..graph.sparse_rows import ONE, SparseRows
from ..methods import AnyMethod, GraphRanker, create
from ..methods.kinds.steps import Transform
from ..search.ann import KINDS, ApproximateSearch
from ..search.approximate import load_faiss
from .contents import Approximation, Drift, Labels, Stored
from .index_files import CHANGES, FORMAT, base_of, files_of, stamp

BLURRED = ("group", "blur", "reach", "halves", "encodings", "inverted")
"""The parts of an encoding by similarities to blurred items, in the order in which they are written."""
PLAIN = ("rows", "inverted")
"""The parts of any other."""

CHECKED = ("method", "params", "digest", "search", "also", "base", "stale")
"""The root attributes that the checksum is of."""

# Rows measured at a time.
_ROWS = 4096
# How often to open an index that is replaced meanwhile.
_ATTEMPTS = 3
# A weight of blurring is at most 1, divided by a norm of at least 1e-6.
_MOST_BLUR = 1.01e6


def checksum(*texts: str | None) -> int:
    """Return the CRC-32 of attributes, of those that there are."""
    return zlib.crc32(" ".join(filter(None, texts)).encode())


def read(path: Path, *, verify: bool | None = None) -> Stored:
    """Map an index into memory.

    Args:
        path: the file.
        verify: read all of it and compare checksums; by default the first time that this user reads it, and
            again when it was changed.

    Raises:
        InputError: if it is none, is of a newer version or of a method that is not known, or is damaged.
    """
    for _ in range(_ATTEMPTS):
        before, files = stamp(path), files_of(path)
        large = files[-1]
        full = not was_verified(large) if verify is None else verify
        state = state_of(large) if full and large.is_file() else None
        try:
            stored = guarded(partial(_read, path, full), *files)
        except InputError:
            if stamp(path) == before:
                raise
            continue
        if state is not None:
            remember(large, state)
        return stored
    raise InputError(f"{path} keeps being replaced: try again later")


@contextmanager
def _opened(path: Path, verify: bool) -> Iterator[tuple[MappedFile, MappedFile | None]]:
    """The index at `path`, continued by its changes, and these."""
    with open_hdf5(path) as file:
        changed = attributes(file).get("format") == CHANGES
    if not changed:
        with reading_mapped(path, FORMAT, verify=verify) as whole:
            yield whole, None
        return
    base = base_of(path)
    if not base.is_file():
        raise InputError(f"{path} holds changes to {base}, which is missing: keep both in one folder")
    # What changes is small, and read through each time.
    with (
        opened_mapped(path, CHANGES, verify=not trying()) as changes,
        opened_mapped(base, FORMAT, verify=verify) as whole,
    ):
        if str(changes.attrs.get("base")) != whole.identity():
            raise InputError(f"{base} is not the file that {path} holds changes to")
        with telling_of_damage(path, CHANGES):
            whole.continued_by(changes)
            yield whole, changes


def _read(path: Path, verify: bool) -> Stored:
    verify = verify and not trying()
    with _opened(path, verify) as (file, changes):
        features = file.take("features", ("G", "D"), np.float32)
        if verify and not _are_unit(features):
            raise InputError("features has rows that are not normalised")
        digests = file.take("digests", ("G", 16), np.uint8).numpy()
        numbers = {kind: file.labels(kind) for kind in KEPT}
        texts = {kind: named for kind in KEPT if (named := (changes or file).texts(kind))}
        labels = Labels(digests, **numbers, names=file.names(), tracks=file.tracks(), texts=texts)
        gone, drift = (None, None) if changes is None else _changed(changes, file.total)
        digest = str((changes or file).attrs["digest"])
        there = digests if gone is None else digests[~gone.numpy()]
        if (verify or changes is not None) and not trying() and digest_of(there) != digest:
            raise InputError("its rows are not those of its digest")
        methods, near = _methods(file), file.neighbours()
        method = methods[0]
        if changes is not None:
            _check_attributes(changes)
        for one in methods:
            if not near.serves(check_indexes(one).list_sizes()):
                raise InputError(f"its neighbour lists are shorter than those of {one.ranker.name}")
            if one.needs_cameras and labels.cams is None:
                raise InputError(f"it has no cams, which {one.name} needs")
            if one.feature_steps != method.feature_steps:
                raise InputError(f"{one.name} has other feature steps than {method.name}")
        steps = [step for step in method.feature_steps if isinstance(step, Transform)]
        if file.has(f"steps/{len(steps)}"):
            raise InputError(f"it has more feature steps than {method.name}")
        fitted = [file.fitted(f"steps/{number}", step) for number, step in enumerate(steps)]
        found = _approximation(file, features, gone, path)
        if changes is not None and found is None and not trying():
            raise InputError("it has changes and no search, which only an approximate index has")
        encoded = tuple(
            _encoding(file, changes, encoded_at(number), check_indexes(one), found, verify)
            for number, one in enumerate(methods)
        )
        sources = (file.source,) if changes is None else (file.source, changes.source)
        return Stored(features, labels, digest, methods, near, encoded, fitted, sources, found, gone, drift)


def _changed(changes: MappedFile, total: int) -> tuple[torch.Tensor | None, Drift]:
    """(N,) bool, the items that are gone, None if none are; and how far the index is from one built anew."""
    removed = changes.take("removed", ("removed",), np.int64, within=(0, total - 1))
    gone, encoded = torch.zeros(total, dtype=torch.bool), changes.before
    stated = str(changes.attrs.get("stale"))
    stale = int(stated) if stated.isdecimal() else -1
    if not 0 <= stale <= encoded:
        raise InputError("its attribute stale has a value that is invalid")
    if not trying():
        gone[removed] = True
    if bool(gone.all()):
        raise InputError("nothing of it is left")
    return gone if bool(gone.any()) else None, Drift.of(gone, stale, encoded)


def encoded_at(number: int) -> str:
    """Return the group that the encoding for a method is in, by its number."""
    return "encoded" if not number else f"also/{number - 1}"


def _encoding(
    file: MappedFile,
    changes: MappedFile | None,
    group: str,
    ranker: GraphRanker,
    found: Approximation | None,
    verify: bool,
) -> Encoding:
    """What a ranker made of the gallery, and of what was added to it."""
    if file.has(f"{group}/group") != ranker.blurs:
        raise InputError(f"its encodings are not those of {ranker.name}")
    encoded: Encoding = (_blurred if ranker.blurs else _plain)(file, group, verify)
    if found is not None and ranker.compares == "dot":
        encoded = replace(encoded, entries=found.entries)
    return encoded if changes is None or trying() else replace(encoded, added=_added(changes, group))


def _added(changes: MappedFile, group: str) -> SparseRows:
    """The inverted lists of items that were added."""
    rows = changes.sparse_rows(f"{group}/rows")
    if not (_have_norm_one(rows) or _weigh_one(rows)):
        raise InputError("encodings weigh more than they can")
    return rows.transposed(changes.total).shifted(changes.before)


def _check_attributes(file: MappedFile) -> None:
    """Raise `InputError` if the attributes are not as they were written."""
    stated = [file.attrs.get(name) for name in CHECKED]
    if checksum(*(None if text is None else str(text) for text in stated)) != file.attrs.get("crc32"):
        raise InputError("its attributes have another checksum than when they were written")


def _methods(file: MappedFile) -> tuple[AnyMethod, ...]:
    """What the index was built for."""
    _check_attributes(file)
    stated = [[str(file.attrs["method"]), json.loads(str(file.attrs["params"]))]]
    stated += json.loads(str(file.attrs.get("also", "[]")))
    if not all(isinstance(name, str) and isinstance(params, dict) for name, params in stated):
        raise InputError("its params are no JSON object")
    return tuple(create(name, **params) for name, params in stated)


def _approximation(
    file: MappedFile, features: torch.Tensor, gone: torch.Tensor | None, path: Path
) -> Approximation | None:
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
        search = ApproximateSearch(kind, axes, stored, effort, features[file.size :], gone)
        search.check(file.size, features.shape[1])
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


def _blurred(file: MappedFile, at: str, verify: bool) -> BlurredEncoding:
    halves, encodings = (file.sparse_rows(f"{at}/{name}") for name in BLURRED[3:5])
    inverted = file.sparse_rows(f"{at}/inverted", inverted=True)
    if verify and not (_weigh_one(encodings) and _weigh_one(inverted, by_column=True)):
        raise InputError("encodings weigh more than they can")
    return BlurredEncoding(
        group=file.take(f"{at}/group", ("G", "B"), within=file.items),
        blur=file.take(f"{at}/blur", ("G", "B"), np.float32, within=(0, _MOST_BLUR)),
        reach=file.take(f"{at}/reach", ("G",), np.float32, within=(-np.inf, np.inf)),
        halves=halves,
        encodings=encodings,
        inverted=inverted,
    )


def _plain(file: MappedFile, at: str, verify: bool) -> Encoding:
    rows = file.sparse_rows(f"{at}/rows")
    inverted = file.sparse_rows(f"{at}/inverted", inverted=True)
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
