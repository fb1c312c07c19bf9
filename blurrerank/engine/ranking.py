"""The engine: search and re-rank, batch of probes after batch, within the memory budget.

There is one path for every method, one process or several, a gallery that is searched, indexed or listed. What
differs is who holds the rows (`workspace.py`), and what a method does with lists (`methods`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch

from ..compute.compute import Compute, Progress
from ..data.candidates import Candidates
from ..data.checks import check_count
from ..data.features import FeatureSet
from ..data.given_lists import GivenLists
from ..data.sharded import ShardedSet
from ..data.side import digest_of
from ..data.similarities import SimilaritySet
from ..data.sort_keys import from_sort_keys
from ..errors import InputError, ParameterError
from ..graph.comparison import compared, comparison_bytes
from ..graph.encoding import Encoding, Probes
from ..graph.find import Keep, find_graph
from ..graph.given import graph_of_similarities
from ..graph.neighbour_graph import NeighbourGraph
from ..graph.sparse_rows import CHUNK_BYTES, SparseRows
from ..methods import AnyMethod, GraphRanker, HeadRanker, Ranker
from ..methods.kinds.base import checked_result
from ..methods.kinds.camera_head import CameraHeadRanker
from ..search.ann import SearchedLists
from ..search.exact import Batch, Query, margin
from ..search.given_similarities import SimilarityRows
from ..search.plan import Plan
from ..search.rows import Gatherable, UnitRows, blocks_of, warn_of_reads
from ..search.sources import nearest_of
from ..search.tiles import best_keys
from .elsewhere import rank_heads_elsewhere
from .feature_steps import apply_feature_step
from .plans import plan_for
from .ranked_batch import RankedBatch
from .reached import rank_reached
from .request import (
    TRANSDUCTIVE,
    Request,
    check_camera_images_for,
    check_reranks_candidates,
    check_works_with_similarities,
    setting_of,
)
from .retry import halving_the_budget
from .shares import rank_shares
from .transforms import apply_fitted
from .workspace import Workspace, cameras_of, cameras_of_both, open_workspace


class GraphCheckpoint(Protocol):
    """What is kept of a graph that is being found, and what an interrupted search left."""

    @property
    def known(self) -> NeighbourGraph | None:
        """The graph of the first images."""

    @property
    def keep(self) -> Keep:
        """Called now and then; see `find.Keep`."""


def rank_batches(
    data: FeatureSet,
    method: AnyMethod,
    request: Request,
    compute: Compute,
    checkpoint: GraphCheckpoint | None = None,
) -> Iterator[RankedBatch]:
    """Search and re-rank, as many probes at a time as the memory budget holds.

    Args:
        data: the features. Of a `ShardedSet` all processes get the same lists, and the similarities and new
            scores of the gallery rows that each holds.
        method: what re-ranks.
        request: how deep, and what else is wanted.
        compute: how.
        checkpoint: keeps what is known by a method that looks at many images first.

    Raises:
        ParameterError: for a depth below 1, a budget that is too small, or a method that cannot work online or
            with candidates where that is asked for.
        BlurrerankError: if the device is out of memory for a single probe.
        InputError: if the file that features are read from is changed meanwhile.
    """
    request = _checked(data, method, request)
    steps, ranker = list(method.feature_steps), method.ranker
    fitted = data.gallery.fitted_for(steps)
    if request.prepared is not None:
        data, steps = request.prepared.data, []
        request = replace(request, graph=request.prepared.graph, camera_images=None, prepared=None)

    def rest(compute: Compute) -> Iterator[RankedBatch]:
        nonlocal data, request, steps
        if request.first >= len(data.probe):
            return
        data.check()
        if steps and fitted is not None:
            data, steps = apply_fitted(data, steps, fitted, compute), []
        while steps:
            data, request = apply_feature_step(data, steps[0], request, compute)
            steps.pop(0)
        for batch in _rank(data, ranker, request, compute, checkpoint):
            data.check()  # rows that are mapped are not copied when they are read
            yield batch
            request = replace(request, first=batch.start + len(batch.indices))

    yield from halving_the_budget(rest, compute, lambda: f"from probe {request.first}")


def _rank(
    data: FeatureSet,
    ranker: Ranker,
    request: Request,
    compute: Compute,
    checkpoint: GraphCheckpoint | None,
) -> Iterator[RankedBatch]:
    """The batches from `request.first` on, as the budget has it now."""
    searched = isinstance(request.candidates, SearchedLists)
    if searched and compute.group is not None:
        yield from rank_shares(
            data, request, compute, lambda part, asked, alone: _rank(part, ranker, asked, alone, None)
        )
        return
    stored = data.gallery.all_stored() if searched else None
    if stored is not None:
        among = replace(data, gallery=stored[0])
        for batch in _rank(among, ranker, request, compute, checkpoint):
            yield batch.counted_among(stored[1])
        return
    plan = plan_for(data, ranker, request, compute)
    _warn_of_reads(data, ranker, plan, request)
    if isinstance(ranker, CameraHeadRanker):
        yield from rank_heads_elsewhere(data, ranker, plan, request, compute)
    elif isinstance(ranker, HeadRanker):
        yield from _rank_heads(data, ranker, plan, request, compute)
    elif request.candidates is not None:
        assert isinstance(ranker, GraphRanker)
        yield from rank_reached(data, ranker, plan, request, compute)
    else:
        assert isinstance(ranker, GraphRanker)
        yield from _rank_by_graph(data, ranker, plan, request, compute, checkpoint)


def _checked(data: FeatureSet, method: AnyMethod, request: Request) -> Request:
    """The request, if the method can do it, with its depth capped at the gallery."""
    setting_of(method, request.online)
    if isinstance(data, SimilaritySet):
        check_works_with_similarities(data, method, request)
    if request.candidates is not None:
        check_reranks_candidates(method, request.candidates)
        if isinstance(data, ShardedSet):
            raise ParameterError("candidates are re-ranked in one process: start this without torchrun")
        if isinstance(request.candidates, GivenLists):
            request = replace(request, whole_rows=False)
    if request.graph is not None:
        if method.feature_steps or not isinstance(method, GraphRanker):
            raise ParameterError(
                f"method {method.name} does not take a graph: only graph rankers without feature steps do"
            )
        if isinstance(data, ShardedSet):
            raise ParameterError("a graph works in one process only: start this without torchrun")
    stands = data.gallery.fitted_for(method.feature_steps) is not None
    if request.camera_images is not None:
        check_camera_images_for(method, request.camera_images, data.dim, online=request.online)
        if stands:
            raise ParameterError("an index takes camera images only when it is built: build a new one")
    if stands and not request.online:
        raise ParameterError("an index ranks each probe by itself: pass online=True")
    if request.depth is not None:
        check_count("depth", request.depth)
        request = replace(request, depth=min(request.depth, len(data.gallery)))
    return request


def _warn_of_reads(data: FeatureSet, ranker: AnyMethod, plan: Plan, request: Request) -> None:
    """Warn of a gallery that is read for each batch of probes."""
    together = setting_of(ranker, request.online) == TRANSDUCTIVE
    if request.candidates is None and not plan.resident and not together:
        reads = math.ceil((len(data.probe) - request.first) / plan.probe_batch)
        warn_of_reads(reads, len(data.gallery), data.dim)


def rescored(ranker: HeadRanker, probe: torch.Tensor, found: Candidates, rows: Gatherable) -> Candidates:
    """Return candidates sorted by the new scores that a ranker gives them; arguments are as for `rescore`.

    Raises:
        ParameterError: for scores of another shape or dtype.
    """
    scores = ranker.rescore(probe, found, rows)
    return found.sorted_by(checked_result(ranker, "rescore", scores, found.scores))


def _rank_heads(
    data: FeatureSet, ranker: HeadRanker, plan: Plan, request: Request, compute: Compute
) -> Iterator[RankedBatch]:
    """Search, or look lists up, and give the head of each list new scores."""
    watch, listed = compute.watch, request.candidates
    with watch("search"):
        work = open_workspace(data, plan, candidates=listed)
    reach = work.gallery.size if listed is None else listed.depth
    head, reranked = ranker.depth(reach), ranker.reranked(reach)

    def rerank_head(probe: torch.Tensor, found: Candidates, rows: Gatherable) -> Candidates:
        with watch("re-rank"):
            return rescored(ranker, probe, found, rows)

    # What is read from disk is read once for both; otherwise lists need less than the whole rows.
    query = Query(
        head,
        plan.probe_batch,
        request.depth or ranker.depth(work.gallery.size),
        request.whole_rows and work.gallery.rereads,
        request.first,
    )
    batches = work.gallery.lists(
        work.probes, query, rerank_head=rerank_head if reranked else None, progress=compute.progress
    )
    for batch in watch.each("search", batches):
        near = batch.candidates
        similarities = partial(work.gallery.similarities, batch)
        given = None if listed is None else batch.found.indices
        yield RankedBatch(
            batch.start, work.gallery.size, near.indices, near.scores, reranked, similarities, given=given
        )


def _rank_by_graph(
    data: FeatureSet,
    ranker: GraphRanker,
    plan: Plan,
    request: Request,
    compute: Compute,
    checkpoint: GraphCheckpoint | None,
) -> Iterator[RankedBatch]:
    """Look at many images unless that is done, search, and give the whole gallery new scores."""
    watch = compute.watch
    together = setting_of(ranker, request.online) == TRANSDUCTIVE
    with watch("search"):
        work = open_workspace(data, plan, together=together)
    size, probes = work.gallery.size, len(data.probe)
    known = None if together else data.gallery.encoded_for(ranker)
    others = 0 if known is not None else len(work.images)

    def advance(done: int, before: int = 0) -> None:
        compute.advance(before + done, others + probes)

    if known is None:
        with watch("search" if together else "index"):
            if request.graph is not None:
                graph = _checked_graph(request.graph, ranker, data, work)
            else:
                graph = _find_graph(ranker, data, work, lambda done, _: advance(done), checkpoint)
        with watch("re-rank" if together else "index"):
            fitted = _Fitted.of(ranker, graph, work, probes if together else None)
        del graph
    else:
        fitted = _Fitted(ranker, known.to(plan.device))
    cameras = None
    if not together and ranker.needs_cameras:
        probe_cams, gallery_cams = cameras_of_both(data, ranker.name)
        cameras = probe_cams.to(plan.device), gallery_cams.to(plan.device)
    topn = 0 if together else min(ranker.neighbours(), size)
    query = Query(topn, plan.probe_batch, whole_rows=True, first=request.first)
    shown = request.depth or ranker.depth(size)
    chunk = min(plan.budget.working_bytes, CHUNK_BYTES[plan.device.type])
    batches = work.gallery.lists(work.probes, query, progress=lambda done, _: advance(done, others))
    for batch in watch.each("search", batches):
        assert batch.similarities is not None
        with watch("re-rank"):
            final = fitted.score(batch, work, chunk, cameras)
            columns = work.gallery.columns
            keys = best_keys(final, columns.start, min(shown, columns.stop - columns.start))
            indices, scores = from_sort_keys(work.gallery.merge_keys(keys, shown))
        similarities = partial(work.gallery.similarities, batch)
        yield RankedBatch(batch.start, size, indices, scores, size, similarities, final)


def _checked_graph(
    graph: NeighbourGraph, ranker: GraphRanker, data: FeatureSet, work: Workspace
) -> NeighbourGraph:
    """A graph that somebody found before, if it is of the right images and its lists are long enough."""
    if graph.images is None:
        raise InputError("the graph has only lists, as in an index: make one with neighbour_graph")
    images = len(work.images)
    if len(graph) != images:
        what = "probes and gallery together" if images > work.gallery.size else "gallery items"
        raise InputError(
            f"the graph has {len(graph)} images, but {ranker.name} needs one of the {images} {what}: make it "
            "with neighbour_graph"
        )
    assert isinstance(graph.images, UnitRows)
    sizes = ranker.list_sizes()
    if not graph.serves(sizes):
        has, needs = graph.sizes, f"nearest={sizes.nearest}, within={sizes.within}, across={sizes.across}"
        raise ParameterError(
            f"the graph lists {has.nearest} neighbours per image, {has.within} within its camera and "
            f"{has.across} across cameras: {ranker.name} needs neighbour_graph(..., {needs})"
        )
    if ranker.needs_cameras and graph.cams is not None:
        cams = cameras_of(data, images, ranker.name).to(graph.cams.device)
        if not torch.equal(graph.cams, cams):
            raise InputError("the graph was made with other cameras: pass the features it was made from")
    if _digest(graph.images) != _digest(work.rows):
        raise InputError(
            "the graph was made from other features: pass those features, in the same order and dtype"
        )
    return replace(graph.cut(sizes), images=work.images)


def _digest(images: UnitRows) -> str:
    """Which images these are."""
    return digest_of(np.concatenate([side.row_digests() for side in images.sides]))


def _find_graph(
    ranker: GraphRanker,
    data: FeatureSet,
    work: Workspace,
    progress: Progress,
    checkpoint: GraphCheckpoint | None,
) -> NeighbourGraph:
    """The neighbours that a ranker asks for."""
    cams = cameras_of(data, len(work.images), ranker.name) if ranker.needs_cameras else None
    if isinstance(work.images, SimilarityRows):
        return graph_of_similarities(work.images, ranker.list_sizes(), cams=cams, progress=progress)
    return find_graph(
        work.images,
        ranker.list_sizes(),
        cams=cams,
        progress=progress,
        known=None if checkpoint is None else checkpoint.known,
        keep=None if checkpoint is None else checkpoint.keep,
    )


@dataclass(frozen=True)
class _Fitted:
    """A graph ranker and what it knows of the images.

    Attributes:
        ranker: the method.
        encoding: of the gallery, inverted.
        probe_rows: transductive, the rows of all probes.
        lowest: transductive, (P,) float32, each probe's similarity to the farthest of all images, if the
            ranker needs it.
    """

    ranker: GraphRanker
    encoding: Encoding
    probe_rows: SparseRows | None = None
    lowest: torch.Tensor | None = None

    @classmethod
    def of(cls, ranker: GraphRanker, graph: NeighbourGraph, work: Workspace, probes: int | None) -> _Fitted:
        """Fit the ranker; `probes` is how many images of the graph are probes, None if none are."""
        encoding, columns = ranker.fit(graph), work.gallery.columns
        if probes is None:
            return cls(ranker, encoding.invert(columns, keep_rows=ranker.needs_rows))
        asking = encoding.rows if encoding.asking is None else encoding.asking
        assert asking is not None
        rows = asking.rows(0, probes).clone()
        del asking
        items = slice(probes + columns.start, probes + columns.stop)
        lowest = None if graph.lowest is None else graph.lowest[:probes]
        return cls(ranker, encoding.invert(items), rows, lowest)

    def score(
        self,
        batch: Batch,
        work: Workspace,
        chunk: int,
        cameras: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return (p, g) float32, the new scores of this process's gallery items, a few probes at a time.

        Args:
            batch: what was found for p probes.
            work: the rows.
            chunk: bytes to work with at a time.
            cameras: of all probes and of the whole gallery, where probes are to be listed by camera.
        """
        similarities, ranker = batch.similarities, self.ranker
        assert similarities is not None
        scores = torch.empty_like(similarities)
        each = comparison_bytes(ranker.compares, scores.device) * work.gallery.size
        if self.probe_rows is None:
            each = max(each, ranker.workspace_bytes(batch.found.indices.shape[1]))
            # What `nearest_of` gathers: a table of rows, and those of each list.
            widest = margin(max(ranker.camera_neighbours()), work.gallery.size) if cameras is not None else 0
            each = max(each, 12 * batch.probe.shape[1] * widest)
        for start, stop in blocks_of(len(scores), max(1, chunk // each)):
            seen = similarities[start:stop]
            first, last = batch.start + start, batch.start + stop
            if self.probe_rows is not None:
                probes = Probes(seen, lowest=None if self.lowest is None else self.lowest[first:last])
                rows = self.probe_rows.rows(first, last)
            else:
                found = batch.found
                near = Candidates(found.indices[start:stop], found.scores[start:stop])
                probes = Probes(seen, near, partial(work.gallery.cosine_at, seen))
                if cameras is not None:
                    alike = cameras[0][first:last].unsqueeze(1) == cameras[1][work.gallery.columns]
                    within, across = (
                        nearest_of(work.gallery, batch.probe[start:stop], seen, allowed, count)
                        for allowed, count in zip((alike, ~alike), ranker.camera_neighbours(), strict=True)
                    )
                    probes = replace(probes, within=within, across=across)
                rows = self.encoding.cut(ranker.encode_probes(self.encoding, probes))
            overlap = compared(rows, self.encoding.lists, seen.shape[1], ranker.compares)
            scores[start:stop] = checked_result(ranker, "score", ranker.score(overlap, probes), seen)
        return scores
