"""Items that are encoded and written as an index, whether they are new, added to others, or what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..compute.compute import Compute
from ..data.sharded import ShardedGallery
from ..data.side import Side
from ..engine.plans import shared_plan
from ..engine.request import check_indexes
from ..errors import ParameterError
from ..graph.approximate import find_graph_approximately, recall_of
from ..graph.find import Keep, find_graph
from ..graph.neighbour_graph import NeighbourGraph
from ..methods import AnyMethod
from ..search.ann import ApproximateSearch
from ..search.plan import Plan
from ..search.rows import UnitRows
from ..search.sharded_rows import ShardedImages
from .contents import Approximation, Labels
from .write_h5 import write

# Entries of a row that an approximate index keeps, where rows are compared by their products.
_ENTRIES = 96


@dataclass(frozen=True)
class Items:
    """What an index is made of.

    Attributes:
        sides: the features, as the feature steps of the method gave them.
        labels: of all of them.
        method: what they are encoded for.
        fitted: what each feature step knows of the gallery.
        known: the neighbours of the first items, if they are known.
        ann: how the index is searched approximately; None if everything is compared with everything.
        effort: see `ApproximateSearch`.
    """

    sides: Sequence[Side]
    labels: Labels
    method: AnyMethod
    fitted: Sequence[Mapping[str, torch.Tensor]] = ()
    known: NeighbourGraph | None = None
    ann: str | None = None
    effort: int | None = None


def encode(items: Items, path: Path | None, compute: Compute, *, keep: Keep | None = None) -> None:
    """Find the neighbours of items, encode them, and write the index.

    Of processes, each finds the neighbours of some items, and all encode all of them.

    Args:
        items: what it is made of.
        path: a new file; None in a process that does not write.
        compute: how.
        keep: called now and then with what is known; see `find_graph`.
    """
    ranker, labels = check_indexes(items.method), items.labels
    count, images = len(labels.digests), _images(items, compute)
    cams = torch.from_numpy(labels.cams) if ranker.needs_cameras and labels.cams is not None else None
    approximation = None
    if items.ann is None:
        graph = find_graph(
            images, ranker.list_sizes(), cams=cams, progress=compute.progress, known=items.known, keep=keep
        )
    else:
        search = ApproximateSearch.build(images, items.ann, items.effort, group=compute.group)
        graph = find_graph_approximately(
            images, ranker.list_sizes(), search, cams=cams, group=compute.group, progress=compute.progress
        )
        # Propagated rows have hundreds of entries, and what they reach grows with the square of that.
        graph = replace(graph, entries=_ENTRIES if ranker.compares == "dot" else None)
        approximation = Approximation(search, recall_of(graph, images), graph.entries)
    encoded = ranker.fit(graph)
    if graph.entries is not None:  # a ranker may cut its rows on the way, or leave that to be done here
        assert encoded.rows is not None
        encoded = replace(encoded, rows=encoded.rows.largest(graph.entries))
    encoded = encoded.invert(slice(0, count), keep_rows=ranker.needs_rows)
    if path is not None:
        write(path, images, labels, items.method, graph, encoded, items.fitted, approximation)
    elif isinstance(images, ShardedImages):
        for _ in images.blocks():
            pass  # the first process writes them, and has some of them from here


def _images(items: Items, compute: Compute) -> UnitRows:
    """The rows of all items; of a gallery that is cut among processes, from the one that has each."""
    count, gallery = len(items.labels.digests), items.sides[0]
    plan = Plan.of_images(count, count, gallery.dim, compute)
    if not isinstance(gallery, ShardedGallery):
        return plan.rows(*items.sides)
    plan = shared_plan(plan, len(gallery.shard), gallery.group)
    return ShardedImages(None, gallery, plan.rows(gallery.shard), gallery.group)


def check_memory(memory: int | None, dim: int) -> None:
    """Raise `ParameterError` for a budget that holds no block of one row, as `Plan` cuts it."""
    needed = 128 * dim
    if memory is not None and memory < needed:
        raise ParameterError(
            f"a memory budget of {memory:,} bytes is too small for one row: raise it to {needed:,} bytes"
        )
