"""Parameter checks shared across the library."""

from __future__ import annotations

from numbers import Real
from typing import Any

from ..errors import ParameterError


def check_count(name: str, value: Any) -> None:
    """Raise `ParameterError` unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise ParameterError(f"{name} must be a whole number of at least 1, not {value!r}")


def check_share(name: str, value: Any) -> None:
    """Raise `ParameterError` unless `value` is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ParameterError(f"{name} must be a number from 0 to 1, not {value!r}")


def check_switch(name: str, value: Any) -> None:
    """Raise `ParameterError` unless `value` is a bool: other values would silently count as true."""
    if not isinstance(value, bool):
        raise ParameterError(f"{name} must be True or False, not {value!r}")


def check_sigma(value: Any, name: str = "sigma") -> None:
    """Raise `ParameterError` unless `value` is a finite number above 0, by which float32 can divide."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 1e-30 <= float(value) < float("inf"):
        raise ParameterError(f"{name} must be a finite number above 0 (at least 1e-30), not {value!r}")


def flat_shape(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the (N, D) of an array with further axes of length 1, as networks give them; None if it has none.

    >>> flat_shape((24, 8, 1, 1)), flat_shape((24, 1, 8)), flat_shape((24, 4, 2))
    ((24, 8), (24, 8), None)
    """
    if len(shape) <= 2:
        return shape if len(shape) == 2 else None
    long = [size for size in shape[1:] if size != 1]
    return (shape[0], *(long or [1])) if len(long) < 2 else None
