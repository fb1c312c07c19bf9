"""`auto`: a chain, or values of parameters, that fit the data, found without identities."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..compute.compute import Compute
from ..data.features import FeatureSet
from ..data.similarities import SimilaritySet
from ..errors import BlurrerankWarning, ParameterError
from ..graph.neighbourhoods import Neighbourhoods
from ..methods import (
    AUTO,
    AnyMethod,
    FeatureStep,
    create,
    find_parameter,
    settings_of,
    text_of,
    with_settings,
    without_auto,
)
from ..methods.kinds.base import GraphMethod, Method
from ..methods.kinds.chain import part_names
from ..methods.kinds.parameters import parameters_of, written
from .feature_steps import apply_feature_step
from .look import Look, look
from .plans import plan_for
from .request import Prepared, Request, check_camera_images, setting_of
from .rule import Stepped, prepare, ranker_for, told


@dataclass(frozen=True)
class Choice:
    """A method for some data.

    Attributes:
        method: what re-ranks.
        request: what was asked for, with what is known already.
        reason: what was chosen and why, in one line; empty if nothing was to be chosen.
        near: the estimates that it follows from; None if there were none.
    """

    method: AnyMethod
    request: Request
    reason: str = ""
    near: Neighbourhoods | None = None


def is_auto(text: str, params: Mapping[str, Any] | None = None) -> bool:
    """Return whether a method, or one of its parameters, is to be chosen for the data.

    Raises:
        ParameterError: for an unknown method beside a parameter that is `auto`.
    """
    if not isinstance(text, str):
        return False  # which `create` refuses
    if text == AUTO:
        return True
    given = params or {}
    if without_auto(text) == text and not any(_is_word(value) for value in given.values()):
        return False
    return any(_is_word(value) for part in settings_of(text, given)[1] for value in part.values())


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value == AUTO


def checked(text: str, *, preset: str | None = None, online: bool = False, **params: Any) -> AnyMethod | None:
    """Check a method before there are data that something of it may be chosen for.

    Args:
        text: as for `choose`.
        preset: as for `create`.
        online: whether each probe must be ranked by itself.
        **params: as for `choose`.

    Returns:
        The method, with defaults where a value is to be found; None for `auto`, which may become any.

    Raises:
        ParameterError: as `create` and `setting_of`; for a parameter that cannot be `auto`, or anything given
            beside the method `auto`.
    """
    if text == AUTO:
        if preset is not None or params:
            given = "preset" if preset is not None else next(iter(params))
            raise ParameterError(f"method {AUTO} chooses all parameters: leave {given} out, or name a method")
        return None
    if is_auto(text, params):
        for name, settings, kind in zip(*settings_of(text, params), strict=True):
            for key, value in settings.items():
                if _is_word(value):
                    _check_fits(name, kind, key)
    numbers = {key: value for key, value in params.items() if not _is_word(value)}
    method = create(without_auto(text) if isinstance(text, str) else text, preset=preset, **numbers)
    setting_of(method, online)
    return method


def choose(
    text: str,
    data: FeatureSet,
    request: Request,
    compute: Compute,
    *,
    preset: str | None = None,
    **params: Any,
) -> Choice:
    """Make a method, and choose for the data whatever of it is `auto`.

    Args:
        text: `auto`, or a method or chain, in which parameters may be `auto`.
        data: the features.
        request: `online` and `camera_images`.
        compute: how.
        preset: as for `create`.
        **params: as for `create`; values may be `auto`.

    Raises:
        ParameterError: as `checked`; for candidates or a graph, which somebody else found.
        InputError: for a parameter that is found from cameras, if there are none, or camera images that
            cannot be used.
    """
    if not is_auto(text, params):
        return Choice(create(text, preset=preset, **params), request)
    method = checked(text, preset=preset, online=request.online, **params)
    instead = "name a method" if method is None else f"give {method.name} numbers"
    if isinstance(data, SimilaritySet):
        raise ParameterError(f"{AUTO} needs features, and these are similarities: {instead}")
    if request.candidates is not None:
        raise ParameterError(
            f"{AUTO} looks at neighbours among all items, and candidates are only some of them: {instead}"
        )
    if request.graph is not None:
        raise ParameterError(f"{AUTO} finds a graph of its own: leave graph out, or {instead}")
    if request.camera_images is not None:
        check_camera_images(request.camera_images, data.dim)
    if text != AUTO:
        assert method is not None
        plan_for(data, method.ranker, request, compute)
        return _with_values(text, data, request, compute, preset, params)
    chosen, found = prepare(data, request, compute)
    ranker = ranker_for(chosen, found.near, request.online)
    _, (settings,), (kind,) = settings_of(ranker, {})
    fitting = with_settings(without_auto(ranker), _values(kind, settings, found.near))
    method = create("+".join([*chosen.steps, fitting]))
    return _choice(method, chosen, found, request)


def _values(kind: type[Method], given: Mapping[str, Any], near: Neighbourhoods) -> dict[str, Any]:
    """The values of the parameters that are `auto`, but for those that the data do not tell."""
    found = {}
    for parameter in parameters_of(kind):
        if _is_word(given.get(parameter.name)) and parameter.fits is not None:
            value = parameter.fits(near)
            if value is not None:
                found[parameter.name] = value
    return found


def _choice(method: AnyMethod, stepped: Stepped, found: Look, request: Request) -> Choice:
    """What was chosen, what is known of it already, and why it was."""
    near, graph = found.near, found.graph
    ranker = method.ranker
    serves = isinstance(ranker, GraphMethod) and graph is not None and graph.serves(ranker.list_sizes())
    centred = stepped.request.camera_images is not None
    if request.camera_images is not None and not centred:
        warnings.warn(
            f"camera images {request.camera_images.label} have no effect: {AUTO} does not centre "
            f"({stepped.words})",
            BlurrerankWarning,
            stacklevel=3,
        )
    asked = replace(
        request,
        camera_images=request.camera_images if centred else None,
        prepared=Prepared(stepped.data, graph if serves else None),
    )
    return Choice(method, asked, f"{text_of(method)} ({stepped.words}; {told(near)})", near)


def _with_values(
    text: str,
    data: FeatureSet,
    request: Request,
    compute: Compute,
    preset: str | None,
    params: dict[str, Any],
) -> Choice:
    """A method some of whose parameters are `auto`."""
    named, every, classes = settings_of(text, params)
    stepped, asked, near = data, request, None
    chosen: dict[str, str] = {}
    labels = list(part_names(list(classes)))
    values: dict[str, Any] = {}
    for number, (name, kind, given) in enumerate(zip(named, classes, every, strict=True)):
        wanted = [key for key, value in given.items() if _is_word(value)]
        fitted = {key: value for key, value in given.items() if not _is_word(value)}
        if wanted:
            by_camera = issubclass(kind, GraphMethod) and kind().needs_cameras
            together = kind.transductive and not request.online
            sides = {"together": together, "nearest": not by_camera, "by_camera": by_camera}
            near = look(stepped, compute, **sides, wanted_by=name).near
            fitted |= _values(kind, given, near)
        prefix = f"{labels[number]}." if len(named) > 1 else ""
        values |= {f"{prefix}{key}": value for key, value in fitted.items()}
        chosen |= {f"{prefix}{key}": key.removesuffix("_value") for key in wanted}
        later = [value for rest in every[number + 1 :] for value in rest.values()]
        if issubclass(kind, FeatureStep) and any(map(_is_word, later)):
            (step,) = create(with_settings(name, fitted)).feature_steps
            stepped, asked = apply_feature_step(stepped, step, asked, compute)
    assert near is not None  # somebody asked for `auto`
    method = create("+".join(named), **({"preset": preset} | values))
    found = [f"{name} {written(method.params()[key])}" for key, name in chosen.items()]
    if not any(one.sure for one in near.estimates().values()):
        warnings.warn(
            f"the number of images per identity could not be estimated reliably: {', '.join(found)} may not "
            "suit the data",
            BlurrerankWarning,
            stacklevel=3,
        )
    return Choice(method, request, f"{', '.join(found)} ({told(near)})", near)


def _check_fits(name: str, kind: type[Method], key: str) -> None:
    """Refuse `auto` where there is no such parameter, or no rule for it."""
    option, parameter = find_parameter(name, key)
    if parameter.fits is None:
        known = ", ".join(one.option for one in parameters_of(kind) if one.fits is not None)
        having = f"{name} has a rule for {known}" if known else f"{name} has no parameter with a rule"
        raise ParameterError(f"{option} of {name} cannot be {AUTO}: {having}")
