"""Calibration files: the probability that the first item of a list is right, as a function of its score.

JSON, an object with these keys:

    format, format_version  `blurrerank-calibration`, 1
    kind                    `isotonic` or `logistic`
    numbers                 isotonic: `scores` and `probabilities`, points that are joined by straight lines;
                            logistic: `slope` and `intercept`
    method, params, setting of the lists that it was fitted on
    dim                     dimensions of their features; 0 for similarities
    gallery_size, protocol  of the lists that it was fitted on
    probes, right           how many probes there were, and how many of them had a right first item

A calibration is refused for lists of another method, parameters or setting, or for features of another `dim`;
only the `topn` of `cosine` may differ, as it changes no score. There is a warning for a gallery that is more
than twice, or less than half, as large.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..evaluation.score_calibration import ScoreCalibration
from .targets import opener, replacing

FORMAT = "blurrerank-calibration"
VERSION = 1


def save_calibration(calibration: ScoreCalibration, path: str | Path, *, force: bool = False) -> None:
    """Write a calibration as JSON.

    Args:
        calibration: from `blurrerank.calibrate`.
        path: the file.
        force: replace an existing file.

    Raises:
        OutputError: if the file cannot be written.
    """
    stored: dict[str, Any] = {"format": FORMAT, "format_version": VERSION, **asdict(calibration)}
    del stored["source"]
    with (
        replacing(Path(path), force=force) as temporary,
        open(temporary, "w", encoding="utf-8", opener=opener) as file,
    ):
        file.write(json.dumps(stored, indent=2) + "\n")


def read_calibration(path: str | Path) -> ScoreCalibration:
    """Read a calibration.

    Raises:
        InputError: if the file cannot be read as one, or is damaged.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file: `blurrerank calibrate` writes one")
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        stated, version = stored["format"], stored["format_version"]
        if stated == FORMAT and version == VERSION:
            return ScoreCalibration(
                kind=stored["kind"],
                numbers=stored["numbers"],
                method=str(stored["method"]),
                params=dict(stored["params"]),
                setting=stored["setting"],
                dim=int(stored["dim"]),
                gallery_size=int(stored["gallery_size"]),
                protocol=str(stored["protocol"]),
                probes=int(stored["probes"]),
                right=int(stored["right"]),
                source=str(path),
            )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise InputError(f"{path} is not a calibration, or is damaged: calibrate again") from None
    if stated != FORMAT:
        raise InputError(f"{path} is {stated!s:.99}: expected a {FORMAT} file")
    raise InputError(f"{path} has format_version {version!s:.99}: this program reads {VERSION}")
