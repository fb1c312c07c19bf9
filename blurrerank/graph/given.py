"""The neighbour graph of images whose similarities are given."""

from __future__ import annotations

import torch

from ..compute.compute import Progress
from ..data.sort_keys import from_sort_keys
from ..search.given_similarities import SimilarityRows
from ..search.tiles import best_keys
from .neighbour_graph import ListSizes, NeighbourGraph, NeighbourLists


def graph_of_similarities(
    images: SimilarityRows,
    sizes: ListSizes,
    *,
    cams: torch.Tensor | None = None,
    progress: Progress | None = None,
) -> NeighbourGraph:
    """List the most similar others of every image; ties go to the lower index.

    Args:
        images: N images, whose similarities need not be symmetric: those in the row of an image are its own.
        sizes: how long the lists are.
        cams: (N,) int64 cameras, for lists within and across them.
        progress: called with (images done, N).
    """
    total, device = len(images), images.device
    cams = None if cams is None else cams.to(device)
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"nearest": []}
    if cams is not None:
        found |= {name: [] for name in ("within", "across") if getattr(sizes, name)}
    lowest = torch.empty(total, device=device)
    for start, rows in images.blocks():
        stop = start + len(rows)
        lowest[start:stop] = rows.amin(dim=1)
        rows.diagonal(start).fill_(-torch.inf)
        for name, lists in found.items():
            kept = rows
            if name != "nearest":
                assert cams is not None
                alike = cams[start:stop].unsqueeze(1) == cams
                kept = rows.masked_fill(alike != (name == "within"), -torch.inf)
            lists.append(from_sort_keys(best_keys(kept, 0, min(getattr(sizes, name), total - 1))))
        if progress is not None:
            progress(stop, total)
    dtype = torch.int32 if total < 2**31 else torch.int64
    listed = {}
    for name, parts in found.items():
        items, similarities = (torch.cat(some) for some in zip(*parts, strict=True))
        items = items.masked_fill(similarities == -torch.inf, -1).to(dtype)
        listed[name] = NeighbourLists(items, similarities)
    own = torch.arange(total, device=device, dtype=dtype).unsqueeze(1)
    nearest = listed["nearest"]
    return NeighbourGraph(
        torch.cat([own, nearest.items], dim=1),
        torch.cat([torch.ones(total, 1, device=device), nearest.similarities], dim=1),
        lowest,
        listed.get("within"),
        listed.get("across"),
        images,
        cams,
    )
