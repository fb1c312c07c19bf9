"""The re-ranking methods, one module each: to add one, add a file.

A module `some_method.py` in this folder is the method `some-method`. It defines `METHOD`, a `Method`
subclass. Nothing is imported until a method is asked for.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ParameterError

if TYPE_CHECKING:
    import torch

    from ..ranking import Candidates
    from ..search import UnitRows


@dataclass(frozen=True)
class Method(ABC):
    """A method that gives the head of each list new scores. Its fields are its parameters.

    Attributes:
        topn: how many items at the head of each list are scored anew.
    """

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    topn: int = 50

    def __post_init__(self) -> None:
        """Check what all methods share; a method with parameters of its own extends this.

        Raises:
            ParameterError: if a parameter is outside its range.
        """
        check_count("topn", self.topn)

    @abstractmethod
    def rescore(self, probe: torch.Tensor, candidates: Candidates, gallery: UnitRows) -> torch.Tensor:
        """New scores for the candidates of a batch of probes, higher is better.

        Args:
            probe: (p, D) float32, unit rows.
            candidates: the `topn` best of each probe by cosine, fewer if the gallery is smaller.
            gallery: the features the candidates point into.

        Returns:
            (p, n) float32, in the order of the candidates.
        """

    @property
    def reranked(self) -> int:
        """How many items at the head of each list may change place."""
        return self.topn

    def workspace(self, topn: int, dim: int) -> int:
        """Bytes that `rescore` needs for one probe, beyond what it is given."""
        return 0

    def params(self) -> dict[str, Any]:
        """Every parameter and its value."""
        return asdict(self)


def check_count(name: str, value: Any) -> None:
    """Raise `ParameterError` unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise ParameterError(f"{name} must be a whole number of at least 1, not {value}")


def available() -> list[str]:
    """The names of all methods; imports none of them."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def create(name: str, *, preset: str | None = None, **params: Any) -> Method:
    """A method by name, with the parameters of `preset` where not given in `params`.

    Raises:
        ParameterError: for an unknown method, preset or parameter, or a value outside its range.
    """
    if name not in available():
        raise ParameterError(f"method {name!r} is not known: use {' or '.join(available())}")
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    method: type[Method] = module.METHOD
    if preset is not None:
        if preset not in method.presets:
            known = ", ".join(method.presets) or "none"
            raise ParameterError(f"method {name} has no preset {preset!r}; it has: {known}")
        params = {**method.presets[preset], **params}
    known_params = {field.name for field in fields(method)}
    unknown = sorted(set(params) - known_params)
    if unknown:
        known = ", ".join(sorted(known_params))
        raise ParameterError(f"method {name} has no parameter {unknown[0]!r}; it has: {known}")
    return replace(method(), **params)
