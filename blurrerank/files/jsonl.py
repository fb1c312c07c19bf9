"""JSON lines: one object per probe, `{"probe": 0, "indices": [...], "scores": [...]}`.

Row numbers count from 0, and the best item comes first. With names there are also `"name"` and `"names"`; with
`--reject` also `"probability"`, that the first item is right, and `"rejected"`, whether this is too small.
"""

from __future__ import annotations

import json
from array import array
from typing import Any, ClassVar, TextIO

import numpy as np
from numpy.typing import NDArray

from ..data.features import FeatureSet
from ..data.ranking import Ranking
from ..errors import InputError
from ..evaluation.score_calibration import Verdicts
from .rankings import RankingWriter, check_name, from_entries


class Writer(RankingWriter):
    """Writes JSON lines."""

    keeps_rejected: ClassVar[bool] = True

    def __init__(self, text: TextIO, data: FeatureSet, depth: int, method: str) -> None:
        """Write to `text`."""
        self._text = text
        self._probe_names = data.probe.names
        self._names = data.gallery.names

    def write(self, start: int, indices: NDArray[Any], scores: NDArray[np.float32]) -> None:
        """Write the lists of consecutive probes."""
        self._write(start, indices, scores, None)

    def write_judged(
        self, start: int, indices: NDArray[Any], scores: NDArray[np.float32], verdicts: Verdicts
    ) -> None:
        """Write all lists, with the verdict on each."""
        self._write(start, indices, scores, verdicts)

    def _write(
        self, start: int, indices: NDArray[Any], scores: NDArray[np.float32], verdicts: Verdicts | None
    ) -> None:
        for row in range(len(indices)):
            name = None if self._probe_names is None else self._probe_names[start + row]
            verdict = None if verdicts is None else verdicts.of(row)
            self._text.write(line(start + row, name, indices[row], scores[row], self._names, verdict))


def line(
    probe: int,
    name: str | None,
    indices: NDArray[Any],
    scores: NDArray[np.float32],
    names: NDArray[Any] | None,
    verdict: tuple[np.float32, bool] | None = None,
) -> str:
    """Format the line of one probe.

    Args:
        probe: the row of the probe.
        name: its name, if it has one.
        indices: (R,) gallery rows, -1 past the end of the list.
        scores: (R,).
        names: (G,) of the gallery, if it has names.
        verdict: the probability that the first item is right, and whether the list is rejected.
    """
    listed = indices >= 0
    entry: dict[str, Any] = {"probe": probe}
    if name is not None:
        entry["name"] = name
    entry["indices"] = indices[listed].tolist()
    # The shortest decimal that is the same float32.
    entry["scores"] = [float(str(score)) for score in scores[listed]]
    if verdict is not None:
        entry["probability"], entry["rejected"] = float(str(verdict[0])), verdict[1]
    if names is not None:
        entry["names"] = names[indices[listed]].tolist()
    return json.dumps(entry, ensure_ascii=False) + "\n"


def read(text: TextIO, data: FeatureSet, where: str, *, ordered: bool = True) -> Ranking:
    """Read JSON lines; lists are sorted by score.

    Raises:
        InputError: naming the first line that is not a list for these features; if lists are to be
            `ordered`, also for scores that rise along the lists.
    """
    probes, items, scores, ranks = array("q"), array("q"), array("d"), array("d")
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            probe, listed, values = entry["probe"], entry["indices"], entry["scores"]
            if not isinstance(probe, int) or len(listed) != len(values):
                raise ValueError
            items.extend(listed)
            scores.extend(values)
            probes.extend([probe] * len(listed))
            ranks.extend(range(len(listed)))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise InputError(
                f'{where} line {number}: expected {{"probe": row, "indices": [...], "scores": [...]}}'
            ) from None
        if not 0 <= probe < len(data.probe) or not all(0 <= item < len(data.gallery) for item in listed):
            raise InputError(
                f"{where} line {number} refers to a row outside {len(data.probe)} probes x "
                f"{len(data.gallery)} gallery items"
            )
        check_name(data.probe, probe, entry.get("name"), f"{where} line {number}")
        names = entry.get("names")
        if isinstance(names, list) and len(names) == len(listed):
            for item, name in zip(listed, names, strict=True):
                check_name(data.gallery, item, name, f"{where} line {number}")
    return from_entries(probes, items, scores, data, where, ranks=ranks if ordered else None)
