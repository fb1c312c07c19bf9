"""Where the lists of probes come from: one interface, whoever holds the gallery and whoever searched it.

`LocalGallery` searches a gallery that this process holds or reads, `ListedGallery` looks up lists that another
search found, `distributed.DistributedGallery` searches one that is cut among processes, and
`given_similarities.GivenGallery` has similarities and no features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch

from ..compute.compute import Progress
from ..data.candidates import Candidates
from ..data.sort_keys import from_sort_keys, sort_keys
from .exact import Batch, Query, RerankHead, margin, search
from .given import Lists, look_up, rerank_listed
from .nearest import best_by_similarity, overwrite_with_exact_scores, similarities_of
from .precision import pair_scores
from .rows import Gatherable, UnitRows
from .tiles import best_keys


class GallerySource(Protocol):
    """Gives the lists of probes, batch by batch."""

    @property
    def size(self) -> int:
        """G, how many items the whole gallery has."""

    @property
    def columns(self) -> slice:
        """The gallery items that this process has the similarities to."""

    @property
    def rereads(self) -> bool:
        """Whether similarities that are asked for later cost another pass over the file."""

    def lists(
        self,
        probe: Any,
        query: Query,
        *,
        rerank_head: RerankHead | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Batch]:
        """Yield lists `max(topn, depth)` long, and the similarities of `columns` where asked for.

        `similarities` agree with the exact scores of the first `topn`. All processes yield the same lists.
        """

    def similarities(self, batch: Batch) -> torch.Tensor:
        """Return the (p, columns) float32 similarities of a batch, computed now if they were not kept."""

    def merge_keys(self, keys: torch.Tensor, count: int) -> torch.Tensor:
        """Return the best `count` of each row's sort keys over all processes, best first."""

    def cosine_at(self, similarities: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Return the similarities of each probe to (p, ...) gallery `items`, whoever has them."""

    def exact_scores(
        self, queries: torch.Tensor, indices: torch.Tensor, products: torch.Tensor
    ) -> torch.Tensor:
        """Return the exact scores of (p, n) gallery items, of which the products are known; all (p, n) float32.

        `queries` are the probes' (p, D) unit rows.
        """

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a table of rows and where in it each of the gallery items is; see `UnitRows.gather`."""


def nearest_of(
    gallery: GallerySource,
    queries: torch.Tensor,
    similarities: torch.Tensor,
    allowed: torch.Tensor,
    count: int,
) -> Candidates:
    """Return the best of some gallery items for each probe, by exact scores of those that products put first.

    Args:
        gallery: where the rows are.
        queries: (p, D) float32, the probes' unit rows.
        similarities: (p, columns) float32, of `gallery.columns`.
        allowed: (p, columns) bool, which items may be listed.
        count: how many.

    Returns:
        (p, up to count), -1 and -inf past the end.
    """
    width = margin(count, gallery.size)
    columns = gallery.columns
    here = min(width, columns.stop - columns.start)
    keys = best_keys(similarities.masked_fill(~allowed, -torch.inf), columns.start, here)
    indices, products = from_sort_keys(gallery.merge_keys(keys, width))
    missing = products == -torch.inf
    indices = indices.masked_fill(missing, 0)
    scores = gallery.exact_scores(queries, indices, products).masked_fill(missing, -torch.inf)
    found = Candidates(
        *from_sort_keys(sort_keys(scores, indices).sort(dim=1, descending=True).values[:, :count])
    )
    return Candidates(found.indices.masked_fill(found.scores == -torch.inf, -1), found.scores)


def scores_of(rows: Gatherable, queries: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the exact scores of (p, n) items for (p, D) queries, (p, n) float32."""
    table, places = rows.gather(indices)
    return pair_scores(table[places], queries.unsqueeze(1))


class WholeGallery:
    """What galleries have in common that are with this process alone.

    Args:
        rows: where its rows are.
        size: G, how many there are.
    """

    def __init__(self, rows: Gatherable, size: int) -> None:
        self._rows = rows
        self.size = size
        self.columns = slice(0, size)

    def merge_keys(self, keys: torch.Tensor, count: int) -> torch.Tensor:
        """See `GallerySource.merge_keys`; there is nothing to merge."""
        return keys[:, :count]

    def cosine_at(self, similarities: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """See `GallerySource.cosine_at`."""
        return similarities.gather(1, items.flatten(1).long()).view(items.shape)

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `GallerySource.gather`."""
        return self._rows.gather(indices)


class LocalGallery(WholeGallery):
    """A gallery that this process holds, or reads block by block.

    Args:
        rows: its G rows.
    """

    _rows: UnitRows

    def __init__(self, rows: UnitRows) -> None:
        super().__init__(rows, len(rows))
        self.rereads = not rows.resident

    def lists(
        self,
        probe: UnitRows,
        query: Query,
        *,
        rerank_head: RerankHead | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Batch]:
        """See `GallerySource.lists`."""
        for batch in search(probe, self._rows, query, rerank_head=rerank_head, progress=progress):
            if batch.similarities is not None:
                overwrite_with_exact_scores(batch.similarities, batch.found)
                if query.depth > query.topn:
                    deeper = best_by_similarity(batch.similarities, query.depth)
                    batch = replace(batch, candidates=batch.candidates.followed_by(deeper))
            yield batch

    def similarities(self, batch: Batch) -> torch.Tensor:
        """See `GallerySource.similarities`."""
        if batch.similarities is not None:
            return batch.similarities
        return similarities_of(batch.probe, self._rows, batch.found)

    def exact_scores(
        self, queries: torch.Tensor, indices: torch.Tensor, products: torch.Tensor
    ) -> torch.Tensor:
        """See `GallerySource.exact_scores`."""
        return scores_of(self, queries, indices)


class ListedGallery(LocalGallery):
    """A gallery of which only listed items are looked at: lists that an approximate index or a database found.

    Args:
        rows: its G rows.
        given: lists of the probes.
    """

    def __init__(self, rows: UnitRows, given: Lists) -> None:
        super().__init__(rows)
        self._given = given

    def lists(
        self,
        probe: UnitRows,
        query: Query,
        *,
        rerank_head: RerankHead | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Batch]:
        """See `GallerySource.lists`; the lists are as long as the longest given one, -1 past the end."""
        found = look_up(probe, self._rows, self._given, query, progress=progress)
        for batch in found:
            if rerank_head is not None:
                head = batch.found.head(query.topn)
                near = rerank_listed(rerank_head, batch.probe, head, self._rows)
                batch = replace(batch, candidates=near.followed_by(batch.found))
            yield batch
