"""Re-ranking of what a vector database returned: probes, and the vectors of the items it found for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..compute.compute import Compute
from ..data.candidates import Candidates
from ..data.features import FeatureSet
from ..data.given_lists import GivenLists
from ..data.side import Side
from ..errors import InputError, ParameterError
from ..methods import GraphRanker, HeadRanker, create
from ..search.exact import Query
from ..search.rows import UnitRows
from ..search.sources import ListedGallery
from .ranking import rank_batches, rescored
from .request import Request, check_reranks_candidates

# Probes whose neighbourhoods are worked on together.
_BATCH = 256


@dataclass(frozen=True)
class Reranked:
    """Neighbourhoods in a new order.

    Attributes:
        order: (P, n) int64, places in each neighbourhood as it was given, best first; -1 past the end of one
            that is shorter than the longest.
        scores: (P, n) float32, higher is better; -inf past the end.
    """

    order: NDArray[np.int64]
    scores: NDArray[np.float32]


def rerank_neighbourhoods(
    probes: ArrayLike | torch.Tensor,
    neighbours: ArrayLike | torch.Tensor | Sequence[ArrayLike | torch.Tensor],
    method: str = "lbr",
    *,
    probe_cams: ArrayLike | None = None,
    neighbour_cams: ArrayLike | Sequence[ArrayLike] | None = None,
    preset: str | None = None,
    **params: Any,
) -> Reranked:
    """Re-rank the items that a query returned, from their vectors alone: no gallery, no index, no file.

    A method that re-ranks the head of a list, such as `lbr`, gives the lists that it gives with the same items
    as `candidates` of `rerank`. A graph ranker that works online, such as `k-reciprocal-online` or
    `camera-graph`, takes the neighbourhood for the whole gallery: it sees who is near whom among the items
    that were returned, so that a query should return some hundreds.

    Args:
        probes: (P, D) features, float16, float32 or float64; or (D,) of one probe.
        neighbours: (P, n, D) features of the items that were returned for each probe, in any order, or P arrays
            (n_p, D) if there are different numbers of them; of one probe (n, D).
        method: a method that needs no other images, such as `lbr`, `cosine` or `k-reciprocal-online`.
        probe_cams: (P,) cameras of the probes, for methods that know cameras.
        neighbour_cams: (P, n) or P arrays (n_p,), cameras of the items.
        preset: the method's parameters for a public data set.
        **params: its parameters, such as `topn` and `sigma`.

    Returns:
        Where each item goes.

    Raises:
        InputError: for features that cannot be used or cameras that are missing; names the probe.
        ParameterError: for an unknown method or parameter, or a method that needs the whole gallery.

    Examples:
        >>> import numpy as np
        >>> found = rerank_neighbourhoods(np.eye(1, 3), np.eye(3)[None, ::-1], topn=2)
        >>> found.order.tolist()
        [[2, 0, 1]]
    """
    chosen = create(method, preset=preset, **params)
    ranker = chosen.ranker
    if not (isinstance(ranker, GraphRanker) and ranker.online):
        check_reranks_candidates(chosen)
    elif chosen.feature_steps:
        raise ParameterError(
            f"method {chosen.name} transforms features by statistics of the whole gallery, and a "
            f"neighbourhood is only a part of it: use {ranker.name}"
        )
    queries, lists = _sides(probes, neighbours)
    counts = [len(rows) for rows in lists]
    longest = max(counts)
    order = np.full((len(counts), longest), -1, dtype=np.int64)
    scores = np.full((len(counts), longest), -np.inf, dtype=np.float32)
    if isinstance(ranker, HeadRanker):
        for start in range(0, len(counts), _BATCH):
            some = slice(start, start + _BATCH)
            found = _rerank_heads(queries[some], lists[some], ranker)
            width = found.indices.shape[1]
            order[some, :width], scores[some, :width] = found.indices.numpy(), found.scores.numpy()
        return Reranked(order, scores)
    assert isinstance(ranker, GraphRanker)
    for probe, (rows, cams) in enumerate(zip(lists, _cameras(probe_cams, neighbour_cams, counts), strict=True)):
        sides = Side(queries[probe : probe + 1], cams=cams[0]), Side(rows, cams=cams[1])
        request, compute = Request(len(rows), online=True), Compute.choose("cpu")
        for batch in rank_batches(FeatureSet(*sides), ranker, request, compute):
            order[probe, : len(rows)], scores[probe, : len(rows)] = (part[0] for part in batch.lists(len(rows)))
    return Reranked(order, scores)


def _rerank_heads(queries: torch.Tensor, lists: Sequence[torch.Tensor], ranker: HeadRanker) -> Candidates:
    """Places in each list, best first, and scores."""
    counts = np.array([len(rows) for rows in lists])
    firsts = torch.from_numpy(np.cumsum(counts) - counts).unsqueeze(1)
    places = np.arange(counts.max())
    indices = np.where(places < counts[:, None], firsts.numpy() + places, -1)
    flat, device = torch.cat(list(lists)), torch.device("cpu")
    gallery = UnitRows(Side(flat), device=device, block=len(flat), resident=True)
    probes = UnitRows(Side(queries), device=device, block=len(queries), resident=True)
    source = ListedGallery(gallery, GivenLists(indices, len(flat), "neighbours"))
    reranks = ranker.reranked(len(places)) > 0
    query = Query(ranker.depth(len(places)), len(queries))
    (batch,) = source.lists(probes, query, rerank_head=partial(rescored, ranker) if reranks else None)
    near = batch.candidates
    return Candidates(torch.where(near.indices < 0, -1, near.indices - firsts), near.scores)


def _sides(probes: Any, neighbours: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(P, D) probes, and the (n_p, D) rows of each; both valid."""
    queries = _tensor(probes, "probes")
    if queries.ndim == 1:
        queries, neighbours = queries[None], [neighbours]
    if queries.ndim != 2 or not queries.numel():
        raise InputError(f"probes have shape {tuple(queries.shape)}: expected (P, D)")
    try:
        lists = [_tensor(rows, f"the neighbours of probe {probe}") for probe, rows in enumerate(neighbours)]
    except TypeError:
        raise InputError("neighbours are not arrays: give (P, n, D), or P arrays of (n_p, D)") from None
    if len(lists) != len(queries):
        raise InputError(f"neighbours were given for {len(lists)} probes, but there are {len(queries)} probes")
    dim = queries.shape[1]
    for probe, rows in enumerate(lists):
        if rows.ndim != 2 or rows.shape[1] != dim or not len(rows):
            raise InputError(
                f"the neighbours of probe {probe} have shape {tuple(rows.shape)}: expected (n, {dim}), n at "
                "least 1"
            )
    bad = _bad_rows(queries)
    if len(bad):
        raise InputError(f"probe {int(bad[0])} is all zero or has NaN or infinity")
    bad = _bad_rows(torch.cat([rows.double() for rows in lists]))
    if len(bad):
        ends = np.cumsum([len(rows) for rows in lists])
        probe = int(np.searchsorted(ends, int(bad[0]), side="right"))
        place = int(bad[0]) - int(ends[probe]) + len(lists[probe])
        raise InputError(f"neighbour {place} of probe {probe} is all zero or has NaN or infinity")
    return queries, lists


def _tensor(values: Any, what: str) -> torch.Tensor:
    """An array of floats as a tensor on the CPU."""
    try:
        if not isinstance(values, torch.Tensor):
            values = torch.from_numpy(np.array(values))
        found: torch.Tensor = values.detach().cpu()
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} are not an array: {error}") from None
    if not found.is_floating_point():
        raise InputError(f"{what} are {str(found.dtype).removeprefix('torch.')}: expected floats")
    return found


def _bad_rows(rows: torch.Tensor) -> torch.Tensor:
    """Which rows have no direction."""
    return torch.nonzero(~torch.isfinite(rows).all(dim=1) | (rows == 0).all(dim=1)).flatten()


def _cameras(
    probe_cams: Any, neighbour_cams: Any, counts: Sequence[int]
) -> list[tuple[NDArray[Any] | None, NDArray[Any] | None]]:
    """The cameras of each probe and of its items, None where they are not given."""
    mine: list[Any] = [None] * len(counts)
    theirs: list[Any] = [None] * len(counts)
    if probe_cams is not None:
        mine = list(np.atleast_1d(np.asarray(probe_cams))[:, None])
    if neighbour_cams is not None:
        alone = len(counts) == 1 and np.ndim(neighbour_cams[0]) == 0
        theirs = [np.asarray(cams) for cams in ([neighbour_cams] if alone else neighbour_cams)]
    lengths = [None if cams is None else len(cams) for cams in theirs]
    if len(mine) != len(counts) or (neighbour_cams is not None and lengths != list(counts)):
        raise InputError("cameras do not match the probes and neighbours: give one camera for each")
    return list(zip(mine, theirs, strict=True))
