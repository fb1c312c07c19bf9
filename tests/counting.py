"""How many cases ran, by kind; the end of the tests' output tells."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import blurrerank as br

cases: Counter[str] = Counter()


def add(kind: str, number: int = 1) -> None:
    """Count cases."""
    cases[kind] += number


def tell(
    seed: int,
    outcomes: Mapping[str, Mapping[str, int]],
    failures: Sequence[str],
    missed: Sequence[str] = (),
) -> None:
    """Print what a program of cases found, as JSON; those of a `missed` outcome are counted apart."""
    both = [0, 0]
    for counts in outcomes.values():
        for outcome, number in counts.items():
            both[outcome in missed] += number
    found = {"seed": seed, "cases": both[0], "missed": both[1], "outcomes": outcomes, "failures": failures}
    print(json.dumps(found, indent=2))


@contextmanager
def quiet():
    """Without warnings of what random labels bring about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", br.BlurrerankWarning)
        yield
