"""An indexed gallery: encoded once, queried by one probe or by many, by any number of processes."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..compute.compute import Compute, Progress
from ..compute.device import pick_device
from ..data.checks import check_count
from ..data.features import FeatureSet
from ..data.ranking import Ranking
from ..data.side import Side, digest_of
from ..data.validation import find_problems
from ..engine.feature_steps import fit_steps
from ..engine.request import Request, check_calibrates
from ..engine.rerank import rank
from ..errors import BlurrerankWarning, InputError, OutputError, ParameterError
from ..files.access import check_readable
from ..files.neighbours_h5 import read_partial, write_partial
from ..files.targets import check_target, replacing
from ..graph.encoding import Encoding
from ..graph.find import find_graph
from ..graph.neighbour_graph import NeighbourGraph
from ..methods import AnyMethod, Chain, FeatureStep, GraphRanker, HeadRanker, Ranker, create, settings_of
from ..methods.k_reciprocal_online import KReciprocalOnline
from ..methods.kinds.base import Method
from ..methods.kinds.steps import Transform
from ..search.plan import Plan
from . import index_h5
from .index_h5 import Labels


@dataclass(frozen=True, eq=False, kw_only=True)
class IndexedSide(Side):
    """The gallery of an index: normalised features, and what a method knows of them.

    Attributes:
        digests: `row_digests()` of the features as they came.
        stored_digest: `digest()`, which need not be found out again for each probe.
        method: what it was encoded for.
        encoded: what that method's ranker made of it.
        fitted: what each of its feature steps knows of the gallery.
    """

    unit = True

    digests: NDArray[np.uint8]
    stored_digest: str
    method: AnyMethod
    encoded: Encoding
    fitted: Sequence[Mapping[str, torch.Tensor]] = ()

    def row_digests(self) -> NDArray[np.uint8]:
        """Those of the rows as they came."""
        return self.digests

    def digest(self) -> str:
        """SHA-256 over the rows as they came."""
        return self.stored_digest

    def encoded_for(self, method: GraphRanker) -> Encoding | None:
        """What is known of the gallery, if it was encoded for `method`.

        Raises:
            ParameterError: if it was encoded with other parameters.
        """
        if method.name != self.method.ranker.name:
            return None
        _check_same(self.label, self.method.ranker, method.params())
        return self.encoded

    def fitted_for(self, steps: Sequence[FeatureStep]) -> Sequence[Mapping[str, torch.Tensor]] | None:
        """What feature steps know of the gallery; None if it has the features that it came with.

        Raises:
            ParameterError: for other steps than those that gave its features.
        """
        own = self.method.feature_steps
        if own and tuple(steps) != own:
            raise ParameterError(
                f"{self.label} has the features that {_names(own)} gave: a method must begin with it, and with "
                "the parameters that the index was built with"
            )
        return self.fitted if own else None


@dataclass(frozen=True, eq=False)
class GalleryIndex:
    """A gallery index, mapped into memory: it may be read by many threads and processes at a time.

    Attributes:
        path: the file.
        gallery: the gallery as the right side of a `FeatureSet`; `features` are L2-normalised.
        method: the method it was encoded for, with its parameters.
        near: each item's nearest others.

    >>> import tempfile, blurrerank as br
    >>> data = br.load("examples/omniglot.h5")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     index = br.build_index(data.gallery, f"{folder}/gallery.index.h5")
    ...     index.rerank(data.probe.features[0], topn=3).indices.shape
    (1, 3)
    """

    path: Path
    gallery: IndexedSide
    method: AnyMethod
    near: NeighbourGraph

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto", verify: bool = True) -> GalleryIndex:
        """Map an index into memory.

        Args:
            path: the file.
            device: where probes will be answered, `auto`, `cpu`, `cuda` or `cuda:1`; to a GPU it is copied.
            verify: read the file and compare checksums; False opens at once and trusts it.

        Raises:
            InputError: if it is no index, is of a newer version, or is damaged.
            BlurrerankError: for a device that is not available.
        """
        where = pick_device(device)
        stored = index_h5.read(Path(path), verify=verify)
        method = create(stored.method, **stored.params)
        try:
            _check_indexes(method)
        except ParameterError as error:
            raise InputError(f"{path}: {error}") from None
        if len(stored.fitted) != len(method.feature_steps):
            raise InputError(f"{path} is a damaged index: it has {len(stored.fitted)} feature steps")
        labels = stored.labels
        gallery = IndexedSide(
            stored.features.to(where),
            labels.ids,
            labels.cams,
            labels.names,
            label=str(path),
            sources=() if where.type == "cuda" else (stored.source,),
            digests=labels.digests,
            stored_digest=stored.digest,
            method=method,
            encoded=stored.encoded.to(where),
            fitted=stored.fitted,
        )
        return cls(Path(path), gallery, method, stored.near)

    def __len__(self) -> int:
        return len(self.gallery)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.method.params().items())
        return f"GalleryIndex({len(self)} x {self.dim}, {self.method.name}({settings}))"

    @property
    def dim(self) -> int:
        """D, the number of dimensions of a feature vector."""
        return self.gallery.dim

    @property
    def device(self) -> str:
        """Where probes are answered."""
        features = self.gallery.features
        assert isinstance(features, torch.Tensor)
        return str(features.device)

    def rerank(
        self,
        probe: ArrayLike | torch.Tensor | Side,
        *,
        topn: int | None = None,
        method: str | None = None,
        memory: int | None = None,
        **params: Any,
    ) -> Ranking:
        """Rank the gallery for every probe, each as if it were alone.

        Args:
            probe: (P, D) features, float16, float32 or float64, or (D,) of one probe; or a `Side` with labels.
            topn: how deep the lists are, 50 by default; for a method that re-ranks the head of the list,
                such as `lbr`, also how many items it re-ranks.
            method: a method or chain, by default that of the index; with the feature steps of the index first.
            memory: budget for working memory in bytes; see `blurrerank.rerank`.
            **params: the method's own parameters. Those that the index was built with are as they were.

        Returns:
            A `Ranking` of all probes.

        Raises:
            InputError: for features that cannot be compared with these.
            ParameterError: for an unknown method or parameter, a value outside its range, or one that the
                index was not built with.
        """
        chosen = self.method_for(method, **params)
        if topn is not None:
            check_count("topn", topn)
            if isinstance(chosen.ranker, HeadRanker):
                chosen = _chain(chosen.feature_steps, replace(chosen.ranker, topn=topn))
        compute = Compute.choose(self.device, memory)
        return rank(self.features(probe), chosen, Request(depth=topn, online=True), compute)

    def method_for(self, name: str | None = None, *, preset: str | None = None, **params: Any) -> AnyMethod:
        """A method that answers each probe alone, by name.

        Args:
            name: a method or chain, with parameters such as in `lbr:topn=20`; by default that of the index.
            preset: its parameters for a public data set.
            **params: its parameters. Those that the index was built with are as they were.

        Raises:
            ParameterError: for an unknown method, preset or parameter, a value outside its range or other than
                the index was built with, or a method that looks at all probes together.
        """
        name = self.method.name if name is None else name
        method, own = create(name, preset=preset, **params), self.method.feature_steps
        *stepped, ranked = settings_of(name, params)[1]
        if [step.name for step in method.feature_steps] != [step.name for step in own]:
            if not own:
                raise ParameterError(
                    f"method {name} changes features, and an index keeps those that it was built of: run it on "
                    "features"
                )
            raise ParameterError(
                f"{self.path} has the features that {_names(own)} gave, so it cannot answer {name}: use "
                f"{_names(own)}+{method.ranker.name}"
            )
        for step, settings in zip(own, stepped, strict=True):
            _check_same(str(self.path), step, settings)
        ranker = method.ranker
        if isinstance(ranker, GraphRanker):
            known = self.method.ranker
            if not ranker.online:
                raise ParameterError(
                    f"method {name} looks at all probes together, which no index answers: run it on features"
                )
            if ranker.name != known.name:
                raise ParameterError(f"{self.path} was built for {known.name}, not {ranker.name}")
            settings = {name: getattr(ranker, name) for name in ranked if name != "preset"}
            if preset := ranked.get("preset", preset):
                settings = {**ranker.presets[preset], **settings}
            _check_same(str(self.path), known, settings)
            ranker = replace(known, **settings)
        return _chain(own, ranker)

    def features(self, probe: ArrayLike | torch.Tensor | Side) -> FeatureSet:
        """Probes and the gallery of the index, as every function here takes them.

        Raises:
            InputError: for features that cannot be compared with these.
        """
        return FeatureSet(_side(probe, "probe"), self.gallery)


def build_index(
    gallery: ArrayLike | torch.Tensor | Side,
    path: str | Path,
    method: str = "k-reciprocal-online",
    *,
    calibration: Side | None = None,
    append: bool = False,
    force: bool = False,
    device: str = "auto",
    memory: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    checkpoint_seconds: float = 60.0,
    **params: Any,
) -> GalleryIndex:
    """Index a gallery, or add to one that is indexed.

    What is known is kept in `PATH.partial` now and then; the same call goes on from there. The index appears
    when it is complete; readers of one that is replaced keep the old.

    Args:
        gallery: (G, D) features, float16, float32 or float64; or a `Side`, with labels if there are.
        path: the index.
        method: a graph ranker that works online, or a chain of steps such as `center` and one.
        calibration: earlier images of cameras that the gallery lacks, unlabelled, for steps such as `center`.
        append: add the gallery to the index that is there, whose method and parameters hold. The result is the
            same as that of indexing everything at once. Refused where feature steps know the gallery.
        force: replace an existing index, and start over whatever is left of another.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget in bytes, by default 2 GiB, beside lists and encodings.
        precision: of the products that candidates are found by, `auto`, `float32` or `bfloat16`; the index is
            the same.
        progress: called with (images done, images in all).
        checkpoint_seconds: how often to write what is known.
        **params: parameters of the method; in a chain, such as `center.shrink`.

    Raises:
        InputError: for features or labels that cannot be used, a damaged index, or one of other features.
        ParameterError: for a method that no index holds, a parameter outside its range, or not that of the
            index, or a budget too small.
        OutputError: if the index cannot be written there.
    """
    path = Path(path)
    compute = Compute.choose(device, memory, precision=precision, progress=progress)
    gallery = _side(gallery, "gallery")
    check_target(path, force=force or append)
    check_readable(path)
    if path.exists() and not append and not index_h5.is_index(path):
        raise OutputError(f"{path} is no index, and is not replaced by one: choose another name")
    with replacing(path, force=force or append) as temporary:
        before = _stamp(path)
        old = GalleryIndex.open(path, device=device) if append else None
        problems = find_problems(gallery, None if old is None else old.gallery)
        if problems:
            raise InputError(problems)
        sides, labels, known = [gallery], Labels.of(gallery), None
        if old is None:
            chosen = create(method, **params)
        else:
            chosen = old.method_for(None if method == KReciprocalOnline.name else method, **params)
            if chosen.feature_steps:
                raise ParameterError(
                    f"{path} has the features that {_names(chosen.feature_steps)} gave, which further items "
                    "change: build it anew with --force"
                )
            sides, known = [old.gallery, gallery], old.near
            labels = Labels.of(old.gallery).joined(labels, str(path), gallery.label)
        ranker = _check_indexes(chosen)
        if calibration is not None:
            check_calibrates(chosen, calibration, gallery.dim)
        if ranker.needs_cameras and labels.cams is None:
            raise InputError(f"{gallery.label} has no cameras: method {ranker.name} needs them")
        needed = 128 * gallery.dim  # a block of one row, as `Plan` cuts it
        if memory is not None and memory < needed:
            raise ParameterError(
                f"a memory budget of {memory:,} bytes is too small for one row: raise it to {needed:,} bytes"
            )
        count = len(labels.digests)
        plan = Plan.of_images(count, count, gallery.dim, compute)
        left = _Left(path, labels.digests, chosen, calibration, checkpoint_seconds)
        left_over = left.read(force=force, done=None if old is None else old.gallery.digest())
        known = known if left_over is None else left_over
        fitted: Sequence[Mapping[str, torch.Tensor]] = ()
        if chosen.feature_steps:
            transforms = [step for step in chosen.feature_steps if isinstance(step, Transform)]
            stepped, fitted = fit_steps(gallery, transforms, calibration, compute)
            if stepped.dim != gallery.dim:
                raise ParameterError(
                    f"{_names(transforms)} gives {stepped.dim} dimensions of {gallery.dim}, and an index takes "
                    "probes of as many as it keeps: leave it out"
                )
            sides = [stepped]
        images = plan.rows(*sides)
        cams = torch.from_numpy(labels.cams) if ranker.needs_cameras and labels.cams is not None else None
        graph = find_graph(
            images, ranker.list_sizes(), cams=cams, progress=compute.progress, known=known, keep=left.write
        )
        encoded = ranker.fit(graph).invert(slice(0, count), keep_rows=ranker.needs_rows)
        index_h5.write(temporary, images, labels, chosen, graph, encoded, fitted)
        if _stamp(path) != before:
            left.remove()  # what comes now begins with other items
            raise OutputError(f"{path} was written by another process meanwhile: run this again")
    left.remove()
    return GalleryIndex.open(path, device=device, verify=False)


def partial_of(path: Path) -> Path:
    """Where `build_index` keeps what it knows while the index at `path` is not complete."""
    return path.with_name(f"{path.name}.partial")


class _Left:
    """What is left of a build that was interrupted."""

    def __init__(
        self,
        path: Path,
        digests: NDArray[np.uint8],
        method: AnyMethod,
        calibration: Side | None,
        seconds: float,
    ) -> None:
        self._path = partial_of(path)
        self._digest = digest_of(digests)
        if method.needs_cameras or method.feature_steps:  # lists depend on more than features
            about = method.name, method.params(), calibration and calibration.digest()
            self._digest = hashlib.sha256(json.dumps([self._digest, *about]).encode()).hexdigest()
        assert isinstance(method.ranker, GraphRanker)
        self._pool = method.ranker.neighbours()
        self._seconds = seconds
        self._last = time.monotonic()
        self._warned = False

    def read(self, *, force: bool, done: str | None) -> NeighbourGraph | None:
        """What is known of the same gallery, if anything.

        Args:
            force: pass over what is left of another.
            done: the digest of an index that is complete, of which something may have been left all the same.

        Raises:
            InputError: if it is of another, unless `force` is set.
        """
        if not self._path.exists():
            return None
        try:
            near, pool, digest = read_partial(self._path)
        except InputError as error:
            if force:
                return None
            raise InputError(f"{error}; it is left of an index: delete it to start over") from error
        reason = "of other features" if digest != self._digest else f"with pool {pool}, not {self._pool}"
        if (digest, pool) != (self._digest, self._pool):
            if force or digest == done:
                return None
            raise InputError(
                f"{self._path} is left of an index {reason}: finish that one, or delete the file to start over"
            )
        return near

    def write(self, answer: Callable[[], NeighbourGraph]) -> None:
        """Keep what is known, if it is time."""
        if time.monotonic() >= self._last + self._seconds:
            try:
                write_partial(self._path, answer(), pool=self._pool, digest=self._digest)
            except OutputError as error:
                if not self._warned:
                    warnings.warn(f"what is done cannot be kept: {error}", BlurrerankWarning, stacklevel=2)
                self._warned = True
            self._last = time.monotonic()

    def remove(self) -> None:
        """The index is complete."""
        self._path.unlink(missing_ok=True)


def _side(values: ArrayLike | torch.Tensor | Side, label: str) -> Side:
    """Features of one row or of many as a side.

    Raises:
        InputError: for what is no array.
    """
    if isinstance(values, Side):
        return values
    if isinstance(values, FeatureSet):
        raise InputError(f"a FeatureSet has two sides: pass its {label}")
    try:
        features = values if isinstance(values, torch.Tensor) else np.asarray(values)
    except ValueError as error:
        raise InputError(f"{label} is no array: {error}") from None
    return Side(features[None] if len(features.shape) == 1 else features, label=label)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when the file at `path` is replaced."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def _chain(steps: Sequence[FeatureStep], ranker: Ranker) -> AnyMethod:
    return Chain(tuple(steps), ranker) if steps else ranker


def _names(steps: Sequence[FeatureStep]) -> str:
    return "+".join(step.name for step in steps)


def _check_indexes(method: AnyMethod) -> GraphRanker:
    """The ranker of a method that an index can be built for.

    Raises:
        ParameterError: for another method.
    """
    ranker = method.ranker
    if not isinstance(ranker, GraphRanker) or not ranker.online:
        raise ParameterError(
            f"method {method.name} encodes no gallery: an index is built for a graph ranker that works online, "
            "such as k-reciprocal-online, camera-graph or gnn"
        )
    for step in method.feature_steps:
        if not isinstance(step, Transform):
            raise ParameterError(
                f"{step.name} mixes images with their neighbours, and an index takes only steps that treat "
                "each by itself, such as center"
            )
    return ranker


def _check_same(where: str, method: Method, params: Mapping[str, Any]) -> None:
    """Raise `ParameterError` unless `params` are those of `method` but for the free ones."""
    known = method.params()
    free = method.query_time_params if isinstance(method, GraphRanker) else ()
    for name, value in params.items():
        if name in known and name not in free and value != known[name]:
            raise ParameterError(
                f"{where} was built with {name} {known[name]}, not {value}: leave it out or build another"
            )
