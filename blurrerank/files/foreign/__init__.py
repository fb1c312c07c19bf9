"""Features as other tools write them, for `convert` and for every command that takes features.

What a file is shows in its content. Several files may be named where each side, or each field, has its own:
probes first, unless the names say query and gallery.

    MATLAB v5, v7.3     query_f query_label query_cam, gallery_f ..., also query_path (layumi); with
                        multi_query.mat, probes are means over mquery_f of their identity and camera
                        feat ids cam_ids imgs, a file a side, and distractor files (SFT_REID)
                        testID testCam queryID queryCam, features (D, N), a file each (Zhong)
                        labels camId query_idx gallery_idx filelist, and features of all images (CUHK03-NP)
    .npz, torch.save    qf gf q_pids g_pids q_camids g_camids (torchreid)
                        feats pids camids and num_query, probes first (fast-reid); or names as in MATLAB
    pickle              layumi's six names (GNN re-ranking)
                        name -> vector, a file a side; identity and camera are in names such as
                        0002_c1s1_000451_03.jpg (GCN_rerank)
                        features, identities, cameras of the probes, then of the gallery (CoinCheung)
    folder of CSV       query/ and test/, each with features.csv labels.csv cameras.csv (ECN)
    CSV with a header   label is_query is_gallery, also path, sequence; and a file of features (OML)
    HDF5                train, the gallery, and test, the probes (ann-benchmarks); or names as in .npz
    .fbin .hbin         features alone, a file a side; likewise .npy, and .csv without a header

Pickles are read by `convert --allow-pickle` only: arrays, numbers, text and plain containers. Nothing in them
is run. Files of torch.save are read in the same way, without that option.

Features keep their type and norm. Labels become integers: whole numbers as they are, text numbered from 1, but
for -1 and 0. Labels of OML that count from 0 get 1 more. An array (D, N) is turned round where the labels, or
the other side, say so. Names without an identity become junk. All that is done is told, and so is what is
probably not meant: one camera everywhere, cameras that count from 0 on one side and from 1 on the other, probes
without a match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.features import FeatureSet
from ...data.labels import DISTRACTOR, JUNK
from ...data.side import Side, Source
from ...errors import InputError
from .containers import Opened, is_foreign, open_file
from .fields import bare, named, pooled
from .parts import Layout, listed, numbered, settle, shown
from .programs import ann_benchmarks, by_position, indexed, oml, vectors_by_name
from .traps import norms, side_doubts

__all__ = ["Imported", "import_features", "is_foreign"]


@dataclass(frozen=True)
class Imported:
    """Features of another tool.

    Attributes:
        data: the features and labels.
        source: what the files are, in words.
        found: side -> `features`, `norms`, `ids`, `cams`, `names` -> what was found there and done to it.
        notes: what else there is to say.
        doubts: what in it is probably not meant; `traps.label_doubts` has more, of labels in general.
        unsure: what could be read in two ways.
    """

    data: FeatureSet
    source: str
    found: dict[str, dict[str, str]]
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)


def import_features(*paths: str | Path, allow_pickle: bool = False) -> Imported:
    """Read features and labels as other tools write them.

    What files are is told by their content: MATLAB v5 and v7.3, NumPy archives and arrays, files of
    `torch.save`, pickles, CSV, the HDF5 of ann-benchmarks, and `.fbin` and `.hbin` vectors; in the layouts of
    layumi's, SFT_REID's, Zhong's, GCN_rerank's, CoinCheung's, ECN's, torchreid's, fast-reid's and OML's
    programs. Features keep their dtype and norm. Labels become integers.

    Args:
        *paths: the files; where a side has one of its own, probes first, unless their names say otherwise.
        allow_pickle: read pickles too. Only arrays, numbers, text and plain containers are read of one, and
            nothing in it is run.

    Returns:
        The features and labels as a `FeatureSet`, and what was recognised.

    Raises:
        InputError: if a file cannot be read, is nothing that is known, or holds what is no features; one line
            for each problem.
    """
    if not paths:
        raise InputError("name a file to read")
    files = [open_file(Path(path), allow_pickle=allow_pickle) for path in paths]
    layout = _recognise(files)
    named = ", ".join(str(file.path) for file in files)
    sources = tuple(file.source for file in files if file.source is not None)
    probe, gallery = _sides(layout, named, sources)
    kinds = " and ".join(dict.fromkeys(file.container for file in files))
    source = f"{kinds}, {layout.name}"
    data = FeatureSet(probe, gallery, {"source": f"{', '.join(file.path.name for file in files)}: {source}"})
    found = {}
    for name, side, parts in (("probe", data.probe, layout.probe), ("gallery", data.gallery, layout.gallery)):
        shape = f"{len(side)} x {side.dim} {str(side.features.dtype).removeprefix('torch.')}"
        found[name] = {"features": f"{shape}: {parts['features']}", "norms": norms(side)}
        found[name] |= {kind: str(parts[kind]) for kind in ("ids", "cams", "names") if kind in parts}
    return Imported(data, source, found, layout.notes, layout.doubts + side_doubts(data), layout.unsure)


def _recognise(files: Sequence[Opened]) -> Layout:
    """Find the layout of the files.

    Raises:
        InputError: if it is none that is known; tells the fields there are.
    """
    for layout in (ann_benchmarks, oml, vectors_by_name, by_position, indexed, named, pooled, bare):
        found = layout(files)
        if found is not None:
            return found
    raise InputError(
        f"{listed(file.path for file in files)}: no layout that is known: {'; '.join(map(shown, files))}. "
        "Name the fields query_f, query_label, query_cam, gallery_f, gallery_label, gallery_cam"
    )


def _sides(layout: Layout, where: str, sources: tuple[Source, ...]) -> list[Side]:
    both = [layout.probe, layout.gallery]
    if not layout.settled:
        layout.unsure += settle(both, where)
    labels: dict[str, list[Any]] = {}
    for kind in ("ids", "cams"):
        have = [parts[kind] for parts in both if kind in parts]
        # What junk and distractors are called, also among names.
        found = iter(numbered(have, where, keep=(JUNK, DISTRACTOR) if kind == "ids" else ()))
        labels[kind] = [next(found) if kind in parts else None for parts in both]
        if len(have) == 1:
            side = "probes" if kind in layout.probe else "gallery"
            layout.doubts.append(f"{kind} are there for the {side} only")
    doubts = [doubt for parts in both for part in parts.values() for doubt in part.doubts]
    layout.doubts += dict.fromkeys(doubts)
    return [
        Side(
            parts["features"].values,
            ids,
            cams,
            parts["names"].values if "names" in parts else None,
            label=f"{where}::{name}",
            sources=sources,
        )
        for name, parts, ids, cams in zip(
            ("probe", "gallery"), both, labels["ids"], labels["cams"], strict=True
        )
    ]
