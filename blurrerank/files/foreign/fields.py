"""Layouts recognised by field names: side and kind, or kind alone with one file per side or a probe count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import InputError
from ..names import kind_of, plain, role_of
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

_SIDES = ("query", "probe", "gallery", "test")


def named(files: Sequence[Opened]) -> Layout | None:
    """Recognise fields named by side and kind, as in layumi, torchreid, ECN and Zhong's separate files."""
    sides: dict[str, Parts] = {"probe": {}, "gallery": {}}
    several: Parts = {}
    spare: list[tuple[Opened, str, Any]] = []
    for file, named_by, name, value in _named_values(files):
        role = role_of(named_by)
        if plain(name).startswith("mquery"):
            role = role_of(plain(name)[1:])
            if role is not None:
                several[role[1]] = Part(name, value)
            continue
        if role is not None and role[1] == "features" and not is_matrix(value) and plain(name) in _SIDES:
            role = None  # `test` may be anything
        if role is None:
            spare.append((file, name, value))
            continue
        side, kind = role
        if kind in sides[side]:
            raise InputError(
                f"{file.path}: {sides[side][kind].origin} and {name} could both be the {side} {kind}: "
                "keep only one of them"
            )
        sides[side][kind] = Part(name, value)
    if not any(sides.values()) and not several:
        return None
    if several and not sides["gallery"]:
        raise InputError(
            f"{listed(file.path for file in files)}: only images for multi-query: also pass pytorch_result.mat"
        )
    names = {part.origin for parts in sides.values() for part in parts.values()}
    for side, parts in sides.items():
        if "features" not in parts:
            _find_features(side, parts, spare)
    missing = [side for side, parts in sides.items() if "features" not in parts]
    if missing:
        raise InputError(
            f"{listed(file.path for file in files)}: no {' and no '.join(missing)} features: found "
            f"{'; '.join(map(shown, files))}"
        )
    if sides["probe"]["features"].values is sides["gallery"]["features"].values:
        raise InputError(
            f"{listed(file.path for file in files)}: {sides['probe']['features'].origin} is the only array of "
            "features: also pass the other side's file"
        )
    whose = "names of probe and gallery fields"
    for name, whole in (
        ("layumi", {"query_f", "gallery_f"}),
        ("torchreid", {"qf", "gf"}),
        ("ECN", {"query_features", "test_features"}),
        ("Zhong", {"testID", "queryID"}),
    ):
        if whole <= names:
            whose = f"{name}'s names"
    found = Layout(whose, sides["probe"], sides["gallery"])
    if several:
        _average_queries(found, several, listed(file.path for file in files))
    rest = [name for _, name, _ in spare if name not in {parts["features"].origin for parts in sides.values()}]
    if rest:
        found.notes.append(f"ignored: {listed(rest)}")
    return found


def _named_values(files: Sequence[Opened]) -> list[tuple[Opened, str, str, Any]]:
    """Of all files: the file, what says what a value is, what it is called, and the value.

    A file of one value may be called as that; so may files without fields, if one of them is one of labels.
    """
    found = [
        (
            file,
            stem if role_of(name) is None and len(file.fields) == 1 and is_vector(value) else name,
            name,
            value,
        )
        for file in files
        for stem in (file.path.stem,)
        for name, value in file.fields.items()
    ]
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
    chosen = called if called else fitting
    if len(chosen) == 1:
        parts["features"] = Part(chosen[0][1], chosen[0][2])


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
    found = [_kinds(file) for file in files]
    if not found or not all("features" in parts for parts in found):
        return None
    if len(files) == 1:
        count = next(
            (
                Part(name, np.ravel(as_array(value, name)))
                for name, value in files[0].fields.items()
                if plain(name) in ("numquery", "numprobe", "nquery", "nprobe")
            ),
            None,
        )
        if count is None:
            raise InputError(
                f"{files[0].path} has one list of images: pass a second file for the gallery, or store in a "
                "field num_query how many of them, counted from the first, are probes"
            )
        return _split(files[0], found[0], count)
    stems = [file.path.stem.lower() for file in files]
    extra = [place for place, stem in enumerate(stems) if stem.startswith("distractor")]
    rest = [place for place in range(len(files)) if place not in extra]
    if len(rest) != 2:
        return None
    probe, gallery, told = two_sides([files[place] for place in rest])
    layout = Layout("a file a side", found[files.index(probe)], found[files.index(gallery)], notes=told)
    if all("feat" in file.fields and "cam_ids" in file.fields for file in files):
        layout.name = "SFT_REID"
    layout.unsure += settle(
        [layout.probe, layout.gallery, *(found[place] for place in extra)], listed(file.path for file in files)
    )
    layout.settled = True
    for place in extra:
        _append(layout.gallery, found[place], files[place])
        layout.notes.append(f"{files[place].path.name} is appended to the gallery")
    return layout


def _kinds(file: Opened) -> Parts:
    found: Parts = {}
    for name, value in file.fields.items():
        kind = kind_of(name)
        if kind in found:
            raise InputError(
                f"{file.path}: {found[kind].origin} and {name} could both be the {kind}: keep only one of them"
            )
        if kind is not None:
            found[kind] = Part(str(name), value)
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
