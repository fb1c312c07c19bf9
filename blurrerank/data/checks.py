"""Checks of parameters that several parts of the library share."""

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
    """Raise `ParameterError` unless `value` is true or false: other values count as true unnoticed."""
    if not isinstance(value, bool):
        raise ParameterError(f"{name} must be True or False, not {value!r}")


def check_sigma(value: Any, name: str = "sigma") -> None:
    """Raise `ParameterError` unless `value` is a finite number above 0, by which float32 can divide."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 1e-30 <= float(value) < float("inf"):
        raise ParameterError(f"{name} must be a finite number above 0 (1e-30 at least), not {value!r}")
