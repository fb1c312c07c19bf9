"""Lists that came from elsewhere, an approximate index or a vector database, in place of search.

Each listed pair is scored by one product and one sum of its own, so that equal rows tie whatever stands around
them, and lists are sorted by the project's one tie rule. What is not listed is not looked at.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..data.ranking import NOBODY, Candidates, from_sort_keys, sort_keys
from ..errors import BlurrerankWarning, InputError, ParameterError
from ..methods import HeadMethod, Method
from .exact import Batch, Progress
from .precision import pair_scores
from .rows import UnitRows, blocks_of

# Bytes of gathered rows worked on at a time: on a CPU they should stay in the last-level cache.
_CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}


@dataclass(frozen=True, eq=False)
class GivenLists:
    """The gallery items that each probe may be answered with, in any order.

    Attributes:
        indices: (P, R) integers, rows of the gallery; -1 pads lists that end early. Kept as int64.
        gallery_size: how many items the gallery has.
        source: where they came from, as messages and files name it.

    Raises:
        InputError: on construction, for another shape or dtype, an index outside the gallery or twice in a
            list, -1 before the end of a list, or no candidate at all; names the probe.
    """

    indices: NDArray[np.int64]
    gallery_size: int
    source: str = "candidates"

    def __post_init__(self) -> None:
        """Refuse what are no lists; cut off columns that only pad."""
        found = self._as_array(self.indices)
        problem = self._problem(found)
        if problem:
            raise InputError(f"{self.source}{problem}")
        longest = int((found >= 0).sum(axis=1).max())
        object.__setattr__(self, "indices", found[:, :longest].astype(np.int64))

    @classmethod
    def of(
        cls,
        lists: GivenLists | ArrayLike | torch.Tensor,
        probes: int,
        gallery: int,
        source: str = "candidates",
    ) -> GivenLists:
        """Lists for so many probes and gallery items, checked.

        Args:
            lists: (P, R) integers, as the class has them, or lists that are checked already.
            probes: P.
            gallery: how many items the gallery has.
            source: where they came from.

        Raises:
            InputError: as the class, and for another number of lists than of probes.
        """
        found = lists if isinstance(lists, cls) else cls(lists, gallery, source)  # type: ignore[arg-type]
        if len(found) != probes:
            raise InputError(
                f"{found.source} has {len(found)} lists and there are {probes} probes: give one list for each, "
                "in their order"
            )
        if found.gallery_size != gallery:
            raise InputError(
                f"{found.source} is of {found.gallery_size} gallery items and the gallery has {gallery}: they "
                "do not belong together"
            )
        return found

    def __len__(self) -> int:
        return int(self.indices.shape[0])

    def __repr__(self) -> str:
        return f"GivenLists({len(self)} lists of {self.shortest} to {self.depth}, {self.source})"

    @property
    def depth(self) -> int:
        """R, the length of the longest list."""
        return int(self.indices.shape[1])

    @property
    def shortest(self) -> int:
        """The length of the shortest list."""
        return int((self.indices >= 0).sum(axis=1).min())

    @property
    def complete(self) -> bool:
        """Whether every list holds the whole gallery, so that nothing is unknown."""
        return self.shortest == self.gallery_size

    def digest(self) -> str:
        """SHA-256 of the lists, whatever they came from."""
        return hashlib.sha256(np.ascontiguousarray(self.indices).data).hexdigest()

    def warn_about(self) -> None:
        """Warn, with `BlurrerankWarning`, of probes that have no candidates."""
        empty = int((self.indices[:, 0] < 0).sum())
        if empty:
            warnings.warn(
                f"{self.source}: {empty} of {len(self)} probes have no candidates, and their lists stay empty",
                BlurrerankWarning,
                stacklevel=3,
            )

    def _as_array(self, lists: Any) -> NDArray[Any]:
        if isinstance(lists, torch.Tensor):
            return lists.detach().cpu().numpy()
        try:
            return np.asarray(lists)
        except ValueError:
            raise InputError(
                f"{self.source} is no table: pad shorter lists with -1 at the end, to one length"
            ) from None

    def _problem(self, lists: NDArray[Any]) -> str | None:
        if lists.ndim != 2:
            return f" has shape {lists.shape}: expected (probes, candidates)"
        if lists.dtype.kind not in "iu":
            hint = ", not distances" if lists.dtype.kind == "f" else ""
            return f" is {lists.dtype}: expected integers, the rows of gallery items{hint}"
        outside = (lists < -1) | (lists >= self.gallery_size)
        if outside.any():
            probe = int(np.argmax(outside.any(axis=1)))
            entry = int(lists[probe][outside[probe]][0])
            return (
                f": the list of probe {probe} names gallery item {entry}, and there are {self.gallery_size}: "
                "count rows from 0, and pad lists that end early with -1"
            )
        listed = lists >= 0
        if not listed.any():
            return " holds no candidates: at least one list must have an item"
        inside = listed[:, 1:] & ~listed[:, :-1]
        if inside.any():
            probe = int(np.argmax(inside.any(axis=1)))
            return (
                f": the list of probe {probe} goes on after -1 (at place {int(np.argmax(inside[probe])) + 1}): "
                "-1 may only pad the end"
            )
        rows = np.sort(lists, axis=1)
        twice = (rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)
        if twice.any():
            probe = int(np.argmax(twice.any(axis=1)))
            entry = int(rows[probe, 1:][twice[probe]][0])
            return f": the list of probe {probe} names gallery item {entry} twice: leave one out"
        return None


def check_method(method: Method) -> None:
    """Raise `ParameterError` unless `method` can work with candidates alone."""
    if not isinstance(method, HeadMethod):
        raise ParameterError(
            f"method {method.name} gives the whole gallery new scores, and candidates are only a part of it: "
            "use lbr or cosine"
        )


def look_up(
    probe: UnitRows,
    gallery: UnitRows,
    lists: GivenLists,
    *,
    batch: int,
    progress: Progress | None = None,
    first: int = 0,
) -> Iterator[Batch]:
    """The given lists sorted by cosine similarity, `batch` probes at a time, as `search.search` yields its own.

    Args:
        probe: the probes, P rows.
        gallery: the gallery, rows of the same dimension on the same device.
        lists: of these probes.
        batch: probes per batch.
        progress: called at the start and after each batch.
        first: the probe to begin with.

    Yields:
        `Batch` after `Batch`, in the order of the probes. Candidates are as wide as the longest of all lists;
        past the end of a list they are -1, with score -inf.
    """
    if progress is not None:
        progress(first, len(probe))
    for start in range(first, len(probe), batch):
        stop = min(start + batch, len(probe))
        queries = probe.rows(start, stop)
        items = torch.from_numpy(lists.indices[start:stop]).to(gallery.device)
        yield Batch(start, queries, _sorted(items, listed_scores(queries, items, gallery)), None)
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


def rescore(method: HeadMethod, probe: torch.Tensor, near: Candidates, gallery: UnitRows) -> Candidates:
    """The heads of given lists, which may end early, with the method's new scores, best first.

    Args:
        method: sees lists of one length at a time, without padding.
        probe: (p, D) float32, unit rows.
        near: (p, n), -1 past the end of a list.
        gallery: the features they point into.
    """
    lengths = (near.indices >= 0).sum(dim=1)
    scores = torch.full_like(near.scores, -torch.inf)
    places, different = near.indices, torch.unique(lengths).tolist()
    if len(different) > 1 and not gallery.resident:
        # Once for all lengths, as each time may be a pass over the file.
        table, places = gallery.gather(near.indices.clamp_min(0))
        gallery = UnitRows.held(table)
    for length in filter(None, different):
        rows = torch.nonzero(lengths == length).flatten()
        some = Candidates(places[rows, :length], near.scores[rows, :length])
        scores[rows, :length] = method.rescore(probe[rows], some, gallery)
    return _sorted(near.indices, scores)


def _sorted(items: torch.Tensor, scores: torch.Tensor) -> Candidates:
    """(p, R) items by (p, R) scores, best first, -1 last."""
    keys = sort_keys(scores, items.clamp_min(0)).masked_fill(items < 0, NOBODY)
    keys = keys.sort(dim=1, descending=True).values
    indices, ordered = from_sort_keys(keys)
    past = torch.arange(items.shape[1], device=items.device) >= (items >= 0).sum(dim=1, keepdim=True)
    return Candidates(indices.masked_fill(past, -1), ordered.masked_fill(past, -torch.inf))
