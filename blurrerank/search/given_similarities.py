"""Similarities that somebody else computed, looked up where others are computed from features."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..compute.compute import Progress
from ..data.candidates import Candidates
from ..data.similarities import SimilaritySet
from ..errors import InputError
from .exact import Batch, Query, RerankHead
from .nearest import best_by_similarity
from .rows import RowBudget, UnitRows, blocks_of
from .sources import WholeGallery

# Bytes of similarities among candidates at a time.
_AMONG_BYTES = 64 << 20
_PARTS = ("indices", "scores")


class SimilarityRows:
    """All images of a set, or those of its gallery, whose similarities can be looked up.

    Args:
        data: the similarities.
        device: where results are to be.
        budget: bytes to work with.
        together: whether the probes are among the images, before the gallery. Similarities among the images
            must then be known of both sides; `check_works_with_similarities` sees to it.
    """

    dtype = torch.float32
    resident = True

    def __init__(
        self, data: SimilaritySet, device: torch.device, budget: RowBudget, *, together: bool = False
    ) -> None:
        self.device, self.budget = device, budget
        self._data, self._probes = data, len(data.probe) if together else 0

    def __len__(self) -> int:
        return self._probes + len(self._data.gallery)

    def similarities(self, start: int, stop: int) -> torch.Tensor:
        """Return the similarities of images `start:stop` to all, (stop - start, N) float32."""
        cut = self._probes
        found = []
        if start < cut:
            some = start, min(stop, cut)
            among = self._data.among_probes
            assert among is not None
            found.append(torch.cat([among.rows(*some), self._data.between.rows(*some)], dim=1))
        if stop > cut:
            some = max(start, cut) - cut, stop - cut
            assert self._data.among_gallery is not None
            rows = self._data.among_gallery.rows(*some)
            found.append(torch.cat([self._data.between.columns(*some), rows], dim=1) if cut else rows)
        return torch.cat(found).to(self.device)

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the similarities of all images in order, some at a time, each with the index of the first."""
        step = max(1, self.budget.working_bytes // (32 * len(self)))
        for start, stop in blocks_of(len(self), step):
            yield start, self.similarities(start, stop)

    def pairs(self, counts: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the similarity of each image with those in its list, (T,) float32.

        Args:
            counts: (N,) how many entries each image has.
            columns: (T,) images, the entries of one after another.
        """
        ends = counts.cumsum(0)
        found = torch.empty(len(columns), device=self.device)
        for start, rows in self.blocks():
            stop = start + len(rows)
            begin = int(ends[start - 1]) if start else 0
            end = int(ends[stop - 1])
            owner = torch.repeat_interleave(counts[start:stop])
            found[begin:end] = rows[owner, columns[begin:end].long()]
        return found

    def among(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the similarities among each row's (p, n) gallery items, (p, n, n) float32."""
        matrix = self._data.among_gallery
        assert matrix is not None
        return matrix.at(indices.unsqueeze(2), indices.unsqueeze(1)).to(self.device)

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Refuse: there are no rows of features."""
        raise InputError("these are similarities, not features: choose another method")


class GivenGallery(WholeGallery):
    """A gallery whose similarities to the probes are known; see `sources.GallerySource`.

    Args:
        rows: the gallery items.
        data: the similarities.
    """

    rereads = False

    _rows: SimilarityRows

    def __init__(self, rows: SimilarityRows, data: SimilaritySet) -> None:
        super().__init__(rows, len(data.gallery))
        self._data = data

    def lists(
        self,
        probe: UnitRows | SimilarityRows,
        query: Query,
        *,
        rerank_head: RerankHead | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Batch]:
        """See `GallerySource.lists`; all similarities are exact."""
        probes = len(self._data.probe)
        if progress is not None:
            progress(query.first, probes)
        for start in range(query.first, probes, query.batch):
            stop = min(start + query.batch, probes)
            seen = self._data.between.rows(start, stop).to(self._rows.device)
            deep = best_by_similarity(seen, max(query.topn, query.depth))
            found, nothing = deep.head(query.topn), seen.new_empty(stop - start, 0)
            candidates = deep
            if rerank_head is not None:
                heads = []
                step = max(1, _AMONG_BYTES // (16 * max(1, query.topn) ** 2))
                for first, last in blocks_of(stop - start, step):
                    some = Candidates(found.indices[first:last], found.scores[first:last])
                    heads.append(rerank_head(nothing[first:last], some, self._rows))
                indices, scores = (torch.cat([getattr(head, name) for head in heads]) for name in _PARTS)
                candidates = Candidates(indices, scores).followed_by(deep)
            yield Batch(start, nothing, candidates, found, seen)
            if progress is not None:
                progress(stop, probes)

    def similarities(self, batch: Batch) -> torch.Tensor:
        """See `GallerySource.similarities`."""
        assert batch.similarities is not None
        return batch.similarities

    def exact_scores(
        self, queries: torch.Tensor, indices: torch.Tensor, products: torch.Tensor
    ) -> torch.Tensor:
        """See `GallerySource.exact_scores`; they are exact already."""
        return products
