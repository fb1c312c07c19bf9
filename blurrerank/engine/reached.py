"""Graph rankers without a pass over the gallery: candidates of an approximate search, and what encodings reach.

A gallery item can only be at the head of a list if it is near the probe, or if its row has a column in common
with the probe's row. The first are among the candidates, the second in the inverted lists of the encoding; only
these are scored, and with the scores that a search of everything would give them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..compute.compute import Compute
from ..data.candidates import Candidates
from ..data.features import FeatureSet
from ..data.ranges import ranges
from ..data.sort_keys import NOBODY, from_sort_keys, sort_keys
from ..graph.comparison import reached
from ..graph.encoding import Encoding, Probes
from ..methods import GraphRanker
from ..methods.kinds.base import checked_result
from ..search.ann import SearchedLists
from ..search.exact import Query
from ..search.given import listed_scores
from ..search.plan import Plan
from ..search.rows import UnitRows, blocks_of
from .ranked_batch import RankedBatch
from .request import Request, without_cameras
from .workspace import open_workspace

# Probes whose reached items are padded to one length.
_TOGETHER = 64
# Above any cosine similarity, rounding included.
_MOST_COSINE = 1.001


def rank_reached(
    data: FeatureSet, ranker: GraphRanker, plan: Plan, request: Request, compute: Compute
) -> Iterator[RankedBatch]:
    """Rank what an approximate search finds and what the encodings of probes reach.

    Args:
        data: probes, and a gallery that is encoded for `ranker`.
        ranker: a graph ranker that works online.
        plan: how the work is cut.
        request: with the candidates of each probe.
        compute: how.
    """
    watch = compute.watch
    assert isinstance(request.candidates, SearchedLists)
    with watch("search"):
        work = open_workspace(data, plan, candidates=request.candidates)
    encoding = data.gallery.encoded_for(ranker).to(plan.device)
    scorer = _Scorer(ranker, encoding, work.rows, request.candidates.depth, request.candidates.search.gone)
    cameras = None
    if ranker.needs_cameras:
        if data.probe.cams is None or data.gallery.cams is None:
            raise without_cameras(data.lacking("cams"), ranker.name)
        # Joined, as other methods want them, they would be copied for each probe that comes.
        cameras = torch.from_numpy(data.probe.cams), torch.from_numpy(data.gallery.cams)
    shown = min(request.depth or ranker.depth(work.gallery.size), work.gallery.size)
    if request.whole_rows:  # to be measured as deep as before re-ranking
        shown = max(shown, request.candidates.depth)
    query = Query(0, plan.probe_batch, first=request.first)
    batches = work.gallery.lists(work.probes, query, progress=compute.progress)
    for batch in watch.each("search", batches):
        with watch("re-rank"):
            parts = []
            for start, stop in blocks_of(len(batch.probe), _TOGETHER):
                found = Candidates(batch.found.indices[start:stop], batch.found.scores[start:stop])
                own = None
                if cameras is not None:
                    mine = cameras[0][batch.start + start : batch.start + stop].unsqueeze(1)
                    own = mine == cameras[1][found.indices.clamp_min(0)]
                parts.append(scorer.rank(batch.probe[start:stop], found, own, shown))
            indices = torch.cat([part.indices for part in parts])
            scores = torch.cat([part.scores for part in parts])
        yield RankedBatch(batch.start, work.gallery.size, indices, scores, shown, given=batch.found.indices)


class _Scorer:
    """Ranks the items that some probes reach."""

    def __init__(
        self,
        ranker: GraphRanker,
        encoding: Encoding,
        gallery: UnitRows,
        depth: int,
        gone: torch.Tensor | None,
    ) -> None:
        self._ranker, self._encoding, self._gallery, self._depth = ranker, encoding, gallery, depth
        self._gone = gone

    def rank(
        self, queries: torch.Tensor, found: Candidates, own: torch.Tensor | None, shown: int
    ) -> Candidates:
        """Return the best `shown` of what each of p probes reaches, -1 past the end.

        Args:
            queries: (p, D) float32, unit rows.
            found: the candidates of each, by cosine similarity, -1 past the end.
            own: (p, n) bool, which of them are of the probe's camera, if the ranker looks at cameras.
            shown: how many.
        """
        indices = torch.full((len(queries), shown), -1, device=queries.device)
        scores = torch.full_like(indices, -torch.inf, dtype=torch.float32)
        # A ranker takes lists of one length.
        lengths = (found.indices[:, : self._ranker.neighbours()] >= 0).sum(dim=1)
        for length in torch.unique(lengths).tolist():
            rows = torch.nonzero(lengths == length).flatten()
            some = Candidates(found.indices[rows], found.scores[rows])
            probes = self._known(queries[rows], some, None if own is None else own[rows], length)
            best = self._rank_alike(queries[rows], some, probes, shown)
            width = best.indices.shape[1]
            indices[rows, :width], scores[rows, :width] = best.indices, best.scores
        return Candidates(indices, scores)

    def _known(self, queries: torch.Tensor, found: Candidates, own: torch.Tensor | None, length: int) -> Probes:
        """What the ranker is told of probes."""

        def cosine_at(items: torch.Tensor) -> torch.Tensor:
            return listed_scores(queries, items.flatten(1).long(), self._gallery).view(items.shape)

        probes = Probes(found.scores, found.head(length), cosine_at)
        if own is None:
            return probes
        counts = self._ranker.camera_neighbours()
        within, across = (
            found.first(allowed, count) for allowed, count in zip((own, ~own), counts, strict=True)
        )
        return replace(probes, within=within, across=across)

    def _rank_alike(self, queries: torch.Tensor, found: Candidates, probes: Probes, shown: int) -> Candidates:
        """The same as `rank`, of probes with lists of one length."""
        size, listed = len(self._gallery), found.indices >= 0
        rows = self._encoding.cut(self._ranker.encode_probes(self._encoding, probes))
        found_keys, overlap = reached(rows, self._encoding.lists, size, self._ranker.compares)
        first = torch.arange(len(queries), device=queries.device).unsqueeze(1) * size
        keys = torch.where(listed, first + found.indices, -1)
        near = self._score(_looked_up(keys, found_keys, overlap), found.scores, probes)
        near = near.masked_fill(~listed, -torch.inf)
        # Of the others, those are left out that would not be shown even if they were as near as the last item
        # that the search found by itself.
        floor = near.new_full((len(near), 1), -torch.inf)
        if near.shape[1] >= shown:
            floor = near.topk(shown, dim=1).values[:, -1:]
        new = ~torch.isin(found_keys, keys.flatten())
        if self._gone is not None:
            new &= ~self._gone[found_keys % size]
        items, overlap = _padded(found_keys[new], overlap[new], size, len(queries))
        last = found.scores[:, self._depth - 1 : self._depth]
        nearest = torch.where(last == -torch.inf, _MOST_COSINE, last) if last.shape[1] else _MOST_COSINE
        most = self._score(overlap, torch.zeros_like(overlap) + nearest, probes)
        items, overlap = _packed(items, overlap, (items >= 0) & (most >= floor))
        cosine = listed_scores(queries, items, self._gallery)
        further = self._score(overlap, cosine.clamp_min(-1), probes).masked_fill(items < 0, -torch.inf)
        every = torch.cat([found.indices, items], dim=1)
        best = sort_keys(torch.cat([near, further], dim=1), every.clamp_min(0)).masked_fill(every < 0, NOBODY)
        best = best.topk(min(shown, best.shape[1]), dim=1).values
        indices, scores = from_sort_keys(best)
        past = best == NOBODY
        return Candidates(indices.masked_fill(past, -1), scores.masked_fill(past, -torch.inf))

    def _score(self, overlap: torch.Tensor, cosine: torch.Tensor, probes: Probes) -> torch.Tensor:
        """The ranker's new scores."""
        scores = self._ranker.score(overlap.clone(), replace(probes, cosine=cosine))
        return checked_result(self._ranker, "score", scores, overlap)


def _looked_up(keys: torch.Tensor, known: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The value of each key among the ascending `known`, 0 where it is not."""
    if not len(known):
        return torch.zeros_like(keys, dtype=torch.float32)
    places = torch.searchsorted(known, keys).clamp_max_(len(known) - 1)
    return torch.where(known[places] == keys, values[places], 0.0)


def _padded(
    keys: torch.Tensor, values: torch.Tensor, size: int, probes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(p, n) items of ascending keys p * size + item, -1 past the end, and their values."""
    owner = keys.div(size, rounding_mode="floor")
    counts = torch.bincount(owner, minlength=probes)
    _, place = ranges(torch.zeros_like(counts), counts)
    items = keys.new_full((probes, int(counts.max())), -1)
    found = values.new_zeros(items.shape)
    items[owner, place], found[owner, place] = keys % size, values
    return items, found


def _packed(
    items: torch.Tensor, values: torch.Tensor, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The chosen items of each row side by side, -1 past the end, and their values."""
    counts = chosen.sum(dim=1)
    owner, from_ = torch.nonzero(chosen, as_tuple=True)
    _, place = ranges(torch.zeros_like(counts), counts)
    packed = items.new_full((len(items), int(counts.max())), -1)
    found = values.new_zeros(packed.shape)
    packed[owner, place], found[owner, place] = items[owner, from_], values[owner, from_]
    return packed, found
