"""Read MATLAB files, v5 by scipy and v7.3, which is HDF5."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...errors import InputError
from .. import hdf5
from .pickles import of_objects

_OTHER = " (sparse or complex)"
_OBJECTS = {
    "string": "save cellstr({0}) or double({0})",
    "categorical": "save cellstr({0}) or double({0})",
    "datetime": "save datenum({0})",
    "table": "save its columns, each as a variable",
    "struct": "save its fields, save(file, '-struct', '{0}')",
}
"""Kinds of MATLAB variables that only MATLAB reads, and what to save instead."""


class _UnreadError(Exception):
    """A variable that is not read; the message continues its name."""


def read_v7(items: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the variables of a v7.3 file by name, and the names of those that are not read, with the reason.

    Args:
        items: from `hdf5.members`.
        path: the file.

    Raises:
        InputError: as `hdf5.Budget.read`.
    """
    budget = hdf5.Budget(path)
    known: dict[str, Any] = {}
    unread = []
    for name, item in items.items():
        if name.startswith("#"):
            continue
        try:
            known[name] = _variable(item, f"{path}::/{name}", budget)
        except _UnreadError as why:
            unread.append(f"{name}{why}")
    return known, sorted(unread)


def _variable(item: Any, where: str, budget: hdf5.Budget) -> Any:
    """A variable the way MATLAB shows it; HDF5 has its dimensions the other way round."""
    name = where.rpartition("/")[2]
    if isinstance(item, hdf5.UnfitError):
        raise item
    known = hdf5.attributes(item, where)
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise _UnreadError(_OTHER if "MATLAB_sparse" in known else _advice("struct", name))
    if item.dtype.kind == "V":
        raise _UnreadError(_OTHER)
    if "MATLAB_empty" in known:
        return np.empty((0, 0))
    kind = known.get("MATLAB_class")
    if "MATLAB_object_decode" in known or kind in _OBJECTS:
        raise _UnreadError(_advice(str(kind), name))
    values = budget.read(item, where).T
    if kind == "cell":
        cells = []
        for reference in values.ravel():
            with hdf5.reading(where):
                one = item.file[reference]
            cells.append(_variable(one, where, budget))
        return of_objects(cells).reshape(values.shape)
    if kind == "char":
        return np.array(["".join(map(chr, row)) for row in np.atleast_2d(values)])
    return values


def _advice(kind: str, name: str) -> str:
    what = _OBJECTS.get(kind, "save it as numbers or as a cell array of text")
    return f" (a {kind} of MATLAB: {what.format(name)})"


def read_v5(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the variables of a v5 file by name, and the names of those that are not read, with the reason.

    Raises:
        InputError: if it is damaged.
    """
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of two variables of one name, and of what scipy cannot read
            found = loadmat(path)
    except Exception as error:  # scipy raises what it likes
        raise InputError(f"{path} is a damaged MATLAB file: {error}; copy or write it again") from None
    known: dict[str, Any] = {}
    unread = []
    for name, value in found.items():
        if name.startswith("__"):
            continue
        if getattr(value, "dtype", np.dtype("f4")).names:
            unread.append(name + _advice("struct", name))
        elif isinstance(value, np.ndarray) and value.dtype.kind != "c":
            known[name] = value
        else:
            unread.append(name + _OTHER)
    return known, unread
