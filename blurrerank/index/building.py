"""How an index comes about: a gallery is encoded, in one go or in several, and written."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from ..compute.compute import Compute, Progress
from ..compute.processes import Group
from ..data.features import FeatureSet
from ..data.sharded import ShardedGallery, raise_everywhere
from ..data.side import Side, cameras_digest, digest_of
from ..data.validation import find_problems, label_problems
from ..engine.auto import Choice, checked, choose, is_auto
from ..engine.request import Request, check_camera_images_for, check_indexes, without_cameras
from ..engine.transforms import fit_steps
from ..errors import BlurrerankWarning, InputError, OutputError, ParameterError
from ..files.access import check_readable
from ..files.neighbours_h5 import read_partial, write_partial
from ..files.targets import check_target
from ..graph.neighbour_graph import NeighbourGraph
from ..methods import AUTO, AnyMethod, GraphRanker, create, without_auto
from ..methods.k_reciprocal_online import KReciprocalOnline
from ..methods.kinds.steps import Transform
from . import index_files
from .changing import added
from .contents import Labels
from .encoding import Items, check_memory, encode, sizes_for
from .gallery_index import GalleryIndex, as_side, step_names
from .growing import grow


def build_index(
    gallery: ArrayLike | torch.Tensor | Side,
    path: str | Path,
    method: str | None = None,
    *,
    also: Sequence[str] = (),
    camera_images: Side | None = None,
    ann: str | None = None,
    effort: int | None = None,
    append: bool = False,
    force: bool = False,
    device: str = "auto",
    memory: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
    checkpoint_seconds: float = 60.0,
    group: Group | None = None,
    **params: Any,
) -> GalleryIndex:
    """Index a gallery, or add to one that is indexed.

    What is known is kept in `PATH.partial` now and then; the same call goes on from there. The index appears
    when it is complete; readers of one that is replaced keep the old.

    Args:
        gallery: (G, D) features, float16, float32 or float64; or a `Side`, with labels if there are.
        path: the index.
        method: a graph ranker that works online, a chain of steps such as `center` and one, or `auto`, which
            chooses for the gallery; by default `k-reciprocal-online`, or that of the index that is added to.
        also: further rankers that the index serves, from the same neighbour lists, with parameters as in
            `gnn:k1=20`; with feature steps, chains of the same ones.
        camera_images: earlier images of cameras that the gallery lacks, unlabelled, for steps such as `center`.
        ann: search approximately, here and for probes: `hnsw`, a graph of near items, or `ivf`, clusters; needs
            FAISS. By default everything is compared with everything.
        effort: how much is looked at for a probe unless it says otherwise, candidates (`hnsw`, 256) or clusters
            (`ivf`, a sixteenth of them).
        append: add the gallery to the index that is there, whose method and parameters hold. The result is the
            same as that of indexing everything at once; but what feature steps know of the gallery stays as it
            was. Where the index is searched approximately, only the new items are encoded, against those that
            are there: `GalleryIndex.drift` has how far that is from a build, and `compact_index` does one.
        force: replace an existing index, and start over whatever is left of another.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget in bytes, by default 2 GiB, beside lists and encodings.
        precision: of the products that candidates are found by, `auto`, `float32` or `bfloat16`; the index is
            the same.
        progress: called with (images done, images in all).
        notify: called with what was chosen and why, if anything is `auto`.
        checkpoint_seconds: how often to write what is known.
        group: the processes that build it together, all of which read the gallery, and see the index that the
            first writes; nothing is kept of what they know. The index is that of one process.
        **params: parameters of the method; in a chain, such as `center.shrink`.

    Raises:
        InputError: for features or labels that cannot be used, a damaged index, or one of other features.
        ParameterError: for a method that no index holds, a parameter outside its range, or not that of the
            index, or a budget too small.
        OutputError: if the index cannot be written there.
    """
    check_method(method, append=append, also=also, **params)
    if effort is not None and ann is None:
        raise ParameterError("effort applies to approximate search: set ann, or leave effort out")
    if ann is not None and append:
        raise ParameterError("append keeps the search of the index: leave ann out")
    if append and group is not None:
        raise ParameterError("append works in one process only: start this without torchrun")
    path = Path(path)
    compute = Compute.choose(device, memory, precision=precision, progress=progress, group=group)
    gallery = as_side(gallery, "gallery")
    writing: AbstractContextManager[Path | None] = nullcontext()
    if compute.leads:
        check_target(path, force=force or append)
        check_readable(path)
        if path.exists() and not append and not index_files.is_index(path):
            raise OutputError(f"{path} exists and is not an index, so it is not replaced: choose another name")
        writing = index_files.changing(path, force=force or append)
    with writing as temporary:
        before = index_files.stamp(path)
        old = GalleryIndex.open(path, device=device) if append else None
        gallery = gallery.numbered(None if old is None else old.gallery)
        if isinstance(camera_images, Side):  # whose cameras probes may have
            camera_images = camera_images.cameras_like(gallery)
            if "cams" in camera_images.texts:
                gallery = replace(gallery, texts={**gallery.texts, "cams": camera_images.texts["cams"]})
        _check(gallery, old, group)
        if group is not None and ann is None:
            gallery = ShardedGallery.of(gallery, group)
        if old is None:
            choice = _chosen(method or KReciprocalOnline.name, gallery, camera_images, compute, params)
            chosen, camera_images = choice.method, choice.request.camera_images
            if notify is not None and choice.reason:
                notify(f"auto: {choice.reason}")
            if camera_images is not None:
                check_camera_images_for(chosen, camera_images, gallery.dim, online=True)
            methods = _together(chosen, also)
            items = Items([gallery], Labels.of(gallery), methods, ann=ann, effort=effort)
        else:
            chosen = old.method_for(method, **params)
            if camera_images is not None:
                raise ParameterError("an index takes camera images only when it is built: build a new one")
            items = added(old, gallery, chosen, compute)
        for ranker in items.rankers:
            if ranker.needs_cameras and items.labels.cams is None:
                raise without_cameras(f"{gallery.label} has no cameras", ranker.name)
        check_memory(memory, gallery.dim)
        left = _Left(path, _basis(items, camera_images), sizes_for(items.rankers).nearest, checkpoint_seconds)
        grown = old is not None and temporary is not None and grow(old, items, temporary, compute)
        if not grown:
            done = None if old is None else _basis(replace(items, labels=Labels.of(old.gallery)), camera_images)
            left_over = left.read(force=force, done=done) if group is None else None
            if left_over is not None:
                items = replace(items, known=left_over)
            if old is None and chosen.feature_steps:
                items = _stepped(items, gallery, camera_images, compute)
            # All processes would have to know what one of them keeps.
            encode(items, temporary, compute, keep=left.write if group is None else None)
        if compute.leads and index_files.stamp(path) != before:
            left.remove()  # what comes now begins with other items
            raise OutputError(f"{path} was written by another process meanwhile: run this again")
        if group is not None:
            group.barrier()  # no index, unless all came to the end
    if compute.leads:
        left.remove()
    if group is not None:
        group.barrier()  # it is there
    return GalleryIndex.open(path, device=device, verify=False)


def _check(gallery: Side, old: GalleryIndex | None, group: Group | None) -> None:
    """Raise `InputError` for features or labels that cannot be used; each process looks at a part of them."""
    if group is None:
        problems = find_problems(gallery, None if old is None else old.gallery)
        if problems:
            raise InputError(problems)
        return
    flat = len(gallery.features.shape) == 2
    part = gallery.part(group.share(len(gallery))) if flat else gallery
    values = find_problems(replace(part, ids=None, cams=None, names=None, tracks=None), None)
    raise_everywhere(label_problems(gallery) + (values if len(part) or not len(gallery) else []), group)


def _together(method: AnyMethod, also: Sequence[str]) -> tuple[AnyMethod, ...]:
    """A method and others by name, which one index serves.

    Raises:
        ParameterError: for others with other feature steps, or rankers that are named twice.
    """
    methods = [method]
    for text in also:
        other = create(text)
        if other.feature_steps != method.feature_steps:
            steps = step_names(method.feature_steps)
            must = f"begin with {steps}, and with its parameters" if steps else "have no feature steps"
            raise ParameterError(f"{text} cannot share an index with {method.name}: it must {must}")
        if any(other.ranker.name == one.ranker.name for one in methods):
            raise ParameterError(
                f"{other.ranker.name} is named twice, and an index can serve it only once: name it once"
            )
        methods.append(other)
    return tuple(methods)


def check_method(
    text: str | None,
    *,
    append: bool = False,
    also: Sequence[str] = (),
    preset: str | None = None,
    **params: Any,
) -> None:
    """Check the method of an index before there is a gallery; arguments are as for `build_index`.

    Raises:
        ParameterError: for a method that no index holds, a parameter outside its range, or one that cannot be
            `auto`.
    """
    text = text or KReciprocalOnline.name
    if append and also:
        raise ParameterError("--append keeps the methods of the index: leave --also out")
    for other in also:
        check_indexes(create(other))
    if append and is_auto(text, params):
        raise ParameterError("--append keeps the method of the index: leave --method and auto out")
    if text != AUTO:
        check_indexes(create(without_auto(text)))
    checked(text, preset=preset, online=True, **params)


def _chosen(
    text: str, gallery: Side, camera_images: Side | None, compute: Compute, params: dict[str, Any]
) -> Choice:
    """The method of an index, which may be chosen for its gallery."""
    # Online, a choice looks at the gallery alone: one of its items stands for all probes.
    cams = None if gallery.cams is None else gallery.cams[:1]
    one = Side(gallery.features[:1], cams=cams, label=gallery.label, texts=gallery.texts)
    data = FeatureSet(one, gallery)
    asked = Request(online=True, camera_images=camera_images)
    choice = choose(text, data, asked, replace(compute, progress=None), **params)
    if text == AUTO and not isinstance(choice.method.ranker, GraphRanker):
        raise ParameterError(
            f"auto chose {choice.reason}, which needs no index: `run` with --gallery, or name a method"
        )
    return choice


def partial_of(path: Path) -> Path:
    """Where `build_index` keeps what it knows while the index at `path` is not complete."""
    return path.with_name(f"{path.name}.partial")


class _Left:
    """What is left of a build that was interrupted."""

    def __init__(self, path: Path, digest: str, pool: int, seconds: float) -> None:
        self._path, self._digest, self._pool, self._seconds = partial_of(path), digest, pool, seconds
        self._last = time.monotonic()
        self._warned = False

    def read(self, *, force: bool, done: str | None) -> NeighbourGraph | None:
        """What is known of the same gallery, if anything.

        Args:
            force: pass over what is left of another.
            done: `_basis` of an index that is complete, of which something may have been left all the same.

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
            raise InputError(f"{error}; it is a partial build of an index: delete it to start over") from error
        other = "of other features, cameras or parameters"
        reason = other if digest != self._digest else f"with pool {pool}, not {self._pool}"
        if (digest, pool) != (self._digest, self._pool):
            if force or digest == done:
                return None
            raise InputError(
                f"{self._path} is a partial build of an index {reason}: finish that one, or delete the file "
                "to start over"
            )
        return near

    def write(self, answer: Callable[[], NeighbourGraph]) -> None:
        """Keep what is known, if it is time."""
        if time.monotonic() >= self._last + self._seconds:
            try:
                write_partial(self._path, answer(), pool=self._pool, digest=self._digest)
            except OutputError as error:
                if not self._warned:
                    warnings.warn(f"partial results cannot be kept: {error}", BlurrerankWarning, stacklevel=2)
                self._warned = True
            self._last = time.monotonic()

    def remove(self) -> None:
        """The index is complete."""
        self._path.unlink(missing_ok=True)


def _basis(items: Items, camera_images: Side | None) -> str:
    """A digest of what the neighbour lists of an index follow from, but for their length."""
    method, labels = items.methods[0], items.labels
    digest, steps = digest_of(labels.digests), method.feature_steps
    about: list[Any] = [digest, [(step.name, step.params()) for step in steps]]
    if camera_images is not None:
        about += [camera_images.digest(), camera_images.cameras_digest()]
    if items.needs_cameras:
        sizes = sizes_for(items.rankers)
        about += [cameras_digest(labels.cams), (sizes.within, sizes.across)]
    if items.fitted:
        parts = [part.cpu().numpy() for known in items.fitted for part in known.values()]
        about.append([hashlib.sha256(part.tobytes()).hexdigest() for part in parts])
    if not steps and not items.needs_cameras:
        return digest
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _stepped(items: Items, gallery: Side, camera_images: Side | None, compute: Compute) -> Items:
    """The items with the features that the steps of their method give, and what these know of the gallery."""
    transforms = [step for step in items.methods[0].feature_steps if isinstance(step, Transform)]
    stepped, fitted = fit_steps(gallery, transforms, camera_images, compute)
    if stepped.dim != gallery.dim:
        raise ParameterError(
            f"{step_names(transforms)} changes the dimension of features from {gallery.dim} to "
            f"{stepped.dim}, which an index does not support: leave it out"
        )
    return replace(items, sides=[stepped], fitted=fitted)
