"""Measure a ranking over the whole gallery, also when its lists are short."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.compute import Compute, Progress
from ..data.arguments import check_features, check_ranking
from ..data.features import FeatureSet
from ..data.positions import Positions
from ..data.ranking import Ranking
from ..data.similarities import SimilaritySet
from ..errors import InputError
from ..evaluation.match_finder import MatchFinder
from ..evaluation.metrics import Metrics, check_ap, measure, warn_about
from ..evaluation.protocols import Protocol, get_protocol
from ..methods import AnyMethod, create, is_available
from .ranking import rank_batches
from .request import ONLINE, Request

_BY_COSINE = create("cosine", topn=1)
# Share of the items of lists that may stand elsewhere when these are made again, on another device.
_DIFFERENT = 1e-3


def evaluate(
    ranking: Ranking | SimilaritySet,
    data: FeatureSet | None = None,
    *,
    protocol: str = "market1501",
    ap: str = "plain",
    device: str = "auto",
    memory: int | None = None,
    progress: Progress | None = None,
) -> Metrics:
    """Measure a ranking over the whole gallery, or, where that cannot be known, to the depth it has.

    The whole gallery is known when the ranking carries the positions of its matches, when its lists are
    complete, or when it was made here from the same features, not from candidates alone: what is not written
    then follows from them. Otherwise matches that are not listed count as missed; `Metrics.depth` and a warning
    say so.

    Args:
        ranking: of the probes of `data`; or similarities, whose own order is measured.
        data: features with ids, and cameras if the protocol is to use them; by default those similarities.
        protocol: `market1501`, `cuhk03`, `leave-one-out` or `plain`.
        ap: `plain` or `trapezoid`.
        device: where similarities are computed, if they are needed.
        memory: budget in bytes for the same.
        progress: called with (images done, images in all) for the same.

    Raises:
        InputError: if ranking and data do not belong together, or there are no ids.
        ParameterError: for an unknown protocol or kind of AP.
    """
    rules = get_protocol(protocol)
    check_ap(ap)
    if isinstance(ranking, SimilaritySet):
        data = ranking
    else:
        check_ranking(ranking)
    if data is None:
        raise InputError("a ranking has no ids: also pass the features that it was made from")
    check_labelled(data)
    compute = Compute.choose(device, memory, progress=progress)
    if isinstance(ranking, SimilaritySet):
        positions, depth = _ranked_again(_BY_COSINE, data, rules, compute)[0], None
    else:
        check_made_from(ranking, data)
        positions, depth = _positions(ranking, data, rules, compute)
    metrics = measure(positions, data, rules, ap=ap, depth=depth)
    warn_about(metrics, data)
    return metrics


def check_labelled(data: FeatureSet) -> None:
    """Raise `InputError` unless `data` are features with ids, by which rankings are measured."""
    check_features(data)
    if not data.has_ids:
        raise InputError(f"{data.lacking('ids')}: a ranking can be written but not measured")


def check_made_from(ranking: Ranking, data: FeatureSet) -> None:
    """Raise `InputError` unless `ranking` has the size of `data`, and, where it says so, was made from it."""
    ranking.check_size(len(data.probe), len(data.gallery))
    if ranking.digest is not None and ranking.digest != data.digest():
        raise InputError(
            f"{ranking.source} was made from other features: pass those it was made from, in the same dtype"
        )


def _positions(
    ranking: Ranking, data: FeatureSet, protocol: Protocol, compute: Compute
) -> tuple[Positions, int | None]:
    """Where the matches stand in the full lists, or, with the depth, in lists that end before."""
    if _carries_positions(ranking, data, protocol):
        assert ranking.positions is not None
        return ranking.positions, None
    depth = int((ranking.indices >= 0).sum(axis=1).min())
    method: AnyMethod | None = None
    heads: NDArray[Any] | None = ranking.indices[:, : ranking.reranked_depth]
    if depth < len(data.gallery):
        if ranking.cosine_tail and depth >= ranking.reranked_depth:
            method = _BY_COSINE
        elif ranking.candidates is None and ranking.digest is not None and is_available(ranking.method):
            # The head is not all there: make it again.
            method, heads = create(ranking.method, **ranking.params), None
    if method is not None:
        listed = ranking.indices if heads is None else None
        online = ranking.setting == ONLINE
        positions, different = _ranked_again(method, data, protocol, compute, heads, listed, online=online)
        # More, as when the index or the camera images that it was made with are not there: only what is listed
        # counts.
        if different <= _DIFFERENT * ranking.indices.size:
            return positions, None
    finder = _finder(data, protocol, replace(compute, device=torch.device("cpu")))
    positions = finder.in_lists(0, torch.from_numpy(ranking.indices.astype(np.int64)))
    return positions, None if depth == len(data.gallery) else depth


def _ranked_again(
    method: AnyMethod,
    data: FeatureSet,
    protocol: Protocol,
    compute: Compute,
    heads: NDArray[Any] | None = None,
    listed: NDArray[Any] | None = None,
    *,
    online: bool = False,
) -> tuple[Positions, int]:
    """Where the matches stand in the full lists of a method, of which the `heads` may be known.

    Also how many items of the lists that were `listed` before stand elsewhere.
    """
    finder, parts, different = _finder(data, protocol, compute), [], 0
    for batch in rank_batches(data, method, Request(whole_rows=True, online=online), compute):
        rows = slice(batch.start, batch.start + len(batch.indices))
        if heads is not None:
            given = torch.from_numpy(heads[rows].astype(np.int64)).to(batch.indices.device)
            batch = replace(batch, indices=given, reranked=given.shape[1])
        if listed is not None:
            again = batch.indices[:, : listed.shape[1]].cpu().numpy()
            different += int((listed[rows, : again.shape[1]] != again).sum())
        parts.append(batch.after(finder))
    return Positions.concatenate(parts), different


def _finder(data: FeatureSet, protocol: Protocol, compute: Compute) -> MatchFinder:
    return MatchFinder(data, single_shot=protocol.single_shot, device=compute.device, memory=compute.memory)


def _carries_positions(ranking: Ranking, data: FeatureSet, protocol: Protocol) -> bool:
    """Whether the ranking's own positions serve: found with these labels, and enough for the protocol."""
    return (
        ranking.positions is not None
        and ranking.labels_digest == data.labels_digest()
        and (ranking.positions.within is not None or not protocol.single_shot)
    )
