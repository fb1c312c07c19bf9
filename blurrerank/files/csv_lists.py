"""CSV with a header: `probe,rank,gallery,score`, and with names also `probe_name,gallery_name`.

Row numbers are from 0, ranks from 1.
"""

from __future__ import annotations

import csv
from array import array
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ..data.features import FeatureSet
from ..data.ranking import Ranking
from ..errors import InputError
from .rankings import RankingWriter, check_name, from_entries

_COLUMNS = ("probe", "rank", "gallery", "score")


class Writer(RankingWriter):
    """Writes CSV."""

    def __init__(self, text: TextIO, data: FeatureSet, depth: int, method: str) -> None:
        """Write the header to `text`."""
        self._csv = csv.writer(text, lineterminator="\n")
        self._named = data.probe.names is not None and data.gallery.names is not None
        self._data = data
        self._csv.writerow([*_COLUMNS, *(("probe_name", "gallery_name") if self._named else ())])

    def write(self, start: int, indices: NDArray[Any], scores: NDArray[np.float32]) -> None:
        """Write the lists of consecutive probes."""
        for row, (items, values) in enumerate(zip(indices.tolist(), scores.tolist(), strict=True)):
            for rank, (item, value) in enumerate(zip(items, values, strict=True), start=1):
                if item >= 0:
                    names = self._names(start + row, item) if self._named else ()
                    self._csv.writerow([start + row, rank, item, f"{value:.9g}", *names])

    def _names(self, probe: int, item: int) -> tuple[str, str]:
        assert self._data.probe.names is not None
        assert self._data.gallery.names is not None
        return self._data.probe.names[probe], self._data.gallery.names[item]


def read(text: TextIO, data: FeatureSet, where: str, *, ordered: bool = True) -> Ranking:
    """Read CSV with the columns probe, gallery and score; lists are sorted by score.

    Raises:
        InputError: naming the first line that is not an entry of these features; if lists are to be
            `ordered`, also for scores that rise with the rank, if there is such a column.
    """
    rows = csv.DictReader(text)
    missing = {"probe", "gallery", "score"} - set(rows.fieldnames or ())
    if missing:
        raise InputError(f"{where} has no column {sorted(missing)[0]!r}: expected {','.join(_COLUMNS)}")
    probes, items, scores, ranks = array("q"), array("q"), array("d"), array("d")
    try:
        for row in rows:
            probe, item = int(row["probe"]), int(row["gallery"])
            if not 0 <= probe < len(data.probe) or not 0 <= item < len(data.gallery):
                raise InputError(
                    f"{where} line {rows.line_num} refers to a row outside {len(data.probe)} probes x "
                    f"{len(data.gallery)} gallery items"
                )
            check_name(data.probe, probe, row.get("probe_name"), f"{where} line {rows.line_num}")
            check_name(data.gallery, item, row.get("gallery_name"), f"{where} line {rows.line_num}")
            probes.append(probe)
            items.append(item)
            scores.append(float(row["score"]))
            ranks.append(float(row.get("rank") or 0))
    except (ValueError, TypeError, csv.Error):
        raise InputError(f"{where} line {rows.line_num}: expected {','.join(_COLUMNS)}") from None
    return from_entries(probes, items, scores, data, where, ranks=ranks if ordered else None)
