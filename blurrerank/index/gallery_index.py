"""An indexed gallery: encoded once, queried by one probe or by many, by any number of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..compute.compute import Compute
from ..compute.device import pick_device
from ..data.arrays import as_array, check_path
from ..data.checks import check_count
from ..data.features import FeatureSet
from ..data.ranking import Ranking
from ..data.side import LABELS, Side, digest_of
from ..engine.request import Request
from ..engine.rerank import rank
from ..errors import InputError, ParameterError
from ..graph.encoding import Encoding
from ..graph.neighbour_graph import NeighbourGraph
from ..methods import AnyMethod, Chain, FeatureStep, GraphRanker, HeadRanker, Ranker, create, settings_of
from ..methods.kinds.base import Method
from ..methods.kinds.camera_head import CameraHeadRanker
from ..search.ann import ApproximateSearch, SearchedLists
from . import index_h5
from .contents import Approximation, Drift, Labels

# Neighbours of a candidate that are candidates too.
_EXPANDED = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class IndexedSide(Side):
    """The gallery of an index: normalised features, and what a method knows of them.

    Where items were taken from the index, this is of those that are left, and `stored` of all that it stores.

    Attributes:
        digests: `row_digests()` of the features as they came.
        stored_digest: `digest()`, which need not be found out again for each probe.
        methods: what it was encoded for, the usual one first.
        encoded: what the ranker of each made of it.
        fitted: what each of its feature steps knows of the gallery.
        stored: the side that search and encoding are of, if some of its items are gone.
        kept: (G,) int64, which of its items these are.
    """

    unit = True

    digests: NDArray[np.uint8]
    stored_digest: str
    methods: tuple[AnyMethod, ...]
    encoded: tuple[Encoding, ...]
    fitted: Sequence[Mapping[str, torch.Tensor]] = ()
    stored: IndexedSide | None = None
    kept: torch.Tensor | None = None

    def part(self, rows: slice) -> IndexedSide:
        """See `Side.part`."""
        part: IndexedSide = super().part(rows)
        digests = self.digests[rows]
        return replace(part, digests=digests, stored_digest=digest_of(digests), stored=None, kept=None)

    def all_stored(self) -> tuple[Side, torch.Tensor] | None:
        """See `Side.all_stored`."""
        return None if self.stored is None or self.kept is None else (self.stored, self.kept)

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
        found = {one.ranker.name: number for number, one in enumerate(self.methods)}.get(method.name)
        if found is None:
            return None
        if self.stored is not None:
            raise ParameterError(
                f"items were removed from {self.label} since it was encoded, so it cannot be searched "
                "exactly: leave exact search out, or encode it again with `index --compact`"
            )
        _check_same(self.label, self.methods[found].ranker, method.params())
        return self.encoded[found]

    def fitted_for(self, steps: Sequence[FeatureStep]) -> Sequence[Mapping[str, torch.Tensor]] | None:
        """What feature steps know of the gallery; None if it has the features that it came with.

        Raises:
            ParameterError: for other steps than those that gave its features.
        """
        own = self.methods[0].feature_steps
        if own and tuple(steps) != own:
            raise ParameterError(
                f"{self.label} has features transformed by {step_names(own)}: a method must begin with the "
                "same steps and parameters"
            )
        return self.fitted if own else None


@dataclass(frozen=True, eq=False)
class GalleryIndex:
    """A gallery index, mapped into memory: it may be read by many threads and processes at a time.

    Attributes:
        path: the file.
        gallery: the gallery as the right side of a `FeatureSet`; `features` are L2-normalised.
        methods: what it was encoded for, with parameters; the first answers unless another is named.
        near: the nearest others of each item that is stored, those that were taken from the index among them.
        approximation: how it is searched, and how good its neighbour lists are, if that is approximate.
        drift: how far it is from one that is built anew, if it was changed since it was encoded.

    >>> import tempfile, blurrerank as br
    >>> data = br.load("examples/omniglot.h5")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     index = br.build_index(data.gallery, f"{folder}/gallery.index.h5")
    ...     index.rerank(data.probe.features[0], topn=3).indices.shape
    (1, 3)
    """

    path: Path
    gallery: IndexedSide
    methods: tuple[AnyMethod, ...]
    near: NeighbourGraph
    approximation: Approximation | None = None
    drift: Drift | None = None

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto", verify: bool | None = None) -> GalleryIndex:
        """Map an index into memory.

        Args:
            path: the file.
            device: where probes will be answered, `auto`, `cpu`, `cuda` or `cuda:1`; to a GPU it is copied.
            verify: read the file and compare checksums; False opens at once and trusts it. By default it is
                read the first time that this user opens it, and again when it was changed.

        Raises:
            InputError: if it is no index, is of a newer version or a method that is not known, or is damaged.
            BlurrerankError: for a device that is not available.
        """
        where = pick_device(device)
        check_path(path, "br.build_index(gallery, path) makes an index of features")
        path = Path(path)
        stored = index_h5.read(path, verify=verify)
        if stored.approximation is not None and where.type != "cpu":
            raise ParameterError(f"{path} is searched approximately, which is done on the CPU: use device cpu")
        gallery = IndexedSide(
            stored.features.to(where),
            **_labels(stored.labels),
            label=str(path),
            sources=() if where.type == "cuda" else stored.sources,
            stored_digest=stored.digest,
            methods=stored.methods,
            encoded=tuple(encoded.to(where) for encoded in stored.encoded),
            fitted=stored.fitted,
        )
        if stored.gone is not None:
            kept = torch.nonzero(~stored.gone).flatten()
            left, features = stored.labels.at(kept.numpy()), Chosen(stored.features, kept)
            gallery = replace(gallery, features=features, **_labels(left), stored=gallery, kept=kept)
        return cls(path, gallery, stored.methods, stored.near, stored.approximation, stored.drift)

    def __len__(self) -> int:
        return len(self.gallery)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.method.params().items())
        return f"GalleryIndex({len(self)} x {self.dim}, {self.method.name}({settings}))"

    @property
    def method(self) -> AnyMethod:
        """The method that answers unless another is named."""
        return self.methods[0]

    @property
    def dim(self) -> int:
        """D, the number of dimensions of a feature vector."""
        return self.gallery.dim

    @property
    def device(self) -> str:
        """Where probes are answered."""
        return str(self.stored.block(0, 1).device)

    @property
    def stored_search(self) -> ApproximateSearch:
        """What finds candidates among the items that are stored, where the index is searched approximately."""
        assert self.approximation is not None
        return self.approximation.search

    @property
    def stored(self) -> IndexedSide:
        """All items that are stored, those among them that were taken from the index since it was encoded."""
        return self.gallery.stored or self.gallery

    def rerank(
        self,
        probe: ArrayLike | torch.Tensor | Side,
        *,
        topn: int | None = None,
        method: str | None = None,
        memory: int | None = None,
        exact: bool = False,
        effort: int | None = None,
        **params: Any,
    ) -> Ranking:
        """Rank the gallery for every probe, each as if it were alone.

        Args:
            probe: (P, D) features, float16, float32 or float64, or (D,) of one probe; or a `Side` with labels.
            topn: how deep the lists are, 50 by default; for a method that re-ranks the head of the list,
                such as `lbr`, also how many items it re-ranks.
            method: a method or chain, by default that of the index; with the feature steps of the index first.
            memory: budget for working memory in bytes; see `blurrerank.rerank`.
            exact: look at all items, where the index is searched approximately.
            effort: how much an approximate search looks at, candidates (`hnsw`) or clusters (`ivf`); by default
                what the index was built with.
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
        request = self.request(chosen, topn, exact=exact, effort=effort)
        return rank(self.features(probe), chosen, request, compute)

    def request(
        self, method: AnyMethod, depth: int | None = None, *, exact: bool = False, effort: int | None = None
    ) -> Request:
        """What is asked of a ranking by this index.

        Args:
            method: what re-ranks.
            depth: how deep the lists are; by default what the method re-ranks, or 50.
            exact: see `rerank`.
            effort: see `rerank`; as many candidates are looked for as the lists are deep in any case.

        Raises:
            ParameterError: for an effort where everything is looked at.
        """
        if self.approximation is None or exact:
            if effort is not None:
                raise ParameterError(
                    "effort applies to approximate search, and this search compares all items: leave effort out"
                )
            return Request(depth, online=True)
        ranker = method.ranker
        near = self.near
        if isinstance(ranker, GraphRanker):  # what others that the index serves ask for is not looked at
            near = near.cut(ranker.list_sizes())
        by_camera = [kind.items for kind in (near.within, near.across) if kind is not None]
        lists = tuple(items[:, :_EXPANDED] for items in (near.lists[:, 1:], *by_camera))
        neighbours = ranker.neighbours() if isinstance(ranker, GraphRanker) else 0
        least = max(depth or 0, method.depth(len(self)), neighbours)
        found = SearchedLists(self.approximation.search, effort, least, lists)
        return Request(depth, online=True, candidates=found)

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
        if isinstance(method.ranker, GraphRanker) and not method.ranker.online:
            raise ParameterError(
                f"method {name} looks at all probes together, which an index does not support: run it on "
                "features"
            )
        if [step.name for step in method.feature_steps] != [step.name for step in own]:
            if not own:
                raise ParameterError(
                    f"method {name} transforms features, and an index keeps those it was built from: run it "
                    "on features"
                )
            raise ParameterError(
                f"{self.path} has features transformed by {step_names(own)}, so it cannot serve {name}: use "
                f"{step_names(own)}+{method.ranker.name}"
            )
        for step, settings in zip(own, stepped, strict=True):
            _check_same(str(self.path), step, settings)
        ranker = method.ranker
        if isinstance(ranker, CameraHeadRanker):
            raise ParameterError(
                f"method {name} needs neighbours of items in other cameras, which an index does not store: "
                "run it on features"
            )
        if isinstance(ranker, GraphRanker):
            known = {one.ranker.name: one.ranker for one in self.methods}.get(ranker.name)
            if known is None:
                built = " and ".join(one.ranker.name for one in self.methods)
                raise ParameterError(f"{self.path} was built for {built}, not {ranker.name}")
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
        return FeatureSet(as_side(probe, "probe"), self.gallery)


@dataclass(frozen=True, eq=False)
class UnitSide(Side):
    """Rows that are normalised; what is known of them is kept elsewhere."""

    unit = True


class Chosen:
    """Some rows of features, as a `Side` takes them.

    Args:
        features: (N, D).
        rows: (G,) int64, which.
    """

    def __init__(self, features: torch.Tensor, rows: torch.Tensor) -> None:
        self._features, self._rows = features, rows
        self.shape = (len(rows), features.shape[1])
        self.dtype = features.dtype

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return self._features[self._rows[rows]]


def _labels(labels: Labels) -> dict[str, Any]:
    """The arguments of `IndexedSide` that are labels."""
    return {name: getattr(labels, name) for name in (*LABELS, "digests", "texts")}


def as_side(values: ArrayLike | torch.Tensor | Side, label: str) -> Side:
    """Return features of one row or of many as a side.

    Raises:
        InputError: for what is no array.
    """
    if isinstance(values, Side):
        return values
    if isinstance(values, str | Path):
        raise InputError(f"{values} is a path: pass its content, such as br.load(path).{label}")
    if isinstance(values, FeatureSet):
        raise InputError(f"a FeatureSet has two sides: pass its {label}")
    features = as_array(values, label)
    return Side(features[None] if len(features.shape) == 1 else features, label=label)


def _chain(steps: Sequence[FeatureStep], ranker: Ranker) -> AnyMethod:
    return Chain(tuple(steps), ranker) if steps else ranker


def step_names(steps: Sequence[FeatureStep]) -> str:
    """Return the names of feature steps as a chain has them."""
    return "+".join(step.name for step in steps)


def _check_same(where: str, method: Method, params: Mapping[str, Any]) -> None:
    """Raise `ParameterError` unless `params` are those of `method` but for the free ones."""
    known = method.params()
    free = method.query_time_params if isinstance(method, GraphRanker) else ()
    for name, value in params.items():
        if name in known and name not in free and value != known[name]:
            raise ParameterError(
                f"{where} was built with {name} {known[name]}, not {value}: leave it out or build another"
            )
