"""TREC run files: `probe Q0 item rank score tag`, one entry per line.

This is the format of trec_eval, ir_measures and ranx. They ignore the rank, sort by score again, and break ties
in different ways, so scores strictly decrease. Probes and items are identified by name if the names are valid
identifiers, otherwise by row number, from 0.
"""

from __future__ import annotations

import warnings
from array import array
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ..data.features import FeatureSet
from ..data.ranking import Ranking
from ..data.side import Side
from ..errors import BlurrerankWarning, InputError
from .rankings import RankingWriter, from_entries


class Writer(RankingWriter):
    """Writes a TREC run."""

    def __init__(self, text: TextIO, data: FeatureSet, depth: int, method: str) -> None:
        """Write to `text`, tagging every line with the method."""
        self._text = text
        self._probes = _identifiers(data.probe)
        self._items = _identifiers(data.gallery)
        self._tag = f"blurrerank-{method}"

    def write(self, start: int, indices: NDArray[Any], scores: NDArray[np.float32]) -> None:
        """Write the lists of consecutive probes."""
        for row, (items, values) in enumerate(zip(indices.tolist(), scores.tolist(), strict=True)):
            probe = self._probes[start + row]
            self._text.writelines(
                f"{probe} Q0 {self._items[item]} {rank} {value:.9g} {self._tag}\n"
                for rank, (item, value) in enumerate(zip(items, values, strict=True), start=1)
                if item >= 0
            )


def read(text: TextIO, data: FeatureSet, where: str, *, ordered: bool = True) -> Ranking:
    """Read a TREC run from any tool; lists are sorted by score.

    Raises:
        InputError: naming the first line that is not an entry of these features; if lists are to be
            `ordered`, also for scores that rise with the rank.
    """
    probe_rows, item_rows = _Rows(data.probe, "probe name"), _Rows(data.gallery, "gallery name")
    probes, items, scores, ranks = array("q"), array("q"), array("d"), array("d")
    for number, line in enumerate(text, start=1):
        parts = line.split()
        if not parts:
            continue
        try:
            probe, _, item, rank, score, _ = parts
            probes.append(probe_rows[probe])
            items.append(item_rows[item])
            scores.append(float(score))
            ranks.append(float(rank) if rank.isdecimal() else 0.0)
        except KeyError as error:
            raise InputError(f"{where} line {number}: {error.args[0]}") from None
        except ValueError:
            raise InputError(
                f"{where} line {number} is not a TREC run entry: expected 'probe Q0 item rank score tag'"
            ) from None
    return from_entries(probes, items, scores, data, where, ranks=ranks if ordered else None)


def _usable(side: Side) -> str | None:
    """Why names cannot serve as identifiers; None if they can."""
    if side.names is None:
        return "there are none"
    names = side.names.tolist()
    if len(set(names)) != len(names):
        return "they are not unique"
    if any(name.split() != [name] for name in names):
        return "some are empty or have white space"
    return None


def _identifiers(side: Side) -> list[str]:
    problem = _usable(side)
    if problem is None:
        assert side.names is not None
        return [str(name) for name in side.names]
    if side.names is not None:
        warnings.warn(
            f"{side.label}/names cannot be TREC identifiers, {problem}: row numbers are written instead; "
            ".csv and .jsonl keep names",
            BlurrerankWarning,
            stacklevel=5,
        )
    return [str(row) for row in range(len(side))]


class _Rows:
    """Finds rows by identifier: by name where names serve, by row number where they do not.

    A file of row numbers is also taken where names serve, as long as no name looks like a number.
    """

    def __init__(self, side: Side, what: str) -> None:
        self._what = what
        named = _usable(side) is None
        names = side.names.tolist() if named and side.names is not None else []
        self._rows = {name: row for row, name in enumerate(names)}
        if not any(name.isdecimal() for name in names):
            self._rows |= {str(row): row for row in range(len(side))}
            self._what += f" or row number below {len(side)}"

    def __getitem__(self, identifier: str) -> int:
        if identifier not in self._rows:
            raise KeyError(f"{identifier!r} is not a {self._what}")
        return self._rows[identifier]
