"""The re-ranking methods, one file each: to add one, add a file.

A module `some_method.py` in this folder is the method `some-method`. It defines `METHOD`, a subclass of
`FeatureStep`, `HeadRanker` or `GraphRanker`. Another package adds a method through the entry-point group
`blurrerank.methods`, whose names are those of methods and whose values are such classes. The module of a method
is not imported until that method is asked for.
"""

from __future__ import annotations

import difflib
import pkgutil
import re
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
from .kinds.parameters import AUTO, Parameter, parameters_of, parse_value, written

ENTRY_POINTS = "blurrerank.methods"

AnyMethod: TypeAlias = Ranker | Chain
"""What ranks: a method that ends a chain, or a chain."""

# Parameters at these values are left out of labels, because they mean the usual variant of a method.
_USUAL = (("steps", 1), ("base_distance", "squared"))

__all__ = [
    "AUTO",
    "AnyMethod",
    "Chain",
    "FeatureStep",
    "GraphRanker",
    "HeadRanker",
    "Method",
    "Ranker",
    "available",
    "create",
    "find_parameter",
    "is_available",
    "label_of",
    "method_class",
    "options_of",
    "parse_chain",
    "parse_value",
    "presets_of",
    "settings_of",
    "split_methods",
    "text_of",
    "with_settings",
    "without_auto",
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
        near = difflib.get_close_matches(name.lower().replace("_", "-"), [AUTO, *available()], n=1)
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
            f"method {name} cannot be loaded from {entries[0].value} ({type(error).__name__}: {error}): fix "
            "or uninstall the package that has it"
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
    named, given, classes = settings_of(text, params)
    for name, part in zip(named[:-1], classes[:-1], strict=True):
        if not issubclass(part, FeatureStep):
            raise ParameterError(f"{text}: {name} ranks, so it can only be the last part of a chain")
    if preset is not None:
        given[-1] = {"preset": preset, **given[-1]}
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
    if text == AUTO:
        return {}
    found = create(without_auto(text))
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


def find_parameter(text: str, name: str) -> tuple[str, Parameter]:
    """Return a parameter of a method or chain, and the shortest name that tells it from all others there.

    Args:
        text: a method or chain.
        name: what `create` takes, or its spelling as an option, such as `ki`, `lambda`, `dba.k`.

    Raises:
        ParameterError: for an unknown method, or a name that no parameter has or that several parts have.

    >>> find_parameter("dba+k-reciprocal", "k-reciprocal.lambda_value")[0]
    'lambda'
    """
    _, _, classes = settings_of(text, {})
    number, field = _part_of(name, text, classes)
    label, kind = list(part_names(list(classes)).items())[number]
    own = [parameter for parameter in parameters_of(kind) if parameter.name == field]
    if not own:
        raise _unknown_parameter(kind, name)
    alone = sum(any(one.name == field for one in parameters_of(part)) for part in classes) == 1
    return own[0].option if alone else f"{label}.{own[0].option}", own[0]


def with_settings(text: str, settings: Mapping[str, Any]) -> str:
    """Return the text of a method or chain with other values of some parameters.

    Args:
        text: a method or chain.
        settings: values by names as `find_parameter` takes them.

    Raises:
        ParameterError: for an unknown method, or a name that no part or several have.

    >>> with_settings("dba:k=4+k-reciprocal", {"lambda": 0.5, "k": 8})
    'dba:k=8+k-reciprocal:lambda=0.5'
    """
    named, given, classes = settings_of(text, settings)
    parts: list[str] = []
    written_out = len(parse_chain(text)[0])
    for name, kind, values in zip(named, classes, given, strict=True):
        if len(parts) == written_out and not values:
            break  # the cosine that a chain of steps ends with
        options = {parameter.name: parameter.option for parameter in parameters_of(kind)}
        parts.append(":".join([name, *(f"{options.get(key, key)}={written(v)}" for key, v in values.items())]))
    return "+".join(parts)


def text_of(method: AnyMethod) -> str:
    """Return the text that makes a method, with the parameters that are not defaults.

    >>> text_of(create("dba:k=4+k-reciprocal:k1=20"))
    'dba:k=4+k-reciprocal'
    """
    parts = (*method.feature_steps, method.ranker)
    others = (
        {
            f"{part.name}.{one.name}": getattr(part, one.name)
            for one in parameters_of(part)
            if getattr(part, one.name) != one.default
        }
        for part in parts
    )
    return "+".join(with_settings(part.name, given) for part, given in zip(parts, others, strict=True))


def label_of(method: str, params: Mapping[str, Any]) -> str:
    """Return a method with its parameters for people to read; switches that are off are omitted.

    That of a chain is what makes it: parameters that have their defaults are omitted.

    Args:
        method: the name of a method or chain, also of one that is not known here.
        params: its parameters, as in `Ranking`.

    >>> label_of("lbr", {"topn": 50, "sigma": 0.1, "cosine": False})
    'lbr (topn 50, sigma 0.1)'
    >>> label_of("dba+lbr", create("dba:k=4+lbr").params())
    'dba:k=4+lbr'
    """
    if "+" in method:
        return _chain_label(method, params)
    shown = []
    for name, value in params.items():
        words = name.removesuffix("_value").replace("_", " ")
        if (name, value) not in _USUAL and value is not False:
            shown.append(words if value is True else f"{words} {value}")
    return f"{method} ({', '.join(shown)})" if shown else method


def _chain_label(method: str, params: Mapping[str, Any]) -> str:
    defaults = create(method).params() if is_available(method) else {}
    parts: dict[str, str] = {}
    for key, value in params.items():
        part, _, name = key.rpartition(".")
        parts.setdefault(part, "")
        if defaults.get(key) != value:
            option = name.removesuffix("_value").replace("_", "-")
            parts[part] += f":{option}={value}"
    names = method.split("+")
    if len(parts) < len(names):  # lists of another tool, or a method without parameters
        return method
    return "+".join(name + settings for name, settings in zip(names, parts.values(), strict=True))


def presets_of(text: str) -> list[str]:
    """Return the names of the presets that the ranker of a method or chain has.

    Raises:
        ParameterError: for an unknown method.
    """
    return [] if text == AUTO else list(create(without_auto(text)).ranker.presets)


def without_auto(text: str) -> str:
    """Return a method or chain without the parameters that are to be found from the data.

    >>> without_auto("center+k-reciprocal:k1=auto:k2=3")
    'center+k-reciprocal:k2=3'
    """
    return re.sub(rf":[\w.-]+={AUTO}(?=[:+]|$)", "", text)


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
        raise _unknown_parameter(kind, unknown[0])
    return replace(kind(), **settings)


def _unknown_parameter(kind: type[Method], name: str) -> ParameterError:
    known = ", ".join(sorted(parameter.name for parameter in parameters_of(kind))) or "none"
    return ParameterError(f"method {kind.name} has no parameter {name!r}; it has: {known}")


def settings_of(
    text: str, params: Mapping[str, Any]
) -> tuple[list[str], list[dict[str, Any]], list[type[Method]]]:
    """Return the names of a chain's parts, a ranker the last, what is given of each, and their classes.

    Args:
        text: a method or chain.
        params: parameters beside those that the text gives, by names as `create` takes them.

    Raises:
        ParameterError: for an unknown method, or a name that no part has or that several parts have.
    """
    named, given = parse_chain(text)
    classes = [method_class(name) for name in named]
    if not issubclass(classes[-1], Ranker):
        named, given, classes = [*named, "cosine"], [*given, {}], [*classes, method_class("cosine")]
    for key, value in params.items():
        number, name = _part_of(key, text, classes)
        given[number] = {**given[number], name: value}
    return named, given, classes


def _part_of(key: str, text: str, classes: Sequence[type[Method]]) -> tuple[int, str]:
    """Which part of a chain a parameter belongs to, and the field that it is there."""
    part, dot, name = key.rpartition(".")
    names = list(part_names(list(classes)))
    if dot and part in names:
        number = names.index(part)
        return number, _field_name(classes[number].name, name)
    if len(classes) == 1:
        return 0, _field_name(classes[0].name, key)
    if dot:
        raise ParameterError(f"{text} has no part {part!r}; its parts are: {', '.join(names)}")
    having = [
        number
        for number, kind in enumerate(classes)
        if any(parameter.name == _field_name(kind.name, key) for parameter in parameters_of(kind))
    ]
    if len(having) == 1:
        return having[0], _field_name(classes[having[0]].name, key)
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
        shown = type(text).__name__ if hasattr(text, "dtype") else repr(text)
        raise ParameterError(f"a method is named by text, such as dba:k=4+lbr, not by {shown}")
    if "," in text:
        raise ParameterError(
            f"{text}: parts of a chain are joined by +, and parameters follow colons: dba:k=4+lbr"
        )
    names: list[str] = []
    given: list[dict[str, Any]] = []
    for part in text.split("+"):
        name, *settings = part.strip().split(":")
        if not name:
            raise ParameterError(
                f"{text!r} lacks the name of a method: expected a method or chain such as dba:k=4+lbr"
            )
        if name == AUTO:
            raise ParameterError(
                f"{AUTO} chooses a whole chain for the data: give it alone, to `run`, `index` or `rerank`"
            )
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
            params[field] = parse_value(value)
        names.append(name)
        given.append(params)
    return names, given


def _field_name(method: str, key: str) -> str:
    """The field that a setting such as `lambda` or `base-distance` names."""
    by_option = {parameter.option: parameter.name for parameter in parameters_of(method_class(method))}
    return by_option.get(key.replace("_", "-"), key.replace("-", "_"))
