"""The re-ranking methods, one file each: to add one, add a file.

A module `some_method.py` in this folder is the method `some-method`. It defines `METHOD`, a subclass of
`FeatureStep`, `HeadRanker` or `GraphRanker`. Another package adds a method through the entry-point group
`blurrerank.methods`, whose names are those of methods and whose values are such classes. The module of a method
is not imported until that method is asked for.
"""

from __future__ import annotations

import ast
import difflib
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
def _installed() -> Mapping[str, list[EntryPoint]]:
    """The methods of other packages; one that is called as a method here is not reached."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name not in _built_in():
            found.setdefault(entry.name, []).append(entry)
    return found


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
        where = f"{__name__}.{name.replace('-', '_')}"
        loaded = getattr(import_module(where), "METHOD", None)
    else:
        where, loaded = _load(name)
    if not isinstance(loaded, type) or not issubclass(loaded, FeatureStep | HeadRanker | GraphRanker):
        what = f"{where}, which is neither a FeatureStep, a HeadRanker nor a GraphRanker: uninstall the package"
        if name in _built_in():
            what = f"the module {where}, which must define METHOD, a FeatureStep, HeadRanker or GraphRanker"
        raise ParameterError(f"method {name} is {what}")
    if getattr(loaded, "name", None) != name:
        raise ParameterError(f"method {name} is {where}, whose class must say: name: ClassVar[str] = {name!r}")
    return loaded


def _load(name: str) -> tuple[str, Any]:
    """Where another package has a method, and what is there."""
    entries = _installed().get(name, [])
    if not entries:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), available(), n=1)
        meant = f"did you mean {near[0]}? Otherwise " if near else ""
        raise ParameterError(f"method {name!r} is not known: {meant}use {' or '.join(available())}")
    if len({entry.value for entry in entries}) > 1:
        raise ParameterError(
            f"method {name} is in several packages, {' and '.join(entry.value for entry in entries)}: "
            "uninstall all but one"
        )
    try:
        return entries[0].value, entries[0].load()
    except Exception as error:  # whatever the module of another package raises when it is imported
        raise ParameterError(
            f"method {name} cannot be loaded from {entries[0].value} ({type(error).__name__}: {error}): "
            "mend or uninstall the package that has it"
        ) from error


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
    parts = []
    for (label, kind), settings in zip(part_names(list(classes)).items(), given, strict=True):
        try:
            parts.append(_create_one(kind, settings))
        except ParameterError as error:
            # The parts of a chain have parameters of the same names.
            raise ParameterError(f"{label}: {error}" if len(classes) > 1 else str(error)) from None
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
        known = ", ".join(
            f"{name}.{parameter.name}"
            for name, kind in part_names(list(classes)).items()
            for parameter in parameters_of(kind)
        )
        raise ParameterError(f"no part of {text} has a parameter {key!r}; they have: {known}")
    several = " and ".join(classes[number].name for number in having)
    raise ParameterError(
        f"{text}: {several} both have {key!r}: say which, as in {classes[having[0]].name}.{key}"
    )


def parse_chain(text: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the names of a chain's parts, and the parameters that the text gives each.

    Raises:
        ParameterError: for text that does not read so.
    """
    if not isinstance(text, str):
        raise ParameterError(f"a method is named by text, such as dba:k=4+lbr, not by {text!r}")
    if "," in text:
        raise ParameterError(
            f"{text}: parts of a chain are joined by +, and parameters follow colons: dba:k=4+lbr"
        )
    names: list[str] = []
    given: list[dict[str, Any]] = []
    for part in text.split("+"):
        name, *settings = part.strip().split(":")
        if not name:
            raise ParameterError(f"{text!r} names no method where one should be: expected such as dba:k=4+lbr")
        params: dict[str, Any] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            field = _field_name(name, key)
            if not equals:
                raise ParameterError(
                    f"{text}: {setting!r} should read NAME=VALUE, such as lbr:topn=20:cosine=true"
                )
            if field in params:
                raise ParameterError(f"{text} gives {key} twice")
            params[field] = _value(value)
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
