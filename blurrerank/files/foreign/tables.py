"""Read tables: text with any separator, JSON, and Parquet and Feather by pyarrow.

A table has a row for each image. Its features are the columns that are numbered, such as f0, f1, ... or 0, 1,
..., or one column of lists; other columns are labels by their names. Text without a header is all features, but
for a column of names or row numbers at the beginning.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..guard import trying
from ..names import kind_of, role_of
from .pickles import of_objects

_OML = {"label", "is_query", "is_gallery"}
_INDEX = ("", "index", "Unnamed: 0")
_NUMBERED = re.compile(r"(.*?)(\d+)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_SEPARATORS = {"\t": "text with tabs", ";": "CSV with semicolons", ",": "CSV", " ": "text with blanks"}

_Rows = Sequence[tuple[int, Sequence[str]]]
"""Rows that are not empty, each behind the number of its line."""


def read_table(path: Path, head: bytes) -> tuple[str, Any, list[str]]:
    """Read a table.

    Args:
        path: the file.
        head: its first bytes.

    Returns:
        What it is, its content (fields by name, or an array of numbers), and notes about what was left out.

    Raises:
        InputError: if it is not one.
    """
    if head.startswith((b"PAR1", b"ARROW1")):
        return _arrow(path, head)
    refuse_lists(head, str(path))
    if b"\0" in head:
        raise InputError(
            f"{path} is not a recognised feature file: see `blurrerank help other-tools` for what can be read"
        )
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip()[:1] in ("{", "["):
        return _json(path, text)
    return _text(path, text)


def folder(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read CSV files below a folder: `query/features.csv` as field `query_features`; of one side, `features`.

    Raises:
        InputError: if there are none, or they are not numbers.
    """
    fields: dict[str, Any] = {}
    notes: list[str] = []
    for file in sorted(path.glob("*.csv")) + sorted(path.glob("*/*.csv")):
        if not file.is_file():
            raise InputError(f"{file} is not a regular file")
        _, content, told = _text(file, file.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict):
            if len(content) > 1:
                raise InputError(f"{file} is a table with a header: name it as a file, without its folder")
            (content,) = content.values()
        fields["_".join(file.relative_to(path).with_suffix("").parts)] = content
        notes += told
    if not fields:
        raise InputError(f"{path} has no CSV files in it or its subfolders: name a file")
    return _without_headers(fields, notes), notes


def _without_headers(fields: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Labels without the 0 that heads their only column, where they are one more than there are features."""
    rows = {
        name.removesuffix("features"): len(values)
        for name, values in fields.items()
        if name.endswith("features")
    }
    found = {}
    for name, values in fields.items():
        side = next((side for side in rows if name.startswith(side)), None)
        headed = side is not None and np.shape(values) == (rows[side] + 1, 1) and values[0, 0] == 0
        if headed:
            notes.append(f"{name}: the first line, which counts the columns, is left out")
        found[name] = values[1:] if headed else values
    return found


def refuse_lists(head: bytes, where: str) -> None:
    """Refuse what TREC tools write.

    Raises:
        InputError: for a run or judgements.
    """
    lines = head.split(b"\n", 1)
    columns = lines[0].split()
    if len(columns) == 6 and columns[1].upper() == b"Q0":
        raise InputError(
            f"{where} is a TREC run, which has lists but no features: see `blurrerank eval` and "
            "`run --candidates`"
        )
    if len(columns) == 4 and columns[1] == b"0" and columns[3].lstrip(b"-").isdigit():
        raise InputError(f"{where} contains TREC judgements (qrels), not features: labels must be identities")


# Text


def _text(path: Path, text: str) -> tuple[str, Any, list[str]]:
    kind, rows = _split(text)
    comments = next((place for place, (_, row) in enumerate(rows) if not row[0].startswith("#")), len(rows))
    notes = []
    if comments:  # as np.savetxt heads a table
        notes.append(f"{path.name}: {comments} lines at the beginning, with #, are left out")
    rows = rows[comments:]
    if not rows:
        raise InputError(f"{path} is empty")
    labels = _labels(path, [" ".join(row) if kind == _SEPARATORS[" "] else ",".join(row) for _, row in rows])
    if labels is not None:
        return "text, one label a line", labels, notes
    header = rows[0][1]
    wrong = next((number for number, row in rows if len(row) != len(header)), None)
    if wrong is not None:
        raise _no_table(path, f": line {wrong} does not have the {len(header)} columns of the first")
    counted = _counted(header, rows)
    if counted:
        notes.append(f"{path.name}: the first line, which counts the columns, is a header")
        skipped = int(header[0] in _INDEX)
        if skipped:
            notes.append(f"{path.name}: the first column, without a name, is left out")
        if skipped or kind_of(header[0]) is None:
            body = [(number, row[skipped:]) for number, row in rows[1:]]
            return f"{kind} without a header", *_bare(path, body, notes)
    elif _are_numbers(header[1:] or header):
        return f"{kind} without a header", *_bare(path, rows, notes)
    fields, more = _headed(path, header, rows[1:], counted)
    return f"{kind} with a header", fields, notes + more


def _labels(path: Path, cells: Sequence[str]) -> NDArray[Any] | None:
    """The texts of a file that is called as labels are, one a line; None of plain numbers and of others."""
    role = role_of(path.stem)
    if role is None or role[1] == "features" or any("," in cell for cell in cells):
        return None
    if len(cells) > 1 and kind_of(cells[0]) is not None:
        cells = cells[1:]
    # 0001 and 1 may be two identities.
    padded = any(cell.isdecimal() and cell.startswith("0") and len(cell) > 1 for cell in cells)
    return None if _are_numbers(cells) and not padded else of_objects(cells)


def _split(text: str) -> tuple[str, _Rows]:
    """What separates the cells, as a name of the format, and the rows."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = next((mark for mark in _SEPARATORS if mark in first), " ")
    if separator == " ":
        rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1)]
    else:
        lines = csv.reader(StringIO(text, newline=""), delimiter=separator)
        rows = [(lines.line_num, row) for row in lines]
    stripped = [(number, [cell.strip() for cell in row]) for number, row in rows]
    return _SEPARATORS[separator], [(number, row) for number, row in stripped if any(row)]


def _headed(path: Path, header: Sequence[str], rows: _Rows, counted: bool) -> tuple[Any, list[str]]:
    """Rows below a header, by column; `counted` if the header counts the columns."""
    if len(header) < 2:
        raise _no_table(path, "")
    if not rows:
        raise InputError(f"{path} has a header and no rows")
    if not counted and all(cell == "" or _is_number(cell) for cell in header):
        raise _no_table(path, ": its first line has numbers and empty cells")
    columns = {name: [row[place] for _, row in rows] for place, name in enumerate(header)}
    if len(columns) < len(header):
        raise InputError(f"{path} has two columns of the same name: rename one")
    return (columns, []) if columns.keys() >= _OML else _columns(path, columns)


def _no_table(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} is text, but not a table of features{why}: see `blurrerank help other-tools` for what can be "
        "read"
    )


def _bare(path: Path, rows: _Rows, told: list[str]) -> tuple[Any, list[str]]:
    """Rows without a header: numbers, behind names or row numbers if there are."""
    named = len(rows[0][1]) > 1 and not _are_numbers(row[0] for _, row in rows)
    for number, row in rows:
        if not _are_numbers(row[named:]):
            raise _no_table(path, f": line {number} has something else than numbers")
    values = np.array([row[named:] for _, row in rows], dtype=np.float64)
    if named:
        told.append(f"{path.name}: the first column is names")
        return {"names": [row[0] for _, row in rows], "features": values}, told
    first = values[:, 0]
    if values.shape[1] > 2 and _count(first):
        told.append(f"{path.name}: the first column, which counts the rows, is left out")
        return values[:, 1:], told
    if values.shape[1] > 2 and (first % 1 == 0).all() and (values[:, 1:] % 1 != 0).any():
        raise InputError(
            f"{path} begins with a column of whole numbers: if they are identities, head its columns, such as "
            "id,f0,f1,...; if they are features, write them as .npy"
        )
    return values, told


def _is_number(text: Any) -> bool:
    """Whether a cell is a number, which names such as 0001_02 are not, though Python reads them as one."""
    return not isinstance(text, str) or _NUMBER.fullmatch(text) is not None


def _are_numbers(texts: Iterable[Any]) -> bool:
    return all(map(_is_number, texts))


def _counted(header: Sequence[str], rows: _Rows) -> bool:
    """Whether a line counts columns, from 0 or 1, also behind a column that has another name, or none."""
    named = not _is_number(header[0])
    numbers = list(header[named:])
    counts = [[str(first + place) for place in range(len(numbers))] for first in (0, 1)]
    if len(rows) < 2 or len(numbers) < 2 - named or numbers not in counts:
        return False
    # A name of an image in the first column is no header: names stand below it too.
    known = header[0] in _INDEX or kind_of(header[0]) is not None
    return not named or known or _are_numbers(row[0] for _, row in rows[1:])


def _count(values: NDArray[Any]) -> bool:
    """Whether a column counts rows, from 0 or 1."""
    places = np.arange(len(values))
    return len(values) > 2 and any(np.array_equal(values, places + first) for first in (0, 1))


# Columns


def _columns(path: Path, columns: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fields of a table: the columns that are numbered, as one array of features, and the others by name."""
    found, notes = dict(columns), []
    for name in [name for name in found if name in _INDEX]:
        if _are_numbers(found[name]) and _count(np.array(found[name], dtype=np.float64)):
            del found[name]
            notes.append(f"{path.name}: column {name!r}, which counts the rows, is left out")
    features = [name for name in found if kind_of(name) == "features"]
    for name in features:
        found[name] = _vectors(path, name, found[name])
    if features:
        return found, notes
    groups: dict[str, dict[int, str]] = {}
    for name in found:
        match = _NUMBERED.fullmatch(name)
        if match is not None:
            groups.setdefault(match[1], {})[int(match[2])] = name
    long = sorted(groups, key=lambda one: len(groups[one]), reverse=True)
    if not long or len(groups[long[0]]) < 2:
        return found, notes
    prefix, numbered = long[0], groups[long[0]]
    if len(long) > 1 and len(groups[long[1]]) == len(numbered):
        raise InputError(
            f"{path} has columns {prefix}... and {long[1]}..., equally many of each: keep only those that "
            "are features"
        )
    first, last = min(numbered), max(numbered)
    missing = sorted(set(range(first, last + 1)) - set(numbered))
    if missing:
        raise InputError(f"{path} has columns {prefix}{first} to {prefix}{last}, but no {prefix}{missing[0]}")
    chosen = [numbered[place] for place in sorted(numbered)]
    for name in chosen:
        row = next((row for row, cell in enumerate(found[name]) if not _is_number(cell)), None)
        if row is not None:
            raise InputError(
                f"{path} has {found[name][row]!r} in row {row} of column {name}: expected a number"
            )
    values = np.stack([np.asarray(found[name]) for name in chosen], axis=1)
    found = {name: cells for name, cells in found.items() if name not in set(chosen)}
    found["features"] = values if values.dtype.kind == "f" else values.astype(np.float64)
    notes.append(f"{path.name}: features are the columns {chosen[0]} to {chosen[-1]}")
    return found, notes


def _vectors(path: Path, name: str, cells: Any) -> Any:
    """Cells that are lists written as text, such as "[0.1, 0.2]", as rows of numbers; others as they are."""
    if not all(isinstance(cell, str) and cell.startswith("[") for cell in cells):
        return cells
    rows = []
    for row, cell in enumerate(cells):
        try:
            rows.append(json.loads(cell))
        except ValueError:
            hint = ": NumPy shortens what it prints" if "..." in cell else ""
            raise InputError(
                f"{path} has {cell[:30]!r} in row {row} of column {name}: expected a list such as [0.1, 0.2]"
                f"{hint}"
            ) from None
    return rows


def _arrow(path: Path, head: bytes) -> tuple[str, Any, list[str]]:
    try:
        from pyarrow import feather, parquet, set_cpu_count, set_io_thread_count
    except ImportError:
        raise InputError(
            f"{path} needs pyarrow, which is not installed: pip install 'blurrerank[tables]'"
        ) from None
    if trying():  # whose limits have no room for threads
        set_cpu_count(1)
        set_io_thread_count(1)
    is_parquet = head.startswith(b"PAR1")
    if is_parquet:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            table = file.read(use_threads=False)
    else:
        table = feather.read_table(path, use_threads=False, memory_map=False)
    columns = {name: _arrow_column(table.column(name)) for name in table.column_names}
    return "Parquet" if is_parquet else "Feather", *_columns(path, columns)


def _arrow_column(column: Any) -> Any:
    """(N,) or, of lists of one length, (N, D); texts as a list."""
    whole = column.combine_chunks()
    kind = str(whole.type)
    if "list" in kind and not whole.null_count:
        flat = whole.flatten().to_numpy(zero_copy_only=False)
        width = len(flat) // max(1, len(whole))
        lengths = {width} if "fixed" in kind else set(whole.value_lengths().to_numpy().tolist())
        return flat.reshape(-1, width) if lengths == {width} else whole.to_pylist()
    is_number = kind.startswith(("int", "uint", "float", "double", "halffloat")) and not whole.null_count
    return whole.to_numpy(zero_copy_only=False) if is_number else whole.to_pylist()


def _json(path: Path, text: str) -> tuple[str, Any, list[str]]:
    """One value, an object for each image, or fields; or a line for each image."""
    kind = "JSON"
    try:
        value = json.loads(text)
    except ValueError:
        kind = "JSON lines"
        try:
            value = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise InputError(f"{path} is neither JSON nor JSON lines: {error}") from None
    if isinstance(value, dict) and all(not isinstance(one, list) or one[:1] for one in value.values()):
        scalars = [name for name, one in value.items() if not isinstance(one, list | dict)]
        value = [value] if kind_of(scalars[0] if scalars else "") is not None else value  # a line alone
    if isinstance(value, dict):
        fields = {name: np.array(one) if isinstance(one, list) else one for name, one in value.items()}
        return kind, fields, []
    if value and all(isinstance(row, dict) for row in value):
        names = list(value[0])
        if any(list(row) != names for row in value):
            raise InputError(f"{path}: its objects do not all have the fields {', '.join(names)}")
        return kind, *_columns(path, {name: [row[name] for row in value] for name in names})
    return kind, np.array(value), []  # of rows of different lengths NumPy says so
