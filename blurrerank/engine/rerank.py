"""From features to a ranking, in one call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..compute.compute import Compute, Progress
from ..data.arguments import check_features
from ..data.features import FeatureSet
from ..data.given_lists import GivenLists
from ..data.positions import Positions
from ..data.ranking import Ranking
from ..data.side import Side
from ..evaluation.match_finder import MatchFinder
from ..graph.neighbour_graph import NeighbourGraph
from ..methods import AnyMethod, HeadRanker, create
from ..methods.lbr import LocalBlurring
from .auto import choose, is_auto
from .likeness import warn_of_likeness
from .ranking import rank_batches
from .request import Request, check_reranks_candidates, setting_of


def rerank(
    data: FeatureSet,
    method: str = "lbr",
    *,
    preset: str | None = None,
    depth: int | None = None,
    online: bool = False,
    device: str = "auto",
    memory: int | None = None,
    block: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    candidates: GivenLists | ArrayLike | torch.Tensor | None = None,
    graph: NeighbourGraph | None = None,
    camera_images: Side | None = None,
    **params: Any,
) -> Ranking:
    """Rank the gallery for every probe and re-rank the lists.

    Args:
        data: the features.
        method: a name from `blurrerank.methods.available()`, a chain such as `dba:k=4+k-reciprocal`, or `auto`,
            which chooses a chain for the data, without identities; `params` of the ranking say which.
        preset: the method's parameters for a public data set, such as `market1501`.
        depth: how much of each list to return; by default the method's `topn`, or 50 if it has none. Capped at
            the gallery.
        online: rank each probe by itself, whatever the others are; refused for methods that cannot.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget for working memory in bytes; by default 2 GiB, and half of what is free on a GPU.
        block: gallery rows per block, instead of what the budget suggests.
        precision: of the products that candidates are found by, `auto`, `float32` or `bfloat16`; the lists are
            the same.
        progress: called with (images done, images in all).
        candidates: (P, R) integers, the gallery rows that another search found for each probe, in any order;
            -1 pads lists that end early. Nothing is searched then: these are sorted by cosine similarity, and
            the best `topn` of them re-ranked. `topn` and `depth` are capped at R. For `lbr` and `cosine`.
        graph: what `neighbour_graph` found of these features, so that several methods and settings share it.
        camera_images: earlier images of cameras that the gallery lacks, unlabelled, for steps such as `center`.
        **params: the method's own parameters, such as `topn` and `sigma`; in a chain, such as `dba.k`. Some,
            such as `k1`, may be `auto` too.

    Returns:
        A `Ranking` of all probes, `depth` deep; of a method that re-ranks the whole gallery, with the positions
        of the matches if there are ids. With `candidates`, lists that end early are padded with -1.

    Raises:
        ParameterError: for an unknown method, preset or parameter, a value outside its range, a method that
            cannot work online or with candidates where that is asked for, or a graph whose lists are too short.
        InputError: for anything else than a `FeatureSet`, candidates that are no lists for these probes and
            this gallery, or a graph of other images; names the probe.
        BlurrerankError: for a device that is not available.
    """
    check_features(data)
    chosen = None if is_auto(method, params) else create(method, preset=preset, **params)
    if candidates is not None:
        candidates = GivenLists.of(candidates, len(data.probe), len(data.gallery))
        if chosen is not None:
            check_reranks_candidates(chosen, candidates)
        candidates.warn_about()
    if isinstance(camera_images, Side):
        camera_images = camera_images.cameras_like(data.gallery)
    request = Request(depth, online=online, candidates=candidates, graph=graph, camera_images=camera_images)
    compute = Compute.choose(device, memory, precision=precision, block=block, progress=progress)
    if chosen is None:
        found = choose(method, data, request, compute, preset=preset, **params)
        chosen, request = found.method, found.request
    warn_of_likeness(data, chosen)
    return rank(data, chosen, request, compute)


def rank(data: FeatureSet, method: AnyMethod, request: Request, compute: Compute) -> Ranking:
    """Return what `rerank` does, for a method that is made already; errors as there."""
    given, size = request.candidates, len(data.gallery)
    reach = size if given is None else given.depth
    shown = method.depth(reach) if request.depth is None else request.depth
    # New scores for every item are not computed again for the metrics; nor can the rest of lists that were
    # given be found by a search, even if they hold everything.
    finder = None
    if data.has_ids and (given.complete if given is not None else not isinstance(method, HeadRanker)):
        finder = MatchFinder(data, single_shot=False, device=compute.device, memory=compute.memory)
        request = replace(request, whole_rows=True)
    lists, located = [], []
    for batch in rank_batches(data, method, request, compute):
        lists.append(batch.lists(shown))
        if finder is not None:
            located.append(batch.after(finder))
    return Ranking(
        np.concatenate([indices for indices, _ in lists]),
        np.concatenate([scores for _, scores in lists]),
        gallery_size=size,
        method=method.name,
        params=method.params(),
        setting=setting_of(method, request.online),
        reranked_depth=method.reranked(reach),
        cosine_tail=given is None and isinstance(method, HeadRanker),
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
    """Re-rank tensors or arrays by local blurring, where they are.

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

    Examples:
        >>> import numpy as np
        >>> near, scores = local_blurring(np.eye(2, 3), np.eye(3), topn=2)
        >>> near.tolist()
        [[0, 1], [1, 0]]
    """
    data = FeatureSet.from_arrays(probe, gallery)
    method = LocalBlurring(topn, sigma, probe_in_graph, cosine, steps)
    device = gallery.device if isinstance(gallery, torch.Tensor) else "cpu"
    batches = list(rank_batches(data, method, Request(), Compute.choose(str(device))))
    return torch.cat([batch.indices for batch in batches]), torch.cat([batch.scores for batch in batches])
