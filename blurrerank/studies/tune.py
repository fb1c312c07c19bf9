"""A grid over the parameters of a method: chosen on half of the identities, reported on the other half."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compute.compute import Compute, Progress
from ..data.arguments import check_features
from ..data.features import FeatureSet
from ..data.side import Side
from ..engine.request import Request, check_camera_images_for, setting_of, without_cameras
from ..engine.runs import Measurement
from ..errors import BlurrerankWarning, InputError, ParameterError
from ..evaluation.match_finder import MatchFinder
from ..evaluation.metrics import MEANS, measure_probes, suspicious_labels
from ..methods import AnyMethod, create
from .grids import ParameterGrid, Setting
from .halves import Half, Halves
from .many import locate_each
from .tune_files import TuningFile
from .tuning import Basis, Store, Tuning, best_of

_OTHER = {
    "digest": "other features",
    "labels_digest": "other ids or cameras",
    "camera_images_digest": "other camera images",
    "camera_images_cams": "other cameras of the camera images",
}


@dataclass(frozen=True)
class Choice:
    """How a setting is chosen.

    Attributes:
        measurement: how lists are measured.
        metric: the mean that is to be highest, one of `MEANS`.
        seed: of the draw of the halves, 0 or more.

    Raises:
        ParameterError: on construction, for others.
    """

    measurement: Measurement
    metric: str = "mAP"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check metric and seed."""
        if self.metric not in MEANS:
            raise ParameterError(f"metric {self.metric!r} is not known: use {' or '.join(MEANS)}")
        if isinstance(self.seed, bool) or not hasattr(self.seed, "__index__") or self.seed < 0:
            raise ParameterError(f"seed must be a whole number of at least 0, not {self.seed!r}")
        object.__setattr__(self, "seed", index(self.seed))


def tune(
    data: FeatureSet,
    method: str,
    grid: Mapping[str, Sequence[Any]],
    *,
    online: bool = False,
    camera_images: Side | None = None,
    metric: str = "mAP",
    seed: int = 0,
    protocol: str = "market1501",
    ap: str = "plain",
    device: str = "auto",
    memory: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    output: str | Path | None = None,
) -> Tuning:
    """Measure a method at every setting of a grid, choose on half of the identities, and report on the others.

    Settings with equal feature steps share these, and one search or one neighbour graph.

    Args:
        data: features with ids.
        method: a method or chain, with the parameters that are fixed, such as `center+camera-graph:lambda=0`.
        grid: the values of parameters that vary, by names as `rerank` takes them, such as `ki` or `dba.k`, or
            as options spell them, such as `lambda`.
        online: rank each probe by itself; refused for methods that cannot.
        camera_images: earlier images of cameras that the gallery lacks, for steps such as `center`.
        metric: the mean that is to be highest: mAP, mINP, rank1, rank5, rank10 or rank20.
        seed: of the draw of the halves.
        protocol: `market1501`, `cuhk03`, `leave-one-out` or `plain`.
        ap: `plain` or `trapezoid`.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget for working memory in bytes.
        precision: of the products that candidates are found by; the lists are the same.
        progress: called with (settings done, settings in all), the chain as it was given and cosine among them.
        output: a .json file that gets each setting as it is finished. What it already has, of the same features
            and labels, method and seed, is kept and not measured again.

    Raises:
        ParameterError: for an unknown method, parameter or metric, a value outside its range, or a method that
            cannot work online where that is asked for.
        InputError: without ids, with fewer than four identities that have a match, without cameras where the
            method needs them, or if `output` is something else.
        OutputError: if `output` cannot be written.
        BlurrerankError: for a device that is not available.
    """
    check_features(data)
    choice = Choice(Measurement(protocol, ap), metric, seed)
    compute = Compute.choose(device, memory, precision=precision, progress=progress)
    request = Request(online=online, camera_images=camera_images)
    return tune_grid(
        data,
        ParameterGrid.of(method, grid.items()),
        request,
        choice,
        compute,
        None if output is None else TuningFile(output),
    )


def tune_grid(
    data: FeatureSet,
    grid: ParameterGrid,
    request: Request,
    choice: Choice,
    compute: Compute,
    store: Store | None = None,
) -> Tuning:
    """Return what `tune` does, for a grid that is checked already; errors as there."""
    if isinstance(request.camera_images, Side):
        request = replace(request, camera_images=request.camera_images.cameras_like(data.gallery))
    basis = _basis(data, grid, request, choice)
    known = None if store is None else store.known
    if known is not None:
        grid = _check_continues(grid, known, basis)
    asked = grid.settings()
    course = _Course(basis, choice, grid, Halves.of(data, basis.protocol, choice.seed))
    if known is not None:
        course.take_up(known)
    missing = [setting for setting in asked if setting not in course.rows]
    if known is not None and known.finished and known.metric == choice.metric and not missing:
        return known
    for message in suspicious_labels(data, choice.measurement.rules, len(course.halves.counts)):
        warnings.warn(message, BlurrerankWarning, stacklevel=3)
    single_shot = choice.measurement.rules.single_shot
    finder = MatchFinder(data, single_shot=single_shot, device=compute.device, memory=compute.memory)
    quiet = replace(compute, progress=None)

    def values_of(methods: Sequence[AnyMethod]) -> Iterator[tuple[AnyMethod, NDArray[np.float64]]]:
        for method, positions in locate_each(data, methods, request, finder, quiet):
            measured = measure_probes(positions, data, choice.measurement.rules, ap=basis.ap)
            yield method, measured.table()

    references = {"cosine": create("cosine", topn=1), "defaults": create(grid.method)}
    references = {name: method for name, method in references.items() if name not in course.sums}
    setting_at = {grid.method_at(setting): setting for setting in missing}
    methods = list(dict.fromkeys([*references.values(), *setting_at]))
    for done, (method, table) in enumerate(values_of(methods), start=1):
        for name, reference in references.items():
            if method == reference:
                course.sums[name] = course.halves.sums(table)
        if method in setting_at:
            course.add(setting_at[method], table)
            if store is not None:
                store.keep(course.result(finished=False))
        compute.advance(done, len(methods))
    if course.sampled != course.best():  # known, but not by this metric
        for _, table in values_of([grid.method_at(course.best())]):
            course.sample(course.best(), table)
    found = course.result(finished=True)
    if store is not None:
        store.keep(found)
    return found


def _basis(data: FeatureSet, grid: ParameterGrid, request: Request, choice: Choice) -> Basis:
    """Check that settings can be compared, and say what is compared."""
    method, camera_images = create(grid.method), request.camera_images
    setting = setting_of(method, request.online)
    if not data.has_ids:
        raise InputError(f"{data.lacking('ids')}: settings cannot be compared without metrics")
    if method.needs_cameras and not data.has_cams:
        raise without_cameras(data.lacking("cams"), method.name)
    if camera_images is not None:
        check_camera_images_for(method, camera_images, data.dim, online=request.online)
    return Basis(
        grid.method,
        setting,
        data.digest(),
        data.labels_digest(),
        None if camera_images is None else camera_images.digest(),
        None if camera_images is None else camera_images.cameras_digest(),
        choice.measurement.protocol,
        choice.measurement.ap,
        choice.seed,
    )


def _check_continues(grid: ParameterGrid, known: Tuning, basis: Basis) -> ParameterGrid:
    """Return the grid with its parameters in the order that they have in an earlier tuning of the same."""
    stated = [(field.name, getattr(known.basis, field.name)) for field in fields(Basis)]
    other = [_OTHER.get(name, f"{name} {value}") for name, value in stated if value != getattr(basis, name)]
    if not other and set(known.grid) != set(grid.values):
        other = [f"a grid over {', '.join(known.grid)}"]
    if other:
        raise InputError(f"the output file has a tuning of {other[0]}: choose another name for this one")
    return replace(grid, values={name: grid.values[name] for name in known.grid})


@dataclass
class _Course:
    """A tuning under way."""

    basis: Basis
    choice: Choice
    grid: ParameterGrid
    halves: Halves
    rows: dict[Setting, Mapping[str, float]] = field(default_factory=dict)
    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    sampled: Setting | None = None

    def take_up(self, known: Tuning) -> None:
        """Begin with what is known."""
        self.grid = self.grid.extending(known.grid)
        self.rows, self.sums, self.sampled = dict(known.rows), dict(known.sums), known.sampled

    def best(self) -> Setting:
        """Return the best setting so far."""
        return best_of(self.rows, self.choice.metric, self.grid)

    def add(self, setting: Setting, table: NDArray[np.float64]) -> None:
        """Take the (P, M) values of a setting."""
        self.rows[setting] = self.halves.means(table)
        if self.best() == setting:
            self.sample(setting, table)

    def sample(self, setting: Setting, table: NDArray[np.float64]) -> None:
        """Keep what is needed to report on a setting."""
        self.sums["chosen"], self.sampled = self.halves.sums(table), setting

    def result(self, *, finished: bool) -> Tuning:
        """Return what is known now."""
        assert self.sampled is not None
        counts = self.halves.counts
        return Tuning(
            self.basis,
            self.choice.metric,
            self.grid.values,
            self.halves.tuning,
            Half(len(counts), int(counts.sum())),
            {setting: self.rows[setting] for setting in sorted(self.rows, key=self.grid.place)},
            counts,
            dict(self.sums),
            self.sampled,
            finished,
        )
