"""Sweep files: the metrics of every setting, as JSON or CSV.

JSON, an object with these keys:

    format, format_version  `blurrerank-sweep`, 1
    digest, labels_digest   digests of the features and of their labels
    protocol, ap            as the options were
    probes, valid_probes    how many probes there are, and how many have a match in the gallery
    cosine                  means without re-ranking
    rows                    for each setting, `topn`, `sigma` and its means
    best                    for each mean, the row where it is highest

CSV: a first row of method `cosine`, then one row per setting. Every row repeats the input and the protocol.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.checks import check_count, check_sigma
from ..errors import InputError, OutputError, ParameterError
from ..evaluation.metrics import MEANS
from ..files.targets import opener, replacing
from .sweep import Sweep

FORMAT = "blurrerank-sweep"
VERSION = 1

_OF = ("digest", "labels_digest", "protocol", "ap", "probes", "valid_probes")
_COLUMNS = ("method", "topn", "sigma", *MEANS, *_OF)


def check_name(path: Path) -> None:
    """Raise `ParameterError` unless `path` has the extension .json or .csv."""
    if path.suffix.lower() not in (".json", ".csv"):
        raise ParameterError(f"{path}: a sweep is written as .json or .csv")


def as_dict(sweep: Sweep) -> dict[str, Any]:
    """Return a sweep as a dictionary, as in its JSON file."""
    rows = {setting: _row(sweep, setting) for setting in sweep.rows}
    return {
        "format": FORMAT,
        "format_version": VERSION,
        **{name: getattr(sweep, name) for name in _OF},
        "cosine": dict(sweep.cosine),
        "rows": list(rows.values()),
        "best": {name: rows[setting] for name, setting in sweep.best().items()},
    }


def save_sweep(sweep: Sweep, path: str | Path, known: Sweep | None = None) -> None:
    """Write a sweep.

    Args:
        sweep: the sweep to write.
        path: the file.
        known: the sweep in the existing file, or None if there is no file. An existing file is replaced only if
            it still contains this sweep.

    Raises:
        OutputError: if it cannot be written, or another process wrote it meanwhile.
        ParameterError: for an extension other than .json and .csv.
    """
    path = Path(path)
    check_name(path)
    if (read_sweep(path) if path.exists() else None) != known:
        raise OutputError(f"{path} was written by another process meanwhile; run again to continue from it")
    if path.suffix.lower() == ".json":
        text = json.dumps(as_dict(sweep), indent=2) + "\n"
    else:
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, _COLUMNS)
        writer.writeheader()
        of = {name: getattr(sweep, name) for name in _OF}
        writer.writerow({"method": "cosine", "topn": "", "sigma": "", **sweep.cosine, **of})
        writer.writerows({"method": "lbr", **_row(sweep, setting), **of} for setting in sweep.rows)
        text = lines.getvalue()
    with (
        replacing(path, force=known is not None) as temporary,
        open(temporary, "w", encoding="utf-8", newline="", opener=opener) as file,
    ):
        file.write(text)


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep.

    Raises:
        InputError: if it is not a sweep, or is damaged.
        ParameterError: for an extension other than .json and .csv.
    """
    path = Path(path)
    check_name(path)
    try:
        # -sig: spreadsheets save CSV with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
        return _from_json(text) if path.suffix.lower() == ".json" else _from_csv(text)
    except _NoSweepError as error:
        why = str(error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error):
        why = "it is damaged or not a sweep"
    raise InputError(f"{path} is not a sweep that can be continued: {why}; choose another name")


class _NoSweepError(Exception):
    """The reason why a sweep file cannot be continued."""


def _from_json(text: str) -> Sweep:
    stored = json.loads(text)
    if stored["format"] != FORMAT or stored["format_version"] > VERSION:
        raise _NoSweepError(f"it is {stored['format']} version {stored['format_version']}")
    return _sweep(stored, stored["cosine"], list(stored["rows"]))


def _from_csv(text: str) -> Sweep:
    first, *rows = csv.DictReader(io.StringIO(text, newline=""))
    more = set(first) - set(_COLUMNS)
    if more:
        raise _NoSweepError(f"it has a column {min(map(str, more))}, which would be lost")
    for number, row in enumerate((first, *rows)):
        if row["method"] != ("lbr" if number else "cosine"):
            raise _NoSweepError(f"row {number + 1} is of method {row['method']}")
        other = [name for name in _OF if row[name] != first[name]]
        if other:
            raise _NoSweepError(f"row {number + 1} has another {other[0]} than the first")
    return _sweep(first, first, rows)


def _row(sweep: Sweep, setting: tuple[int, float]) -> dict[str, Any]:
    return {"topn": setting[0], "sigma": setting[1], **sweep.rows[setting]}


def _sweep(of: Mapping[str, Any], cosine: Mapping[str, Any], rows: list[Any]) -> Sweep:
    return Sweep(
        digest=str(of["digest"]),
        labels_digest=str(of["labels_digest"]),
        protocol=str(of["protocol"]),
        ap=str(of["ap"]),
        probes=int(of["probes"]),
        valid_probes=int(of["valid_probes"]),
        cosine=_means(cosine),
        rows=dict(sorted((_setting(row), _means(row)) for row in rows)),
    )


def _setting(row: Mapping[str, Any]) -> tuple[int, float]:
    topn, sigma = int(row["topn"]), float(row["sigma"])
    check_count("topn", topn)
    check_sigma(sigma)
    return topn, sigma


def _means(row: Mapping[str, Any]) -> dict[str, float]:
    means = {name: float(row[name]) for name in MEANS}
    for name, value in means.items():
        if not 0 <= value <= 1:
            raise _NoSweepError(f"it has {name} {value}")
    return means
