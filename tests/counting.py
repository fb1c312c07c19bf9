"""How many cases ran, by kind; the end of the tests' output tells."""

from __future__ import annotations

import warnings
from collections import Counter
from contextlib import contextmanager

import blurrerank as br

cases: Counter[str] = Counter()


def add(kind: str, number: int = 1) -> None:
    """Count cases."""
    cases[kind] += number


@contextmanager
def quiet():
    """Without warnings of what random labels bring about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", br.BlurrerankWarning)
        yield
