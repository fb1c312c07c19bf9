"""Load features from native files or files of other tools."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from ..data.arrays import check_path
from ..data.features import FeatureSet
from ..data.similarities import SimilaritySet
from ..errors import InputError, ParameterError
from . import features_h5
from .features_h5 import Contents
from .rankings import format_of


def load(
    path: str | Path,
    gallery: str | Path | None = None,
    *,
    memory: int | None = None,
    notify: Callable[[str], None] | None = None,
    similarities: bool = False,
    matrix: str | None = None,
) -> FeatureSet:
    """Load features from a native HDF5 file, or from files of another tool.

    Args:
        path: `feats.h5`, `feats.h5::/group`, or any file that `import_features` reads, except pickles.
        gallery: a separate file for the gallery; `path` then provides only the probes.
        memory: budget in bytes (2 GiB by default); features of native files above a quarter of it stay on disk.
        notify: called with notes about how another tool's files were read, and warnings about likely mistakes.
        similarities: whether the files may hold similarities or distances in the place of features; the result
            is then a `SimilaritySet`.
        matrix: what these are; see `import_features`.

    Raises:
        InputError: listing all problems at once, with path and row; also for files of another tool that could
            be read in two ways.
    """
    for one in (path,) if gallery is None else (path, gallery):
        check_path(one, "br.FeatureSet.from_arrays(probe, gallery) takes arrays")
    contents = inspect(path, gallery, memory=memory, similarities=similarities, matrix=matrix)
    if contents.data is None:
        raise InputError(contents.problems)
    if matrix is not None and not isinstance(contents.data, SimilaritySet):
        raise InputError(f"{path} has features and no matrix: leave --matrix out")
    if contents.imported is not None and notify is not None:
        notify(f"note: read {contents.data.provenance['source']}")
        for note in contents.imported.notes:
            notify(f"note: {note}")
        for doubt in contents.imported.doubts:
            notify(f"warning: {doubt}")
    return contents.data


def inspect(
    path: str | Path,
    gallery: str | Path | None = None,
    *,
    memory: int | None = None,
    similarities: bool = False,
    matrix: str | None = None,
) -> Contents:
    """Read what `load` would read and collect all problems instead of raising them.

    Arguments and errors are as for `load`, except that a native file only raises `InputError` if it cannot be
    opened.
    """
    from .foreign import import_features, is_foreign

    paths = [path] if gallery is None else [path, gallery]
    foreign = [one for one in paths if "::" not in str(one) and is_foreign(Path(one))]
    if not foreign:
        return features_h5.inspect(path, gallery, memory=memory)
    if len(foreign) < len(paths):
        raise InputError(
            f"{foreign[0]} is another tool's file, but the other is native: convert it with "
            "`blurrerank convert`"
        )
    imported = import_features(*paths, matrix=matrix)
    data = imported.data
    if isinstance(data, SimilaritySet) and not similarities:
        raise InputError(
            f"{', '.join(map(str, paths))} has similarities and no features: `run`, `eval` and `fuse` take them"
        )
    problems = [
        f"{', '.join(map(str, paths))}: {line}; inspect it with `blurrerank convert`"
        for line in imported.unsure
    ]
    return Contents(
        data.probe, data.gallery, None if problems else data, problems, data.provenance, imported=imported
    )


def is_matrix_file(path: str | Path) -> bool:
    """Return whether a file given as a ranking is of another format than rankings are written in."""
    try:
        form = format_of(str(path).removesuffix(".gz"))
    except ParameterError:
        return True
    if form != "npz":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "indices.npy" not in archive.namelist()
    except Exception:  # what is wrong with it, the reader of rankings says
        return False


def load_matrix(path: str | Path, data: FeatureSet, *, matrix: str | None = None) -> SimilaritySet:
    """Read similarities or distances of the probes and gallery items of `data`.

    Args:
        path: a file that `import_features` reads, with one (P, G) array, or one that is called so, such as
            `distmat`.
        data: whose sizes and labels they have.
        matrix: what they are; see `import_features`.

    Raises:
        InputError: if there is no such array, or several.
    """
    from .foreign.containers import open_file, read_tried
    from .foreign.matrices import matrix_role, similarity_set
    from .foreign.parts import Part, entries, is_matrix, shown

    shape = len(data.probe), len(data.gallery)

    def read() -> SimilaritySet:
        file = open_file(Path(path))
        fitting = [(name, value) for name, value in entries(file) if is_matrix(value) and value.shape == shape]
        called = [one for one in fitting if matrix_role(one[0]) == "between"]
        chosen = called or fitting
        if len(chosen) != 1:
            lying = any(is_matrix(value) and value.shape == shape[::-1] for _, value in entries(file))
            raise InputError(
                f"{path}: found {shown(file)}: expected one array of {shape[0]} x {shape[1]}, probes by "
                f"gallery items{': transpose it' * lying}"
            )
        name, values = chosen[0]
        sides = {"probe": data.probe, "gallery": data.gallery}
        labels = {
            f"{side}_{kind}": getattr(one, kind)
            for side, one in sides.items()
            for kind in ("ids", "cams", "names")
        }
        sources = () if file.source is None else (file.source,)
        # An array without a name is called as its file.
        part = Part(name if file.fields else Path(path).stem, values)
        return similarity_set({"between": part}, str(path), matrix, {"source": str(path)}, sources, **labels)

    return read_tried(read, Path(path))
