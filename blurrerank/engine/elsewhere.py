"""Head rankers that look past the camera of the probe, and what is near each gallery item there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..compute.compute import Compute
from ..data.candidates import Candidates
from ..data.features import FeatureSet
from ..data.sort_keys import NOBODY, fine_keys, from_fine_keys
from ..graph.find import find_graph
from ..graph.neighbour_graph import ListSizes
from ..graph.pairs import pair_similarities
from ..methods.kinds.base import checked_result
from ..methods.kinds.camera_head import CameraHeadRanker
from ..search.exact import Query
from ..search.plan import Plan
from ..search.rows import UnitRows, blocks_of
from .ranked_batch import RankedBatch
from .request import Request
from .workspace import cameras_of_both, open_workspace

# For no more cameras than this, one search for each is as good as one for all.
_FEW_CAMERAS = 2
# More than any similarity.
_ITSELF = 1.25
# Times as many are listed across cameras as are asked for, since some are of the camera that is left out.
_SPARE = 5


def rank_heads_elsewhere(
    data: FeatureSet, ranker: CameraHeadRanker, plan: Plan, request: Request, compute: Compute
) -> Iterator[RankedBatch]:
    """Search, and give the head of each list new scores by what is near its items in other cameras."""
    watch = compute.watch
    with watch("search"):
        work = open_workspace(data, plan)
    gallery = work.gallery
    head, shown = ranker.depth(gallery.size), request.depth or ranker.depth(gallery.size)
    cams, gallery_cams = (some.to(plan.device) for some in cameras_of_both(data, ranker.name))
    with watch("index"):
        asking = len(torch.unique(cams))
        elsewhere = _NearElsewhere(work.rows, gallery_cams, ranker.neighbours(), asking)
    at_a_time = max(1, plan.budget.working_bytes // ranker.workspace_bytes(head, data.dim))
    query = Query(head, plan.probe_batch, shown, whole_rows=True, first=request.first)
    for batch in watch.each("search", gallery.lists(work.probes, query, progress=compute.progress)):
        assert batch.similarities is not None
        indices, scores = batch.candidates.indices.clone(), batch.candidates.scores.clone()
        for start, stop in blocks_of(len(indices), at_a_time):
            some = Candidates(indices[start:stop, :head], scores[start:stop, :head])
            with watch("index"):
                near = elsewhere.of(cams[batch.start + start : batch.start + stop], some.indices)
            with watch("re-rank"):
                cosine = gallery.cosine_at(batch.similarities[start:stop], near.clamp_min(0))
                new = ranker.rescore_near(some, cosine.masked_fill(near < 0, torch.nan))
                found = some.sorted_by(checked_result(ranker, "rescore_near", new, some.scores))
            indices[start:stop, :head], scores[start:stop, :head] = found.indices, found.scores
        similarities = partial(gallery.similarities, batch)
        yield RankedBatch(batch.start, gallery.size, indices, scores, head, similarities)


class _NearElsewhere:
    """The nearest items of other cameras than a probe's, found once for each camera that a probe has.

    Args:
        images: the gallery's G rows.
        cams: (G,) int64, its cameras.
        count: how many items are listed.
        asking: how many cameras probes have.
    """

    def __init__(self, images: UnitRows, cams: torch.Tensor, count: int, asking: int) -> None:
        self._images, self._cams, self._count = images, cams, count
        self._listed = self._list_by_camera() if asking > _FEW_CAMERAS else None
        self._lists: dict[int, torch.Tensor] = {}

    def of(self, probe_cams: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Return (p, n, k) int64, what is near (p, n) items for probes of (p,) cameras; -1 past the last.

        An item is the first of its own, unless it is of the probe's camera.
        """
        near = items.new_empty(*items.shape, self._count)
        for cam in torch.unique(probe_cams).tolist():
            if cam not in self._lists:
                merged = None if self._listed is None else self._merged(*self._listed, cam)
                self._lists[cam] = self._find(cam) if merged is None else merged
            some = probe_cams == cam
            near[some] = self._lists[cam][items[some]].long()
        return near

    def _find(self, cam: int) -> torch.Tensor:
        """(G, k) the nearest items that are not of camera `cam`."""
        count, is_cam = self._count, self._cams == cam
        # Of two groups, that camera and the rest, the rest is another's for the one and the own for the other.
        graph = find_graph(self._images, ListSizes(within=count - 1, across=count), cams=is_cam.long())
        found = graph.lists.new_full((len(is_cam), count), -1)
        own = graph.by_camera(count, 0).items
        found[~is_cam, : own.shape[1]] = own[~is_cam]
        if graph.across is not None:
            found[is_cam, : graph.across.items.shape[1]] = graph.across.items[is_cam]
        return found

    def _list_by_camera(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(G, w) items within and then across cameras, -1 where there are no more, and keys that order them."""
        count, images = self._count, self._images
        graph = find_graph(images, ListSizes(within=count - 1, across=_SPARE * count), cams=self._cams)
        own, across = graph.by_camera(count, 0).items, graph.across
        items = own if across is None else torch.cat([own, across.items], dim=1)
        del graph
        listed = items >= 0
        # In the order of the graph's own lists, whom float32 cannot always tell apart.
        scores = torch.full(items.shape, -torch.inf, dtype=torch.float64, device=items.device)
        scores[listed] = pair_similarities(images, images, listed.sum(dim=1), items[listed], fine=True)
        scores[:, 0] = _ITSELF
        return items, fine_keys(scores, items.clamp_min(0).long(), len(images))

    def _merged(self, items: torch.Tensor, keys: torch.Tensor, cam: int) -> torch.Tensor | None:
        """The same as `_find` from lists by camera; None where these do not prove it."""
        others = (items >= 0) & (self._cams[items.clamp_min(0).long()] != cam)
        best = keys.masked_fill(~others, NOBODY).topk(min(self._count, keys.shape[1]), dim=1).values
        # What is listed nowhere is of another camera than the item, and behind the last of these; a list that
        # has ended has all there are.
        if not bool((best[:, -1] >= keys[:, -1]).all()):
            return None
        found = items.new_full((len(items), self._count), -1)
        found[:, : best.shape[1]] = from_fine_keys(best, len(items)).masked_fill_(best == NOBODY, -1)
        return found
