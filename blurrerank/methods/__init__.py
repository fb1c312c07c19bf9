"""The re-ranking methods, one file each: to add one, add a file.

A module `some_method.py` in this folder is the method `some-method`. It defines `METHOD`, a subclass of
`FeatureStep`, `HeadRanker` or `GraphRanker`. Another package adds a method through the entry-point group
`blurrerank.methods`, whose names are those of methods and whose values are such classes. The module of a method
is not imported until that method is asked for.
"""

from __future__ import annotations

import ast
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeAlias

from ..errors import ParameterError
from .kinds.base import FeatureStep, GraphRanker, HeadRanker, Method, Ranker
from .kinds.chain import Chain, part_names
from .kinds.parameters import Parameter, parameters_of

ENTRY_POINTS = "blurrerank.methods"

AnyMethod: TypeAlias = Ranker | Chain
"""What ranks: a method that ends a chain, or a chain."""

__all__ = [
    "AnyMethod",
    "Chain",
    "FeatureStep",
    "GraphRanker",
    "HeadRanker",
    "Method",
    "Ranker",
    "available",
    "create",
    "is_available",
    "method_class",
    "options_of",
    "parse_chain",
    "presets_of",
    "split_methods",
]


def _built_in() -> set[str]:
    return {module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if not module.ispkg}


@cache
def _installed() -> Mapping[str, EntryPoint]:
    """The methods of other packages; one that is called as a method here is not reached."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS) if entry.name not in _built_in()}


def available() -> list[str]:
    """Return the names of all methods; imports none of them."""
    return sorted({*_built_in(), *_installed()})


def is_available(text: str) -> bool:
    """Return whether a method is known by that name, or all methods of a chain are."""
    return all(part in available() for part in text.split("+"))


def method_class(name: str) -> type[Method]:
    """Return the class of a method by name.

    Raises:
        ParameterError: for an unknown method, or one of another package that cannot be loaded.
    """
    if name in _built_in():
        found: type[Method] = import_module(f"{__name__}.{name.replace('-', '_')}").METHOD
        return found
    entry = _installed().get(name)
    if entry is None:
        raise ParameterError(f"method {name!r} is not known: use {' or '.join(available())}")
    try:
        loaded = entry.load()
    except Exception as error:  # whatever the module of another package raises when it is imported
        raise ParameterError(
            f"method {name} cannot be loaded from {entry.value} ({type(error).__name__}: {error}): mend or "
            "uninstall the package that has it"
        ) from error
    if not isinstance(loaded, type) or not issubclass(loaded, FeatureStep | HeadRanker | GraphRanker):
        raise ParameterError(
            f"method {name} is {entry.value}, which is neither a FeatureStep, a HeadRanker nor a GraphRanker: "
            "uninstall the package that has it"
        )
    if loaded.name != name:
        raise ParameterError(
            f"method {name} is {entry.value}, which calls itself {loaded.name}: name its entry point so"
        )
    return loaded


def create(text: str, /, *, preset: str | None = None, **params: Any) -> AnyMethod:
    """Make a method from its name, or a chain from the names of its parts.

    Args:
        text: such as `lbr`, `lbr:topn=20:sigma=0.2`, `k-reciprocal:preset=cuhk03`, or a chain of feature steps
            and a ranker, such as `dba:k=4+k-reciprocal:k1=8`. Without a ranker a chain ends with `cosine`.
        preset: the ranker's parameters for a public data set.
        **params: parameters; in a chain those of one part alone are called so, all others such as `dba.k`.

    Raises:
        ParameterError: for an unknown method, preset or parameter, a value outside its range, or parts in
            another order.

    >>> create("dba:k=4+lbr", sigma=0.2).params()["lbr.sigma"]
    0.2
    """
    named, given = parse_chain(text)
    classes = [method_class(name) for name in named]
    if not issubclass(classes[-1], Ranker):
        named, given, classes = [*named, "cosine"], [*given, {}], [*classes, method_class("cosine")]
    for name, part in zip(named[:-1], classes[:-1], strict=True):
        if not issubclass(part, FeatureStep):
            raise ParameterError(f"{text}: {name} ranks, so it can only be the last part of a chain")
    if preset is not None:
        given[-1] = {"preset": preset, **given[-1]}
    for key, value in params.items():
        number, name = _part_of(key, text, classes)
        given[number] = {**given[number], name: value}
    parts = [_create_one(part, settings) for part, settings in zip(classes, given, strict=True)]
    *steps, ranker = parts
    assert isinstance(ranker, Ranker)
    return Chain(tuple(steps), ranker) if steps else ranker  # type: ignore[arg-type]


def options_of(text: str) -> dict[str, tuple[Parameter, bool]]:
    """Return the parameters of a method or chain by the names that `create` takes them by.

    With each comes whether its own name is enough to tell it from those of other parts.

    Raises:
        ParameterError: for an unknown method.
    """
    found = create(text)
    if not isinstance(found, Chain):
        return {parameter.name: (parameter, True) for parameter in _described(found)}
    named = {
        f"{part}.{parameter.name}": parameter
        for part, method in part_names([*found.feature_steps, found.ranker]).items()
        for parameter in _described(method)
    }
    times = Counter(parameter.name for parameter in named.values())
    return {key: (parameter, times[parameter.name] == 1) for key, parameter in named.items()}


def _described(method: Method) -> list[Parameter]:
    """The parameters of a method, with the values that it has as defaults."""
    return [replace(one, default=getattr(method, one.name)) for one in parameters_of(method)]


def presets_of(text: str) -> list[str]:
    """Return the names of the presets that the ranker of a method or chain has.

    Raises:
        ParameterError: for an unknown method.
    """
    return list(create(text).ranker.presets)


def split_methods(text: str) -> list[str]:
    """Return the methods and chains of a list such as `lbr,dba:k=4+lbr`."""
    return [part.strip() for part in text.split(",")]


def _create_one(kind: type[Method], params: Mapping[str, Any]) -> Method:
    """A method of one class, from parameters by the names of fields or options, `preset` among them."""
    settings = dict(params)
    preset = settings.pop("preset", None)
    if preset is not None:
        if preset not in kind.presets:
            known = ", ".join(kind.presets) or "none"
            raise ParameterError(f"method {kind.name} has no preset {preset!r}; it has: {known}")
        settings = {**kind.presets[preset], **settings}
    known_names = {parameter.name for parameter in parameters_of(kind)}
    unknown = sorted(set(settings) - known_names)
    if unknown:
        known = ", ".join(sorted(known_names)) or "none"
        raise ParameterError(f"method {kind.name} has no parameter {unknown[0]!r}; it has: {known}")
    return replace(kind(), **settings)


def _part_of(key: str, text: str, classes: Sequence[type[Method]]) -> tuple[int, str]:
    """Which part of a chain a parameter belongs to, and what it is called there."""
    if len(classes) == 1:
        return 0, key
    part, dot, name = key.rpartition(".")
    if dot:
        names = list(part_names(list(classes)))
        if part in names:
            return names.index(part), name
        raise ParameterError(f"{text} has no part {part!r}; its parts are: {', '.join(names)}")
    having = [
        number
        for number, kind in enumerate(classes)
        if any(parameter.name == key for parameter in parameters_of(kind))
    ]
    if len(having) == 1:
        return having[0], key
    if not having:
        raise ParameterError(f"no part of {text} has a parameter {key!r}")
    several = " and ".join(classes[number].name for number in having)
    raise ParameterError(
        f"{text}: {several} both have {key!r}: say which, as in {classes[having[0]].name}.{key}"
    )


def parse_chain(text: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the names of a chain's parts, and the parameters that the text gives each.

    Raises:
        ParameterError: for text that does not read so.
    """
    names: list[str] = []
    given: list[dict[str, Any]] = []
    for part in text.split("+"):
        name, *settings = part.strip().split(":")
        if not name:
            raise ParameterError(f"{text!r} names no method where one should be: expected such as dba:k=4+lbr")
        params: dict[str, Any] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals:
                raise ParameterError(f"{text}: {setting!r} should read NAME=VALUE, as in lbr:topn=20")
            params[_field_name(name, key)] = _value(value)
        names.append(name)
        given.append(params)
    return names, given


def _field_name(method: str, key: str) -> str:
    """The field that a setting such as `lambda` or `base-distance` names."""
    by_option = {parameter.option: parameter.name for parameter in parameters_of(method_class(method))}
    return by_option.get(key.replace("_", "-"), key.replace("-", "_"))


def _value(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text
