"""Approximate search that an index keeps: which gallery items are worth looking at for a probe, by FAISS.

Rows are projected on the axes in which the gallery varies most, and the projected rows are searched by a graph
(`hnsw`) or by clusters (`ivf`). What comes out is candidates alone: their similarities are computed from the
whole rows afterwards. FAISS is an extra: `pip install "blurrerank[faiss]"`.

Sources: Malkov, Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical
Navigable Small World graphs", arXiv:1603.09320; Jegou, Douze, Schmid, "Product Quantization for Nearest
Neighbor Search", TPAMI 2011, section 4, for the inverted file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.processes import Group
from ..data.checks import check_count
from ..errors import InputError, ParameterError
from .approximate import faiss_reason, load_faiss, threads_as_torch
from .precision import pair_scores
from .rows import UnitRows, blocks_of, evenly_spread

KINDS = ("hnsw", "ivf")
"""A graph of near items, and clusters of items."""

# Links of an item in the graph (twice as many at its lowest level), and how thoroughly they are chosen: many
# that are chosen in haste find more, in the same time, than few that are chosen well.
_LINKS, _CONSTRUCTION = 32, 40
# Axes hold this share of the squared length of rows, in steps of 8 and within these bounds.
_KEPT, _LEAST_AXES, _MOST_AXES = 0.95, 32, 128
# Rows that axes and clusters are found with.
_SAMPLE = 1 << 16
# Candidates that clusters give.
_LISTED = 512
# Candidates whose neighbours are looked at too.
_HEADS = 32
# Rows that were added to be projected at a time.
_ADDED_ROWS = 1 << 14
# Bytes of products at a time while probes are projected.
_PROJECTED_BYTES = 4 << 20


@dataclass(frozen=True, eq=False)
class _Part:
    """A FAISS index of consecutive rows.

    Attributes:
        index: the FAISS index.
        first: the number of its first row.
        count: how many of its rows are to be found.
        selector: FAISS's own way to say which these are; None if all are.
    """

    index: Any
    first: int
    count: int
    selector: Any = None

    @classmethod
    def of(cls, faiss: Any, index: Any, first: int, gone: torch.Tensor | None) -> _Part:
        """The part that begins with row `first`."""
        size = int(index.ntotal)
        if gone is None or not bool(gone[first : first + size].any()):
            return cls(index, first, size)
        there = ~gone[first : first + size].numpy()
        bits = np.packbits(there, bitorder="little")
        return cls(index, first, int(there.sum()), faiss.IDSelectorBitmap(bits))

    def search(self, rows: NDArray[np.float32], count: int, settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(p, n) scores and row numbers, -inf and -1 past the end."""
        if self.selector is not None:
            settings.sel = self.selector
        scores, found = self.index.search(rows, min(count, int(self.index.ntotal)), params=settings)
        items = torch.from_numpy(found)
        past = items < 0
        return torch.from_numpy(scores).masked_fill(past, -torch.inf), items.add_(self.first).masked_fill(
            past, -1
        )


@dataclass(frozen=True, eq=False)
class ApproximateSearch:
    """A gallery as FAISS searches it.

    Attributes:
        kind: one of `KINDS`.
        axes: (D, d) float32, orthonormal columns.
        stored: (B,) uint8, the FAISS index of the projected rows; mapped, where it comes from a file.
        effort: how much is looked at for a probe unless somebody says: candidates of a graph (efSearch), or
            clusters (nprobe).
        added: (A, D) float32, unit rows that follow those of the FAISS index; all of them are looked at.
        gone: (N,) bool, the rows that are not to be found; None if all are.
    """

    kind: str
    axes: torch.Tensor
    stored: NDArray[np.uint8]
    effort: int
    added: torch.Tensor | None = None
    gone: torch.Tensor | None = None
    _parts: list[_Part] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Open the FAISS index where it lies, and index what was added.

        Raises:
            InputError: if FAISS cannot read it.
            BlurrerankError: if FAISS is not installed.
        """
        faiss = load_faiss()
        reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(self.stored), self.stored.nbytes)
        try:
            found = faiss.read_index(reader)
        except RuntimeError as error:
            raise InputError(f"FAISS cannot read its search index: {faiss_reason(error)}") from None
        parts = [_Part.of(faiss, found, 0, self.gone)]
        if self.added is not None and len(self.added):
            more = faiss.IndexScalarQuantizer(
                self.axes.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
            )
            for some in torch.split(self.added, _ADDED_ROWS):
                more.add((some @ self.axes).numpy())
            parts.append(_Part.of(faiss, more, found.ntotal, self.gone))
        object.__setattr__(self, "_parts", parts)

    @property
    def _index(self) -> Any:
        return self._parts[0].index

    @classmethod
    def build(
        cls,
        images: UnitRows,
        kind: str,
        effort: int | None = None,
        *,
        group: Group | None = None,
    ) -> ApproximateSearch:
        """Index rows.

        Args:
            images: N rows.
            kind: one of `KINDS`.
            effort: see the class; by default 256 candidates, or a sixteenth of the clusters and at least 8.
            group: processes that have all rows; the first indexes them for all.

        Raises:
            BlurrerankError: if FAISS is not installed.
            ParameterError: for another kind, or an effort below 1.
        """
        if kind not in KINDS:
            raise ParameterError(f"approximate search {kind!r} is not known: use {' or '.join(KINDS)}")
        if effort is not None:
            check_count("effort", effort)
        faiss, size = load_faiss(), len(images)
        table, places = images.gather(torch.from_numpy(evenly_spread(size, _SAMPLE)))
        sample = table[places]
        axes = _axes(sample)
        if group is not None:
            axes = group.broadcast(axes, 0)  # other processors may round them otherwise
        clusters = max(1, min(int(4 * size**0.5), len(sample) // 39))
        # Numbers of 8 bits are read faster, and find as much: exact similarities come afterwards.
        factory = f"HNSW{_LINKS}_SQ8" if kind == "hnsw" else f"IVF{clusters},SQ8"
        index = faiss.index_factory(axes.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        effort = effort or (256 if kind == "hnsw" else max(8, clusters // 16))
        if group is not None and group.rank:
            return cls(kind, axes, _of_first(None, group), effort)
        with threads_as_torch(faiss):
            if kind == "hnsw":
                index.hnsw.efConstruction = _CONSTRUCTION
            else:
                faiss.extract_index_ivf(index).cp.min_points_per_centroid = 1
            index.train((sample @ axes).numpy())
            for _, block in images.blocks():
                index.add((block @ axes).numpy())
        stored = faiss.serialize_index(index)
        return cls(kind, axes, stored if group is None else _of_first(stored, group), effort)

    @property
    def digest(self) -> str:
        """SHA-256 of the FAISS index, and of what was added to it or is gone."""
        found = hashlib.sha256(self.stored.data)
        for part in (self.added, self.gone):
            if part is not None:
                found.update(part.contiguous().numpy().data)
        return found.hexdigest()

    def listed(self, effort: int | None = None, least: int = 1) -> int:
        """Return how many candidates a probe gets, at most; arguments are as for `find`."""
        asked = (effort or self.effort) if self.kind == "hnsw" else _LISTED
        return min(max(asked, least), sum(part.count for part in self._parts))

    def find(self, rows: torch.Tensor, effort: int | None = None, *, least: int = 1) -> torch.Tensor:
        """Return candidates for some rows, each by itself: the same in any company.

        Args:
            rows: (p, D) float32, unit rows.
            effort: see the class.
            least: how many candidates are needed.

        Returns:
            (p, `listed(effort, least)`) int64, about the nearest first; -1 past the end.
        """
        faiss, count, effort = load_faiss(), self.listed(effort, least), effort or self.effort
        if self.kind == "hnsw":
            settings = faiss.SearchParametersHNSW(efSearch=max(effort, count))
        else:
            settings = faiss.SearchParametersIVF(nprobe=effort)
        projected, found = self._projected(rows).numpy(), []
        with threads_as_torch(faiss):
            for part, asked in zip(self._parts, (settings, faiss.SearchParameters()), strict=False):
                found.append(part.search(projected, count, asked))
        scores, items = (torch.cat(some, dim=1) for some in zip(*found, strict=True))
        if len(found) > 1:
            items = items.gather(1, scores.argsort(dim=1, descending=True, stable=True))
        return items[:, :count]

    def check(self, size: int, dim: int) -> None:
        """Check that searching cannot leave the rows that there are.

        Args:
            size: how many items it must have, without those that were added.
            dim: D, the dimensions of these.

        Raises:
            InputError: if it is not of such a gallery.
        """
        faiss, index = load_faiss(), self._index
        fits = (index.ntotal, index.d) == (size, self.axes.shape[1]) and len(self.axes) == dim
        kinds = {"hnsw": faiss.IndexHNSWSQ, "ivf": faiss.IndexIVFScalarQuantizer}
        if not fits or not isinstance(index, kinds[self.kind]):
            raise InputError("its search index is of another gallery")
        # FAISS checks the links of a graph itself when it reads one.
        if self.kind == "ivf" and not _sound_clusters(faiss, index):
            raise InputError("its search index has values that are invalid")

    def _projected(self, rows: torch.Tensor) -> torch.Tensor:
        """(p, d) float32. One sum for each number: a matrix product would round it by what stands around."""
        found = torch.empty(len(rows), self.axes.shape[1])
        across = self.axes.T.contiguous()
        step = max(1, _PROJECTED_BYTES // (4 * across.numel()))
        for start, stop in blocks_of(len(rows), step):
            some = rows[start:stop].unsqueeze(1)
            found[start:stop] = pair_scores(across.expand(stop - start, -1, -1).clone(), some)
        return found


@dataclass(frozen=True, eq=False)
class SearchedLists:
    """Candidates of probes that a search finds when they are asked for: stands where `GivenLists` may.

    Attributes:
        search: what finds them.
        effort: how much it looks at; by default the search's own.
        least: how many candidates are needed.
        near: (G, K) int32 or int64, lists of neighbours of gallery items, -1 past the end: those of the first
            candidates are candidates too.
    """

    search: ApproximateSearch
    effort: int | None = None
    least: int = 1
    near: tuple[torch.Tensor, ...] = ()

    @property
    def complete(self) -> bool:
        """Never, as far as anybody knows."""
        return False

    def __post_init__(self) -> None:
        """Check the effort."""
        if self.effort is not None:
            check_count("effort", self.effort)

    @property
    def depth(self) -> int:
        """How many candidates a probe gets, but for neighbours of some that are new."""
        return self.search.listed(self.effort, self.least)

    @property
    def shortest(self) -> int:
        """The same; a probe seldom gets fewer."""
        return self.depth

    @property
    def source(self) -> str:
        """What finds them, for messages and files."""
        return f"index {self.search.kind} effort {self.effort or self.search.effort}"

    def digest(self) -> str:
        """Return what changes with the lists."""
        return hashlib.sha256(f"{self.search.digest} {self.source}".encode()).hexdigest()

    def warn_about(self) -> None:
        """Nothing: every probe gets candidates."""

    def of_probes(self, queries: torch.Tensor, start: int) -> torch.Tensor:
        """Return the candidates of (p, D) unit rows, (p, n) int64 with n at least `depth`; -1 past the end."""
        found = self.search.find(queries, self.effort, least=self.least)
        heads, parts = found[:, :_HEADS], [found]
        for lists in self.near:
            theirs = lists[heads.clamp_min(0)].long()
            parts.append(theirs.masked_fill(heads.unsqueeze(2) < 0, -1).flatten(1))
        every = torch.cat(parts, dim=1)
        if self.search.gone is not None:
            every.masked_fill_(self.search.gone[every.clamp_min(0)], -1)
        every = every.sort(dim=1, descending=True).values
        every[:, 1:].masked_fill_(every[:, 1:] == every[:, :-1], -1)
        return every.sort(dim=1, descending=True).values


def _of_first(stored: NDArray[np.uint8] | None, group: Group) -> NDArray[np.uint8]:
    """The bytes of the first process, in all."""
    size = group.broadcast(torch.tensor([0 if stored is None else len(stored)]), 0)
    values = torch.empty(int(size), dtype=torch.uint8) if stored is None else torch.from_numpy(stored)
    return group.broadcast(values, 0).numpy()


def _axes(sample: torch.Tensor) -> torch.Tensor:
    """(D, d) the axes that hold most of the squared length of (n, D) rows."""
    dim = sample.shape[1]
    squares, axes = torch.linalg.eigh((sample.T @ sample).double())
    shares = squares.flip(0).clamp_min(0).cumsum(0) / squares.clamp_min(0).sum()
    enough = int((shares < _KEPT).sum()) + 1
    count = min(dim, max(_LEAST_AXES, min(_MOST_AXES, -(-enough // 8) * 8)))
    found: torch.Tensor = axes.flip(1)[:, :count].float().contiguous()
    return found


def _sound_clusters(faiss: Any, index: Any) -> bool:
    """Whether every item of a cluster is one that there is."""
    lists, size = index.invlists, index.ntotal
    ids = [faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n)) for n in range(lists.nlist)]
    every = np.concatenate(ids) if ids else np.empty(0, np.int64)
    return bool(len(every) == size and (np.sort(every) == np.arange(size)).all())
