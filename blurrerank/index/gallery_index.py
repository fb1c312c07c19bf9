"""An indexed gallery: encoded once, queried by one probe or by many, by any number of processes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
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
from ..engine.request import Request
from ..engine.rerank import rank
from ..errors import BlurrerankWarning, InputError, OutputError, ParameterError
from ..files.access import check_readable
from ..files.neighbours_h5 import read_partial, write_partial
from ..files.targets import check_target, replacing
from ..graph.encoding import BlurredEncoding
from ..graph.find import find_graph
from ..graph.neighbour_graph import NeighbourGraph
from ..methods import Chain, GraphRanker, HeadRanker, Ranker, create, parse_chain
from ..methods.k_reciprocal_online import KReciprocalOnline
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
        encoded: what that method made of it.
    """

    unit = True

    digests: NDArray[np.uint8]
    stored_digest: str
    method: GraphRanker
    encoded: BlurredEncoding

    def row_digests(self) -> NDArray[np.uint8]:
        """Those of the rows as they came."""
        return self.digests

    def digest(self) -> str:
        """SHA-256 over the rows as they came."""
        return self.stored_digest

    def encoded_for(self, method: GraphRanker) -> BlurredEncoding | None:
        """What is known of the gallery, if it was encoded for `method`.

        Raises:
            ParameterError: if it was encoded with other parameters.
        """
        if method.name != self.method.name:
            return None
        _check_same(self.label, self.method, method.params())
        return self.encoded


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
    method: KReciprocalOnline
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
        if not isinstance(method, KReciprocalOnline):
            raise InputError(f"{path} was encoded for method {method.name}, which has no index here")
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
        method: str = "k-reciprocal-online",
        memory: int | None = None,
        **params: Any,
    ) -> Ranking:
        """Rank the gallery for every probe, each as if it were alone.

        Args:
            probe: (P, D) features, float16, float32 or float64, or (D,) of one probe; or a `Side` with labels.
            topn: how deep the lists are, 50 by default; for a method that re-ranks the head of the list,
                such as `lbr`, also how many items it re-ranks.
            method: a name from `blurrerank.methods.available()`.
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
            if isinstance(chosen, HeadRanker):
                chosen = replace(chosen, topn=topn)
        compute = Compute.choose(self.device, memory)
        return rank(self.features(probe), chosen, Request(depth=topn, online=True), compute)

    def method_for(self, name: str, *, preset: str | None = None, **params: Any) -> Ranker:
        """A method that answers each probe alone, by name.

        Args:
            name: from `blurrerank.methods.available()`, with parameters such as in `lbr:topn=20`.
            preset: its parameters for a public data set.
            **params: its parameters. Those that the index was built with are as they were.

        Raises:
            ParameterError: for an unknown method, preset or parameter, a value outside its range or other than
                the index was built with, or a method that looks at all probes together.
        """
        method = create(name, preset=preset, **params)
        if isinstance(method, Chain):
            raise ParameterError(
                f"method {name} changes features, and an index keeps those that it was built of: run it on "
                "features"
            )
        if isinstance(method, GraphRanker):
            if not method.online:
                raise ParameterError(
                    f"method {name} looks at all probes together, which no index answers: run it on features"
                )
            if method.name != self.method.name:
                raise ParameterError(f"{self.path} was built for {self.method.name}, not {method.name}")
            params = {**parse_chain(name)[1][0], **params}
            _check_same(str(self.path), self.method, params)
            return replace(self.method, **params)
        return method

    def features(self, probe: ArrayLike | torch.Tensor | Side) -> FeatureSet:
        """Probes and the gallery of the index, as every function here takes them.

        Raises:
            InputError: for features that cannot be compared with these.
        """
        return FeatureSet(_side(probe, "probe"), self.gallery)


def build_index(
    gallery: ArrayLike | torch.Tensor | Side,
    path: str | Path,
    *,
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
        append: add the gallery to the index that is there, whose parameters hold. The result is the same as
            that of indexing everything at once.
        force: replace an existing index, and start over whatever is left of another.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget in bytes, by default 2 GiB, beside lists and encodings.
        precision: of the products that candidates are found by, `auto`, `float32` or `bfloat16`; the index is
            the same.
        progress: called with (images done, images in all).
        checkpoint_seconds: how often to write what is known.
        **params: parameters of k-reciprocal-online.

    Raises:
        InputError: for features or labels that cannot be used, a damaged index, or one of other features.
        ParameterError: for a parameter outside its range, or not that of the index, or a budget too small.
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
            method = create(KReciprocalOnline.name, **params)
        else:
            method = old.method_for(KReciprocalOnline.name, **params)
            sides, known = [old.gallery, gallery], old.near
            labels = Labels.of(old.gallery).joined(labels, str(path), gallery.label)
        assert isinstance(method, KReciprocalOnline)
        needed = 128 * gallery.dim  # a block of one row, as `Plan` cuts it
        if memory is not None and memory < needed:
            raise ParameterError(
                f"a memory budget of {memory:,} bytes is too small for one row: raise it to {needed:,} bytes"
            )
        count = len(labels.digests)
        plan = Plan.of_images(count, count, gallery.dim, compute)
        left = _Left(path, labels.digests, method, checkpoint_seconds)
        left_over = left.read(force=force, done=None if old is None else old.gallery.digest())
        known = known if left_over is None else left_over
        images = plan.rows(*sides)
        graph = find_graph(images, method.list_sizes(), progress=compute.progress, known=known, keep=left.write)
        encoded = method.fit(graph).invert(slice(0, count))
        assert isinstance(encoded, BlurredEncoding)
        index_h5.write(temporary, images, labels, method, graph, encoded)
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
        self, path: Path, digests: NDArray[np.uint8], method: KReciprocalOnline, seconds: float
    ) -> None:
        self._path = partial_of(path)
        self._digest = digest_of(digests)
        self._pool = method.pool
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


def _check_same(where: str, method: GraphRanker, params: dict[str, Any]) -> None:
    """Raise `ParameterError` unless `params` are those of `method` but for the free ones."""
    known = method.params()
    for name, value in params.items():
        if name in known and name not in method.query_time_params and value != known[name]:
            raise ParameterError(
                f"{where} was built with {name} {known[name]}, not {value}: leave it out or build another"
            )
