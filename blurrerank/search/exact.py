"""Exact cosine search: the best n of the gallery for every probe, over blocks of gallery.

Candidates come from fast products, with a margin that is proved to suffice, probe by probe; where the proof
fails, the margin is widened. `nearest.py` has the products, the bound and the exact scores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..compute.compute import Progress
from ..data.candidates import Candidates
from ..data.sort_keys import from_sort_keys
from .dimensions import fit_dimensions
from .nearest import Near, exhaustive_top_k, nearest, scored
from .rows import Gatherable, UnitRows, blocks_of

log = logging.getLogger(__name__)

RerankHead = Callable[[torch.Tensor, Candidates, Gatherable], Candidates]
"""Called with (p, D) float32 probes, their candidates and where the rows of these are; gives another order."""

# Candidates beyond the list that are scored too: a share of it, and at least so many.
_SPARE_SHARE, _SPARE_LEAST = 0.3, 12
# How much wider the second margin is, and at which share of probes that need it the first grows.
_WIDER, _OFTEN = 4, 0.05


@dataclass(frozen=True)
class Query:
    """What is asked of the gallery for every probe.

    Attributes:
        topn: how many items to find by exact scores, up to G.
        batch: probes at a time.
        depth: how far the lists go, up to G; beyond `topn` by the similarities of one float32 product.
        whole_rows: whether each batch's similarities to the whole gallery are wanted too.
        first: the probe to begin with.
    """

    topn: int
    batch: int
    depth: int = 0
    whole_rows: bool = False
    first: int = 0


@dataclass(frozen=True)
class Batch:
    """What was found for consecutive probes.

    Attributes:
        start: the first probe's row.
        probe: (p, D) float32, their L2-normalised features.
        candidates: their lists, re-ranked where that was asked for.
        found: the exact lists by cosine similarity, `topn` long.
        similarities: (p, G) float32 cosine to the whole gallery, where asked for.
    """

    start: int
    probe: torch.Tensor
    candidates: Candidates
    found: Candidates
    similarities: torch.Tensor | None = None


def margin(topn: int, gallery: int) -> int:
    """Return how many candidates are scored at first for a list of `topn`."""
    return min(gallery, topn + max(_SPARE_LEAST, int(topn * _SPARE_SHARE))) if topn else 0


def search(
    probe: UnitRows,
    gallery: UnitRows,
    query: Query,
    *,
    rerank_head: RerankHead | None = None,
    progress: Progress | None = None,
) -> Iterator[Batch]:
    """Find the exact top-n of the gallery by cosine similarity, for some probes at a time.

    Ties go to the lower gallery index. One pass over the gallery per batch, and more where a proof fails.

    Args:
        probe: the probes, P rows.
        gallery: the gallery, G rows of the same dimension on the same device.
        query: what is asked for. Lists end at `topn`; with `whole_rows`, or a `depth` beyond that,
            `similarities` are those of the product, which the exact scores of the list may contradict.
        rerank_head: applied to the first `topn` of each list while their rows are in cache.
        progress: called at the start and after each batch.

    Yields:
        `Batch` after `Batch`, in the order of the probes.
    """
    topn, whole_rows = query.topn, query.whole_rows or query.depth > query.topn
    width = margin(topn, len(gallery))
    if not whole_rows:
        width = fit_dimensions(gallery, len(probe) - query.first, topn, width)
    first, probes, widened, exhaustive = width, 0, 0, 0
    if progress is not None:
        progress(query.first, len(probe))
    for start in range(query.first, len(probe), query.batch):
        queries = probe.rows(start, min(start + query.batch, len(probe)))
        lists = _Lists(queries, topn, rerank_head)
        similarities = None
        if whole_rows:
            similarities = torch.empty(len(queries), len(gallery), device=gallery.device)
        failed = lists.fill(None, nearest(queries, gallery, width, similarities))
        if topn:
            probes, widened = probes + len(queries), widened + len(failed)
            unproven = 0
            # In groups that gather no more rows than all probes did before.
            for top, bottom in blocks_of(len(failed), max(1, len(queries) // _WIDER)):
                some = failed[top:bottom]
                left = lists.fill(some, nearest(queries[some], gallery, _WIDER * width))
                unproven += len(left)
                if len(left):
                    keys = exhaustive_top_k(queries[left], gallery, lists.found.scores[left, -1], topn)
                    lists.place(left, Candidates(*from_sort_keys(keys)), gallery)
            exhaustive += unproven
            if len(failed) > max(_OFTEN * len(queries), 2 * unproven) and gallery.resident:
                width = min(2 * width, _WIDER * first, len(gallery))
        yield Batch(start, queries, lists.reranked, lists.found, similarities)
        if progress is not None:
            progress(start + len(queries), len(probe))
    if topn:
        name = str(torch.float32 if whole_rows else gallery.dtype).removeprefix("torch.")
        log.info(
            "%d lists verified exact, by %s products: %d needed a wider margin, %d of them every item",
            *(probes, name, widened, exhaustive),
        )


class _Lists:
    """The lists of a batch of probes, filled in as they are proved."""

    def __init__(self, queries: torch.Tensor, count: int, rerank_head: RerankHead | None) -> None:
        self._queries = queries
        self._rerank_head = rerank_head
        self.found = _empty(queries, count)
        self.reranked = self.found if rerank_head is None else _empty(queries, count)

    def fill(self, some: torch.Tensor | None, near: Near) -> torch.Tensor:
        """Score the candidates of the probes `some`, or of all; return those whose lists are not proved."""
        queries = self._queries if some is None else self._queries[some]
        proven = torch.ones(len(queries), dtype=torch.bool, device=queries.device)
        if self.found.indices.shape[1]:
            for rows, found in scored(queries, near.indices, near.rows, self.found.indices.shape[1]):
                # Not asked here whether they all are: a GPU would have to wait for the answer each time.
                proven[rows] = found.scores[:, -1] > near.unlisted_score_bound[rows]
                self.place(rows if some is None else some[rows], found, near.rows)
        failed = torch.nonzero(~proven).flatten()
        return failed if some is None else some[failed]

    def place(self, some: slice | torch.Tensor, found: Candidates, rows: Gatherable) -> None:
        """Set the lists of the probes `some`."""
        _put(self.found, some, found)
        if self._rerank_head is not None:
            _put(self.reranked, some, self._rerank_head(self._queries[some], found, rows))


def _empty(queries: torch.Tensor, count: int) -> Candidates:
    indices = torch.empty(len(queries), count, dtype=torch.int64, device=queries.device)
    return Candidates(indices, queries.new_empty(indices.shape))


def _put(lists: Candidates, some: slice | torch.Tensor, found: Candidates) -> None:
    lists.indices[some], lists.scores[some] = found.indices, found.scores
