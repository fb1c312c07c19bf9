"""A gallery that is cut among processes: each searches its own rows, and all learn the same lists.

The candidates of a probe meet in one process, which fetches the rows of the best from their owners and re-ranks
them; then all processes get the lists. `docs/scale.md` says what travels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..compute.compute import Progress
from ..compute.processes import Group
from ..data.candidates import Candidates
from ..data.sort_keys import from_sort_keys, sort_keys
from .exact import Batch, Query, RerankHead, search
from .nearest import overwrite_with_exact_scores, similarities_of
from .rows import UnitRows
from .sharded_rows import FetchedRows, best_of_share, merged
from .sources import scores_of
from .tiles import best_keys


class DistributedGallery:
    """See `sources.GallerySource`; all processes of the group must call the same methods in the same order.

    Args:
        shard: the rows of this process, which may be none.
        size: G, how many items the whole gallery has.
        group: the processes.
    """

    rereads = False

    def __init__(self, shard: UnitRows, size: int, group: Group) -> None:
        self._shard, self._group = shard, group
        self.size = size
        self.columns = group.share(size)

    def lists(
        self,
        probe: UnitRows,
        query: Query,
        *,
        rerank_head: RerankHead | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Batch]:
        """See `GallerySource.lists`."""
        group, first, topn = self._group, self.columns.start, query.topn
        for batch in self._search_shard(probe, query, progress):
            keys = best_of_share(sort_keys(batch.found.scores, batch.found.indices), topn, group)
            found = Candidates(*from_sort_keys(group.all_gather(keys)))
            near = found
            if rerank_head is not None:
                mine = Candidates(*from_sort_keys(keys))
                fetched = FetchedRows(mine.indices, self._shard, self.size, group)
                # A process may have no share of a small batch; it takes part in what all do.
                if len(keys):
                    mine = rerank_head(batch.probe[group.share(len(batch.probe))], mine, fetched)
                near = Candidates(group.all_gather(mine.indices), group.all_gather(mine.scores))
            if batch.similarities is not None:
                overwrite_with_exact_scores(batch.similarities, found, first)
            batch = replace(batch, found=found)
            if query.depth > topn:
                deeper = best_keys(self.similarities(batch), first, min(query.depth, len(self._shard)))
                near = near.followed_by(Candidates(*from_sort_keys(self.merge_keys(deeper, query.depth))))
            yield replace(batch, candidates=near)

    def similarities(self, batch: Batch) -> torch.Tensor:
        """See `GallerySource.similarities`."""
        if batch.similarities is not None:
            return batch.similarities
        return similarities_of(batch.probe, self._shard, batch.found, self.columns.start)

    def merge_keys(self, keys: torch.Tensor, count: int) -> torch.Tensor:
        """See `GallerySource.merge_keys`."""
        return merged(keys, count, self._group)

    def cosine_at(self, similarities: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """See `GallerySource.cosine_at`; each value comes from the one process that has it."""
        places = items.flatten(1).long() - self.columns.start
        here = (places >= 0) & (places < similarities.shape[1])
        values = similarities.new_zeros(places.shape)
        if similarities.shape[1]:
            values = similarities.gather(1, places.masked_fill(~here, 0)).masked_fill_(~here, 0)
        return self._group.all_reduce(values, "sum").view(items.shape)

    def exact_scores(
        self, queries: torch.Tensor, indices: torch.Tensor, products: torch.Tensor
    ) -> torch.Tensor:
        """See `GallerySource.exact_scores`."""
        return scores_of(self, queries, indices)

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `GallerySource.gather`; the rows are fetched from their owners."""
        return FetchedRows(indices, self._shard, self.size, self._group).gather(indices)

    def _search_shard(self, probe: UnitRows, query: Query, progress: Progress | None) -> Iterator[Batch]:
        """Search the rows of this process; indices are those of the whole gallery."""
        shard, first = self._shard, self.columns.start
        if len(shard):
            own = replace(query, topn=min(query.topn, len(shard)), depth=0)
            for batch in search(probe, shard, own, progress=progress):
                found = Candidates(batch.found.indices + first, batch.found.scores)
                yield replace(batch, candidates=found, found=found)
            return
        for start in range(query.first, len(probe), query.batch):
            queries = probe.rows(start, min(start + query.batch, len(probe)))
            nothing = torch.empty(len(queries), 0, device=shard.device)
            found = Candidates(nothing.long(), nothing)
            yield Batch(start, queries, found, found, nothing if query.whole_rows else None)
