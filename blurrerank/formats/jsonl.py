"""JSON lines: one object a probe, `{"probe": 0, "indices": [...], "scores": [...]}`.

With names, also `"name"` and `"names"`. Row numbers are from 0, best first.
"""

from __future__ import annotations

import json
from array import array
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..features import FeatureSet
from ..ranking import Ranking
from .rankings import RankingWriter, from_entries


class Writer(RankingWriter):
    """Writes JSON lines."""

    def __init__(self, text: TextIO, data: FeatureSet, depth: int, method: str) -> None:
        """Write to `text`."""
        self._text = text
        self._probe_names = data.probe.names
        self._names = data.gallery.names

    def write(self, start: int, indices: NDArray[Any], scores: NDArray[np.float32]) -> None:
        """Lists of consecutive probes."""
        for row in range(len(indices)):
            listed = indices[row] >= 0
            entry: dict[str, Any] = {"probe": start + row}
            if self._probe_names is not None:
                entry["name"] = self._probe_names[start + row]
            entry["indices"] = indices[row][listed].tolist()
            # The shortest decimal that is the same float32.
            entry["scores"] = [float(str(score)) for score in scores[row][listed]]
            if self._names is not None:
                entry["names"] = self._names[indices[row][listed]].tolist()
            self._text.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read(text: TextIO, data: FeatureSet, where: str) -> Ranking:
    """Read JSON lines; the order is that of the scores.

    Raises:
        InputError: naming the first line that is not a list for these features.
    """
    probes, items, scores = array("q"), array("q"), array("d")
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
        except (ValueError, TypeError, KeyError, OverflowError):
            raise InputError(
                f'{where} line {number}: expected {{"probe": row, "indices": [...], "scores": [...]}}'
            ) from None
        if not 0 <= probe < len(data.probe) or not all(0 <= item < len(data.gallery) for item in listed):
            raise InputError(
                f"{where} line {number} names a row outside {len(data.probe)} probes x "
                f"{len(data.gallery)} gallery items"
            )
    return from_entries(probes, items, scores, data, where)
