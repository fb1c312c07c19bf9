"""`ParameterGrid`: a method or chain at every combination of some parameters' values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from ..errors import ParameterError
from ..methods import AnyMethod, create, find_parameter, with_settings

# Each is a ranking of all probes.
_MOST_SETTINGS = 10_000

Setting = tuple[Any, ...]
"""A value for each parameter of a grid, in the order of its names."""


@dataclass(frozen=True)
class ParameterGrid:
    """A method or chain, and the values of the parameters that vary.

    Attributes:
        method: the text of the chain, with the parameters that are fixed.
        values: name -> its values; a name is the shortest that tells a parameter from all others of the chain.

    >>> grid = ParameterGrid.of("dba+lbr", [("dba.k", [2, 4]), ("sigma", [0.1])])
    >>> [grid.text_at(setting) for setting in grid.settings()]
    ['dba:k=2+lbr:sigma=0.1', 'dba:k=4+lbr:sigma=0.1']
    """

    method: str
    values: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(cls, method: str, grid: Collection[tuple[str, Sequence[Any]]]) -> ParameterGrid:
        """Check a grid, of names as `create` takes them or as options spell them, and values.

        Raises:
            ParameterError: for an unknown method or parameter, a value outside its range, a parameter without
                values or given twice, no parameter at all, or more than 10,000 combinations.
        """
        if not grid:
            raise ParameterError("a grid needs at least one parameter and its values, such as ki=2,4,6")
        create(method)
        values: dict[str, tuple[Any, ...]] = {}
        for given, some in grid:
            name, parameter = find_parameter(method, given)
            if name in values:
                raise ParameterError(f"the grid has {name} twice: give all of its values at once")
            if isinstance(some, str) or not len(some):
                raise ParameterError(
                    f"the grid has no list of values for {name}: expected a list such as [2, 4, 6]"
                )
            for value in some:
                parameter.check(value)
            kind = parameter.kind if parameter.kind in (int, float, bool) else str
            values[name] = tuple(dict.fromkeys(map(kind, some)))
        settings = prod(map(len, values.values()))
        if settings > _MOST_SETTINGS:
            raise ParameterError(f"the grid has {settings:,} settings: at most {_MOST_SETTINGS:,} are allowed")
        found = cls(with_settings(method, {}), values)
        for setting in found.settings():  # parameters may depend on each other
            found.method_at(setting)
        return found

    def settings(self) -> list[Setting]:
        """Return every combination, the last parameter varying fastest."""
        return list(product(*self.values.values()))

    def text_at(self, setting: Setting) -> str:
        """Return the text of the chain at a setting."""
        return with_settings(self.method, dict(zip(self.values, setting, strict=True)))

    def method_at(self, setting: Setting) -> AnyMethod:
        """Return the method at a setting."""
        return create(self.text_at(setting))

    def place(self, setting: Setting) -> tuple[int, ...]:
        """Return where a setting stands among `settings`, as a key to sort by."""
        return tuple(some.index(value) for some, value in zip(self.values.values(), setting, strict=True))

    def extending(self, before: Mapping[str, tuple[Any, ...]]) -> ParameterGrid:
        """Return the grid of the values `before`, of the same parameters, and then of those that are new."""
        joined = {name: tuple(dict.fromkeys((*some, *self.values[name]))) for name, some in before.items()}
        return ParameterGrid(self.method, joined)
