"""Layouts recognised from whole files: tables, dictionaries by image name, values by position, row lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...data.labels import DISTRACTOR
from ...data.numbering import number_of
from ...errors import InputError
from ..names import plain, role_of
from .containers import Opened
from .parts import (
    Layout,
    Part,
    are_whole,
    as_array,
    as_integers,
    as_texts,
    entries,
    listed,
    matrices,
    only_matrix,
    settle,
    taken,
    two_sides,
)
from .pickles import of_objects

_SCHEMES = {
    "Market-1501, DukeMTMC and VeRi-776": r"(?P<id>-?\d{1,18})_c(?P<cam>\d{1,18})",
    "MARS": r"(?P<id>\d{4}|00-1)C(?P<cam>\d{1,4})T\d+F\d+",
    "MSMT17": r"(?P<id>\d{4})_\d{3}_(?P<cam>\d{2})_\d{4}(?:morning|noon|afternoon)",
    "Celeb-reID": r"(?P<id>\d{1,6})_\d{1,6}_\d{1,2}\.(?:jpg|jpeg|png)$",
}
"""Identity and camera at the start of a file's name, as data sets have them."""


def ann_benchmarks(files: Sequence[Opened]) -> Layout | None:
    """Recognise ann-benchmarks: HDF5 with `train` and `test`, and nothing that says query or gallery."""
    fields = set(files[0].fields)
    if len(files) != 1 or not {"train", "test"} <= fields or any(map(role_of, fields - {"test"})):
        return None
    file = files[0]
    found = Layout(
        "ann-benchmarks",
        {"features": Part("test", file.fields["test"])},
        {"features": Part("train", file.fields["train"])},
    )
    distance = file.attributes.get("distance")
    if isinstance(distance, str) and distance != "angular":
        found.doubts.append(f"its distance is {distance}, but blurrerank ranks by cosine similarity")
    if "neighbors" in file.fields:
        found.notes.append("neighbors are ignored: `run --candidates` reads them from this file")
    return found


def oml(files: Sequence[Opened]) -> Layout | None:
    """Recognise OML: a table with is_query and is_gallery, and a file of features."""
    tables = [file for file in files if {"label", "is_query", "is_gallery"} <= set(file.fields)]
    if not tables:
        return None
    table, others = tables[0], [file for file in files if file is not tables[0]]
    if len(others) != 1:
        raise InputError(
            f"{table.path} is an OML table: also pass the file of its features, one row per table row"
        )
    vectors = only_matrix(others[0])
    columns = {name: of_objects(as_texts(values)) for name, values in table.fields.items()}
    chosen = {"probe": _flags(columns["is_query"], table), "gallery": _flags(columns["is_gallery"], table)}
    rows = len(columns["label"])
    used = chosen["probe"] | chosen["gallery"]
    values = as_array(vectors.values, vectors.origin)
    found = Layout("OML", {}, {})
    if values.shape[0] == used.sum() != rows:
        found.notes.append(f"features cover only the {used.sum()} query or gallery rows, of {rows}")
        place = np.cumsum(used) - 1
    elif values.shape[0] == rows:
        place = np.arange(rows)
        if not used.all():
            found.notes.append(f"{rows - used.sum()} of {rows} rows are neither query nor gallery")
    else:
        raise InputError(
            f"{others[0].path} has {values.shape[0]} rows and {table.path} has {rows}: they must have the same "
            "number of rows"
        )
    ids = Part("label", columns["label"])
    if are_whole(ids.values):
        ids.values = as_integers(ids, str(table.path))
        if (ids.values[chosen["probe"]] == DISTRACTOR).any():
            ids.values = ids.values + (ids.values >= DISTRACTOR)
            ids.told.append(
                "1 added to all non-negative ids, because probes have id 0, which marks distractors"
            )
    labels = {"ids": ids}
    sequences = _sequences(columns["sequence"], found) if "sequence" in columns else np.array([])
    if any(sequences):
        scenes = of_objects([some or f"row {row}" for row, some in enumerate(sequences)])
        labels["cams"] = Part("sequence", scenes)
        mixed = [some for some in set(sequences) - {""} if len(set(columns["label"][sequences == some])) > 1]
        if mixed:
            found.doubts.append(
                f"sequence {min(mixed)} holds several identities: OML ignores all items of a probe's sequence, "
                "protocol market1501 only those of its identity"
            )
    elif (chosen["probe"] & chosen["gallery"]).any():
        labels["cams"] = Part("row number", np.arange(rows), ["so that no image matches itself"])
    if "path" in columns:
        labels["names"] = Part("path", columns["path"])
    for side, parts in found.sides.items():
        some = np.flatnonzero(chosen[side])
        parts["features"] = Part(vectors.origin, np.asarray(values[:])[place[some]])
        parts |= taken(labels, some)
    ignored = sorted(set(columns) - {"label", "is_query", "is_gallery", "path", "sequence"})
    if ignored:
        found.notes.append(f"ignored: {listed(ignored)}")
    return found


def _sequences(column: Any, found: Layout) -> Any:
    """The column, empty where pandas wrote that there is nothing."""
    nothing = np.array([text.strip().lower() == "nan" for text in column], dtype=bool)
    if nothing.any():
        found.notes.append(f"sequence is {column[nothing][0]} in {nothing.sum()} rows: treated as empty")
    return np.where(nothing, "", column)


def _flags(column: Any, table: Opened) -> Any:
    known = dict.fromkeys(("true", "1", "1.0"), True) | dict.fromkeys(("false", "0", "0.0", "", "nan"), False)
    for row, text in enumerate(column):
        if text.strip().lower() not in known:
            raise InputError(
                f"{table.path} has {text!r} in row {row} of is_query or is_gallery: expected True or False"
            )
    return np.array([known[text.strip().lower()] for text in column])


def vectors_by_name(files: Sequence[Opened]) -> Layout | None:
    """Recognise GCN_rerank: two dictionaries, image name -> vector, with labels in the names."""
    if len(files) != 2 or not all(file.fields and all(map(_is_vector, file.fields.values())) for file in files):
        return None
    probe, gallery, told = two_sides(files)
    every = [_base(name) for file in files for name in file.fields]
    scheme, form = max(
        ((scheme, re.compile(form)) for scheme, form in _SCHEMES.items()),
        key=lambda one: sum(one[1].match(name) is not None for name in every),
    )
    found = Layout("vectors by file name", {}, {}, notes=told)
    for side, file, parts in (("probe", probe, found.probe), ("gallery", gallery, found.gallery)):
        rows = [np.ravel(as_array(value, str(file.path))) for value in file.fields.values()]
        parts["features"] = Part("vectors", as_array(rows, str(file.path)))
        parts["names"] = Part("names", of_objects([str(name) for name in file.fields]))
        names = [_base(name) for name in file.fields]
        matches = [form.match(name) for name in names]
        bad = [name for name, match in zip(names, matches, strict=True) if match is None]
        if len(bad) == len(names):
            found.doubts.append(
                f"no {side} name says an identity as {scheme} has it ({', '.join(bad[:3])}): they have no ids"
            )
            continue
        origin = f"of the names, as {scheme} has them"
        if bad:
            origin += f", {len(bad)} without"
            found.doubts.append(
                f"{len(bad)} of {len(names)} {side} names say no identity ({', '.join(bad[:3])}): their images "
                "are distractors, id 0"
            )
        more = int(scheme == "MSMT17")  # which counts from 0, what marks distractors here
        origin += ", plus 1" * more
        ids = [0 if match is None else int(number_of(match["id"]) or 0) + more for match in matches]
        parts["ids"] = Part(origin, np.array(ids))
        if "cam" in form.groupindex:
            cams = [-1 if match is None else int(match["cam"]) for match in matches]
            parts["cams"] = Part(origin, np.array(cams))
    return found


def _is_vector(value: Any) -> bool:
    shape = tuple(getattr(value, "shape", ()))
    return "float" in str(getattr(value, "dtype", "")) and (
        len(shape) == 1 or (len(shape) == 2 and shape[0] == 1)
    )


def _base(name: Any) -> str:
    return re.split(r"[/\\]", str(name))[-1]


def by_position(files: Sequence[Opened]) -> Layout | None:
    """Recognise CoinCheung's SFT-ReID: features, ids and cameras of the probes, then of the gallery."""
    if len(files) != 1 or not isinstance(files[0].content, list | tuple) or len(files[0].content) != 6:
        return None
    six = [as_array(value, str(files[0].path)) for value in files[0].content]
    dimensions = [np.ndim(value) for value in six]
    if dimensions[0] != 2 or dimensions[3] != 2 or max(dimensions) > 2:
        return None
    kinds = ("features", "ids", "cams")
    probe, gallery = (
        {kind: Part(f"place {first + place}", six[first + place]) for place, kind in enumerate(kinds)}
        for first in (0, 3)
    )
    return Layout("by position, as CoinCheung's SFT-ReID", probe, gallery)


def indexed(files: Sequence[Opened]) -> Layout | None:
    """Recognise CUHK03-NP: row lists of both sides, counted from 1, over the features of all images."""
    fields = {plain(name): Part(name, value) for file in files for name, value in file.fields.items()}
    if not {"queryidx", "galleryidx"} <= set(fields):
        return None
    words = {"ids": ("labels", "ids"), "cams": ("camid", "camids", "cams"), "names": ("filelist",)}
    called = {kind: [fields[name] for name in names if name in fields] for kind, names in words.items()}
    labels = {kind: parts[0] for kind, parts in called.items() if parts}
    known = {plain(part.origin) for part in labels.values()}
    known |= {name for name in fields if name.endswith("idx")}
    spare = [
        Part(*entry)
        for entry in matrices(
            entry for file in files for entry in entries(file) if plain(entry[0]) not in known
        )
    ]
    where = listed(file.path for file in files)
    if "ids" not in labels or len(spare) != 1:
        raise InputError(
            f"{where}: query_idx and gallery_idx need labels and one array of features of all images, and "
            f"there are {len(spare)}: name its file too"
        )
    parts = {"features": spare[0]} | labels
    unsure = settle([parts], where)
    images = parts["features"].values.shape[0]
    sides = []
    for name in ("queryidx", "galleryidx"):
        numbers = as_integers(fields[name], where)
        outside = numbers[(numbers < 1) | (numbers > images)]
        if len(outside):
            raise InputError(f"{where}: {fields[name].origin} names image {outside[0]}: expected 1 to {images}")
        side = taken(parts, numbers - 1)
        side["features"].told.append(f"rows of {fields[name].origin}")
        sides.append(side)
    probe, gallery = sides
    return Layout("CUHK03-NP", probe, gallery, notes=["row numbers count from 1"], unsure=unsure, settled=True)
