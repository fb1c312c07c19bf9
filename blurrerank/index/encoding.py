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
from ..engine.stepped import room_for, stepped_side
from ..errors import ParameterError
from ..graph.approximate import find_graph_approximately, recall_of
from ..graph.encoding import Encoding
from ..graph.find import Keep, find_graph
from ..graph.neighbour_graph import ListSizes, NeighbourGraph
from ..methods import AnyMethod, GraphRanker
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
        methods: what they are encoded for, the usual one first; all with the same feature steps.
        fitted: what each feature step knows of the gallery.
        known: the neighbours of the first items, if they are known.
        ann: how the index is searched approximately; None if everything is compared with everything.
        effort: see `ApproximateSearch`.
    """

    sides: Sequence[Side]
    labels: Labels
    methods: tuple[AnyMethod, ...]
    fitted: Sequence[Mapping[str, torch.Tensor]] = ()
    known: NeighbourGraph | None = None
    ann: str | None = None
    effort: int | None = None

    @property
    def rankers(self) -> list[GraphRanker]:
        """What encodes them."""
        return [check_indexes(method) for method in self.methods]

    @property
    def needs_cameras(self) -> bool:
        """Whether any of these looks at cameras."""
        return any(ranker.needs_cameras for ranker in self.rankers)


def sizes_for(rankers: Sequence[GraphRanker]) -> ListSizes:
    """Return how long lists are that serve all of some rankers."""
    return ListSizes.serving([ranker.list_sizes() for ranker in rankers])


def encode(items: Items, path: Path | None, compute: Compute, *, keep: Keep | None = None) -> None:
    """Find the neighbours of items, encode them, and write the index.

    Of processes, each finds the neighbours of some items, and all encode all of them.

    Args:
        items: what it is made of.
        path: a new file; None in a process that does not write.
        compute: how.
        keep: called now and then with what is known; see `find_graph`.
    """
    rankers, labels = items.rankers, items.labels
    images, sizes = _images(items, compute), sizes_for(rankers)
    cams = torch.from_numpy(labels.cams) if items.needs_cameras and labels.cams is not None else None
    approximation = None
    if items.ann is None:
        graph = find_graph(images, sizes, cams=cams, progress=compute.progress, known=items.known, keep=keep)
    else:
        search = ApproximateSearch.build(images, items.ann, items.effort, group=compute.group)
        graph = find_graph_approximately(
            images, sizes, search, cams=cams, group=compute.group, progress=compute.progress
        )
        # Propagated rows have hundreds of entries, and what they reach grows with the square of that.
        entries = _ENTRIES if any(ranker.compares == "dot" for ranker in rankers) else None
        approximation = Approximation(search, recall_of(graph, images), entries)
        for side in images.sides:
            side.let_go()
    encoded = tuple(_encoded(ranker, graph, approximation) for ranker in rankers)
    if path is not None:
        write(path, images, labels, items.methods, graph, encoded, items.fitted, approximation)
    elif isinstance(images, ShardedImages):
        for _ in images.blocks():
            pass  # the first process writes them, and has some of them from here


def _encoded(ranker: GraphRanker, graph: NeighbourGraph, approximation: Approximation | None) -> Encoding:
    """What a ranker makes of the lists it asks for."""
    entries = approximation.entries if approximation is not None and ranker.compares == "dot" else None
    found = ranker.fit(replace(graph.cut(ranker.list_sizes()), entries=entries))
    # A ranker may cut its rows on the way, or leave that to be done here.
    cut: Encoding = found.cut_rows(entries)
    return cut.invert(slice(0, len(graph)), keep_rows=ranker.needs_rows)


def _images(items: Items, compute: Compute) -> UnitRows:
    """The rows of all items.

    Of a gallery that is cut among processes, they come from the one that has each. For an approximate search,
    all of them are at hand.
    """
    count, gallery = len(items.labels.digests), items.sides[0]
    plan = Plan.of_images(count, count, gallery.dim, compute)
    if items.ann is not None:
        sides = [_at_hand(side, plan, compute) for side in items.sides]
        # One side that is at hand is held without a copy.
        return replace(plan, resident=plan.resident or len(sides) == 1).rows(*sides)
    if not isinstance(gallery, ShardedGallery):
        return plan.rows(*items.sides)
    plan = shared_plan(plan, len(gallery.shard), gallery.group)
    return ShardedImages(None, gallery, plan.rows(gallery.shard), gallery.group)


def _at_hand(side: Side, plan: Plan, compute: Compute) -> Side:
    """A side with normalised rows, in memory or in a file that is mapped into it."""
    if side.unit and isinstance(side.features, torch.Tensor):
        return side
    room = room_for(len(side), side.dim, compute)
    for start, block in replace(plan, resident=False).rows(side).blocks():
        room.rows[start : start + len(block)] = block.cpu()
    return stepped_side(side, room)


def check_memory(memory: int | None, dim: int) -> None:
    """Raise `ParameterError` for a budget that holds no block of one row, as `Plan` cuts it."""
    needed = 128 * dim
    if memory is not None and memory < needed:
        raise ParameterError(
            f"a memory budget of {memory:,} bytes is too small for one row: raise it to {needed:,} bytes"
        )
