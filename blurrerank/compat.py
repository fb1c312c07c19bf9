"""Drop-ins for the functions that re-identification programs call already.

Their arguments keep the names and the order that these programs have, down to `probFea`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .compute.compute import Compute
from .data.checks import flat_shape
from .data.features import FeatureSet
from .data.ranking import Ranking
from .data.sort_keys import sort_keys, strictly_decreasing
from .engine.ranking import rank_batches
from .engine.request import Request
from .engine.rerank import rerank
from .errors import InputError
from .graph.comparison import compared
from .graph.neighbour_graph import NeighbourGraph
from .graph.sparse_rows import CHUNK_BYTES, SparseRows
from .methods import create
from .methods.k_reciprocal import KReciprocal
from .search.rows import blocks_of

Matrix = ArrayLike | torch.Tensor

# Norms closer than this, relatively, are one norm: what float32 leaves after normalising.
_ONE_NORM = 1e-6
# Distances of 1 - cosine may be as far below 0, relative to the largest, by rounding.
_ROUNDED = 1e-3


def re_ranking(*args: Any, **kwargs: Any) -> NDArray[np.float32]:
    """k-reciprocal re-ranking, called as the authors' programs and their descendants are.

    `re_ranking(q_g_dist, q_q_dist, g_g_dist, k1=20, k2=6, lambda_value=0.3)` takes distances between Q probes
    and G gallery items, (Q, G), (Q, Q) and (G, G), and squares them, whether or not they are squares already.
    So do Zhong's `re_ranking_ranklist.py`, torchreid's `utils/rerank.py` (which is given squared Euclidean
    distances, and so works with fourth powers), fast-reid's `evaluation/rerank.py` and layumi's
    `re_ranking.py`. The last is given cosine similarities s instead, and begins with 2 - 2s: pass
    `2 - 2 * s` here.

    `re_ranking(probFea, galFea, k1, k2, lambda_value, local_distmat=None, only_local=False)` takes features,
    (Q, D) and (G, D), and squared Euclidean distances of them as they are, not normalised; so does
    reid-strong-baseline's `utils/re_ranking.py`. `MemorySave` and `Minibatch`, by which Zhong's
    `re_ranking_feature.py` cuts its work, change nothing here. (Q + G, Q + G) `local_distmat` is added to
    these, or with `only_local` taken instead of them, and not squared. That program keeps encodings in float16,
    which is not repeated here: it moves distances by 0.002 or so, and with them items that stand close.

    The two are told apart by the third argument: a matrix is `g_g_dist`. All these programs then divide the
    distances of each image by their maximum and go on as `blurrerank.methods.k_reciprocal` says. Here ties go
    to the lower index, probes before gallery, an image is always the first of its own neighbours, and images
    that are all equal have distance 0, where the others divide 0 by 0. Features that all have one norm are
    searched without a matrix of all images by all images; otherwise distances are made in float64, some rows at
    a time.

    Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017,
    arXiv:1701.08398.

    Args:
        *args: NumPy arrays or torch tensors on any device, where the work is then done, and parameters, as
            above.
        **kwargs: the same by name.

    Returns:
        (Q, G) float32 final distances, smaller is better.

    Raises:
        InputError: for shapes that do not fit, values that are not finite, or similarities in place of
            distances; names the argument.
        ParameterError: for k1, k2 or lambda_value outside their range.

    Examples:
        >>> import numpy as np
        >>> probe, gallery = np.eye(2, 3), np.eye(3)
        >>> re_ranking(probe, gallery, k1=1, k2=1, lambda_value=0.3).round(3).tolist()
        [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]
        >>> def distances(a, b):
        ...     return np.linalg.norm(a[:, None] - b, axis=2)
        >>> matrices = distances(probe, gallery), distances(probe, probe), distances(gallery, gallery)
        >>> re_ranking(*matrices, k1=1, k2=1, lambda_value=0.3).round(3).tolist()
        [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]
    """
    if "g_g_dist" in kwargs or (len(args) > 2 and np.ndim(args[2]) > 0):
        return _from_distances(*args, **kwargs)
    return _from_features(*args, **kwargs)


def lbr_distmat(
    probFea: Matrix,
    galFea: Matrix,
    topn: int = 50,
    sigma: float = 0.1,
) -> NDArray[np.float32]:
    """Local blurring re-ranking in the style of `re_ranking`: a matrix to sort.

    Args:
        probFea: (Q, D) features, arrays or tensors.
        galFea: (G, D) features.
        topn: how many items at the head of each list are re-ranked; capped at G.
        sigma: temperature of the affinity exp(cos / sigma), above 0.

    Returns:
        (Q, G) float32; see `to_distmat`. The tail follows by cosine similarity.

    Raises:
        InputError: for features that cannot be compared.
        ParameterError: for a parameter outside its range.

    Examples:
        >>> import numpy as np
        >>> np.argsort(lbr_distmat(np.eye(2, 3), np.eye(3), topn=2), axis=1).tolist()
        [[0, 1, 2], [1, 0, 2]]
    """
    data = FeatureSet.from_arrays(probFea, galFea)
    full = rerank(data, depth=len(data.gallery), topn=topn, sigma=sigma, device=_device_of(galFea))
    return to_distmat(full)


def to_distmat(ranking: Ranking) -> NDArray[np.float32]:
    """A matrix of distances for programs that take one and sort it.

    Args:
        ranking: of P probes.

    Returns:
        (P, G) float32, no two equal in a row, so that any sort gives the ranking's lists exactly. A listed item
        has minus its score. After them come the items that are not listed, in the order of the gallery: a
        ranking made with `depth=len(data.gallery)` lists them all. Where float32 has no room after the last
        score, the row counts places from 0 instead.

    Examples:
        >>> import numpy as np
        >>> lists = np.array([[2, 0, -1]], dtype=np.int32)
        >>> scores = np.array([[0.75, 0.5, -np.inf]], dtype=np.float32)
        >>> to_distmat(Ranking(lists, scores, gallery_size=4)).tolist()
        [[-0.5, 0.5, -0.75, 1.5]]
    """
    size = ranking.gallery_size
    matrix = np.empty((len(ranking), size), dtype=np.float32)
    places = np.arange(size, dtype=np.float32)
    for row, indices, scores in zip(matrix, ranking.indices, ranking.scores, strict=True):
        listed = indices[indices >= 0]
        absent = np.ones(size, dtype=bool)
        absent[listed] = False
        own = scores[: len(listed)]
        others = np.flatnonzero(absent)
        after = (own[-1] if len(own) else np.float32(0)) - 1 - places[: len(others)]
        keys = strictly_decreasing(np.concatenate([own, after])[None])
        if not np.isfinite(keys).all():
            keys = strictly_decreasing(-places[None])
        row[np.concatenate([listed, others])] = -keys[0]
    return matrix


class OMLLocalBlurring:
    """Local blurring as a post-processor of OML, the package `open-metric-learning`, versions 3 and 4.

    It has `top_n` and `process(rr, dataset)` as OML's `PairwiseReranker` has, and `EmbeddingMetrics` takes it
    as `postprocessor`. It is not derived from OML's `IRetrievalPostprocessor`, which holds nothing: OML need
    not be there to import this module.

    Attributes:
        embeddings: (N, D) features of the whole dataset, array or tensor, as
            `RetrievalResults.from_embeddings` takes them.
        top_n: how many items at the head of each list are re-ranked.
        sigma: temperature of the affinity exp(cos / sigma), above 0.

    Raises:
        InputError: on construction, if OML is not installed.
        ParameterError: on construction, for a parameter outside its range.
    """

    def __init__(self, embeddings: Matrix, top_n: int = 50, sigma: float = 0.1) -> None:
        _results_of_oml()
        create("lbr", topn=top_n, sigma=sigma)
        self.embeddings = _matrix("embeddings", embeddings)
        self.device = _device_of(embeddings)
        self.top_n = top_n
        self.sigma = sigma

    def process(self, rr: Any, dataset: Any) -> Any:
        """Re-rank the head of each list.

        Args:
            rr: `RetrievalResults`, lists of any length.
            dataset: an `IQueryGalleryDataset`, with `get_query_ids()` and `get_gallery_ids()`, rows of the
                embeddings.

        Returns:
            New results. The item that stands k-th now has the distance that the k-th had: distances stay sorted
            and what follows the head stays as it was.

        Raises:
            InputError: if results, dataset and embeddings do not belong together.
        """
        if rr.is_empty():
            return rr.deepcopy()
        probes, gallery = map(torch.as_tensor, (dataset.get_query_ids(), dataset.get_gallery_ids()))
        if len(self.embeddings) != len(dataset):
            raise InputError(
                f"embeddings has {len(self.embeddings)} rows and dataset {len(dataset)} items: pass what "
                "RetrievalResults.from_embeddings was given"
            )
        heads = np.full((len(rr.retrieved_ids), self.top_n), -1)
        for row, ids in zip(heads, rr.retrieved_ids, strict=True):
            some = ids[: self.top_n].cpu().numpy()
            row[: len(some)] = some
        ranking = rerank(
            FeatureSet.from_arrays(self.embeddings[probes], self.embeddings[gallery]),
            topn=self.top_n,
            sigma=self.sigma,
            candidates=heads,
            device=self.device,
        )
        lists = []
        for near, ids in zip(ranking.indices, rr.retrieved_ids, strict=True):
            head = torch.as_tensor(near[near >= 0], dtype=ids.dtype, device=ids.device)
            lists.append(torch.cat([head, ids[len(head) :]]))
        return _results_of_oml()(distances=rr.distances, retrieved_ids=lists, gt_ids=rr.gt_ids)


def _results_of_oml() -> Any:
    try:
        from oml.retrieval.retrieval_results import RetrievalResults
    except ImportError as missing:
        raise InputError(
            f"OML is not installed ({missing}): install the package open-metric-learning, version 3 or later"
        ) from None
    return RetrievalResults


def _from_distances(
    q_g_dist: Matrix,
    q_q_dist: Matrix,
    g_g_dist: Matrix,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> NDArray[np.float32]:
    method = KReciprocal(k1, k2, lambda_value)
    between = _matrix("q_g_dist", q_g_dist)
    probes, items = between.shape
    of_probes = _matrix("q_q_dist", q_q_dist, (probes, probes), between.device)
    of_items = _matrix("g_g_dist", g_g_dist, (items, items), between.device)
    for name, distances in (("q_g_dist", between), ("q_q_dist", of_probes), ("g_g_dist", of_items)):
        lowest = float(distances.min())
        if lowest < -_ROUNDED * max(1, float(distances.abs().max())):
            raise InputError(
                f"{name} has values below 0, down to {lowest:.4g}, so these are not distances: if they are "
                "cosine similarities s, pass 2 - 2 * s for all three matrices"
            )
    for name, square in (("q_q_dist", of_probes), ("g_g_dist", of_items)):
        if len(square) > 1 and square.diagonal().double().mean() > square.double().mean():
            raise InputError(
                f"{name} seems to hold similarities, as images are farther from themselves than from others: "
                "if they are cosine similarities s, pass 2 - 2 * s for all three matrices"
            )

    def rows(start: int, stop: int) -> torch.Tensor:
        # The programs turn their matrix round: where q_q_dist or g_g_dist is not symmetric, its columns count.
        of_probe = slice(min(start, probes), min(stop, probes))
        of_item = slice(max(start - probes, 0), max(stop - probes, 0))
        upper = torch.cat([of_probes[:, of_probe].T, between[of_probe]], dim=1)
        lower = torch.cat([between[:, of_item].T, of_items[:, of_item].T], dim=1)
        return torch.cat([upper, lower]).square().float()

    return _final(method, rows, probes, probes + items, between.device)


def _from_features(
    probFea: Matrix,
    galFea: Matrix,
    k1: int,
    k2: int,
    lambda_value: float,
    local_distmat: Matrix | None = None,
    only_local: bool = False,
    MemorySave: bool = False,
    Minibatch: int = 2000,
) -> NDArray[np.float32]:
    if isinstance(local_distmat, bool):
        local_distmat, only_local = None, False  # the sixth argument of Zhong's program is MemorySave
    method = KReciprocal(k1, k2, lambda_value)
    items = _matrix("galFea", galFea)
    probes = _matrix("probFea", probFea, (None, items.shape[1]), items.device)
    number = len(probes) + len(items)
    local = None
    if local_distmat is not None:
        local = _matrix("local_distmat", local_distmat, (number, number), items.device)
    elif only_local:
        raise InputError("only_local needs distances of local features: pass local_distmat")
    features = torch.cat([probes, items]).double()
    squares = features.square().sum(dim=1)
    low, high = squares.min().sqrt(), squares.max().sqrt()
    if local is None and low > 0 and high - low <= _ONE_NORM * high:
        data = FeatureSet.from_arrays(probes, items)
        batches = rank_batches(data, method, Request(), Compute.choose(_device_of(galFea)))
        return np.concatenate([-batch.final.cpu().numpy() for batch in batches if batch.final is not None])

    def rows(start: int, stop: int) -> torch.Tensor:
        if local is not None and only_local:
            return local[:, start:stop].T.float()
        # In float64: differences of large squares leave little of float32.
        found = torch.addmm(squares, features[start:stop], features.T, alpha=-2)
        found = found.add_(squares[start:stop, None]).clamp_min_(0)
        found.diagonal(start).zero_()
        return found.float() if local is None else (found + local[:, start:stop].T).float()

    return _final(method, rows, len(probes), number, items.device)


def _final(
    method: KReciprocal,
    rows: Callable[[int, int], torch.Tensor],
    probes: int,
    number: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """Final distances of the first `probes` of all images with the others.

    Args:
        method: the parameters.
        rows: gives the distances of images `start:stop` to all, (stop - start, number) float32.
        probes: how many images are probes.
        number: of images.
        device: where to work.
    """
    chunk = CHUNK_BYTES[device.type]
    step = max(1, chunk // (16 * number))

    def normalised(start: int, stop: int) -> torch.Tensor:
        found = rows(start, stop)
        largest = found.amax(dim=1, keepdim=True)
        if not largest.isfinite().all():
            raise InputError(
                "the squares of these distances overflow float32: divide all distances by the largest"
            )
        return found.div_(largest.masked_fill_(largest == 0, 1))

    def weigh(members: SparseRows) -> torch.Tensor:
        found = []
        for start, stop in blocks_of(number, step):
            some = members.rows(start, stop)
            found.append(normalised(start, stop)[torch.repeat_interleave(some.counts), some.columns.long()])
        return torch.exp(-torch.cat(found))

    count = min(max(method.k1 + 1, method.k2), number)
    everyone = torch.arange(number, device=device)
    lists = torch.empty(number, count, dtype=torch.int64, device=device)
    for start, stop in blocks_of(number, step):
        keys = sort_keys(-normalised(start, stop), everyone)
        keys.diagonal(start).fill_(torch.iinfo(torch.int64).max)
        lists[start:stop] = keys.topk(count, dim=1).indices
    nothing = torch.empty(0, device=device)
    encodings = method.encode(NeighbourGraph(lists, nothing, nothing), weigh)
    inverted = encodings.rows(probes, number).transposed(number)
    final = np.empty((probes, number - probes), dtype=np.float32)
    for start, stop in blocks_of(probes, step):
        overlap = compared(encodings.rows(start, stop), [inverted], number - probes, "overlap")
        base = normalised(start, stop)[:, probes:]
        final[start:stop] = method.blend(overlap, base).cpu().numpy()
    return final


def _matrix(
    name: str,
    given: Matrix,
    shape: tuple[int | None, int] | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """A matrix as a float32 or float64 tensor, or an `InputError` that calls it `name`."""
    if isinstance(given, torch.Tensor):
        found = given.detach()
    else:
        array = np.asarray(given)
        if array.dtype.kind not in "iuf":
            raise InputError(f"{name} is {array.dtype}: expected numbers")
        wide = np.float32 if array.dtype in (np.float16, np.float32) else np.float64
        found = torch.from_numpy(np.require(array, wide, ["C", "W"]))
    if found.dtype != torch.float32:
        found = found.to(torch.float32 if found.dtype in (torch.float16, torch.bfloat16) else torch.float64)
    found = found.reshape(flat_shape(tuple(found.shape)) or found.shape)
    if found.ndim != 2 or not found.numel():
        raise InputError(f"{name} has shape {tuple(found.shape)}: expected a matrix that is not empty")
    if shape is not None and any(want not in (None, has) for want, has in zip(shape, found.shape, strict=True)):
        wanted = " x ".join("any" if want is None else str(want) for want in shape)
        has = " x ".join(map(str, found.shape))
        raise InputError(f"{name} is {has}, but the other matrices imply {wanted}: they do not belong together")
    if not found.isfinite().all():
        row, column = (~found.isfinite()).nonzero()[0].tolist()
        raise InputError(
            f"{name} is {float(found[row, column])} at row {row}, column {column}: expected finite values"
        )
    return found if device is None else found.to(device)


def _device_of(features: Matrix) -> str:
    return str(features.device) if isinstance(features, torch.Tensor) else "auto"
