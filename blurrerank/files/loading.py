"""Load features from native files or files of other tools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..data.features import FeatureSet
from ..errors import InputError
from . import features_h5
from .features_h5 import Contents


def load(
    path: str | Path,
    gallery: str | Path | None = None,
    *,
    memory: int | None = None,
    notify: Callable[[str], None] | None = None,
) -> FeatureSet:
    """Load features from a native HDF5 file, or from files of another tool.

    Args:
        path: `feats.h5`, `feats.h5::/group`, or any file that `import_features` reads, except pickles.
        gallery: a separate file for the gallery; `path` then provides only the probes.
        memory: budget in bytes (2 GiB by default); features of native files above a quarter of it stay on disk.
        notify: called with notes about how another tool's files were read, and warnings about likely mistakes.

    Raises:
        InputError: listing all problems at once, with path and row; also for files of another tool that could
            be read in two ways.
    """
    contents = inspect(path, gallery, memory=memory)
    if contents.data is None:
        raise InputError(contents.problems)
    if contents.imported is not None and notify is not None:
        notify(f"note: read {contents.data.provenance['source']}")
        for note in contents.imported.notes:
            notify(f"note: {note}")
        for doubt in contents.imported.doubts:
            notify(f"warning: {doubt}")
    return contents.data


def inspect(path: str | Path, gallery: str | Path | None = None, *, memory: int | None = None) -> Contents:
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
    imported = import_features(*paths)
    data = imported.data
    problems = [
        f"{', '.join(map(str, paths))}: {line}; inspect it with `blurrerank convert`"
        for line in imported.unsure
    ]
    return Contents(
        data.probe, data.gallery, None if problems else data, problems, data.provenance, imported=imported
    )
