"""What labels mean, and which fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

JUNK = -1
"""The identity of images that evaluation ignores; they do stand in the gallery and in graphs."""
DISTRACTOR = 0
"""The identity of images of nobody in particular: ordinary negatives."""


def beyond_int64(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Which integers are too large for int64; only unsigned ones can be. (N,) in, (N,) out."""
    return labels > np.iinfo(np.int64).max if labels.dtype.kind == "u" else np.zeros(labels.shape, bool)
