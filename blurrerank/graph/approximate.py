"""Neighbour lists without comparing all images with all: those that an approximate search finds."""

from __future__ import annotations

from itertools import chain

import torch

from ..compute.compute import Progress
from ..compute.processes import Group
from ..data.candidates import Candidates
from ..data.sort_keys import from_sort_keys, sort_keys
from ..search.ann import ApproximateSearch
from ..search.exact import margin
from ..search.given import listed_scores, sort_lists
from ..search.rows import UnitRows, blocks_of, evenly_spread
from .neighbour_graph import CAMERA_LISTS, ListSizes, NeighbourGraph, NeighbourLists

# Images at a time, and those whose lists recall is measured with.
_BLOCK_ROWS, _MEASURED = 1024, 256


def find_graph_approximately(
    images: UnitRows,
    sizes: ListSizes,
    search: ApproximateSearch,
    *,
    cams: torch.Tensor | None = None,
    first: int = 0,
    group: Group | None = None,
    progress: Progress | None = None,
) -> NeighbourGraph:
    """Find near others of every image, or of the last ones, most of them the nearest.

    Args:
        images: N rows.
        sizes: how long the lists are.
        search: of the same rows.
        cams: (N,) int64 cameras, for lists within and across them.
        first: the first image that a list is found of.
        group: processes that have all rows, and find a part of the lists each.
        progress: called with (images done, of how many).

    Returns:
        N - first lists of what the search finds, by exact similarities; those by camera end early where it
        finds fewer. Who is farthest is not known.
    """
    total, dtype = len(images), torch.int32 if len(images) < 2**31 else torch.int64
    asking = total - first
    counts = {"nearest": min(sizes.nearest, total - 1)}
    if cams is not None:
        counts |= {name: min(getattr(sizes, name), total - 1) for name in CAMERA_LISTS}
    lists = {
        name: NeighbourLists(
            torch.full((asking, count), -1, dtype=dtype), torch.full((asking, count), -torch.inf)
        )
        for name, count in counts.items()
        if count or name == "nearest"
    }
    # Of all cameras together, the search's own order is good enough to leave the rest out.
    width = search.listed() if cams is not None else 2 * margin(counts["nearest"], total)
    mine = slice(0, asking) if group is None else group.share(asking)
    for offset, until in blocks_of(mine.stop - mine.start, _BLOCK_ROWS):
        to, end = mine.start + offset, mine.start + until
        start, stop = first + to, first + end
        rows, itself = images.rows(start, stop), torch.arange(start, stop).unsqueeze(1)
        items = search.find(rows, least=counts["nearest"] + 1)[:, :width]
        items = torch.where(items == itself, -1, items)
        found = sort_lists(items, listed_scores(rows, items, images))
        for name, kept in lists.items():
            some = found.head(counts[name])
            if name != "nearest":
                assert cams is not None
                own = cams[found.indices.clamp_min(0)] == cams[start:stop].unsqueeze(1)
                some = found.first(own == (name == "within"), counts[name])
            kept.items[to:end, : some.indices.shape[1]] = some.indices
            kept.similarities[to:end, : some.indices.shape[1]] = some.scores
        if progress is not None:
            progress(until, mine.stop - mine.start)
    if group is not None:
        lists = {
            name: NeighbourLists(*(group.all_gather(part[mine]) for part in (kept.items, kept.similarities)))
            for name, kept in lists.items()
        }
    nearest, itself = lists["nearest"], torch.arange(first, total, dtype=dtype).unsqueeze(1)
    for row in torch.nonzero((nearest.items < 0).any(dim=1)).flatten().tolist():
        best = _compared_with_all(images, first + row, counts["nearest"], search.gone)
        nearest.items[row], nearest.similarities[row] = best.indices[0], best.scores[0]
    return NeighbourGraph(
        torch.cat([itself, nearest.items], dim=1),
        torch.cat([torch.ones(asking, 1), nearest.similarities], dim=1),
        within=lists.get("within"),
        across=lists.get("across"),
        images=images,
        cams=cams,
    )


def _compared_with_all(images: UnitRows, item: int, count: int, gone: torch.Tensor | None) -> Candidates:
    """The nearest others of an image, of those that are not gone, for which the search found too few."""
    rows, cosine = _all_products(images, torch.tensor([item]))
    if gone is not None:
        cosine.masked_fill_(gone, -torch.inf)
    some = cosine.topk(min(margin(count, len(images)), len(images) - 1)).indices
    keys = sort_keys(listed_scores(rows, some, images), some).topk(count, dim=1).values
    return Candidates(*from_sort_keys(keys))


def _all_products(images: UnitRows, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, D) rows of some images, and (n, N) their products with all, -inf with themselves; in one pass."""
    table, places = images.gather(items)
    rows = table[places]
    cosine = torch.cat([rows @ block.T for _, block in images.blocks()], dim=1)
    cosine.scatter_(1, items.unsqueeze(1), -torch.inf)
    return rows, cosine


def recall_of(graph: NeighbourGraph, images: UnitRows) -> dict[str, float]:
    """Return the mean share of the exact lists that the lists of a graph have, measured with some images.

    Args:
        graph: of N images.
        images: their rows.

    Returns:
        A share for each kind of list that the graph has.
    """
    chosen = torch.from_numpy(evenly_spread(len(images), _MEASURED))
    shares: dict[str, list[float]] = {}
    together = max(1, images.budget.working_bytes // (8 * len(images)))
    products = (
        zip(some, _all_products(images, some)[1], strict=True) for some in torch.split(chosen, together)
    )
    for item, cosine in chain.from_iterable(products):
        kinds = {"nearest": (graph.lists[item, 1:], graph.similarities[item, 1:], cosine)}
        if graph.cams is not None:
            own = graph.cams == graph.cams[item]
            for name, allowed in zip(CAMERA_LISTS, (own, ~own), strict=True):
                lists = getattr(graph, name)
                if lists is not None:
                    kinds[name] = lists.items[item], lists.similarities[item], cosine.masked_fill(~allowed, -9)
        for name, (items, found, everything) in kinds.items():
            count = min(len(items), int((everything > -2).sum()))
            if count:
                least = everything.topk(count).values[-1] - 1e-6  # the two sums may round apart
                shares.setdefault(name, []).append(int((found >= least).sum().clamp_max(count)) / count)
    return {name: sum(some) / len(some) for name, some in shares.items()}
