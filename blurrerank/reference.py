"""Plain, slow, obvious versions of everything, in NumPy float64, one probe at a time.

They are written from the definitions and share no code with the rest of the package: the oracle of its tests
and the other side of its benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]


def unit_rows(features: ArrayLike, dtype: Any = np.float64) -> Floats:
    """(N, D) rows divided by their Euclidean norm."""
    rows = np.asarray(features, dtype=dtype)
    unit: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def cosine_ranking(probe: ArrayLike, gallery: ArrayLike, dtype: Any = np.float64) -> tuple[Indices, Floats]:
    """The whole gallery for every probe by cosine similarity, best first; ties by lower gallery index.

    Args:
        probe: (P, D) features.
        gallery: (G, D) features.
        dtype: of the arithmetic.

    Returns:
        `(indices, scores)`, both (P, G).
    """
    similarities = unit_rows(probe, dtype) @ unit_rows(gallery, dtype).T
    order = np.argsort(-similarities, axis=1, kind="stable")
    return order, np.take_along_axis(similarities, order, axis=1)


def local_blurring(
    probe: ArrayLike,
    gallery: ArrayLike,
    topn: int = 50,
    sigma: float = 0.1,
    *,
    probe_in_graph: bool = False,
    cosine: bool = False,
    steps: int = 1,
    dtype: Any = np.float64,
) -> tuple[Indices, Floats]:
    """Local blurring re-ranking as the paper has it: transform the features, then compare.

    Source: Luo et al., "Spectral Feature Transformation for Person Re-identification", ICCV 2019,
    arXiv:1811.11405.

    Args:
        probe: (P, D) features.
        gallery: (G, D) features.
        topn: neighbourhood size; capped at G.
        sigma: temperature, above 0.
        probe_in_graph: the probe is a node of the graph too.
        cosine: compare transformed features by cosine instead of dot product; a norm below 1e-6, which is
            rounding of features that cancel each other out, counts as 1e-6.
        steps: how often to transform.
        dtype: of the arithmetic.

    Returns:
        `(indices, scores)`: (P, min(topn, G)) re-ranked heads, and their new scores.
    """
    queries, items = unit_rows(probe, dtype), unit_rows(gallery, dtype)
    similarities = queries @ items.T
    scores = np.empty((len(queries), min(topn, len(items))), dtype=dtype)
    heads = np.empty(scores.shape, dtype=np.int64)
    for p, query in enumerate(queries):
        head = np.argsort(-similarities[p], kind="stable")[:topn]
        blurred = blurred_similarity(
            query, items[head], sigma, probe_in_graph=probe_in_graph, cosine=cosine, steps=steps
        )
        best = np.lexsort((head, -blurred))
        heads[p], scores[p] = head[best], blurred[best]
    return heads, scores


def blurred_similarity(
    query: Floats,
    nodes: Floats,
    sigma: float,
    *,
    probe_in_graph: bool = False,
    cosine: bool = False,
    steps: int = 1,
) -> Floats:
    """Similarity of (D,) `query` to the transformed features of (n, D) `nodes`, unit rows all: (n,)."""
    number = len(nodes)
    if probe_in_graph:
        nodes = np.vstack([nodes, query])
    logits = nodes @ nodes.T / sigma
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    transition = weights / weights.sum(axis=1, keepdims=True)
    transformed = nodes
    for _ in range(steps):
        transformed = transition @ transformed
    if cosine:
        transformed = transformed / np.maximum(np.linalg.norm(transformed, axis=1, keepdims=True), 1e-6)
    return transformed[:number] @ query


def superglobal(
    probe: ArrayLike, gallery: ArrayLike, topn: int = 400, k: int = 9, beta: float = 0.15
) -> tuple[Indices, Floats]:
    """SuperGlobal re-ranking, one item after the other. Definition: docs/methods.md.

    Args:
        probe: (P, D) features.
        gallery: (G, D) features.
        topn: size of the head; capped at G.
        k: nearest others in the head that refine an item.
        beta: their weight.

    Returns:
        `(indices, scores)`: (P, min(topn, G)) re-ranked heads, and their new scores.
    """
    queries, items = unit_rows(probe), unit_rows(gallery)
    scores = np.empty((len(queries), min(topn, len(items))))
    heads = np.empty(scores.shape, dtype=np.int64)
    for p, query in enumerate(queries):
        head = np.argsort(-(items @ query), kind="stable")[:topn]
        rows = items[head]
        similarities = rows @ rows.T
        refined = np.empty_like(rows)
        for i, near in enumerate(nearest_images(similarities)):
            total, weights = rows[i].copy(), 1.0
            for j in near[:k]:
                weight = beta * max(similarities[i, j], 0)
                total, weights = total + weight * rows[j], weights + weight
            refined[i] = total / weights
        seen = refined @ query
        best = np.argsort(-seen, kind="stable")[: k + 1]
        final = (seen + refined @ refined[best].max(axis=0)) / 2
        order = np.lexsort((head, -final))
        heads[p], scores[p] = head[order], final[order]
    return heads, scores


def kwf(
    probe: ArrayLike,
    gallery: ArrayLike,
    probe_cams: ArrayLike,
    gallery_cams: ArrayLike,
    topn: int = 100,
    k: int = 6,
) -> tuple[Indices, Floats]:
    """K-nearest weighted fusion, one item after the other. Definition: docs/methods.md.

    Args:
        probe: (P, D) features.
        gallery: (G, D) features.
        probe_cams: (P,) cameras.
        gallery_cams: (G,) cameras.
        topn: size of the head; capped at G.
        k: nearest items of other cameras than the probe's that stand for an item.

    Returns:
        `(indices, scores)`: (P, min(topn, G)) re-ranked heads, and their new scores.
    """
    queries, items = unit_rows(probe), unit_rows(gallery)
    cams = np.asarray(gallery_cams)
    scores = np.empty((len(queries), min(topn, len(items))))
    heads = np.empty(scores.shape, dtype=np.int64)
    for p, (query, cam) in enumerate(zip(queries, np.asarray(probe_cams), strict=True)):
        cosine = items @ query
        head = np.argsort(-cosine, kind="stable")[:topn]
        final = cosine[head]
        for place, i in enumerate(head):
            alike = items @ items[i]
            alike[i] = np.inf  # it is the first of its own
            near = [j for j in np.argsort(-alike, kind="stable") if cams[j] != cam][:k]
            if near:
                final[place] = cosine[near].mean()
        order = np.lexsort((head, -final))
        heads[p], scores[p] = head[order], final[order]
    return heads, scores


def k_reciprocal(
    probe: ArrayLike,
    gallery: ArrayLike,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    base_distance: str = "squared",
    dtype: Any = np.float64,
) -> Floats:
    """k-reciprocal re-ranking as the usual programs have it: dense matrices and a loop over images.

    Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017,
    arXiv:1701.08398. Ties between neighbours go to the lower index, probes before gallery; an image is always
    the first of its own neighbours.

    Args:
        probe: (P, D) features.
        gallery: (G, D) features.
        k1: how many neighbours besides itself an image has.
        k2: how many images, itself among them, query expansion averages.
        lambda_value: weight of the base distance against the Jaccard distance, 0 to 1.
        base_distance: `squared` Euclidean, or `squared-twice`, its square.
        dtype: of the arithmetic.

    Returns:
        (P, G) final distances, smaller is better. Holds arrays of (P + G, P + G).
    """
    features = np.vstack([unit_rows(probe, dtype), unit_rows(gallery, dtype)])
    probes, number = len(np.asarray(probe)), len(features)
    distance = features @ features.T
    distance *= -2
    distance += 2
    np.maximum(distance, 0, out=distance)
    if base_distance == "squared-twice":
        distance *= distance
    largest = distance.max(axis=1, keepdims=True)
    equal = largest[:, 0] < (4e-6 if base_distance == "squared" else 16e-12)
    distance[equal], largest[equal] = 0, 1  # rows equal to all others but for rounding
    distance /= largest

    np.fill_diagonal(distance, -1)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, : max(k1 + 1, k2)].copy()
    np.fill_diagonal(distance, 0)
    lists, halves = nearest[:, : k1 + 1], nearest[:, : round(k1 / 2) + 1]

    encodings = np.zeros((number, number), dtype=dtype)
    for i in range(number):
        mutual = _mutual(lists, i)
        expanded = set(mutual)
        for candidate in mutual:
            theirs = _mutual(halves, candidate)
            if 3 * len(set(theirs) & set(mutual)) > 2 * len(theirs):
                expanded |= set(theirs)
        members = sorted(expanded)
        weights = np.exp(-distance[i, members])
        encodings[i, members] = weights / weights.sum()

    if k2 > 1:
        averaged = np.empty_like(encodings)
        for i in range(number):
            averaged[i] = encodings[nearest[i, :k2]].mean(axis=0)
        encodings = averaged

    # The gallery images in whose encoding each image appears.
    inverted = [probes + np.flatnonzero(encodings[probes:, j]) for j in range(number)]
    final: Floats = np.empty((probes, number - probes), dtype=dtype)
    for i in range(probes):
        overlap = np.zeros(number, dtype=dtype)
        for j in np.flatnonzero(encodings[i]):
            overlap[inverted[j]] += np.minimum(encodings[i, j], encodings[inverted[j], j])
        jaccard = 1 - overlap / (2 - overlap)
        final[i] = ((1 - lambda_value) * jaccard + lambda_value * distance[i])[probes:]
    return final


def _mutual(lists: Indices, i: int) -> list[int]:
    """Those in the list of image i that have it in theirs."""
    return [int(j) for j in lists[i] if i in lists[j]]


def k_reciprocal_online(
    probe: ArrayLike,
    gallery: ArrayLike,
    pool: int = 50,
    blur: int = 8,
    sigma: float = 0.1,
    k1: int = 15,
    k2: int = 6,
    lambda_value: float = 0.2,
    *,
    dtype: Any = np.float64,
) -> Floats:
    """k-reciprocal encoding against a frozen gallery, one probe after another, as docs/online.md defines it.

    Args:
        probe: (P, D) features.
        gallery: (G, D) features.
        pool: how many images by cosine similarity are looked at around each image.
        blur: how many images, itself among them, a gallery item is blurred with.
        sigma: temperature of every transition, above 0.
        k1: how many neighbours besides itself an image has, at most `pool`.
        k2: how many images, itself among them, query expansion averages, at most `pool + 1`.
        lambda_value: weight of the transition from the probe against the similarity of encodings, 0 to 1.
        dtype: of the arithmetic.

    Returns:
        (P, G) scores, greater is better.
    """
    queries, items = unit_rows(probe, dtype), unit_rows(gallery, dtype)
    number = len(items)
    cosine = items @ items.T
    np.fill_diagonal(cosine, 1)

    around = []
    for i in range(number):
        order = np.argsort(-cosine[i], kind="stable")
        around.append(order[order != i][:pool])

    blurred = np.empty_like(items)
    for i in range(number):
        group = [i, *around[i][: blur - 1]]
        weights = np.exp((cosine[i, group] - 1) / sigma)
        mean = weights @ items[group]
        blurred[i] = mean / max(np.linalg.norm(mean), 1e-6 * weights.sum())

    # Everybody's nearest others, by similarity to what these are after blurring.
    nearest, nearness = [], []
    for i in range(number):
        similarity = blurred[around[i]] @ items[i]
        order = np.lexsort((around[i], -similarity))
        nearest.append(around[i][order])
        nearness.append(similarity[order])

    def mutual(i: int, count: int) -> set[int]:
        return {int(j) for j in [i, *nearest[i][:count]] if i in [j, *nearest[j][:count]]}

    halves = [mutual(i, round(k1 / 2)) for i in range(number)]

    def encoding(reciprocal: set[int]) -> Floats:
        expanded = set(reciprocal)
        for candidate in reciprocal:
            if 3 * len(halves[candidate] & reciprocal) > 2 * len(halves[candidate]):
                expanded |= halves[candidate]
        encoded = np.zeros(number, dtype=dtype)
        if expanded:
            encoded[sorted(expanded)] = 1 / len(expanded)
        return encoded

    encodings = np.array([encoding(mutual(i, k1)) for i in range(number)])

    def average(own: Floats, neighbours: Indices, similarity: Floats) -> Floats:
        """Own encoding and those of the k2 - 1 nearest, these by how far they fall behind the nearest."""
        weights = np.exp((similarity[: k2 - 1] - similarity[:1]) / sigma)
        total = own + weights @ encodings[neighbours[: k2 - 1]]
        mean: Floats = total / (total.sum() or 1)
        return mean

    averaged = np.array([average(encodings[i], nearest[i], nearness[i]) for i in range(number)])

    scores: Floats = np.empty((len(queries), number), dtype=dtype)
    for p, query in enumerate(queries):
        similarities = items @ query
        candidates = np.argsort(-similarities, kind="stable")[:pool]
        near = blurred[candidates] @ query
        order = np.lexsort((candidates, -near))
        candidates, near = candidates[order], near[order]
        # An item has the probe among its neighbours if it is nearer than the last of them.
        reciprocal = {
            int(g)
            for g, similarity in zip(candidates[:k1], near[:k1], strict=True)
            if len(nearest[g]) < k1 or similarity > nearness[g][k1 - 1]
        }
        encoded = average(encoding(reciprocal), candidates, near)
        members = np.flatnonzero(encoded)
        overlap = np.minimum(encoded[members], averaged[:, members]).sum(axis=1)
        transition = np.exp((similarities - similarities.max()) / sigma)
        scores[p] = (1 - lambda_value) * overlap / (2 - overlap) + lambda_value * transition
    return scores


def evaluate(
    lists: ArrayLike,
    probe_ids: ArrayLike,
    gallery_ids: ArrayLike,
    probe_cams: ArrayLike | None = None,
    gallery_cams: ArrayLike | None = None,
    *,
    protocol: str = "market1501",
    max_rank: int = 50,
) -> dict[str, Floats]:
    """Measure whole lists, walking down each of them.

    Args:
        lists: (P, G) gallery indices, best first.
        probe_ids: (P,), likewise `probe_cams`.
        gallery_ids: (G,), -1 junk, 0 distractors; likewise `gallery_cams`.
        probe_cams: see `probe_ids`.
        gallery_cams: see `gallery_ids`.
        protocol: `market1501`, `cuhk03` or `plain`.
        max_rank: how far the cumulative match curve goes.

    Returns:
        For each probe `ap`, `ap_trapezoid` and `inp` (P,) and `cmc` (P, max_rank), NaN without a match.
    """
    gallery_ids = np.asarray(gallery_ids)
    measured: dict[str, list[Any]] = {"ap": [], "ap_trapezoid": [], "inp": [], "cmc": []}
    for p, (order, identity) in enumerate(zip(np.asarray(lists), np.asarray(probe_ids), strict=True)):
        kept = order[gallery_ids[order] != -1]
        if protocol != "plain" and probe_cams is not None and gallery_cams is not None:
            same_camera = np.asarray(gallery_cams)[kept] == np.asarray(probe_cams)[p]
            kept = kept[~((gallery_ids[kept] == identity) & same_camera)]
        match = (gallery_ids[kept] == identity) & (identity > 0)
        total = int(match.sum())
        if total == 0:
            for name in ("ap", "ap_trapezoid", "inp"):
                measured[name].append(np.nan)
            measured["cmc"].append(np.full(max_rank, np.nan))
            continue
        found, average, trapezoid, rank = 0, 0.0, 0.0, 0
        for rank_here, hit in enumerate(match, start=1):
            if hit:
                before = found / (rank_here - 1) if rank_here > 1 else 1.0
                found += 1
                rank = rank_here
                average += found / rank_here / total
                trapezoid += (found / rank_here + before) / 2 / total
        measured["ap"].append(average)
        measured["ap_trapezoid"].append(trapezoid)
        measured["inp"].append(total / rank)
        if protocol == "cuhk03":
            measured["cmc"].append(_single_shot_cmc(gallery_ids[kept], identity, max_rank))
        else:
            measured["cmc"].append(np.arange(max_rank) >= np.flatnonzero(match)[0])
    return {name: np.asarray(values, dtype=float) for name, values in measured.items()}


def _single_shot_cmc(ids: Indices, identity: int, max_rank: int) -> Floats:
    """Mean over every possible draw of one image of each identity: exponential, for tiny galleries only."""
    places = [np.flatnonzero(ids == person) for person in np.unique(ids[ids > 0])]
    distractors = np.flatnonzero(ids == 0)
    curves = []
    for draw in product(*places):
        drawn = np.sort(np.concatenate([np.array(draw, dtype=np.int64), distractors]))
        rank = int(np.flatnonzero(ids[drawn] == identity)[0])
        curves.append(np.arange(max_rank) >= rank)
    mean: Floats = np.mean(curves, axis=0)
    return mean


def nearest_images(similarities: Floats, allowed: NDArray[np.bool_] | None = None) -> list[list[int]]:
    """The images that each image may be listed with, nearest first, ties to the lower index; itself left out.

    Args:
        similarities: (N, N).
        allowed: (N, N), which pairs may be listed; by default all.
    """
    found = []
    for i, row in enumerate(similarities):
        order = [int(j) for j in np.argsort(-row, kind="stable") if j != i]
        found.append([j for j in order if allowed is None or allowed[i, j]])
    return found


def center(
    features: ArrayLike, cams: ArrayLike, *, known: int, shrink: float = 0.0, scale: bool = False
) -> Floats:
    """Camera centring, an image after the other. Definition: docs/methods.md.

    Args:
        features: (N, D), first those that means are taken of.
        cams: (N,) cameras.
        known: how many of the images means are taken of, and then of the rest for cameras that these lack.
        shrink: images' worth of the mean of all known images.
        scale: whether to divide by the standard deviation of the camera.

    Returns:
        (N, D), rows of length 1.
    """
    rows, labels = unit_rows(features), np.asarray(cams)
    mean, square = rows[:known].mean(axis=0), (rows[:known] ** 2).mean(axis=0)
    new = np.empty_like(rows)
    for i, row in enumerate(rows):
        own = [j for j in range(known) if labels[j] == labels[i]]
        own = own or [j for j in range(known, len(rows)) if labels[j] == labels[i]]
        centre = (rows[own].sum(axis=0) + shrink * mean) / (len(own) + shrink)
        spread = ((rows[own] ** 2).sum(axis=0) + shrink * square) / (len(own) + shrink) - centre**2
        new[i] = row - centre
        if np.linalg.norm(new[i]) < 1e-6:
            new[i] = row
        elif scale:
            new[i] /= np.sqrt(np.maximum(spread, 1e-8))
    return unit_rows(new)


def whiten(features: ArrayLike, *, known: int, dim: int = 0, ridge: float = 1.0) -> Floats:
    """Whitening. Definition: docs/methods.md.

    Args:
        features: (N, D), first those that mean and covariance are of.
        known: how many of the images these are.
        dim: principal directions that are kept; 0 keeps all.
        ridge: what is added to each variance, times the mean of all.

    Returns:
        (N, D) or (N, dim), rows of length 1.
    """
    rows = unit_rows(features)
    mean = rows[:known].mean(axis=0)
    covariance = (rows[:known] - mean).T @ (rows[:known] - mean) / known
    variances, columns = np.linalg.eigh(covariance)
    new = (rows - mean) @ columns / np.sqrt(variances + ridge * variances.mean())
    return unit_rows(new[:, -dim:])


def nfc(features: ArrayLike, k1: int = 2, k2: int = 2) -> Floats:
    """Neighbour feature centralisation of one side. Definition: docs/methods.md.

    Args:
        features: (N, D).
        k1: nearest others of an image that may be added.
        k2: nearest others of each of these, among which the image must be.

    Returns:
        (N, D), rows of length 1.
    """
    rows = unit_rows(features)
    lists = nearest_images(rows @ rows.T)
    new = rows.copy()
    for i, near in enumerate(lists):
        for j in near[:k1]:
            if i in lists[j][:k2]:
                new[i] += rows[j]
    return unit_rows(new)


def gcr(
    features: ArrayLike,
    cams: ArrayLike,
    k1: int = 15,
    k2: int = 3,
    beta: float = 0.2,
    scale: float = 0.3,
    rounds: int = 3,
) -> Floats:
    """Graph convolution for re-ranking, with a dense matrix. Definition: docs/methods.md.

    Args:
        features: (N, D), of probes and gallery.
        cams: (N,) cameras.
        k1: images, itself among them, that are averaged.
        k2: likewise across cameras.
        beta: temperature.
        scale: share of the mean across cameras.
        rounds: how many times.

    Returns:
        (N, D), rows of length 1.
    """
    rows, labels = unit_rows(features), np.asarray(cams)
    for _ in range(rounds):
        similarities = rows @ rows.T
        total = np.zeros_like(rows)
        for share, count, allowed in (
            (1 - scale, k1, None),
            (scale, k2, labels[:, None] != labels[None, :]),
        ):
            weights = np.zeros_like(similarities)
            for i, near in enumerate(nearest_images(similarities, allowed)):
                for j in [i, *near[: count - 1]]:
                    weights[i, j] = np.exp((1.0 if i == j else similarities[i, j]) / beta)
            roots = np.sqrt(weights.sum(axis=1))[:, None] * np.sqrt(weights.sum(axis=0))[None, :]
            total += share * ((weights / roots) @ rows)
        rows = unit_rows(total)
    return rows


def propagated_graph(
    features: ArrayLike,
    joined: list[list[int]],
    near: list[list[int]],
    *,
    probes: int,
    rounds: int = 2,
    one_sided: float = 1.0,
    lambda_value: float = 0.3,
) -> Floats:
    """Scores of GNN and camera-balanced re-ranking, with dense matrices. Definition: docs/methods.md.

    Args:
        features: (N, D), of probes and then gallery.
        joined: the images that each image is joined with, itself among them.
        near: those that its neighbourhood is averaged over, itself among them.
        probes: how many of the images are probes.
        rounds: how many times.
        one_sided: what the edge to an image weighs that does not have this one in its neighbourhood, against 1.
        lambda_value: weight of the cosine similarity.

    Returns:
        (P, G) scores, larger is better.
    """
    rows = unit_rows(features)
    similarities = rows @ rows.T
    adjacency = _propagated(similarities, joined, near, rounds, one_sided)
    agreement = adjacency[:probes] @ adjacency[probes:].T
    scores: Floats = (1 - lambda_value) * agreement + lambda_value * similarities[:probes, probes:]
    return scores


def propagated_graph_online(
    probe: ArrayLike,
    gallery: ArrayLike,
    joined: list[list[int]],
    near: list[list[int]],
    nearest: list[list[int]],
    *,
    rounds: int = 2,
    one_sided: float = 1.0,
    lambda_value: float = 0.3,
) -> Floats:
    """The same for each probe by itself, over the graph of the gallery alone.

    Args:
        probe: (P, D) features.
        gallery: (G, D) features.
        joined: see `propagated_graph`; of the gallery items.
        near: likewise.
        nearest: the gallery items that each probe's neighbourhood is averaged over.
        rounds: how many times.
        one_sided: see `propagated_graph`.
        lambda_value: weight of the cosine similarity.

    Returns:
        (P, G) scores, larger is better.
    """
    items, queries = unit_rows(gallery), unit_rows(probe)
    adjacency = _propagated(items @ items.T, joined, near, rounds, one_sided)
    cosine = queries @ items.T
    asking = np.zeros_like(cosine)
    for p, listed in enumerate(nearest):
        for j in listed:
            asking[p] += max(cosine[p, j], 0) ** 2 * adjacency[j]
    lengths = np.linalg.norm(asking, axis=1, keepdims=True)
    agreement = np.divide(asking, lengths, out=np.zeros_like(asking), where=lengths > 0) @ adjacency.T
    scores: Floats = (1 - lambda_value) * agreement + lambda_value * cosine
    return scores


def _propagated(
    similarities: Floats, joined: list[list[int]], near: list[list[int]], rounds: int, one_sided: float
) -> Floats:
    """(N, N) the rows that images are compared by, of length 1."""
    adjacency, weights = np.zeros_like(similarities), np.zeros_like(similarities)
    for i in range(len(similarities)):
        adjacency[i, joined[i]] = 1
        for j in near[i]:
            weights[i, j] = 1.0 if i == j else max(similarities[i, j], 0) ** 2
            weights[i, j] *= 1 if i in near[j] else one_sided
    for _ in range(rounds):
        adjacency = unit_rows(weights @ (adjacency + adjacency.T))
    return unit_rows(adjacency)


def k_reciprocal_fastreid(
    features: ArrayLike, *, probes: int, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> Floats:
    """k-reciprocal re-ranking as fast-reid has it, with a dense matrix. Definition: docs/methods.md.

    Args:
        features: (N, D), of probes and then gallery.
        probes: how many of the images are probes.
        k1: images, itself among them, that are listed.
        k2: images, itself among them, that query expansion averages, at most `k1`.
        lambda_value: weight of the cosine distance.

    Returns:
        (P, G) final distances, smaller is better.
    """
    rows = unit_rows(features)
    similarities = rows @ rows.T
    np.fill_diagonal(similarities, 1)
    lists = [[i, *near[: k1 - 1]] for i, near in enumerate(nearest_images(similarities))]
    halves = [some[: round(k1 / 2) + 1] for some in lists]
    encodings = np.zeros_like(similarities)
    for i in range(len(rows)):
        mutual = {j for j in lists[i] if i in lists[j]}
        expanded = set(mutual)
        for j in mutual:
            theirs = {m for m in halves[j] if j in halves[m]}
            if 3 * len(theirs & mutual) > 2 * len(theirs):
                expanded |= theirs
        members = sorted(expanded)
        weights = np.exp(-(2 - 2 * similarities[i, members]))
        encodings[i, members] = weights / weights.sum()
    averaged = np.array([encodings[some[:k2]].mean(axis=0) for some in lists])
    final = np.empty((probes, len(rows) - probes))
    for p in range(probes):
        overlap = np.minimum(averaged[p], averaged[probes:]).sum(axis=1)
        jaccard = 1 - overlap / (2 - overlap)
        final[p] = (1 - lambda_value) * jaccard + lambda_value * (1 - similarities[p, probes:])
    return final


def ca_jaccard(
    features: ArrayLike,
    cams: ArrayLike,
    *,
    probes: int,
    k1_intra: int = 5,
    k1_inter: int = 20,
    k2_intra: int = 3,
    k2_inter: int = 3,
    lambda_value: float = 0.3,
) -> Floats:
    """Camera-aware Jaccard distance, mixed with the base distance. Definition: docs/methods.md.

    Args:
        features: (N, D), of probes and then gallery.
        cams: (N,) cameras.
        probes: how many of the images are probes.
        k1_intra: others of the own camera that may be reciprocal neighbours.
        k1_inter: images of all other cameras that may be, less one.
        k2_intra: images of the own camera, itself among them, that are averaged.
        k2_inter: images of all other cameras that are averaged.
        lambda_value: weight of the base distance.

    Returns:
        (P, G) final distances, smaller is better.
    """
    rows, labels = unit_rows(features), np.asarray(cams)
    distances = np.maximum(2 - 2 * rows @ rows.T, 0)
    np.fill_diagonal(distances, 0)
    distances /= distances.max(axis=1, keepdims=True)
    alike = labels[:, None] == labels[None, :]
    intra = nearest_images(rows @ rows.T, alike)
    inter = nearest_images(rows @ rows.T, ~alike)
    encodings = np.zeros_like(distances)
    for i in range(len(rows)):
        members = [i, *(j for j in intra[i][:k1_intra] if i in intra[j][:k1_intra])]
        members += [j for j in inter[i][: k1_inter + 1] if i in inter[j][: k1_inter + 1]]
        weights = np.exp(-distances[i, members])
        encodings[i, members] = weights / weights.sum()
    averaged = np.array(
        [encodings[[i, *intra[i][: k2_intra - 1], *inter[i][:k2_inter]]].mean(axis=0) for i in range(len(rows))]
    )
    final = np.empty((probes, len(rows) - probes))
    for p in range(probes):
        overlap = np.minimum(averaged[p], averaged[probes:]).sum(axis=1)
        jaccard = 1 - overlap / (2 - overlap)
        final[p] = (1 - lambda_value) * jaccard + lambda_value * distances[p, probes:]
    return final


def ecn(
    features: ArrayLike, *, probes: int, k: int = 25, t: int = 3, q: int = 8, similarity: str = "rank"
) -> Floats:
    """Expanded cross neighbourhood re-ranking. Definition: docs/methods.md.

    Args:
        features: (N, D), of probes and then gallery.
        probes: how many of the images are probes.
        k: images, itself the first, of a rank list.
        t: nearest others that are a neighbourhood.
        q: nearest others of each of these.
        similarity: of neighbours and images, by `rank` lists or by `cosine`.

    Returns:
        (P, G) scores, larger is better.
    """
    rows = unit_rows(features)
    similarities = rows @ rows.T
    lists = nearest_images(similarities)
    ranks = np.zeros_like(similarities)
    for i, near in enumerate(lists):
        for place, j in enumerate([i, *near][:k]):
            ranks[i, j] = k - place
    around = [near[:t] + [j for i in near[:t] for j in lists[i][:q]] for near in lists]
    scores = np.empty((probes, len(rows) - probes))
    for p in range(probes):
        for g in range(probes, len(rows)):
            if similarity == "cosine":
                alike = [similarities[j, g] for j in around[p]] + [similarities[j, p] for j in around[g]]
                scores[p, g - probes] = np.mean(alike)
                continue
            shared = [ranks[j] @ ranks[g] for j in around[p]] + [ranks[j] @ ranks[p] for j in around[g]]
            total = sum(shared) / (2 * t * (1 + q))
            scores[p, g - probes] = total if total > 0 else similarities[p, g] - 2
    return scores


def reciprocity(lists: Sequence[Sequence[int]], longest: int) -> list[float]:
    """The share of the k nearest neighbours that count an image among their own k nearest, for each k.

    Args:
        lists: of each image, the others it is listed with, nearest first.
        longest: up to which k.

    Returns:
        m(k) for k = 1 .. longest, up to the k that no list reaches.
    """
    found = []
    for k in range(1, longest + 1):
        if not any(len(near) >= k for near in lists):
            break
        agreeing = [i in lists[j][:k] for i, near in enumerate(lists) for j in near[:k]]
        found.append(sum(agreeing) / len(agreeing))
    return found


def neighbourhood_size(curve: Sequence[float], chance: Sequence[float]) -> tuple[int, float]:
    """How many other images an identity has. Definition: docs/auto.md.

    Args:
        curve: m(k) for k = 1, 2, ...
        chance: m0(k), of points without groups.

    Returns:
        The size, 0 for curves too short to tell, and by how much the curve bends there.
    """
    above = {0: 0.0} | {k: m - m0 for k, (m, m0) in enumerate(zip(curve, chance, strict=False), start=1)}
    bends = {}
    for k in range(1, len(above)):
        if 2 * k in above:
            half = above[k // 2] if k % 2 == 0 else (above[k // 2] + above[k // 2 + 1]) / 2
            bends[k] = above[1] - above[2] if k == 1 else 2 * above[k] - half - above[2 * k]
    size = max(bends, key=lambda k: bends[k], default=0)
    return size, bends.get(size, 0.0)
