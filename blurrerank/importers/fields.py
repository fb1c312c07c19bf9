"""Layouts whose fields say what they are: side and kind, or kind alone with a file or a count for the side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .containers import Opened
from .parts import (
    Layout,
    Part,
    Parts,
    as_array,
    as_features,
    as_labels,
    as_texts,
    features_of,
    is_matrix,
    listed,
    only_matrix,
    plain,
    shown,
    two_sides,
)
from .pickles import of_objects

_SIDES = {"probe": "query|probe|prob|q", "gallery": "gallery|gal|test|g"}
_KINDS = {
    "features": "fea|feat|feats|feature|features|embd|embds|embedding|embeddings",
    "ids": "id|ids|pid|pids|label|labels",
    "cams": "cam|cams|camid|camids|camera|cameras",
    "names": "path|paths|name|names|img|imgs|imgpath|imgpaths|filelist",
}
_NAMED = {
    (side, kind): re.compile(f"(?:{prefix})(?:{kinds}{'|f' * (kind == 'features')})")
    for side, prefix in _SIDES.items()
    for kind, kinds in _KINDS.items()
}
_POOLED = {kind: re.compile(kinds) for kind, kinds in _KINDS.items()}


def named(files: Sequence[Opened]) -> Layout | None:
    """Fields that say side and kind: layumi's, torchreid's, ECN's, and the several files of Zhong's."""
    sides: dict[str, Parts] = {"probe": {}, "gallery": {}}
    several: Parts = {}
    spare: list[tuple[Opened, str, Any]] = []
    for file in files:
        for name, value in file.fields.items():
            role = _role(name) or (
                _role(file.path.stem) if len(file.fields) == 1 and not is_matrix(value) else None
            )
            if plain(name).startswith("mquery"):
                kind = next(
                    (
                        kind
                        for (side, kind), form in _NAMED.items()
                        if side == "probe" and form.fullmatch(plain(name)[1:])
                    ),
                    None,
                )
                if kind is not None:
                    several[kind] = Part(name, value)
                continue
            if role is None:
                spare.append((file, name, value))
                continue
            side, kind = role
            if kind in sides[side]:
                raise InputError(
                    f"{file.path}: {sides[side][kind].origin} and {name} may both be the {side} {kind}: "
                    "keep one of them"
                )
            sides[side][kind] = Part(name, value)
    if not any(sides.values()) and not several:
        return None
    if several and not sides["gallery"]:
        raise InputError(
            f"{listed(file.path for file in files)}: images for multi-query alone: name pytorch_result.mat too"
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
            "features: name the other side's file too"
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
        _average_queries(found, several)
    rest = [name for _, name, _ in spare if name not in {parts["features"].origin for parts in sides.values()}]
    if rest:
        found.notes.append(f"not taken: {', '.join(rest)}")
    return found


def _role(name: str) -> tuple[str, str] | None:
    return next((role for role, form in _NAMED.items() if form.fullmatch(plain(name))), None)


def _find_features(side: str, parts: Parts, spare: Sequence[tuple[Opened, str, Any]]) -> None:
    """Features by the word in the name of their field or file, or as many as there are labels."""
    rows = np.size(as_array(parts["ids"].values, "ids")) if "ids" in parts else None
    words = {"probe": ("query", "probe"), "gallery": ("test", "gallery")}[side]
    matrices = [(file, name, value) for file, name, value in spare if is_matrix(value)]
    fitting = [one for one in matrices if rows is None or rows in one[2].shape]
    called = [one for one in fitting if any(word in f"{one[0].path.stem} {one[1]}".lower() for word in words)]
    chosen = called if called else fitting
    if len(chosen) == 1:
        parts["features"] = Part(chosen[0][1], chosen[0][2])


def _average_queries(found: Layout, several: Parts) -> None:
    """Multi-query: the mean of all images of the probe's identity under its camera, as layumi has it."""
    for parts, what in (
        (several, "mquery_f, mquery_label and mquery_cam"),
        (found.probe, "labels and cameras"),
    ):
        if not {"features", "ids", "cams"} <= set(parts):
            raise InputError(
                f"multi-query needs {what}: {listed(part.origin for part in parts.values())} are there"
            )
    ids, cams = (as_labels(several[kind], kind) for kind in ("ids", "cams"))
    vectors = np.asarray(as_features(several["features"], len(ids), "multi-query")[:])
    mine = [as_labels(Part("", found.probe[kind].values), kind) for kind in ("ids", "cams")]
    means, alone = [], 0
    old = np.asarray(as_array(found.probe["features"].values, "probe"))
    for row, (identity, camera) in enumerate(zip(*mine, strict=True)):
        some = vectors[(ids == identity) & (cams == camera)]
        alone += not len(some)
        means.append(some.mean(axis=0) if len(some) else old[row])
    found.probe["features"] = Part(
        several["features"].origin, np.stack(means), ["means over identity and camera"]
    )
    found.notes.append("multi-query: each probe is the mean of all images of its identity under its camera")
    if alone:
        found.doubts.append(f"{alone} probes have no images for multi-query and stay as they are")


def pooled(files: Sequence[Opened]) -> Layout | None:
    """Fields without a side: one file with num_query, probes first, or a file a side."""
    found = [_kinds(file) for file in files]
    if not found or not all("features" in parts for parts in found):
        return None
    if len(files) == 1:
        count = next(
            (
                value
                for name, value in files[0].fields.items()
                if plain(name) in ("numquery", "numprobe", "nquery", "nprobe")
            ),
            None,
        )
        if count is None:
            raise InputError(
                f"{files[0].path} has one list of images: name a second file for the gallery, or say in a "
                "field num_query how many of them, from the first, are probes"
            )
        return _split(files[0], found[0], int(np.ravel(as_array(count, "num_query"))[0]))
    stems = [file.path.stem.lower() for file in files]
    extra = [place for place, stem in enumerate(stems) if stem.startswith("distractor")]
    rest = [place for place in range(len(files)) if place not in extra]
    if len(rest) != 2:
        return None
    probe, gallery, told = two_sides([files[place] for place in rest])
    layout = Layout("a file a side", found[files.index(probe)], found[files.index(gallery)], notes=told)
    if all("feat" in file.fields and "cam_ids" in file.fields for file in files):
        layout.name = "SFT_REID"
    for place in extra:
        _append(layout.gallery, found[place], files[place])
        layout.notes.append(f"{files[place].path.name} is appended to the gallery")
    return layout


def _kinds(file: Opened) -> Parts:
    return {
        kind: Part(name, value)
        for kind, form in _POOLED.items()
        for name, value in file.fields.items()
        if form.fullmatch(plain(name))
    }


def _split(file: Opened, parts: Parts, count: int) -> Layout:
    rows = np.size(as_array(parts["ids"].values, "ids")) if "ids" in parts else None
    vectors = as_features(parts["features"], rows, str(file.path))
    if not 0 < count < len(vectors):
        raise InputError(f"{file.path}: num_query is {count} of {len(vectors)} images: both sides need some")
    sides: list[Parts] = []
    for some in (slice(0, count), slice(count, len(vectors))):
        side = {"features": Part(parts["features"].origin, vectors[some], list(parts["features"].told))}
        for kind in ("ids", "cams", "names"):
            if kind in parts:
                values = np.asarray(as_array(parts[kind].values, kind)).ravel()
                side[kind] = Part(parts[kind].origin, values[some])
        sides.append(side)
    probe, gallery = sides
    return Layout("one list of images", probe, gallery, [f"the first {count} are probes (num_query)"])


def _append(gallery: Parts, more: Parts, file: Opened) -> None:
    """Distractors behind the gallery."""
    if set(gallery) - {"names"} != set(more) - {"names"}:
        raise InputError(
            f"{file.path} has {listed(sorted(more))}, the gallery {listed(sorted(gallery))}: these cannot be "
            "joined"
        )
    if "names" not in more:
        gallery.pop("names", None)
    for kind, part in gallery.items():
        one, other = (
            of_objects(as_texts(some.values))
            if kind == "names"
            else np.asarray(as_array(some.values, kind))
            if kind == "features"
            else as_labels(some, kind)
            for some in (part, more[kind])
        )
        gallery[kind] = Part(part.origin, np.concatenate([one, other]), part.told)


def bare(files: Sequence[Opened]) -> Layout | None:
    """Two arrays, probes and gallery."""
    if len(files) != 2:
        return None
    matrices = [features_of(file) for file in files]
    if any(len(some) != 1 for some in matrices):
        return None
    probe, gallery, told = two_sides(files)
    sides = [only_matrix(file) for file in (probe, gallery)]
    layout = Layout("a file a side", {"features": sides[0]}, {"features": sides[1]}, notes=told)
    shapes = [part.values.shape for part in sides]
    if shapes[0][1] != shapes[1][1] and shapes[0][0] == shapes[1][0]:
        for part in sides:
            part.told.append(f"transposed from {part.values.shape[0]} x {part.values.shape[1]}")
            part.values = np.asarray(as_array(part.values, part.origin)[:]).T
    elif shapes[0] == shapes[1] and shapes[0][0] != shapes[0][1]:
        layout.unsure.append("both arrays have one shape: rows were taken for images")
    return layout
