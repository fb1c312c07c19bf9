"""The whole road in one call: search, re-rank, locate the matches, measure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..compute.device import pick_device
from ..compute.progress import Progress
from ..data.features import FeatureSet
from ..data.given_lists import GivenLists
from ..data.positions import Positions
from ..data.ranking import Ranking
from ..errors import InputError
from ..evaluation.match_finder import MatchFinder
from ..evaluation.metrics import Metrics, check_ap, measure, warn_about
from ..evaluation.protocols import Protocol, get_protocol
from ..methods import HeadMethod, Method, available, create
from ..methods.lbr import LocalBlurring
from .batches import rerank_batches
from .given import check_method


def rerank(
    data: FeatureSet,
    method: str = "lbr",
    *,
    preset: str | None = None,
    depth: int | None = None,
    device: str = "auto",
    memory: int | None = None,
    block: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    candidates: GivenLists | ArrayLike | torch.Tensor | None = None,
    **params: Any,
) -> Ranking:
    """Rank the gallery for every probe and re-rank the lists.

    Args:
        data: the features.
        method: a name from `blurrerank.methods.available()`.
        preset: the method's parameters for a public data set, such as `market1501`.
        depth: how much of each list to return; by default the method's `topn`, or 50 if it has none. Capped at
            the gallery.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget for working memory in bytes; by default 2 GiB, and half of what is free on a GPU.
        block: gallery rows per block, instead of what the budget suggests.
        precision: of the products that candidates are found by, `auto`, `float32` or `bfloat16`; the lists are
            the same.
        progress: called with (images done, images in all).
        candidates: (P, R) integers, the gallery rows that another search found for each probe, in any order;
            -1 pads lists that end early. Nothing is searched then: these are sorted by cosine similarity, and
            the best `topn` of them re-ranked. `topn` and `depth` are capped at R. For `lbr` and `cosine`.
        **params: the method's own parameters, such as `topn` and `sigma`.

    Returns:
        A `Ranking` of all probes, `depth` deep; of a method that re-ranks the whole gallery, with the positions
        of the matches if there are ids. With `candidates`, lists that end early are padded with -1.

    Raises:
        ParameterError: for an unknown method, preset or parameter, a value outside its range, or candidates for
            a method that ranks the whole gallery.
        InputError: for candidates that are no lists for these probes and this gallery; names the probe.
        BlurrerankError: for a device that is not here.
    """
    chosen = create(method, preset=preset, **params)
    return rerank_with(
        chosen,
        data,
        depth=depth,
        device=device,
        memory=memory,
        block=block,
        precision=precision,
        progress=progress,
        candidates=candidates,
    )


def rerank_with(
    chosen: Method,
    data: FeatureSet,
    *,
    depth: int | None = None,
    device: str = "auto",
    memory: int | None = None,
    block: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    candidates: GivenLists | ArrayLike | torch.Tensor | None = None,
) -> Ranking:
    """`rerank` with a method that is there already; arguments and errors as there."""
    size = reach = len(data.gallery)
    given = None
    if candidates is not None:
        check_method(chosen)
        given = GivenLists.of(candidates, len(data.probe), size)
        given.warn_about()
        reach = given.depth
    shown = chosen.depth(reach) if depth is None else depth
    # What it takes to give every item a new score is not to be done again for the metrics; nor can the rest of
    # lists that were given be found by a search, even if they hold everything.
    finder = None
    if data.has_ids and (given.complete if given is not None else not isinstance(chosen, HeadMethod)):
        finder = MatchFinder(data, single_shot=False, device=pick_device(device), memory=memory)
    lists, located = [], []
    for batch in rerank_batches(
        data,
        chosen,
        depth=depth,
        device=device,
        memory=memory,
        block=block,
        precision=precision,
        progress=progress,
        candidates=given,
    ):
        lists.append(batch.lists(shown))
        if finder is not None:
            located.append(batch.after(finder))
    return Ranking(
        np.concatenate([indices for indices, _ in lists]),
        np.concatenate([scores for _, scores in lists]),
        gallery_size=size,
        method=chosen.name,
        params=chosen.params(),
        reranked_depth=chosen.reranked(reach),
        cosine_tail=given is None and isinstance(chosen, HeadMethod),
        candidates=None if given is None else given.source,
        digest=data.digest(),
        labels_digest=data.labels_digest() if located else None,
        positions=Positions.concatenate(located) if located else None,
    )


def local_blurring(
    probe: ArrayLike | torch.Tensor,
    gallery: ArrayLike | torch.Tensor,
    *,
    topn: int = 50,
    sigma: float = 0.1,
    probe_in_graph: bool = False,
    cosine: bool = False,
    steps: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Local blurring re-ranking of tensors or arrays, where they are.

    Args:
        probe: (P, D) features, float16, float32 or float64.
        gallery: (G, D) features, the same dimension.
        topn: neighbourhood size; capped at G.
        sigma: temperature of the affinity exp(cos / sigma), above 0.
        probe_in_graph: whether the probe is a node of the graph too.
        cosine: whether transformed features are compared by cosine instead of dot product.
        steps: how many steps of the random walk.

    Returns:
        `(indices, scores)`: (P, min(topn, G)) int64 into the gallery, best first, and float32, on the device
        of `gallery` (arrays: the CPU).

    Raises:
        InputError: for features that cannot be compared.
        ParameterError: for a parameter outside its range.

    >>> import numpy as np
    >>> near, scores = local_blurring(np.eye(2, 3), np.eye(3), topn=2)
    >>> near.tolist()
    [[0, 1], [1, 0]]
    """
    data = FeatureSet.from_arrays(probe, gallery)
    method = LocalBlurring(topn, sigma, probe_in_graph, cosine, steps)
    device = gallery.device if isinstance(gallery, torch.Tensor) else "cpu"
    batches = list(rerank_batches(data, method, device=str(device)))
    return torch.cat([batch.indices for batch in batches]), torch.cat([batch.scores for batch in batches])


def evaluate(
    ranking: Ranking,
    data: FeatureSet,
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
        ranking: of the probes of `data`.
        data: features with ids, and cameras if the protocol is to use them.
        protocol: `market1501`, `cuhk03` or `plain`.
        ap: `plain` or `trapezoid`.
        device: where similarities are computed, if they are needed.
        memory: budget in bytes for the same.
        progress: called with (images done, images in all) for the same.

    Raises:
        InputError: if ranking and data do not belong together, or there are no ids.
        ParameterError: for an unknown protocol or kind of AP.
    """
    chosen = get_protocol(protocol)
    check_ap(ap)
    if not data.has_ids:
        raise InputError(f"{data.lacking('ids')}: a ranking can be written but not measured")
    check_made_from(ranking, data)
    positions, depth = _positions(ranking, data, chosen, device, memory, progress)
    metrics = measure(positions, data, chosen, ap=ap, depth=depth)
    warn_about(metrics, data)
    return metrics


def check_made_from(ranking: Ranking, data: FeatureSet) -> None:
    """Raise `InputError` unless `ranking` has the size of `data`, and, where it says so, was made from it."""
    ranking.check_size(len(data.probe), len(data.gallery))
    if ranking.digest is not None and ranking.digest != data.digest():
        raise InputError(
            f"{ranking.source} was made from other features: pass those it was made from, in the same dtype"
        )


def _positions(
    ranking: Ranking,
    data: FeatureSet,
    protocol: Protocol,
    device: str,
    memory: int | None,
    progress: Progress | None,
) -> tuple[Positions, int | None]:
    """Where the matches stand in the full lists, or, with the depth, in lists that end before."""
    if _carried(ranking, data, protocol):
        assert ranking.positions is not None
        return ranking.positions, None
    depth = int((ranking.indices >= 0).sum(axis=1).min())
    method: Method | None = None
    heads: NDArray[Any] | None = ranking.indices[:, : ranking.reranked_depth]
    if depth < len(data.gallery):
        if ranking.cosine_tail and depth >= ranking.reranked_depth:
            method = create("cosine", topn=1)
        elif ranking.candidates is None and ranking.digest is not None and ranking.method in available():
            # The head is not all there: make it again.
            method, heads = create(ranking.method, **ranking.params), None
    where = torch.device("cpu") if method is None else pick_device(device)
    finder = MatchFinder(data, single_shot=protocol.single_shot, device=where, memory=memory)
    if method is None:
        positions = finder.in_lists(0, torch.from_numpy(ranking.indices.astype(np.int64)))
        return positions, None if depth == len(data.gallery) else depth
    parts = []
    for batch in rerank_batches(data, method, full_rows=True, device=device, memory=memory, progress=progress):
        if heads is not None:
            rows = slice(batch.start, batch.start + len(batch.indices))
            given = torch.from_numpy(heads[rows].astype(np.int64)).to(batch.indices.device)
            batch = replace(batch, indices=given, reranked=given.shape[1])
        parts.append(batch.after(finder))
    return Positions.concatenate(parts), None


def _carried(ranking: Ranking, data: FeatureSet, protocol: Protocol) -> bool:
    """Whether the ranking's own positions serve: found with these labels, and enough for the protocol."""
    return (
        ranking.positions is not None
        and ranking.labels_digest == data.labels_digest()
        and (ranking.positions.within is not None or not protocol.single_shot)
    )
