"""What callers pass in the place of a `FeatureSet` or a `Ranking` by mistake, answered in one line."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError
from .arrays import is_array, is_path
from .features import FeatureSet
from .ranking import Ranking


def check_features(data: Any) -> None:
    """Raise `InputError` unless `data` is a `FeatureSet`; say how to make one of what it is."""
    if isinstance(data, FeatureSet):
        return
    if is_path(data):
        raise InputError(f"expected a FeatureSet, not a path: pass br.load({str(data)!r})")
    if is_array(data) or isinstance(data, list | tuple):
        raise InputError(
            f"expected a FeatureSet, not {_named(data)}: pass br.FeatureSet.from_arrays(probe, gallery)"
        )
    raise InputError(
        f"expected a FeatureSet, not {_named(data)}: br.load(path) or "
        "br.FeatureSet.from_arrays(probe, gallery) makes one"
    )


def check_ranking(ranking: Any) -> None:
    """Raise `InputError` unless `ranking` is a `Ranking`; say how to make one of what it is."""
    if isinstance(ranking, Ranking):
        return
    if is_path(ranking):
        raise InputError(f"expected a Ranking, not a path: pass br.read_ranking({str(ranking)!r}, data)")
    if isinstance(ranking, FeatureSet):
        raise InputError("expected a Ranking, not a FeatureSet: pass the ranking first, then its features")
    raise InputError(f"expected a Ranking, not {_named(ranking)}: br.rerank(data) makes one")


def _named(value: Any) -> str:
    """Return what kind of thing a value is, with its article."""
    name = "array" if isinstance(value, np.ndarray) else type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"
