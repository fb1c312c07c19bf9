"""Sweep files: the metrics of every setting, as JSON or CSV.

JSON: `format` (`blurrerank-sweep`), `format_version`, what the sweep is of (`digest`, `labels_digest`,
`protocol`, `ap`, `probes`, `valid_probes`), `cosine` (means without re-ranking), `rows` (`topn`, `sigma` and
means each) and `best` (mean -> its best row). CSV: a row each, the first of method `cosine`, with what the
sweep is of repeated in every row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, ParameterError
from ..sweep import MEANS, Sweep
from .targets import replacing

FORMAT = "blurrerank-sweep"
VERSION = 1

_OF = ("digest", "labels_digest", "protocol", "ap", "probes", "valid_probes")
_COLUMNS = ("method", "topn", "sigma", *MEANS, *_OF)


def check_name(path: Path) -> None:
    """Raise `ParameterError` unless the ending of `path` says how to write it."""
    if path.suffix.lower() not in (".json", ".csv"):
        raise ParameterError(f"{path}: a sweep is written as .json or .csv")


def as_dict(sweep: Sweep) -> dict[str, Any]:
    """A sweep as its JSON file holds it."""
    rows = {setting: _row(sweep, setting) for setting in sweep.rows}
    return {
        "format": FORMAT,
        "format_version": VERSION,
        **{name: getattr(sweep, name) for name in _OF},
        "cosine": dict(sweep.cosine),
        "rows": list(rows.values()),
        "best": {name: rows[setting] for name, setting in sweep.best().items()},
    }


def save_sweep(sweep: Sweep, path: str | Path) -> None:
    """Write a sweep; a file that is there is replaced, so `read_sweep` it first and go on from it.

    Raises:
        OutputError: if it cannot be written there.
        ParameterError: for an ending other than .json and .csv.
    """
    path = Path(path)
    check_name(path)
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
    with replacing(path, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep.

    Raises:
        InputError: if it is none, or is damaged.
        ParameterError: for an ending other than .json and .csv.
    """
    path = Path(path)
    check_name(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            stored = json.loads(text)
            if stored["format"] != FORMAT or stored["format_version"] > VERSION:
                raise ValueError(f"format {stored['format']} {stored['format_version']}")
            return _sweep(stored, stored["cosine"], stored["rows"])
        first, *rows = csv.DictReader(io.StringIO(text, newline=""))
        if first["method"] != "cosine":
            raise ValueError(f"method {first['method']} in the first row")
        return _sweep(first, first, rows)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a sweep that can be continued ({error}); choose another name"
        ) from None


def _row(sweep: Sweep, setting: tuple[int, float]) -> dict[str, Any]:
    return {"topn": setting[0], "sigma": setting[1], **sweep.rows[setting]}


def _sweep(of: Mapping[str, Any], cosine: Mapping[str, Any], rows: list[Any]) -> Sweep:
    def means(row: Mapping[str, Any]) -> dict[str, float]:
        return {name: float(row[name]) for name in MEANS}

    return Sweep(
        digest=str(of["digest"]),
        labels_digest=str(of["labels_digest"]),
        protocol=str(of["protocol"]),
        ap=str(of["ap"]),
        probes=int(of["probes"]),
        valid_probes=int(of["valid_probes"]),
        cosine=means(cosine),
        rows={(int(row["topn"]), float(row["sigma"])): means(row) for row in rows},
    )
