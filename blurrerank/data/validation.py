"""Validation of the two sides of a `FeatureSet`, one line per problem."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .labels import JUNK, beyond_int64, is_storable
from .side import Side


def find_problems(probe: Side | None, gallery: Side | None) -> list[str]:
    """Return all problems that keep two sides from forming a `FeatureSet`, one line each."""
    sides = [side for side in (probe, gallery) if side is not None]
    problems = [problem for side in sides for problem in _side_problems(side)]
    flat = [side for side in sides if len(side.features.shape) == 2]
    if len({side.dim for side in flat}) == 2:
        dims = " and ".join(
            f"{side.label} has {side.dim}{' dimensions' if side is probe else ''}" for side in flat
        )
        lying = len({len(side) for side in flat}) == 1
        hint = "; both have as many rows, so they may be (D, N): transpose them" if lying else ""
        problems.append(f"{dims}: both must come from the same model{hint}")
    return problems


def _side_problems(side: Side) -> list[str]:
    if side.unit:
        return []
    problems = label_problems(side)
    where, shape = f"{side.label}/features", tuple(side.features.shape)
    if len(shape) != 2:
        hint = "; for one image use reshape(1, -1)" if len(shape) == 1 else ""
        problems.insert(0, f"{where} has shape {shape}: expected (rows, dimensions){hint}")
    elif 0 in shape:
        problems.insert(0, f"{where} is empty, shape {shape}: at least one row and one dimension are needed")
    elif not _is_float(side.features.dtype):
        hint = " (use astype('float32'))" if "int" in str(side.features.dtype) else ""
        problems.insert(0, f"{where} is {side.features.dtype}: expected float16, float32 or float64{hint}")
    else:
        problems[:0] = _value_problems(side)
    return problems


def label_problems(side: Side) -> list[str]:
    """Return the problems with the labels of a side, one line each."""
    return list(_label_problems(side))


def _label_problems(side: Side) -> Iterator[str]:
    rows = side.features.shape[0] if len(side.features.shape) else 0
    for name, kinds, expected in (
        ("ids", "iu", "integers"),
        ("cams", "iu", "integers"),
        ("names", "OUT", "strings"),
        ("tracks", "iuOUT", "integers or strings"),
    ):
        labels = getattr(side, name)
        if labels is None:
            continue
        if labels.shape != (rows,):
            hint = " (use reshape(-1))" if labels.size == rows else ""
            yield f"{side.label}/{name} has shape {labels.shape}: expected ({rows},), one label per row{hint}"
        elif labels.dtype.kind == "f" and kinds == "iu" and (labels % 1 != 0).any():
            row = int(np.argmax(labels % 1 != 0))
            yield f"{side.label}/{name} has {labels[row]} in row {row}: expected integers"
        elif labels.dtype.kind not in kinds:
            hints = {"f": " (use astype('int64'))"} | dict.fromkeys(
                "OSU", " (number them from 1, the same in all files)"
            )
            hint = hints.get(labels.dtype.kind, "")
            what = "text" if kinds == "iu" and labels.dtype.kind in "OSU" else labels.dtype
            yield f"{side.label}/{name} is {what}: expected {expected}{hint}"
        elif name != "names" and beyond_int64(labels).any():
            row = int(np.argmax(beyond_int64(labels)))
            yield f"{side.label}/{name} has {labels[row]} in row {row}: expected a value that fits int64"
        elif name == "ids" and (labels < JUNK).any():
            row = int(np.argmax(labels < JUNK))
            yield (
                f"{side.label}/ids has {labels[row]} in row {row}: expected -1 (junk), 0 (distractor) or more"
            )
        elif name == "names" and not all(map(is_storable, labels)):
            row = next(row for row, label in enumerate(labels) if not is_storable(label))
            what = "a string" if not isinstance(labels[row], str) else "text that utf-8 can encode, without NUL"
            yield f"{side.label}/names has {labels[row]!r} in row {row}: expected {what}"


def _value_problems(side: Side) -> Iterator[str]:
    """Find NaN, infinity and all-zero rows in one pass over the features."""
    not_finite: list[int] = []
    zero: list[int] = []
    for start, block in side.blocks(side.scan_rows()):
        norms = torch.linalg.vector_norm(block.to(torch.float32), dim=1)
        # A float32 norm may overflow or underflow for valid rows: check the values of those rows themselves.
        suspects = torch.nonzero(~(torch.isfinite(norms) & (norms > 0))).flatten()
        if len(suspects):
            rows = block[suspects]
            finite = torch.isfinite(rows).all(dim=1)
            nonzero = (rows != 0).any(dim=1)
            not_finite += (side.first + start + suspects[~finite]).tolist()
            zero += (side.first + start + suspects[finite & ~nonzero]).tolist()
    where = f"{side.label}/features"
    if not_finite:
        yield f"{where} has NaN or infinity in {_rows(not_finite)}: fix or remove them"
    if zero:
        yield f"{where} is all zero in {_rows(zero)}: such a row has no direction; remove it"


def _rows(rows: list[int], show: int = 5) -> str:
    listed = ", ".join(map(str, rows[:show])) + (", ..." if len(rows) > show else "")
    return f"row {listed}" if len(rows) == 1 else f"{len(rows)} rows ({listed})"


def _is_float(dtype: Any) -> bool:
    if isinstance(dtype, torch.dtype):
        return dtype in (torch.float16, torch.float32, torch.float64)
    stored = np.dtype(dtype)
    return bool(stored.kind == "f" and stored.itemsize <= 8)
