"""Special identity labels, and a check for labels that overflow int64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

JUNK = -1
"""Identity of junk images: evaluation ignores them, but they stay in the gallery and in graphs."""
DISTRACTOR = 0
"""Identity of distractor images, which match no probe: ordinary negatives."""


def is_storable(label: Any) -> bool:
    """Return whether `label` is a string that a file can hold."""
    try:
        return isinstance(label, str) and "\0" not in label and bool(label.encode() or True)
    except UnicodeEncodeError:
        return False


def beyond_int64(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return an (N,) mask of the integers that are too large for int64; only unsigned ones can be."""
    return labels > np.iinfo(np.int64).max if labels.dtype.kind == "u" else np.zeros(labels.shape, bool)
