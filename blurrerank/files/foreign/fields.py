"""Layouts recognised by field names: side and kind, or kind alone with one file per side or a probe count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import InputError
from ..names import kind_of, plain, role_of, side_of
from .containers import Opened
from .parts import (
    Layout,
    Part,
    Parts,
    as_array,
    as_integers,
    entries,
    is_matrix,
    is_text,
    is_vector,
    listed,
    matrices,
    numbered,
    only_matrix,
    settle,
    shown,
    taken,
    two_sides,
)

_CALLED = {
    "layumi": {"query_f", "gallery_f"},
    "torchreid": {"qf", "gf"},
    "ECN": {"query_features", "test_features"},
    "Zhong": {"testID", "queryID"},
}
"""What programs call some of their fields."""


def named(files: Sequence[Opened]) -> Layout | None:
    """Recognise fields named by side and kind, as in layumi, torchreid, ECN and Zhong's separate files."""
    sides: dict[str, Parts] = {"probe": {}, "gallery": {}}
    several: Parts = {}
    where = listed(file.path for file in files)
    spare: list[tuple[Opened, str, Any]] = []
    for file, named_by, name, value in _named_values(files):
        role = role_of(named_by)
        if plain(name).startswith("mquery"):
            role = role_of(plain(name)[1:])
            if role is not None:
                several[role[1]] = Part(name, value)
            continue
        if role is not None and role[1] == "features" and not is_matrix(value) and side_of(name) is not None:
            role = None  # `test` may be anything
        if role is None:
            spare.append((file, name, value))
            continue
        side, kind = role
        _add(sides[side], kind, Part(name, value), file, f"{side} {kind}")
    if not any(sides.values()) and not several:
        return None
    if several and not sides["gallery"]:
        raise InputError(f"{where}: only images for multi-query: also pass pytorch_result.mat")
    names = {part.origin for parts in sides.values() for part in parts.values()}
    for side, parts in sides.items():
        if "features" not in parts:
            _find_features(side, parts, spare)
    missing = [side for side, parts in sides.items() if "features" not in parts]
    if missing:
        raise InputError(
            f"{where}: no {' and no '.join(missing)} features: found {'; '.join(map(shown, files))}"
            + "; without features, put a matrix such as distmat into the same file" * (len(missing) == 2)
        )
    features = [parts["features"] for parts in sides.values()]
    if features[0].values is features[1].values:
        raise InputError(
            f"{where}: {features[0].origin} is the only array of features: also pass the other side's file"
        )
    program = next((name for name, fields in _CALLED.items() if fields <= names), None)
    called = "names of probe and gallery fields" if program is None else f"{program}'s names"
    found = Layout(called, sides["probe"], sides["gallery"])
    if several:
        _average_queries(found, several, where)
    used = [parts["features"].origin for parts in sides.values()]
    rest = [name for _, name, _ in spare if name not in used]
    if rest:
        found.notes.append(f"ignored: {listed(rest)}")
    return found


def _add(parts: Parts, kind: str, part: Part, file: Opened, what: str) -> None:
    if kind in parts:
        raise InputError(
            f"{file.path}: {parts[kind].origin} and {part.origin} could both be the {what}: keep only one of "
            "them"
        )
    parts[kind] = part


def _named_values(files: Sequence[Opened]) -> list[tuple[Opened, str, str, Any]]:
    """Of all files: the file, what says what a value is, what it is called, and the value.

    A file of one value may be called as that; so may files without fields, if one of them is one of labels.
    """
    found = []
    for file in files:
        for name, value in file.fields.items():
            unnamed = role_of(name) is None and len(file.fields) == 1 and is_vector(value)
            found.append((file, file.path.stem if unnamed else name, name, value))
    single = [file for file in files if not file.fields and hasattr(file.content, "shape")]
    roles = [role_of(file.path.stem) for file in single]
    if any(role is not None and role[1] != "features" for role in roles):
        found += [(file, file.path.stem, file.path.name, file.content) for file in single]
    return found


def _find_features(side: str, parts: Parts, spare: Sequence[tuple[Opened, str, Any]]) -> None:
    """Features by the word in the name of their field or file, or as many as there are labels."""
    rows = np.size(as_array(parts["ids"].values, "ids")) if "ids" in parts else None
    words = {"probe": ("query", "probe"), "gallery": ("test", "gallery")}[side]
    fitting = [one for one in matrices(spare) if rows is None or rows in one[2].shape]
    called = [one for one in fitting if any(word in f"{one[0].path.stem} {one[1]}".lower() for word in words)]
    chosen = called or fitting
    if len(chosen) == 1:
        _, name, values = chosen[0]
        parts["features"] = Part(name, values)


def _average_queries(found: Layout, several: Parts, where: str) -> None:
    """Multi-query: the mean of all images of the probe's identity under its camera, as layumi has it."""
    for parts, what in (
        (several, "mquery_f, mquery_label and mquery_cam"),
        (found.probe, "labels and cameras"),
    ):
        if not {"features", "ids", "cams"} <= set(parts):
            raise InputError(
                f"multi-query needs {what}: found only {listed(part.origin for part in parts.values())}"
            )
    found.unsure += settle([found.probe, found.gallery, several], where)
    found.settled = True
    _check_dim(several["features"], found.probe["features"], where)
    (mine, ids), (my_cams, cams) = (
        numbered([replace(parts[kind], told=[]) for parts in (found.probe, several)], where)
        for kind in ("ids", "cams")
    )
    vectors, old = (np.asarray(parts["features"].values[:]) for parts in (several, found.probe))
    means, alone = [], 0
    for row, (identity, camera) in enumerate(zip(mine, my_cams, strict=True)):
        some = vectors[(ids == identity) & (cams == camera)]
        alone += not len(some)
        means.append(some.mean(axis=0) if len(some) else old[row])
    found.probe["features"] = Part(
        several["features"].origin, np.stack(means), ["mean over identity and camera"]
    )
    found.notes.append("multi-query: each probe is the mean of all images of its identity under its camera")
    if alone:
        found.doubts.append(f"{alone} probes have no images for multi-query and keep their own features")


def _check_dim(one: Part, other: Part, where: str) -> None:
    if one.values.shape[1] != other.values.shape[1]:
        raise InputError(
            f"{where}: {one.origin} has {one.values.shape[1]} dimensions and {other.origin} "
            f"{other.values.shape[1]}: they come from different models"
        )


def pooled(files: Sequence[Opened]) -> Layout | None:
    """Recognise fields without a side: one file with num_query, probes first, or one file per side."""
    found = {file: _kinds(file) for file in files}
    if not files or not all("features" in parts for parts in found.values()):
        return None
    if len(files) == 1:
        words = ("numquery", "numprobe", "nquery", "nprobe")
        counts = [Part(name, value) for name, value in files[0].fields.items() if plain(name) in words]
        if not counts:
            raise InputError(
                f"{files[0].path} has one list of images: pass a second file for the gallery, or store in a "
                "field num_query how many of them, counted from the first, are probes"
            )
        counts[0].values = np.ravel(as_array(counts[0].values, counts[0].origin))
        return _split(files[0], found[files[0]], counts[0])
    extra = [file for file in files if file.path.stem.lower().startswith("distractor")]
    rest = [file for file in files if file not in extra]
    if len(rest) != 2:
        return None
    probe, gallery, told = two_sides(rest)
    layout = Layout("a file a side", found[probe], found[gallery], notes=told, settled=True)
    if all("feat" in file.fields and "cam_ids" in file.fields for file in files):
        layout.name = "SFT_REID"
    every = [found[file] for file in (probe, gallery, *extra)]
    layout.unsure += settle(every, listed(file.path for file in files))
    for file in extra:
        _append(layout.gallery, found[file], file)
        layout.notes.append(f"{file.path.name} is appended to the gallery")
    return layout


def _kinds(file: Opened) -> Parts:
    found: Parts = {}
    for name, value in file.fields.items():
        kind = kind_of(name)
        if kind is not None:
            _add(found, kind, Part(str(name), value), file, kind)
    return found


def _split(file: Opened, parts: Parts, told: Part) -> Layout:
    unsure = settle([parts], str(file.path))
    numbers = as_integers(told, str(file.path))
    if len(numbers) != 1:
        raise InputError(f"{file.path}: {told.origin} has {len(numbers)} values: expected one number")
    count, images = int(numbers[0]), parts["features"].values.shape[0]
    if not 0 < count < images:
        raise InputError(
            f"{file.path}: {told.origin} is {count} of {images} images: each side needs at least one"
        )
    return Layout(
        "one list of images",
        taken(parts, slice(0, count)),
        taken(parts, slice(count, images)),
        [f"the first {count} are probes ({told.origin})"],
        unsure=unsure,
        settled=True,
    )


def _append(gallery: Parts, more: Parts, file: Opened) -> None:
    """Distractors behind the gallery."""
    if set(gallery) - {"names"} != set(more) - {"names"}:
        raise InputError(
            f"{file.path} has {listed(sorted(more))}, the gallery {listed(sorted(gallery))}: these cannot be "
            "joined"
        )
    _check_dim(more["features"], gallery["features"], str(file.path))
    if "names" not in more:
        gallery.pop("names", None)
    for kind, part in gallery.items():
        both = [part, more[kind]]
        if kind in ("ids", "cams") and len({is_text(some.values) for some in both}) == 2:
            for some in both:
                some.values = as_integers(some, str(file.path))
        values = np.concatenate([some.values[:] for some in both])
        told = [f"{what} in {file.path.name}" for what in more[kind].told if what not in part.told]
        if kind == "features" and values.dtype != part.values.dtype:
            told.append(f"{part.values.dtype} converted to {values.dtype} as in {file.path.name}")
        gallery[kind] = Part(part.origin, values, part.told + told, part.doubts + more[kind].doubts)


def bare(files: Sequence[Opened]) -> Layout | None:
    """Recognise two bare arrays, probes and gallery."""
    if len(files) != 2 or any(len(matrices(entries(file))) != 1 for file in files):
        return None
    probe, gallery, told = two_sides(files)
    return Layout(
        "a file a side", {"features": only_matrix(probe)}, {"features": only_matrix(gallery)}, notes=told
    )
