"""Arrays and paths that callers pass, told from each other."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError


def is_path(value: Any) -> bool:
    """Return whether `value` names a file."""
    return isinstance(value, str | os.PathLike)


def is_array(value: Any) -> bool:
    """Return whether `value` is an array or a tensor."""
    return isinstance(value, np.ndarray | torch.Tensor)


def check_path(value: Any, instead: str) -> None:
    """Raise `InputError` for an array where a path belongs; `instead` says what takes arrays."""
    if not is_path(value):
        raise InputError(f"expected a path, not {type(value).__name__}: {instead}")


def as_array(values: Any, name: str) -> NDArray[Any] | torch.Tensor:
    """Return values that a caller passes as an array, tensors as they are.

    Raises:
        InputError: for a path, or lists of different lengths; `name` says of what.
    """
    if isinstance(values, torch.Tensor):
        return values
    if is_path(values):
        raise InputError(f"{name} is the path {str(values)!r}: expected an array; br.load(path) reads files")
    try:
        found: NDArray[Any] = np.asanyarray(values)
    except ValueError as error:
        raise InputError(f"{name} is not an array: {error}") from None
    return found
