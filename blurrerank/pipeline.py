"""The whole road in one call: search, re-rank, locate the matches, measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .features import FeatureSet
from .methods import HeadMethod, Method, WholeMethod, available, check_count, create
from .methods.lbr import LocalBlurring
from .metrics import Metrics, check_ap, measure, warn_about
from .positions import MatchFinder
from .protocols import Protocol, get_protocol
from .ranking import (
    Positions,
    Ranking,
    from_sort_keys,
    index_dtype,
    strictly_decreasing,
)
from .search import Plan, Progress, best_keys, pick_device, search
from .stopwatch import Stopwatch


@dataclass(frozen=True)
class RankedBatch:
    """The lists of consecutive probes, on the device they were made on.

    Attributes:
        start: the first probe.
        gallery_size: G, how many items the gallery has.
        indices: (p, R) int64 into the gallery, best first; R is the depth asked for, or the re-ranked head's.
        scores: (p, R) float32; head and tail are each descending.
        reranked: how many items at the head may have changed place.
        similarities: (p, G) float32 cosine to the whole gallery, where asked for.
        final: (p, G) float32, the new scores of the whole gallery, from methods that give them.
    """

    start: int
    gallery_size: int
    indices: torch.Tensor
    scores: torch.Tensor
    reranked: int
    similarities: torch.Tensor | None = None
    final: torch.Tensor | None = None

    def lists(self, depth: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Indices (p, depth) and strictly decreasing scores as arrays, as a `Ranking` holds them."""
        indices = self.indices[:, :depth].cpu().numpy()
        scores = strictly_decreasing(self.scores[:, :depth].cpu().numpy())
        return indices.astype(index_dtype(self.gallery_size)), scores

    def before(self, finder: MatchFinder) -> Positions:
        """Where the matches stand in the full lists by cosine similarity."""
        assert self.similarities is not None
        return finder.by_similarity(self.start, self.similarities)

    def after(self, finder: MatchFinder, before: Positions | None = None) -> Positions:
        """Where the matches stand in the re-ranked full lists; what is known of `before` saves finding it."""
        if self.final is not None:
            return finder.by_similarity(self.start, self.final)
        before = before or self.before(finder)
        if not self.reranked:
            return before
        return finder.in_lists(self.start, self.indices[:, : self.reranked], before=before)


def plan_for(
    data: FeatureSet,
    method: Method,
    *,
    depth: int | None = None,
    full_rows: bool = False,
    device: str = "auto",
    memory: int | None = None,
    block: int | None = None,
) -> Plan:
    """How `rerank_batches` cuts the work; arguments and errors as there."""
    gallery = len(data.gallery)
    head = method.depth(gallery) if isinstance(method, HeadMethod) else 0
    whole = isinstance(method, WholeMethod)
    return Plan.fit(
        data,
        listed=max(head, depth or method.depth(gallery)),
        head=head,
        full_rows=2 if whole else int(full_rows),
        together=whole,
        device=pick_device(device),
        workspace=method.workspace(head, data.dim) if isinstance(method, HeadMethod) else 0,
        memory=memory,
        block=block,
    )


def rerank_batches(
    data: FeatureSet,
    method: Method,
    *,
    depth: int | None = None,
    full_rows: bool = False,
    device: str = "auto",
    memory: int | None = None,
    block: int | None = None,
    progress: Progress | None = None,
    watch: Stopwatch | None = None,
) -> Iterator[RankedBatch]:
    """Search and re-rank, as many probes at a time as the memory budget holds.

    Args:
        data: the features.
        method: what re-ranks.
        depth: how deep the lists go at least; by default as deep as the method's head. Capped at the gallery.
        full_rows: also yield each probe's similarities to the whole gallery.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget in bytes; see `Plan.fit`.
        block: gallery rows per block, instead of the plan's choice.
        progress: called with (images done, images in all).
        watch: takes the seconds of the stages `search` and `re-rank`.

    Raises:
        ParameterError: for a depth or block below 1, or a budget that is too small.
        BlurrerankError: for a device that is not here.
    """
    if depth is not None:
        check_count("depth", depth)
        depth = min(depth, len(data.gallery))
    watch = watch or Stopwatch()
    plan = plan_for(data, method, depth=depth, full_rows=full_rows, device=device, memory=memory, block=block)
    shown = depth or method.depth(len(data.gallery))
    if isinstance(method, HeadMethod):
        yield from _heads(data, method, plan, shown, full_rows, progress, watch)
    elif isinstance(method, WholeMethod):
        yield from _whole(data, method, plan, shown, progress, watch)


def _heads(
    data: FeatureSet,
    method: HeadMethod,
    plan: Plan,
    shown: int,
    full_rows: bool,
    progress: Progress | None,
    watch: Stopwatch,
) -> Iterator[RankedBatch]:
    """Search, and give the head of each list new scores."""
    head = method.depth(len(data.gallery))
    reranked = method.reranked(len(data.gallery))
    with watch("search"):
        gallery = plan.rows(data.gallery)
    found_batches = search(
        plan.probes(data.probe),
        gallery,
        max(head, shown),
        batch=plan.probe_batch,
        full_rows=full_rows,
        progress=progress,
    )
    for batch in watch.each("search", found_batches):
        with watch("re-rank"):
            found = batch.candidates
            near = found.head(head)
            near = near.sorted_by(method.rescore(batch.probe, near, gallery))
            indices = torch.cat([near.indices, found.indices[:, head:]], dim=1)
            scores = torch.cat([near.scores, found.scores[:, head:]], dim=1)
        yield RankedBatch(batch.start, len(gallery), indices, scores, reranked, batch.similarities)


def _whole(
    data: FeatureSet,
    method: WholeMethod,
    plan: Plan,
    shown: int,
    progress: Progress | None,
    watch: Stopwatch,
) -> Iterator[RankedBatch]:
    """Look at all images, search, and give the whole gallery new scores."""
    with watch("search"):
        images = plan.rows(data.probe, data.gallery)

    def advance(done: int, others: int = 0) -> None:
        if progress is not None:
            progress(others + done, len(images) + len(data.probe))

    score = method.prepare(images, len(data.probe), plan, watch, lambda done, _: advance(done))
    gallery = images.last_side()
    found_batches = search(
        plan.probes(data.probe),
        gallery,
        0,
        batch=plan.probe_batch,
        full_rows=True,
        progress=lambda done, _: advance(done, len(images)),
    )
    for batch in watch.each("search", found_batches):
        assert batch.similarities is not None
        with watch("re-rank"):
            final = score(batch.start, batch.similarities)
            indices, scores = from_sort_keys(best_keys(final, 0, shown))
        yield RankedBatch(batch.start, len(gallery), indices, scores, len(gallery), batch.similarities, final)


def rerank(
    data: FeatureSet,
    method: str = "lbr",
    *,
    preset: str | None = None,
    depth: int | None = None,
    device: str = "auto",
    memory: int | None = None,
    block: int | None = None,
    progress: Progress | None = None,
    **params: Any,
) -> Ranking:
    """Rank the gallery for every probe and re-rank the lists.

    Args:
        data: the features.
        method: a name from `blurrerank.methods.available()`.
        preset: the method's parameters for a public data set, such as `market1501`.
        depth: how much of each list to return; by default the method's `topn`, or 50 if it has none. Capped at
            the gallery.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget for working memory in bytes; by default 2 GiB, and half of what is free on a GPU.
        block: gallery rows per block, instead of what the budget suggests.
        progress: called with (images done, images in all).
        **params: the method's own parameters, such as `topn` and `sigma`.

    Returns:
        A `Ranking` of all probes, `depth` deep; of a method that re-ranks the whole gallery, with the positions
        of the matches if there are ids.

    Raises:
        ParameterError: for an unknown method, preset or parameter, or a value outside its range.
        BlurrerankError: for a device that is not here.
    """
    chosen = create(method, preset=preset, **params)
    size = len(data.gallery)
    shown = chosen.depth(size) if depth is None else depth
    # What it takes to give every item a new score is not to be done again for the metrics.
    finder = None
    if isinstance(chosen, WholeMethod) and data.has_ids:
        finder = MatchFinder(data, single_shot=False, device=pick_device(device), memory=memory)
    lists, located = [], []
    for batch in rerank_batches(
        data, chosen, depth=depth, device=device, memory=memory, block=block, progress=progress
    ):
        lists.append(batch.lists(shown))
        if finder is not None:
            located.append(batch.after(finder))
    return Ranking(
        np.concatenate([indices for indices, _ in lists]),
        np.concatenate([scores for _, scores in lists]),
        gallery_size=size,
        method=chosen.name,
        params=chosen.params(),
        reranked_depth=chosen.reranked(size),
        cosine_tail=isinstance(chosen, HeadMethod),
        digest=data.digest(),
        labels_digest=data.labels_digest() if located else None,
        positions=Positions.concatenate(located) if located else None,
    )


def local_blurring(
    probe: ArrayLike | torch.Tensor,
    gallery: ArrayLike | torch.Tensor,
    *,
    topn: int = 50,
    sigma: float = 0.1,
    probe_in_graph: bool = False,
    cosine: bool = False,
    steps: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Local blurring re-ranking of tensors or arrays, where they are.

    Args:
        probe: (P, D) features, float16, float32 or float64.
        gallery: (G, D) features, the same dimension.
        topn: neighbourhood size; capped at G.
        sigma: temperature of the affinity exp(cos / sigma), above 0.
        probe_in_graph: whether the probe is a node of the graph too.
        cosine: whether transformed features are compared by cosine instead of dot product.
        steps: how many steps of the random walk.

    Returns:
        `(indices, scores)`: (P, min(topn, G)) int64 into the gallery, best first, and float32, on the device
        of `gallery` (arrays: the CPU).

    Raises:
        InputError: for features that cannot be compared.
        ParameterError: for a parameter outside its range.

    >>> import numpy as np
    >>> near, scores = local_blurring(np.eye(2, 3), np.eye(3), topn=2)
    >>> near.tolist()
    [[0, 1], [1, 0]]
    """
    data = FeatureSet.from_arrays(probe, gallery)
    method = LocalBlurring(topn, sigma, probe_in_graph, cosine, steps)
    device = gallery.device if isinstance(gallery, torch.Tensor) else "cpu"
    batches = list(rerank_batches(data, method, device=str(device)))
    return torch.cat([batch.indices for batch in batches]), torch.cat([batch.scores for batch in batches])


def evaluate(
    ranking: Ranking,
    data: FeatureSet,
    *,
    protocol: str = "market1501",
    ap: str = "plain",
    device: str = "auto",
    memory: int | None = None,
    progress: Progress | None = None,
) -> Metrics:
    """Measure a ranking over the whole gallery, or, where that cannot be known, to the depth it has.

    The whole gallery is known when the ranking carries the positions of its matches, when its lists are
    complete, or when it was made here from the same features: what is not written then follows from them.
    Otherwise matches that are not listed count as missed; `Metrics.depth` and a warning say so.

    Args:
        ranking: of the probes of `data`.
        data: features with ids, and cameras if the protocol is to use them.
        protocol: `market1501`, `cuhk03` or `plain`.
        ap: `plain` or `trapezoid`.
        device: where similarities are computed, if they are needed.
        memory: budget in bytes for the same.
        progress: called with (images done, images in all) for the same.

    Raises:
        InputError: if ranking and data do not belong together, or there are no ids.
        ParameterError: for an unknown protocol or kind of AP.
    """
    chosen = get_protocol(protocol)
    check_ap(ap)
    if not data.has_ids:
        raise InputError("there are no ids on both sides: a ranking can be written but not measured")
    ranking.check_size(len(data.probe), len(data.gallery))
    if ranking.digest is not None and ranking.digest != data.digest():
        raise InputError(
            "the ranking was made from other features: pass those it was made from, in the same dtype"
        )
    positions, depth = _positions(ranking, data, chosen, device, memory, progress)
    metrics = measure(positions, data, chosen, ap=ap, depth=depth)
    warn_about(metrics, data)
    return metrics


def _positions(
    ranking: Ranking,
    data: FeatureSet,
    protocol: Protocol,
    device: str,
    memory: int | None,
    progress: Progress | None,
) -> tuple[Positions, int | None]:
    """Where the matches stand in the full lists, or, with the depth, in lists that end before."""
    if _carried(ranking, data, protocol):
        assert ranking.positions is not None
        return ranking.positions, None
    depth = int((ranking.indices >= 0).sum(axis=1).min())
    method: Method | None = None
    heads: NDArray[Any] | None = ranking.indices[:, : ranking.reranked_depth]
    if depth < len(data.gallery):
        if ranking.cosine_tail and depth >= ranking.reranked_depth:
            method = create("cosine", topn=1)
        elif ranking.digest is not None and ranking.method in available():
            # The head is not all there: make it again.
            method, heads = create(ranking.method, **ranking.params), None
    where = torch.device("cpu") if method is None else pick_device(device)
    finder = MatchFinder(data, single_shot=protocol.single_shot, device=where, memory=memory)
    if method is None:
        positions = finder.in_lists(0, torch.from_numpy(ranking.indices.astype(np.int64)))
        return positions, None if depth == len(data.gallery) else depth
    parts = []
    for batch in rerank_batches(data, method, full_rows=True, device=device, memory=memory, progress=progress):
        if heads is not None:
            rows = slice(batch.start, batch.start + len(batch.indices))
            given = torch.from_numpy(heads[rows].astype(np.int64)).to(batch.indices.device)
            batch = replace(batch, indices=given, reranked=given.shape[1])
        parts.append(batch.after(finder))
    return Positions.concatenate(parts), None


def _carried(ranking: Ranking, data: FeatureSet, protocol: Protocol) -> bool:
    """Whether the ranking's own positions serve: found with these labels, and enough for the protocol."""
    return (
        ranking.positions is not None
        and ranking.labels_digest == data.labels_digest()
        and (ranking.positions.within is not None or not protocol.single_shot)
    )
