"""Labels that are text as integers, one numbering over both sides."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

_WHOLE = re.compile(r"[+-]?[0-9]+(?:\.0*)?|0+(-[0-9]+)")
# Python reads no numbers of thousands of digits, and int64 holds none of a hundred.
_DIGITS = 100
# What people call images of which nobody knows the identity.
_NOBODY = {"", "?", "n/a", "na", "nan", "none", "null", "unidentified", "unknown", "unknown_na"}


@dataclass(frozen=True)
class Numbering:
    """Labels as integers.

    Attributes:
        labels: (N,) int64 of each side, or Python integers where some do not fit int64.
        texts: the text of each number, of those that were numbered from 1; none if all are whole numbers.
        kept: texts that kept their number among the names, such as -1.
    """

    labels: list[NDArray[Any]]
    texts: dict[int, str]
    kept: list[str]


def number_of(text: str) -> int | None:
    """Return the whole number that a text is, None if it is none; MARS has 00-1 for -1.

    >>> number_of("0012"), number_of("00-1"), number_of("3.0"), number_of("c3")
    (12, -1, 3, None)
    """
    match = _WHOLE.fullmatch(text) if len(text) <= _DIGITS else None
    return None if match is None else int(match[1] or text.partition(".")[0])


def numbered(sides: Sequence[NDArray[Any]], *, keep: Sequence[int] = ()) -> Numbering:
    """Return labels as integers.

    Text that consists of whole numbers only is parsed, unless two texts are one number, as 1 and 01 are. Other
    text is numbered from 1, in sorted order, over all sides, except that numbers in `keep` keep their value.

    Args:
        sides: (N,) strings of each side.
        keep: numbers that mean something, such as that of junk.
    """
    numbers = {text: number_of(text) for side in sides for text in side.tolist()}
    # 1 and 1.0 are one number, which pandas writes so where a column has gaps; 1 and 01 are names.
    written = {(number, text.partition(".")[0]) for text, number in numbers.items()}
    ordinary = Counter(number for number, _ in written if number not in keep)
    if None not in numbers.values() and max(ordinary.values(), default=1) == 1:
        return Numbering([_integers([numbers[text] for text in side]) for side in sides], {}, [])
    kept = {text: number for text, number in numbers.items() if number is not None and number in keep}
    places = {text: place for place, text in enumerate(sorted(set(numbers) - set(kept)), start=1)}
    found = kept | places
    texts = {place: text for text, place in places.items()}
    return Numbering([_integers([found[text] for text in side]) for side in sides], texts, sorted(kept))


def is_text(labels: NDArray[Any] | None) -> TypeGuard[NDArray[Any]]:
    """Return whether labels are (N,) strings."""
    if labels is None or labels.dtype.kind not in "OU" or labels.ndim != 1:
        return False
    return all(isinstance(text, str) for text in labels.tolist())


def numbered_further(
    labels: NDArray[Any], known: Mapping[int, str], *, keep: Sequence[int] = ()
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return text labels as integers where the numbers of some texts are known.

    Args:
        labels: (N,) strings.
        known: the text of each number; other texts get further numbers, in sorted order.
        keep: numbers that mean something, such as that of junk, which texts keep.

    Returns:
        (N,) int64, and the text of each number, but for those that are kept.

    >>> numbered_further(np.array(["b", "-1", "a"], dtype=object), {1: "b"}, keep=[-1])
    (array([ 1, -1,  2]), {1: 'b', 2: 'a'})
    """
    texts = dict(known)
    numbers = {text: number for number, text in known.items()}
    free = max(known, default=0) + 1
    for text in sorted(set(labels.tolist()) - set(numbers)):
        number = number_of(text)
        if number is None or number not in keep:
            texts[free], number, free = text, free, free + 1
        numbers[text] = number
    return np.array([numbers[text] for text in labels.tolist()], dtype=np.int64), texts


def _integers(values: Sequence[Any]) -> NDArray[Any]:
    fit = all(abs(value) <= np.iinfo(np.int64).max for value in values)
    return np.array(values, dtype=np.int64 if fit else object)


def unidentified(sides: Sequence[NDArray[Any]], what: str = "id") -> list[str]:
    """Return warnings about texts that look as if nobody knew the identity or camera, one line each."""
    counts = Counter(text for side in sides for text in side.tolist() if text.strip().lower() in _NOBODY)
    advice = (
        "call them -1 (ignored) or 0 (distractors)" if what == "id" else "leave cameras out, or number them"
    )
    return [
        f"{count} images have {what} {text!r}, which counts as one: if nobody knows what it is, {advice}"
        for text, count in counts.items()
    ]
