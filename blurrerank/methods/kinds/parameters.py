"""Parameters of methods, declared once: a dataclass field, its range, and its line in the class docstring.

Checks, command line options and documents all come from here. This module imports nothing heavy, so that help
texts come at once.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

from ...data.checks import check_count, check_share, check_sigma, check_switch
from ...errors import ParameterError

if TYPE_CHECKING:
    from ...graph.neighbourhoods import Neighbourhoods

_DECLARED = ("least", "most", "above", "choices", "fits")

AUTO = "auto"
"""What is given for a parameter, or for a method, that is to be chosen for the data."""
Fits: TypeAlias = "Callable[[Neighbourhoods], float | None]"
"""Gives the value of a parameter that fits the data; None where they do not tell."""

_KINDS = {"int": int, "float": float, "bool": bool, "str": str}


def ranged(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    fits: Fits | None = None,
) -> Any:
    """Declare a number with its range: at `least`, at `most`, or `above` something.

    `fits` gives the value that fits the neighbourhoods of the data, for a parameter that can be `auto`.
    """
    stated = {"least": least, "most": most, "above": above, "fits": fits}
    return dataclasses.field(default=default, metadata=stated)


def choice(default: str, choices: Sequence[str]) -> Any:
    """Declare a string that is one of `choices`."""
    return dataclasses.field(default=default, metadata={"choices": tuple(choices)})


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        name: of the field.
        kind: int, float, bool or str.
        default: its value unless somebody gives another.
        help: what the docstring of the class says of it.
        least: the smallest value it may have.
        most: the largest value.
        above: a value it must be greater than.
        choices: the values that a string may have.
        fits: gives the value that fits the data; None for a parameter that cannot be `auto`.
    """

    name: str
    kind: type
    default: Any
    help: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    fits: Fits | None = None

    @property
    def option(self) -> str:
        """The name without dashes that the command line and the grammar of chains use, such as `lambda`."""
        return self.name.removesuffix("_value").replace("_", "-")

    def check(self, value: Any) -> None:
        """Raise `ParameterError` unless `value` is of the right kind and within the range."""
        if isinstance(value, str) and value == AUTO and self.fits is not None:
            raise ParameterError(f"{self.option} cannot be {AUTO} here, where no data are known: give a number")
        said = self.option.replace("-", " ") if self.choices else self.name.removesuffix("_value")
        if self.choices:
            if value not in self.choices:
                raise ParameterError(f"{said} {value!r} is not known: use {' or '.join(self.choices)}")
            return
        if self.kind is bool:
            check_switch(said, value)
        if self.kind not in (int, float):
            return
        if self.kind is int and self.least == 1:
            check_count(said, value)
        elif self.kind is float and (self.least, self.most) == (0, 1):
            check_share(said, value)
        elif self.above == 0:
            check_sigma(value, said)
        check_number(said, value, whole=self.kind is int)
        if self.above is not None and not value > self.above:
            raise ParameterError(f"{said} must be above {self.above}, not {value!r}")
        if self.least is not None and value < self.least:
            raise ParameterError(f"{said} must be at least {self.least}, not {value!r}")
        if self.most is not None and value > self.most:
            raise ParameterError(f"{said} must be at most {self.most}, not {value!r}")


def check_number(name: str, value: Any, *, whole: bool) -> None:
    """Raise `ParameterError` unless `value` is a finite number, and a whole one if it has to be."""
    if isinstance(value, bool) or not isinstance(value, Real) or not abs(float(value)) < float("inf"):
        raise ParameterError(f"{name} must be a {'whole' if whole else 'finite'} number, not {value!r}")
    if whole and not hasattr(value, "__index__"):
        raise ParameterError(f"{name} must be a whole number, not {value!r}")


def parameters_of(method: Any) -> list[Parameter]:
    """Return the parameters of a method or its class, in the order of the fields."""
    kind = method if isinstance(method, type) else type(method)
    texts = _attribute_texts(kind)
    found = []
    for field in dataclasses.fields(kind):
        stated = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
        found.append(
            Parameter(
                field.name,
                _KINDS.get(stated, type(field.default)),
                field.default,
                texts.get(field.name, ""),
                **{key: value for key, value in field.metadata.items() if key in _DECLARED},
            )
        )
    return found


def parse_value(text: str) -> Any:
    """Return the value that a setting of a chain is written as: a number, true or false, or the text itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def written(value: Any) -> str:
    """Return a value as a chain has it, such that `parse_value` gives it back."""
    if isinstance(value, bool):
        return str(value).lower()
    short = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return short.replace("e+", "e") if isinstance(value, float) else short  # + joins the parts of a chain


def _attribute_texts(kind: type) -> dict[str, str]:
    """What the `Attributes:` sections of a class and its bases say of each field."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = re.search(r"\nAttributes:\n(.*?)(\n\S|\Z)", inspect.cleandoc(base.__doc__ or ""), re.DOTALL)
        if section is not None:
            for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section[1], re.MULTILINE):
                texts[name] = " ".join(text.split())
    return texts
