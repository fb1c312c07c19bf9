"""Feature files of other tools, for `convert` and for every command that takes features.

The format is detected from the content. If each side or each field has a file of its own, pass them all:
probes first, unless the names contain query and gallery.

    MATLAB v5, v7.3     query_f query_label query_cam, gallery_f ..., also query_path (layumi); with
                        multi_query.mat, each probe is the mean of mquery_f over its identity and camera
                        feat ids cam_ids imgs, one file per side, and distractor files (SFT_REID)
                        testID testCam queryID queryCam, features (D, N), one file each (Zhong)
                        labels camId query_idx gallery_idx filelist, and features of all images (CUHK03-NP)
    .npz, torch.save    qf gf q_pids g_pids q_camids g_camids (torchreid)
                        feats pids camids and num_query, probes first (fast-reid); or names as in MATLAB
    pickle              layumi's six names (GNN re-ranking)
                        name -> vector, one file per side; identity and camera come from the names, in the form
                        of Market-1501, DukeMTMC, VeRi-776, MARS, MSMT17 and Celeb-reID (GCN_rerank)
                        features, identities, cameras of the probes, then of the gallery (CoinCheung)
    folder of CSV       query/ and test/, each with features.csv labels.csv cameras.csv (ECN)
    table with a header label is_query is_gallery, also path, sequence; and a file of features (OML)
                        features in numbered columns (f0 f1 ... or 0 1 ...) or one column of lists, and columns
                        such as id, cam, name; one file per side
    HDF5                train, the gallery, and test, the probes (ann-benchmarks); or names as in .npz
    .fbin .hbin .fvecs  only features, one file per side; likewise .npy, and tables without a header
    .npy .pt .txt       one file per field, named after the field: qf.npy gf.npy q_pids.npy ...
    any of these        similarities or distances instead of features: distmat or q_g_dist (P, G), and
                        g_g_dist, q_q_dist if a method needs them; `sim` instead of `dist` for similarities

Tables can be text separated by commas, semicolons, tabs or blanks, JSON, JSON lines, or, with the extra
`tables` (pyarrow), Parquet and Feather. A header of column numbers, a first column of row numbers, and lines
that begin with # are skipped; a first column of text is read as names. `.safetensors` files are read like
torch.save.

Pickles, also those in .npy and .npz, are read only by `convert --allow-pickle`: arrays, tensors, numbers,
text, paths and plain containers. No code in them is executed. Files from torch.save do not need that option;
torch's own loader of weights reads them.

Features keep their dtype and norms, but bfloat16 becomes float32, and axes of length 1 are dropped. A (D, N)
array is transposed if the labels or the other side show that it is one.

Labels become integers. Whole numbers keep their value, even as text, unless two different texts are the same
number (1 and 01). Other text is numbered from 1, except for -1 and 0, and a report shows the text. OML labels
that start at 0, and the identities of MSMT17, are increased by 1. Images whose names contain no identity are
distractors; if no name of a side contains one, the side has no ids.

Every conversion is reported, and so are likely mistakes: the same camera for all images, cameras numbered from
0 on one side and from 1 on the other, probes without a match, and probes that are in the gallery too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.arrays import check_path
from ...data.features import FeatureSet
from ...data.labels import DISTRACTOR, JUNK
from ...data.side import Side, Source
from ...data.similarities import SimilaritySet
from ...errors import InputError
from ..names import role_of
from .containers import Opened, is_foreign, open_file, read_tried
from .fields import bare, named, pooled
from .matrices import kind_of, similarities, similarity_set
from .parts import Layout, listed, numbered, settle, shown
from .programs import ann_benchmarks, by_position, indexed, oml, vectors_by_name
from .traps import norms, side_doubts

__all__ = ["Imported", "import_features", "is_foreign"]


@dataclass(frozen=True)
class Imported:
    """Features imported from another tool.

    Attributes:
        data: the features and labels.
        source: description of the file formats and layout.
        found: side -> `features`, `norms`, `ids`, `cams`, `names` -> what was found and how it was converted.
        notes: further remarks.
        doubts: warnings about likely mistakes; `traps.label_doubts` adds warnings about labels in general.
        unsure: ambiguities, where the files could be read in two ways.
    """

    data: FeatureSet
    source: str
    found: dict[str, dict[str, str]]
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)


def import_features(*paths: str | Path, allow_pickle: bool = False, matrix: str | None = None) -> Imported:
    """Read features and labels from files of other tools.

    The format is detected from the content: MATLAB v5 and v7.3, NumPy archives and arrays, `torch.save` files,
    pickles, tables, ann-benchmarks HDF5, and plain vectors; in the layouts of layumi, SFT_REID,
    Zhong, GCN_rerank, CoinCheung, ECN, torchreid, fast-reid and OML. Features keep their dtype and norms.
    Labels become integers.

    Args:
        *paths: the files; with one file per side, probes first, unless their names say otherwise.
        allow_pickle: also read pickles. Only arrays, tensors, numbers, text and plain containers are read from
            them, and no code in them is executed.
        matrix: what similarities or distances are, a name of `data.similarities.KINDS`; by default what their
            names say, `similarity` or `distance`.

    Returns:
        The features, or similarities as a `SimilaritySet`, with their labels, and what was recognised.

    Raises:
        InputError: if a file cannot be read, has an unknown format or layout, or contains invalid features; one
            line per problem.
    """
    if not paths:
        raise InputError("no input: give at least one file to read")

    for path in paths:
        check_path(path, "br.FeatureSet.from_arrays(probe, gallery) takes arrays")
    where = ", ".join(map(str, paths))

    def read() -> tuple[list[Opened], Layout, FeatureSet]:
        files = [open_file(Path(path), allow_pickle=allow_pickle) for path in paths]
        layout = _recognise(files)
        sources = tuple(file.source for file in files if file.source is not None)
        kinds = " and ".join(dict.fromkeys(file.container for file in files))
        about = {"source": f"{', '.join(file.path.name for file in files)}: {kinds}, {layout.name}"}
        if layout.matrices:
            return files, layout, _similarities(layout, where, matrix, about, sources)
        probe, gallery = _sides(layout, where, sources)
        return files, layout, FeatureSet(probe, gallery, about, _texts(layout))

    files, layout, data = read_tried(read, *map(Path, paths))
    source = data.provenance["source"].partition(": ")[2]
    found: dict[str, dict[str, str]] = {}
    for name, parts in layout.sides.items():
        side: Side = getattr(data, name)
        found[name] = {kind: str(parts[kind]) for kind in ("ids", "cams", "names", "tracks") if kind in parts}
        if "features" in parts:
            shape = f"{len(side)} x {side.dim} {str(side.features.dtype).removeprefix('torch.')}"
            found[name] |= {"features": f"{shape}: {parts['features']}", "norms": norms(side)}
    notes = [note for file in files for note in file.notes] + layout.notes
    for file in files:
        for name in file.unread:
            needed = role_of(name.partition(" ")[0]) is not None
            (layout.doubts if needed else notes).append(f"not read: {name}")
    return Imported(data, source, found, notes, layout.doubts + side_doubts(data), layout.unsure)


def _recognise(files: Sequence[Opened]) -> Layout:
    layouts = (similarities, ann_benchmarks, oml, vectors_by_name, by_position, indexed, named, pooled, bare)
    for layout in layouts:
        found = layout(files)
        if found is not None:
            return found
    raise InputError(
        f"{listed(file.path for file in files)}: layout not recognised: {'; '.join(map(shown, files))}. "
        "Name the fields query_f, query_label, query_cam, gallery_f, gallery_label, gallery_cam"
    )


def _sides(layout: Layout, where: str, sources: tuple[Source, ...]) -> list[Side]:
    if not layout.settled:
        layout.unsure += settle([layout.probe, layout.gallery], where)
    labels = _labels(layout, where)
    return [
        Side(
            parts["features"].values,
            ids,
            cams,
            parts["names"].values if "names" in parts else None,
            label=f"{where}::{name}",
            sources=sources,
            tracks=parts["tracks"].values if "tracks" in parts else None,
        )
        for (name, parts), ids, cams in zip(layout.sides.items(), labels["ids"], labels["cams"], strict=True)
    ]


def _texts(layout: Layout) -> dict[str, dict[int, str]]:
    """What `FeatureSet.texts` holds."""
    parts = [(kind, part) for sides in layout.sides.values() for kind, part in sides.items()]
    return {kind: part.texts for kind, part in parts if part.texts}


def _similarities(
    layout: Layout, where: str, matrix: str | None, about: dict[str, Any], sources: tuple[Source, ...]
) -> SimilaritySet:
    named: dict[str, Any] = {}
    for kind, values in _labels(layout, where).items():
        named |= {f"{side}_{kind}": found for side, found in zip(layout.sides, values, strict=True)}
    for side, parts in layout.sides.items():
        named[f"{side}_names"] = parts["names"].values if "names" in parts else None
    if matrix is None:
        names = layout.matrix_names
        read = "Euclidean distances" if "distance" in map(kind_of, names) else "similarities"
        layout.notes.append(f"{listed(names)} read as {read}: --matrix says otherwise")
    return similarity_set(layout.matrices, where, matrix, about, sources, **named)


def _labels(layout: Layout, where: str) -> dict[str, list[Any]]:
    """The ids and cams of both sides as integers, None where there are none."""
    both = [layout.probe, layout.gallery]
    labels: dict[str, list[Any]] = {}
    for kind in ("ids", "cams"):
        have = [parts[kind] for parts in both if kind in parts]
        # What junk and distractors are called, also among names.
        found = iter(numbered(have, where, keep=(JUNK, DISTRACTOR) if kind == "ids" else ()))
        labels[kind] = [next(found) if kind in parts else None for parts in both]
        if len(have) == 1:
            side = "probes" if kind in layout.probe else "gallery"
            layout.doubts.append(f"{kind} exist only for the {side}")
    doubts = [doubt for parts in both for part in parts.values() for doubt in part.doubts]
    layout.doubts += dict.fromkeys(doubts)
    return labels
