"""One ranking from several: of several models, methods or matrices.

Sources: Cormack, Clarke, Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods", SIGIR 2009, for `reciprocal-rank`; Fox, Shaw, "Combination of Multiple Searches", TREC-2, 1994, whose
CombSUM over normalised scores `mean` is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.arguments import check_features, check_ranking
from ..data.checks import check_count
from ..data.features import FeatureSet
from ..data.ranking import Ranking
from ..data.similarities import SimilaritySet
from ..data.sort_keys import index_dtype, strictly_decreasing
from ..engine.rerank import rerank
from ..errors import InputError, ParameterError

METHODS = ("reciprocal-rank", "mean")
NAME = "fusion"
"""What rankings of this kind have as method."""

# Bytes of sums at a time.
_CHUNK_BYTES = 64 << 20


def fuse(
    rankings: Sequence[Ranking | SimilaritySet],
    data: FeatureSet,
    *,
    by: str = "reciprocal-rank",
    k: float = 60.0,
    weights: Sequence[float] | None = None,
    depth: int | None = None,
) -> Ranking:
    """Fuse rankings of the same probes and gallery.

    With w the weights and the sum over the rankings that list item g for probe p:

        reciprocal-rank    score(p, g) = sum w / (k + rank(p, g)), ranks from 1
        mean               score(p, g) = sum w (s(p, g) - min) / (max - min) / sum of all w, with min and max
                           over the list of p in that ranking; 1 where all are equal

    An item that a ranking does not list gets nothing from it. Ties go to the lower gallery index.

    Args:
        rankings: two or more, of any length; similarities count as complete rankings.
        data: what they rank.
        by: `reciprocal-rank` or `mean`.
        k: how little the first ranks stand out, above 0; for `reciprocal-rank`.
        weights: one for each ranking, above 0; by default 1.
        depth: of the result; by default as deep as the longest of the lists.

    Returns:
        The ranking, -1 past the end of lists.

    Raises:
        InputError: for fewer than two rankings, or one of other probes or another gallery.
        ParameterError: for a parameter outside its range.

    Examples:
        >>> data = FeatureSet.from_arrays(np.eye(1, 3), np.eye(3))
        >>> lists = [np.array([row], np.int32) for row in ([0, 1, 2], [1, 2, 0])]
        >>> scores = np.array([[0.9, 0.5, 0.1]], np.float32)
        >>> fuse([Ranking(one, scores, gallery_size=3) for one in lists], data).indices.tolist()
        [[1, 0, 2]]
    """
    if by not in METHODS:
        raise ParameterError(f"fusion by {by!r} is not known: use {' or '.join(METHODS)}")
    check_features(data)
    for one in rankings:
        if not isinstance(one, SimilaritySet):
            check_ranking(one)
    if len(rankings) < 2:
        raise InputError("fusion needs at least two rankings")
    shares = [1.0] * len(rankings) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(rankings):
        raise ParameterError(
            f"weights has {len(shares)} numbers for {len(rankings)} rankings: give one for each"
        )
    for name, value in [("k", k), *(("a weight", share) for share in shares)]:
        if not 0 < value < math.inf:
            raise ParameterError(f"{name} must be a number above 0, not {value!r}")
    if depth is not None:
        check_count("depth", depth)
    size = len(data.gallery)
    lists = [_lists(one, data) for one in rankings]
    depth = min(size, depth or max(one.depth for one in lists))
    parts = []
    step = max(1, _CHUNK_BYTES // (16 * size))
    for start in range(0, len(data.probe), step):
        some = slice(start, start + step)
        sums = np.zeros((len(lists[0].indices[some]), size))
        listed = np.zeros(sums.shape, dtype=bool)
        for one, share in zip(lists, shares, strict=True):
            gains = (
                share / (k + 1.0 + np.arange(one.depth)) if by == METHODS[0] else _normalised(one, some, share)
            )
            probe, place = np.nonzero(one.indices[some] >= 0)
            item = one.indices[some][probe, place]
            sums[probe, item] += np.broadcast_to(gains, one.indices[some].shape)[probe, place]
            listed[probe, item] = True
        parts.append(_best(sums if by == METHODS[0] else sums / sum(shares), listed, depth))
    return Ranking(
        np.concatenate([indices for indices, _ in parts]),
        np.concatenate([scores for _, scores in parts]),
        gallery_size=size,
        method=NAME,
        params={
            "by": by,
            **({"k": int(k) if k == int(k) else float(k)} if by == METHODS[0] else {}),
            "weights": ", ".join(f"{share:g}" for share in shares),
        },
        reranked_depth=depth,
        digest=data.digest(),
    )


def _lists(ranking: Ranking | SimilaritySet, data: FeatureSet) -> Ranking:
    """A ranking of `data`, complete where it comes from similarities."""
    if isinstance(ranking, SimilaritySet):
        found = rerank(ranking, "cosine", depth=len(ranking.gallery))
        found.check_size(len(data.probe), len(data.gallery))
        return found
    ranking.check_size(len(data.probe), len(data.gallery))
    return ranking


def _normalised(ranking: Ranking, some: slice, share: float) -> NDArray[np.float64]:
    """The scores of some lists from 0, the last, to `share`, the first."""
    scores = ranking.scores[some].astype(np.float64)
    absent = ranking.indices[some] < 0
    low = np.where(absent, np.inf, scores).min(axis=1, keepdims=True)
    high = np.where(absent, -np.inf, scores).max(axis=1, keepdims=True)
    spread = high - low
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(spread > 0, (scores - low) / spread, 1.0)
    return share * np.where(absent, 0.0, found)


def _best(
    sums: NDArray[np.float64], listed: NDArray[np.bool_], depth: int
) -> tuple[NDArray[np.int_], NDArray[np.float32]]:
    """The best listed items of each row and their scores."""
    keys = torch.from_numpy(np.where(listed, sums, -np.inf))
    values, items = (found[:, :depth].numpy() for found in keys.sort(dim=1, descending=True, stable=True))
    absent = values == -np.inf
    scores = strictly_decreasing(np.where(absent, -3e38, values).astype(np.float32))
    indices = np.where(absent, -1, items).astype(index_dtype(sums.shape[1]))
    return indices, np.where(absent, np.float32(-np.inf), scores)
