"""Tuning files: all settings of a grid on one half of the identities, and the chosen one on the other half.

JSON, an object with these keys:

    format, format_version      `blurrerank-tuning`, 1
    method                      the chain with its fixed parameters
    setting                     `transductive` or `online`
    protocol, ap, seed          as the options were
    digest, labels_digest       digests of the features and of their labels
    camera_images_digest        digest of the camera images, if there were any
    camera_images_cams          digest of their cameras
    metric                      the metric that settings are compared by
    grid                        parameter -> its values
    tuning, reporting           `identities` and `probes` of each half
    rows                        for each setting, its `params` and its means on the tuning half
    finished                    whether all settings have been measured
    chosen                      `params` of the best setting, and the whole chain as `method`
    report                      once finished, the means on the reporting half
    samples                     what a later call needs to continue: sums over the reporting half

`report` has `cosine`, `defaults` (the chain as it was given), `chosen`, and the differences between them: each
mean as `value`, with `low` and `high`, the ends of its 95 % interval. The file has no other results on the
reporting half. `samples` has `counts`, the number of probes of each identity of the reporting half, and for
`cosine`, `defaults` and `chosen` the sum of each mean over these probes; `params` is the setting that was best
when they were written.

CSV: one row per setting with `half` = `tuning`, then `cosine`, `defaults` and `chosen` with `half` =
`reporting` and the ends of their intervals. Every row repeats the input and the protocol. A CSV file is written
once and cannot be continued.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BlurrerankError, InputError, OutputError, ParameterError
from ..evaluation.metrics import MEANS
from ..files.targets import check_target, opener, replacing
from .grids import ParameterGrid, Setting
from .halves import Half
from .tuning import Basis, Tuning

FORMAT = "blurrerank-tuning"
VERSION = 1

_SAMPLED = ("cosine", "defaults", "chosen")


class TuningFile:
    """A .json file that gets each setting as it is finished.

    Args:
        path: the file; what it already has is `known`.

    Raises:
        InputError: if there is a file that is not a tuning, or a damaged one.
        OutputError: if it cannot be written.
        ParameterError: for another extension.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".json":
            raise ParameterError(f"{path}: a tuning that can be continued is written as .json")
        check_target(self.path, force=True)
        self._there = self.path.read_bytes() if self.path.exists() else None
        self.known = None if self._there is None else read_tuning(self.path)
        self.kept = 0  # settings that are in the file by now

    def keep(self, tuning: Tuning) -> None:
        """Write what is known now.

        Raises:
            OutputError: if it cannot be written, or another process wrote the file meanwhile.
        """
        if (self.path.read_bytes() if self.path.exists() else None) != self._there:
            raise OutputError(
                f"{self.path} was written by another process meanwhile; run again to continue from it"
            )
        text = _text(tuning)
        _write(self.path, text, force=self._there is not None)
        self._there, self.kept = text.encode(), len(tuning.rows)


def check_name(path: str | Path) -> None:
    """Check that a tuning can be written to `path`.

    Raises:
        ParameterError: for an extension other than .json and .csv.
        OutputError: if it cannot be written, or is a .csv that exists.
    """
    path = Path(path)
    if path.suffix.lower() not in (".json", ".csv"):
        raise ParameterError(f"{path}: a tuning is written as .json or .csv")
    if path.suffix.lower() == ".csv" and path.exists():
        raise OutputError(f"{path} exists, and only .json can be continued: choose another name")
    check_target(path, force=True)


def as_dict(tuning: Tuning) -> dict[str, Any]:
    """Return a tuning as a dictionary, as in its JSON file but without `samples`."""
    told: dict[str, Any] = {
        "format": FORMAT,
        "format_version": VERSION,
        **asdict(tuning.basis),
        "metric": tuning.metric,
        "grid": {name: list(values) for name, values in tuning.grid.items()},
        "tuning": asdict(tuning.tuning),
        "reporting": asdict(tuning.reporting),
        "finished": tuning.finished,
        "rows": [{"params": _params(tuning, setting), **means} for setting, means in tuning.rows.items()],
    }
    if tuning.finished:
        told["chosen"] = {"params": _params(tuning, tuning.chosen), "method": tuning.text_at(tuning.chosen)}
        told["report"] = {
            name: {mean: asdict(found) for mean, found in means.items()}
            for name, means in tuning.report().items()
        }
    return told


def save_csv(tuning: Tuning, path: str | Path) -> None:
    """Write a tuning as CSV.

    Raises:
        OutputError: if the file exists or cannot be written.
    """
    ends = [f"{mean}_{end}" for mean in MEANS for end in ("low", "high")]
    of = {**asdict(tuning.basis), "metric": tuning.metric}
    del of["method"]
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, ["half", "method", *tuning.grid, *MEANS, *ends, *of], restval="")
    writer.writeheader()
    for setting, means in tuning.rows.items():
        writer.writerow(
            {"half": "tuning", "method": tuning.text_at(setting), **_params(tuning, setting), **means, **of}
        )
    report = tuning.report()
    named = {"cosine": "cosine", "defaults": tuning.basis.method, "chosen": tuning.text_at(tuning.chosen)}
    for name, method in named.items():
        found = report[name]
        values: dict[str, Any] = {mean: found[mean].value for mean in MEANS}
        values |= {f"{mean}_{end}": getattr(found[mean], end) for mean in MEANS for end in ("low", "high")}
        params = _params(tuning, tuning.chosen) if name == "chosen" else {}
        writer.writerow({"half": "reporting", "method": method, **params, **values, **of})
    _write(Path(path), lines.getvalue(), force=False)


def is_tuning(path: str | Path) -> bool:
    """Return whether a file says that it is a tuning."""
    try:
        return bool(json.loads(Path(path).read_text(encoding="utf-8"))["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return False


def read_tuning(path: str | Path) -> Tuning:
    """Read a tuning from a .json file.

    Raises:
        InputError: if it is not a tuning, or is damaged.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        if stored["format"] != FORMAT or stored["format_version"] > VERSION:
            why = f"it is {stored['format']} version {stored['format_version']}"
        else:
            return _tuning(stored)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, BlurrerankError):
        why = "it is damaged or not a tuning"
    raise InputError(f"{path} is not a tuning that can be continued: {why}; choose another name")


def _params(tuning: Tuning, setting: Setting) -> dict[str, Any]:
    return dict(zip(tuning.grid, setting, strict=True))


def _text(tuning: Tuning) -> str:
    """The file: indented but for the samples, which are many numbers."""
    samples = {
        "params": _params(tuning, tuning.sampled),
        "counts": tuning.counts.tolist(),
        **{name: tuning.sums[name].tolist() for name in _SAMPLED},
    }
    told = json.dumps(as_dict(tuning), indent=2)
    return f'{told.removesuffix("}").rstrip()},\n  "samples": {json.dumps(samples)}\n}}\n'


def _write(path: Path, text: str, *, force: bool) -> None:
    with (
        replacing(path, force=force) as temporary,
        open(temporary, "w", encoding="utf-8", newline="", opener=opener) as file,
    ):
        file.write(text)


def _tuning(stored: Mapping[str, Any]) -> Tuning:
    """A tuning from what its file has; whatever is wrong raises `ValueError` or what Python raises for it."""
    grid = ParameterGrid.of(stored["method"], stored["grid"].items())
    samples = stored["samples"]
    tuning, reporting = Half(**stored["tuning"]), Half(**stored["reporting"])
    rows = {_setting(row["params"], grid): {mean: float(row[mean]) for mean in MEANS} for row in stored["rows"]}
    sampled = _setting(samples["params"], grid)
    counts = np.asarray(samples["counts"], dtype=np.int64)
    sums = {name: np.asarray(samples[name], dtype=np.float64) for name in _SAMPLED}
    sound = (
        stored["metric"] in MEANS
        and sampled in rows
        and counts.shape == (reporting.identities,)
        and bool((counts > 0).all())
        and int(counts.sum()) == reporting.probes
        and all(0 <= value <= 1 for means in rows.values() for value in means.values())
        and all(table.shape == (len(counts), len(MEANS)) for table in sums.values())
        and all(bool(((table >= 0) & (table <= counts[:, None] * (1 + 1e-9))).all()) for table in sums.values())
    )
    if not sound:
        raise ValueError("inconsistent")
    return Tuning(
        Basis(**{field.name: stored[field.name] for field in fields(Basis)}),
        stored["metric"],
        grid.values,
        tuning,
        reporting,
        rows,
        counts,
        sums,
        sampled,
        bool(stored["finished"]),
    )


def _setting(params: Mapping[str, Any], grid: ParameterGrid) -> Setting:
    """A setting that is one of the grid."""
    setting = tuple(params[name] for name in grid.values)
    if len(params) != len(setting):
        raise ValueError("other parameters than the grid")
    grid.place(setting)
    return setting
