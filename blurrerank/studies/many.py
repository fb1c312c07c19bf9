"""Where the matches stand by many methods and settings, from as few searches and graphs as possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..compute.compute import Compute
from ..data.features import FeatureSet
from ..data.positions import Positions
from ..engine.feature_steps import apply_feature_step
from ..engine.graphs import find_neighbours
from ..engine.plans import plan_for
from ..engine.ranking import rank_batches
from ..engine.request import TRANSDUCTIVE, Request, setting_of
from ..engine.retry import halving_the_budget
from ..engine.workspace import open_workspace
from ..evaluation.match_finder import MatchFinder
from ..graph.neighbour_graph import ListSizes
from ..methods import AnyMethod, FeatureStep, GraphRanker, HeadRanker, Ranker
from ..methods.kinds.camera_head import CameraHeadRanker
from ..search.exact import Query


def locate_each(
    data: FeatureSet, methods: Sequence[AnyMethod], request: Request, finder: MatchFinder, compute: Compute
) -> Iterator[tuple[AnyMethod, Positions]]:
    """Find where the matches stand by each of several methods.

    Equal feature steps are applied once, and their features searched once for all head rankers, with the
    largest `topn`, and once for the graph of graph rankers of a kind, with the longest lists. Positions are
    those that each method gives by itself.

    Args:
        data: features with ids.
        methods: methods and chains; equal ones count once.
        request: `online` and `camera_images`.
        finder: made from `data`.
        compute: how; progress is that of each search and each graph.

    Yields:
        A method and its positions, those with equal feature steps after each other.

    Raises:
        ParameterError: for a method that cannot work online, if that is asked for, or too small a budget.
        BlurrerankError: if the device is out of memory for a single probe.
        InputError: for a method that needs cameras, if there are none.
    """
    groups: dict[tuple[FeatureStep, ...], list[AnyMethod]] = {}
    left = dict.fromkeys(methods)
    every = len(left)
    for method in left:
        setting_of(method, request.online)
        groups.setdefault(method.feature_steps, []).append(method)

    def rest(compute: Compute) -> Iterator[tuple[AnyMethod, Positions]]:
        for steps, members in groups.items():
            method_of: dict[Ranker, AnyMethod] = {one.ranker: one for one in members if one in left}
            if not method_of:
                continue
            for ranker, positions in _locate_alike(data, steps, list(method_of), request, finder, compute):
                del left[method_of[ranker]]
                yield method_of[ranker], positions

    yield from halving_the_budget(rest, compute, lambda: f"for {len(left)} of {every} settings")


def _locate_alike(
    data: FeatureSet,
    steps: Sequence[FeatureStep],
    rankers: Sequence[Ranker],
    request: Request,
    finder: MatchFinder,
    compute: Compute,
) -> Iterator[tuple[Ranker, Positions]]:
    """Where the matches stand by several rankers after the same feature steps."""
    for step in steps:
        data, request = apply_feature_step(data, step, request, compute)
    request = replace(request, camera_images=None)
    heads = [one for one in rankers if isinstance(one, HeadRanker) and not isinstance(one, CameraHeadRanker)]
    located = _Located(data, request, finder, compute)
    if heads:
        yield from zip(heads, located.by_heads(heads), strict=True)
    for ranker in rankers:
        if isinstance(ranker, CameraHeadRanker):
            batches = rank_batches(data, ranker, replace(request, whole_rows=True), compute)
            yield ranker, Positions.concatenate([batch.after(finder) for batch in batches])
    graphs: dict[type[GraphRanker], list[GraphRanker]] = {}
    for ranker in rankers:
        if isinstance(ranker, GraphRanker):
            graphs.setdefault(type(ranker), []).append(ranker)
    for kind in graphs.values():
        yield from zip(kind, located.by_graph(kind), strict=True)


@dataclass(frozen=True)
class _Located:
    """Positions by rankers of the same features."""

    data: FeatureSet
    request: Request
    finder: MatchFinder
    compute: Compute

    def by_heads(self, rankers: Sequence[HeadRanker]) -> list[Positions]:
        """Search once, with the largest head."""
        data, finder = self.data, self.finder
        size = len(data.gallery)
        topn = max(ranker.depth(size) for ranker in rankers)
        heaviest = max(rankers, key=lambda ranker: ranker.workspace_bytes(topn, data.dim))
        plan = plan_for(data, replace(heaviest, topn=topn), Request(whole_rows=True), self.compute)
        work = open_workspace(data, plan)
        alike: dict[tuple[type[HeadRanker], int], list[HeadRanker]] = {}
        for ranker in rankers:
            alike.setdefault((type(ranker), ranker.depth(size)), []).append(ranker)
        located: dict[HeadRanker, list[Positions]] = {ranker: [] for ranker in rankers}
        query = Query(topn, plan.probe_batch, whole_rows=True)
        for batch in work.gallery.lists(work.probes, query, progress=self.compute.progress):
            before = finder.by_similarity(batch.start, work.gallery.similarities(batch))
            for (kind, depth), some in alike.items():
                if not some[0].reranked(size):
                    for ranker in some:
                        located[ranker].append(before)
                    continue
                near = batch.candidates.head(depth)
                every = kind.rescore_settings(some, batch.probe, near, work.images)
                for ranker, scores in zip(some, every, strict=True):
                    lists = near.sorted_by(scores).indices
                    located[ranker].append(finder.in_lists(batch.start, lists, before=before))
        return [Positions.concatenate(parts) for parts in located.values()]

    def by_graph(self, rankers: Sequence[GraphRanker]) -> Iterator[Positions]:
        """Find one graph, with lists as long as any ranker needs."""
        data, online = self.data, self.request.online
        together = setting_of(rankers[0], online) == TRANSDUCTIVE
        longest = ListSizes.serving([ranker.list_sizes() for ranker in rankers])
        sides = [data.probe, data.gallery] if together else [data.gallery]
        graph = find_neighbours(sides, longest, self.compute)
        asked = Request(depth=1, whole_rows=True, online=online, graph=graph)
        for ranker in rankers:
            batches = rank_batches(data, ranker, asked, self.compute)
            yield Positions.concatenate([batch.after(self.finder) for batch in batches])
