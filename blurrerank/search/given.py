"""Lists that came from elsewhere, an approximate index or a vector database, in place of search.

Each listed pair is scored by one product and one sum of its own, so that equal rows tie whatever stands around
them, and lists are sorted by the project's one tie rule. What is not listed is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from ..compute.compute import Progress
from ..data.candidates import Candidates
from ..data.sort_keys import NOBODY, from_sort_keys, sort_keys
from .exact import Batch, Query, RerankHead
from .precision import pair_scores
from .rows import Gatherable, UnitRows, blocks_of

# Bytes of gathered rows worked on at a time: on a CPU they should stay in the last-level cache.
_CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}


class Lists(Protocol):
    """Lists of candidates, which are known or are found when they are asked for."""

    @property
    def depth(self) -> int:
        """The length of the longest list."""

    def of_probes(self, queries: torch.Tensor, start: int) -> torch.Tensor:
        """Return those of consecutive probes, (p, depth) int64; -1 past the end."""


def look_up(
    probe: UnitRows,
    gallery: UnitRows,
    lists: Lists,
    query: Query,
    *,
    progress: Progress | None = None,
) -> Iterator[Batch]:
    """Sort the given lists by cosine similarity, some probes at a time, as `exact.search` yields its own.

    Args:
        probe: the probes, P rows.
        gallery: the gallery, rows of the same dimension on the same device.
        lists: of these probes.
        query: how many probes at a time, and the first of them; the lists are as they are.
        progress: called at the start and after each batch.

    Yields:
        `Batch` after `Batch`, in the order of the probes. Candidates are as wide as the longest of all lists;
        past the end of a list they are -1, with score -inf.
    """
    if progress is not None:
        progress(query.first, len(probe))
    for start in range(query.first, len(probe), query.batch):
        stop = min(start + query.batch, len(probe))
        queries = probe.rows(start, stop)
        items = lists.of_probes(queries, start)
        found = sort_lists(items, listed_scores(queries, items, gallery))
        yield Batch(start, queries, found, found)
        if progress is not None:
            progress(stop, len(probe))


def listed_scores(probe: torch.Tensor, items: torch.Tensor, gallery: UnitRows) -> torch.Tensor:
    """Cosine similarity of each listed pair.

    Args:
        probe: (p, D) float32, unit rows.
        items: (p, R) int64 gallery rows, -1 for none.
        gallery: the gallery. If it is not held, one pass over the blocks that are concerned.

    Returns:
        (p, R) float32, -inf for none.
    """
    scores = torch.full(items.shape, -torch.inf, device=gallery.device)
    owner, place = torch.nonzero(items >= 0, as_tuple=True)
    wanted = items[owner, place]
    whole = gallery.resident
    if not whole:
        wanted, order = wanted.sort()
        owner, place = owner[order], place[order]
    chunk = max(1, _CHUNK_BYTES[scores.device.type] // (8 * probe.shape[1]))
    for start, stop in blocks_of(len(gallery), len(gallery) if whole else gallery.block):
        first, last = 0, len(wanted)
        if not whole:
            first, last = torch.searchsorted(wanted, wanted.new_tensor([start, stop])).tolist()
        if first == last:
            continue
        rows = gallery.rows(start, stop)
        for left, right in blocks_of(last - first, chunk):
            some = slice(first + left, first + right)
            pairs = rows.index_select(0, wanted[some] - start), probe.index_select(0, owner[some])
            scores[owner[some], place[some]] = pair_scores(*pairs)
    return scores


def rerank_listed(
    rerank_head: RerankHead, probe: torch.Tensor, near: Candidates, gallery: UnitRows
) -> Candidates:
    """Re-rank the heads of lists that may end early.

    Args:
        rerank_head: is given lists of one length at a time, without padding.
        probe: (p, D) float32, unit rows.
        near: (p, n), -1 past the end of a list.
        gallery: the features they point into.

    Returns:
        (p, n), best first, -1 past the end of a list.
    """
    lengths = (near.indices >= 0).sum(dim=1)
    indices, scores = near.indices.clone(), torch.full_like(near.scores, -torch.inf)
    different = torch.unique(lengths).tolist()
    rows: Gatherable = gallery
    if len(different) > 1 and not gallery.resident:
        # Once for all lengths, as each time may be a pass over the file.
        rows = _Collected(gallery, near.indices.clamp_min(0))
    for length in filter(None, different):
        some = torch.nonzero(lengths == length).flatten()
        head = Candidates(near.indices[some, :length], near.scores[some, :length])
        found = rerank_head(probe[some], head, rows)
        indices[some, :length], scores[some, :length] = found.indices, found.scores
    return Candidates(indices, scores)


class _Collected:
    """The rows at some indices, gathered once."""

    def __init__(self, gallery: UnitRows, indices: torch.Tensor) -> None:
        self._distinct = torch.unique(indices)
        self._table, self._places = gallery.gather(self._distinct)

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `UnitRows.gather`; for rows that were collected."""
        return self._table, self._places[torch.searchsorted(self._distinct, indices)]


def sort_lists(items: torch.Tensor, scores: torch.Tensor) -> Candidates:
    """Sort (p, R) items by (p, R) scores, best first, -1 last."""
    keys = sort_keys(scores, items.clamp_min(0)).masked_fill(items < 0, NOBODY)
    keys = keys.sort(dim=1, descending=True).values
    indices, ordered = from_sort_keys(keys)
    past = torch.arange(items.shape[1], device=items.device) >= (items >= 0).sum(dim=1, keepdim=True)
    return Candidates(indices.masked_fill(past, -1), ordered.masked_fill(past, -torch.inf))
