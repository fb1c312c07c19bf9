"""Items that are added to a gallery that is encoded by similarities to blurred items."""

from __future__ import annotations

import torch

from ..search.rows import blocks_of
from .blurred import BlurredRows
from .encoding import BlurredEncoding
from .neighbour_graph import NeighbourGraph
from .sparse_rows import SparseRows, stacked


def added_to(
    encoding: BlurredEncoding, graph: NeighbourGraph, blurred: BlurredRows, k1: int, depth: int
) -> tuple[BlurredEncoding, NeighbourGraph]:
    """Return the encoding of items that are added, and their lists by similarity to blurred items.

    An item is among the first k1 of another if it is nearer to that than the k1-th was when it was encoded: as
    for a probe, except that added items have themselves in their lists, and each other. Where half lists count,
    items of before count by their whole ones, since how far the half reached is not kept.

    Args:
        encoding: of the items of before.
        graph: lists of the A items that are added, over all N images.
        blurred: these.
        k1: neighbours that count.
        depth: neighbours that are kept, at least k1.

    Returns:
        The encoding, whose `rows` are to be averaged yet, and (A, depth + 1) lists.
    """
    groups, weights = torch.cat([encoding.group, blurred.group]), torch.cat([encoding.blur, blurred.weights])
    others = graph.lists[:, 1:].long()
    similarities = torch.empty(others.shape)
    step = max(1, graph.chunk_bytes // (64 * max(1, others.shape[1]) * groups.shape[1]))
    for start, stop in blocks_of(len(others), step):
        some = others[start:stop]
        cosine = graph.cosine_at(groups[some], start)
        similarities[start:stop] = cosine.mul_(weights[some]).sum(dim=2)
    near = graph.reordered(similarities, depth)
    nearness = near.similarities[:, 1:]

    def reciprocal(count: int) -> SparseRows:
        lists = near.lists[:, : count + 1]
        chosen = torch.ones_like(lists, dtype=torch.bool)
        reach = torch.cat([encoding.reach, nearness[:, count - 1]])
        chosen[:, 1:] = nearness[:, :count] > reach[lists[:, 1:].long()]
        return SparseRows.from_lists(lists, chosen, encoding.encodings.chunk_bytes)

    halves = reciprocal(round(k1 / 2))
    rows = reciprocal(k1).expanded(stacked([encoding.halves, halves])).uniform()
    found = BlurredEncoding(
        rows=rows,
        group=blurred.group,
        blur=blurred.weights,
        reach=nearness[:, k1 - 1].clone(),
        halves=halves,
        encodings=rows,
    )
    return found, near
