"""`auto`: a chain, or values of parameters, that fit the data, found without identities.

The rule, whose numbers were chosen on some data sets and measured on others (docs/auto.md):

1. Cameras: with two or more of at least 100 images each (the median), features are centred by camera.
2. Sizes: how many images an identity has is estimated from neighbour lists, within cameras and across.
3. Whitening: where features vary in few directions, sizes are clear only if whitened features make them so, by
   neighbours that agree more.
4. Ranker: `camera-graph` where there are cameras; otherwise, where the size is clear and above one, `gnn`.
   Online `camera-graph` where both sizes are clear, otherwise `k-reciprocal-online` where one is.
5. Otherwise `cosine`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.compute import Compute, Progress
from ..data.features import FeatureSet
from ..data.sharded import ShardedSet
from ..errors import BlurrerankWarning, ParameterError
from ..graph.neighbourhoods import Neighbourhoods, SizeEstimate
from ..methods import AUTO, AnyMethod, FeatureStep, create, settings_of, without_auto
from ..methods.kinds.base import GraphMethod, Method
from ..methods.kinds.chain import part_names
from ..methods.kinds.parameters import parameters_of, written
from .feature_steps import apply_feature_step
from .look import Look, look
from .request import Prepared, Request, check_calibration, setting_of

# Images that cameras must have, as a median, for their means to be theirs and not those of a few identities;
# images of a camera that only probes have; images in all.
_IMAGES_A_CAMERA, _ALONE, _FEWEST = 100, 20, 100
# By how much whitening must raise the share of neighbours that agree; and below which share, of the nearest of
# points without groups, features vary in few directions.
_RISE, _FEW_DIRECTIONS = 0.05, 0.25

_CAMERA_GRAPH = "camera-graph:ki=auto:ko=auto:k2i=auto:k2o=auto:one-sided=0.5:lambda=0.1"
_GNN = "gnn:k1=auto:k2=auto"
_ONLINE = "k-reciprocal-online:k1=auto:k2=auto"


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
    if not isinstance(text, str) or text == AUTO:
        return text == AUTO
    given = params or {}
    if without_auto(text) == text and not any(_is_word(value) for value in given.values()):
        return False
    return any(_is_word(value) for part in settings_of(text, given)[1] for value in part.values())


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value == AUTO


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
        request: `online` and `calibration`.
        compute: how.
        preset: as for `create`.
        **params: as for `create`; values may be `auto`.

    Raises:
        ParameterError: as `create`; for a parameter that cannot be `auto`, or anything given beside the method
            `auto`; for candidates or a graph, which somebody else found.
        InputError: for a parameter that is found from cameras, if there are none, or calibration features that
            cannot be used.
    """
    if not is_auto(text, params):
        return Choice(create(text, preset=preset, **params), request)
    if request.candidates is not None:
        raise ParameterError(
            f"{AUTO} looks at neighbours among all items, and candidates are only some of them: name a method"
        )
    if request.graph is not None:
        raise ParameterError(f"{AUTO} finds a graph of its own: leave graph out, or name a method")
    if request.calibration is not None:
        check_calibration(request.calibration, data.dim)
    if text != AUTO:
        return _with_values(text, data, request, compute, preset, params)
    if preset is not None or params:
        given = "preset" if preset is not None else next(iter(params))
        raise ParameterError(f"method {AUTO} chooses all parameters: leave {given} out, or name a method")
    chosen, found = prepare(data, request, compute)
    method = create(_resolved(_ranker_for(chosen, found.near, request.online), chosen.steps, found.near))
    return _choice(method, chosen, found, request)


@dataclass(frozen=True)
class Stepped:
    """Features as a chain's steps have left them.

    Attributes:
        data: the features.
        request: with the calibration features treated likewise.
        steps: names of the steps.
        by_camera: whether cameras are told apart.
        words: what cameras there are.
    """

    data: FeatureSet
    request: Request
    steps: tuple[str, ...]
    by_camera: bool
    words: str

    def after(self, step: str, compute: Compute) -> Stepped:
        """Return the features that one more step gives."""
        (made,) = create(step).feature_steps
        data, request = apply_feature_step(self.data, made, self.request, compute)
        return replace(self, data=data, request=request, steps=(*self.steps, step))


def prepare(data: FeatureSet, request: Request, compute: Compute) -> tuple[Stepped, Look]:
    """Treat features as the rule has it, and estimate how many images an identity has.

    Args:
        data: the features.
        request: `online` and `calibration`.
        compute: how.
    """
    stepped, centred = _cameras(data, request)
    if centred:
        stepped = stepped.after("center", compute)
    found = _look(stepped, request.online, compute)
    before = _main(stepped, found.near, request.online)
    if found.near.images < _FEWEST or before is None or not before.size or before.chance[0] >= _FEW_DIRECTIONS:
        return stepped, found
    whitened = stepped.after("whiten", compute)
    other = _look(whitened, request.online, compute)
    after = _main(whitened, other.near, request.online)
    if after is not None and after.sure:
        place = after.size - 1
        if after.curve[place] > before.curve[place] + _RISE:
            return whitened, other
    return stepped, replace(found, near=found.near.unclear())


def _look(stepped: Stepped, online: bool, compute: Compute) -> Look:
    """The neighbours that the rule looks at."""
    nearest = online or not stepped.by_camera
    found = look(stepped.data, compute, together=not online, nearest=nearest, by_camera=stepped.by_camera)
    return replace(found, near=replace(found.near, steps=stepped.steps))


def _main(stepped: Stepped, near: Neighbourhoods, online: bool) -> SizeEstimate | None:
    """The estimate that says whether anything is known."""
    return near.across if stepped.by_camera and not online else near.nearest


def _cameras(data: FeatureSet, request: Request) -> tuple[Stepped, bool]:
    """What cameras there are, and whether features are centred by them."""
    probe, gallery = _cams_of(data)
    none = Stepped(data, replace(request, calibration=None), (), False, "no cameras")
    if probe is None or gallery is None:
        return none, False
    seen = gallery if request.online else np.concatenate([probe, gallery])
    known = seen if request.calibration is None else np.concatenate([seen, request.calibration.cams])
    counts = np.unique(known, return_counts=True)[1]
    by_camera = len(np.unique(seen)) > 1
    if len(counts) < 2:
        return replace(none, words="one camera"), False
    alone = np.setdiff1d(probe, known[len(probe) :] if not request.online else known)
    few = not request.online and any((probe == cam).sum() < _ALONE for cam in alone)
    words = f"{len(counts)} cameras with a median of {np.median(counts):,g} images"
    if np.median(counts) < _IMAGES_A_CAMERA or few:
        why = f"one of them known by fewer than {_ALONE} probes" if few else "too few"
        return replace(none, by_camera=by_camera, words=f"{words}, {why} to centre by"), False
    return Stepped(data, request, (), by_camera, words), True


def _cams_of(data: FeatureSet) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """The cameras of both sides; of a gallery that is cut among processes, those that the first has read."""
    probe, gallery = data.probe.cams, data.gallery.cams
    if not isinstance(data, ShardedSet):
        return probe, gallery
    sizes = len(data.probe), len(data.gallery)
    found = torch.full((sum(sizes) + 1,), -1)
    if data.group.rank == 0 and probe is not None and gallery is not None:
        found = torch.from_numpy(np.concatenate([probe, gallery, [0]]))
    every = data.group.broadcast(found, 0).numpy()
    return (None, None) if every[-1] < 0 else (every[: sizes[0]], every[sizes[0] : -1])


def _ranker_for(stepped: Stepped, near: Neighbourhoods, online: bool) -> str:
    """The ranker, with parameters that fit."""
    if near.images < _FEWEST:
        return "cosine"
    if stepped.by_camera and (not online or (near.size("within") and near.size("across"))):
        return _CAMERA_GRAPH
    if online:
        return _ONLINE if near.size("nearest") else "cosine"
    return _GNN if near.size("nearest") > 1 else "cosine"


def _resolved(ranker: str, steps: tuple[str, ...], near: Neighbourhoods) -> str:
    """A chain whose parameters have values."""
    (name,), (given,), (kind,) = settings_of(ranker, {})
    fixed = {key: value for key, value in given.items() if not _is_word(value)}
    return "+".join([*steps, _text(name, kind, _values(kind, given, near) | fixed)])


def _values(kind: type[Method], given: Mapping[str, Any], near: Neighbourhoods) -> dict[str, Any]:
    """The values of the parameters that are `auto`, but for those that the data do not tell."""
    found = {}
    for parameter in parameters_of(kind):
        if _is_word(given.get(parameter.name)) and parameter.fits is not None:
            value = parameter.fits(near)
            if value is not None:
                found[parameter.name] = value
    return found


def _text(name: str, kind: type[Method], given: dict[str, Any]) -> str:
    """A part of a chain as its grammar has it."""
    options = {parameter.name: parameter.option for parameter in parameters_of(kind)}
    return ":".join([name, *(f"{options.get(key, key)}={written(value)}" for key, value in given.items())])


def _choice(method: AnyMethod, stepped: Stepped, found: Look, request: Request) -> Choice:
    """What was chosen, what is known of it already, and why it was."""
    near, graph = found.near, found.graph
    ranker = method.ranker
    serves = isinstance(ranker, GraphMethod) and graph is not None and graph.serves(ranker.list_sizes())
    centred = stepped.request.calibration is not None
    if request.calibration is not None and not centred:
        warnings.warn(
            f"{request.calibration.label} changes nothing: {AUTO} does not centre ({stepped.words})",
            BlurrerankWarning,
            stacklevel=3,
        )
    asked = replace(
        request,
        calibration=request.calibration if centred else None,
        prepared=Prepared(stepped.data, graph if serves else None),
    )
    return Choice(method, asked, f"{label(method)} ({stepped.words}; {_told(near)})", near)


def label(method: AnyMethod) -> str:
    """Return a chain as its grammar has it, with all parameters that are not defaults."""
    parts = []
    for part in (*method.feature_steps, method.ranker):
        others = {one.name: getattr(part, one.name) for one in parameters_of(part)}
        given = {one.name: others[one.name] for one in parameters_of(part) if others[one.name] != one.default}
        parts.append(_text(part.name, type(part), given))
    return "+".join(parts)


def estimate_neighbourhoods(
    data: FeatureSet,
    *,
    online: bool = False,
    device: str = "auto",
    memory: int | None = None,
    progress: Progress | None = None,
) -> Neighbourhoods:
    """Estimate how many other images an identity has, from neighbour lists alone.

    Features are centred by camera and whitened first where the method `auto` does so.

    Args:
        data: the features; identities are not looked at.
        online: look at the gallery alone.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget for working memory in bytes; by default 2 GiB, and half of what is free on a GPU.
        progress: called with (images done, images in all).

    Returns:
        Estimates within cameras and across, or in all where there is one camera or none; each with the curve
        that it is read from, and whether it is sure.

    Raises:
        ParameterError: for a budget that is too small.
        BlurrerankError: for a device that is not available.
    """
    compute = Compute.choose(device, memory, progress=progress)
    return prepare(data, Request(online=online), compute)[1].near


def _told(near: Neighbourhoods) -> str:
    """What is known of sizes, in words."""
    if near.images < _FEWEST:
        return f"{near.images} images are too few to tell how many an identity has"
    return f"other images of an identity: {near}"


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
            _check_fits(name, kind, wanted)
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
            (step,) = create(_text(name, kind, fitted)).feature_steps
            stepped, asked = apply_feature_step(stepped, step, asked, compute)
    assert near is not None  # somebody asked for `auto`
    method = create("+".join(named), **({"preset": preset} | values))
    told = [f"{name} {written(method.params()[key])}" for key, name in chosen.items()]
    setting_of(method, request.online)
    if not any(found.sure for found in near.estimates().values()):
        warnings.warn(
            f"it is not clear how many images an identity has: {', '.join(told)} may not fit the data",
            BlurrerankWarning,
            stacklevel=3,
        )
    return Choice(method, request, f"{', '.join(told)} ({_told(near)})", near)


def _check_fits(name: str, kind: type[Method], wanted: list[str]) -> None:
    """Refuse `auto` where no rule is known."""
    can = {parameter.name: parameter.option for parameter in parameters_of(kind) if parameter.fits is not None}
    for key in wanted:
        if key not in can:
            known = ", ".join(can.values())
            having = (
                f"{name} has a rule for {known}" if known else f"{name} has rules for none of its parameters"
            )
            raise ParameterError(f"{key.removesuffix('_value')} of {name} cannot be {AUTO}: {having}")
