"""Find the nearest of all images for each of them, exactly, by pairs of blocks; resumable."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch

from ..compute.compute import Progress
from ..compute.products import full_float32
from ..search.dimensions import fit_dimensions
from ..search.exact import margin
from ..search.precision import Rounded, output_error, product
from ..search.rows import UnitRows, blocks_of, warn_of_reads
from .neighbour_graph import CAMERA_LISTS, ListSizes, NeighbourGraph, NeighbourLists
from .resolve import images_at_a_time, resolve_lists, resolve_lowest
from .running_lists import Pairs, RunningLists
from .tile import Block, offer

log = logging.getLogger(__name__)

# Rows on a side of a tile of products: a CPU should keep it in cache, a GPU wants more.
_BLOCK_ROWS = {"cpu": 2048, "cuda": 8192}
# Candidates for the farthest image; more by products that leave something out.
_FARTHEST, _FARTHEST_ON_BASIS = 8, 32

Keep = Callable[[Callable[[], NeighbourGraph]], None]
"""Called now and then with a function that returns the graph of the images met so far."""


@full_float32()
def find_graph(
    images: UnitRows,
    sizes: ListSizes,
    *,
    cams: torch.Tensor | None = None,
    progress: Progress | None = None,
    known: NeighbourGraph | None = None,
    keep: Keep | None = None,
) -> NeighbourGraph:
    """Find the nearest others of every image by cosine similarity, and, where asked for, the farthest.

    A product serves both of its images, so that half of them suffice; as in `search`, products only say which
    pairs to score. Ties go to the lower index.

    Args:
        images: N rows, whose budget is kept.
        sizes: how long the lists are.
        cams: (N,) int64 cameras, for lists within and across them.
        progress: called with (images' worth of work done, N).
        known: the graph of the first images alone, with the same sizes, from which to go on.
        keep: called now and then, so that an interrupted search can go on from there.
    """
    search = _Search(images, sizes, cams, known)
    search.run(progress or (lambda done, total: None), keep)
    return search.graph(len(images))


class _Search:
    """The candidates of all images, and how they come about."""

    def __init__(
        self, images: UnitRows, sizes: ListSizes, cams: torch.Tensor | None, known: NeighbourGraph | None
    ) -> None:
        if known is not None and (
            (sizes.farthest and known.lowest is None)
            or any(getattr(sizes, kind) and not getattr(known, kind) for kind in CAMERA_LISTS)
        ):
            known = None  # it was found for lists of other kinds
        self.images, self.sizes, self.known = images, sizes, known
        total, device = len(images), images.device
        self.cams = None if cams is None else cams.to(device)
        kinds = {"nearest": (sizes.nearest, Pairs())}
        if self.cams is not None:
            kinds |= {
                name: (count, Pairs(self.cams, same))
                for name, count, same in (("within", sizes.within, True), ("across", sizes.across, False))
                if count
            }
        widths = {name: margin(min(count, total - 1), total - 1) for name, (count, _) in kinds.items()}
        if len(kinds) == 1:  # the nearest of a camera are not as near, and its sample is small
            nearest = min(sizes.nearest, total - 1)
            widths["nearest"] = fit_dimensions(images, total, nearest, widths["nearest"], halved=True)
        elif images.picks_basis:
            images.compare_on(None)
        self.running = {name: RunningLists(images, widths[name], pairs) for name, (_, pairs) in kinds.items()}
        farthest = _FARTHEST if images.basis is None else _FARTHEST_ON_BASIS
        width = min(farthest, total) if sizes.farthest else 0
        self.farthest = RunningLists(images, width, Pairs(), largest=False)
        self.errors = torch.zeros(total, device=device)
        widest = max(running.width for running in (*self.running.values(), self.farthest))
        self.step = images_at_a_time(images.budget.working_bytes, widest)
        if not images.resident:
            # A stripe reads what was before it, and each part of the lists everything, twice for each kind.
            parts = (1 + len(self.running)) * math.ceil(total / self.step)
            warn_of_reads(math.ceil(total / images.budget.held_rows / 2) + parts, total, images.dim)
        if known is not None and len(known):
            self.running["nearest"].start_from(known.similarities[:, 1:], known.lists[:, 1:].long())
            for name in CAMERA_LISTS:
                lists = getattr(known, name)
                if lists is not None and name in self.running:
                    self.running[name].start_from(lists.similarities, lists.items.long())

    def run(self, progress: Progress, keep: Keep | None) -> None:
        """Let every image meet every other, in stripes: after one, all images up to its end know each other."""
        images, total = self.images, len(self.images)
        held, working = images.budget.held_rows, images.budget.working_bytes
        # A tile of products, the same turned, and what may enter lists; and the rows of a block, which are
        # there as they are stored, in float32 and rounded, when they are read again.
        few = working // (16 * images.dim)
        block = max(1, min(_BLOCK_ROWS[images.device.type], int((working / 16) ** 0.5), few, held, total))
        start = 0 if self.known is None else len(self.known)
        spans = list(pairwise([*range(0, start, block), *range(start, total, block), total]))
        width = 1 if images.resident else max(1, held // block)
        done, tiles = start * start, 0
        for stripe in range(len(range(0, start, block)), len(spans), width):
            columns = spans[stripe : stripe + width]
            begin, end = columns[0][0], columns[-1][1]
            kept = images.factors(begin, end)
            self.errors[begin:end] = kept.errors
            right = [self._block(kept[first - begin : until - begin], first) for first, until in columns]
            before = images.spans(spans[:stripe])
            for number, (top, bottom) in enumerate(spans[: stripe + len(columns)]):
                if number >= stripe:
                    one = right[number - stripe]
                else:
                    left = images.factors(top, bottom, next(before))
                    self.errors[top:bottom] = left.errors
                    one = self._block(left, top)
                for (first, until), other in zip(columns, right, strict=True):
                    if first < top:
                        continue
                    if images.is_assigned_here(tiles):
                        self._meet(one, product(one.rows, other.rows), other)
                    tiles += 1
                    done += (bottom - top) * (until - first) * (1 + (first > top))
                progress(done // total, total)
            if keep is not None:
                keep(partial(self.graph, end))
        for running in (*self.running.values(), self.farthest):
            running.merge_processes(images)

    def _block(self, some: Rounded, first: int) -> Block:
        """Consecutive images from `first` on; if cameras matter, in an order in which groups have one each."""
        images = torch.arange(first, first + len(some.rows), device=self.images.device)
        block = Block(images, some.rows)
        return block if self.cams is None or len(self.running) == 1 else block.by_camera(self.cams)

    def _meet(self, block: Block, products: torch.Tensor, others: Block) -> None:
        """Take note of the products of the images of two blocks, which are used up."""
        if block is others:
            products.fill_diagonal_(-torch.inf)
        offer(products, block, others, list(self.running.values()))
        if not self.farthest.width:
            return
        if block is others:
            products.fill_diagonal_(1)
        if self.images.basis is not None:  # from the most that a similarity may be to the least
            products.addcmul_(block.rows[:, -1:], others.rows[:, -1], value=-2)
        offer(products, block, others, [self.farthest])

    def graph(self, met: int) -> NeighbourGraph:
        """Return what follows for the first `met` images from the products among them."""
        images, device = self.images, self.images.device
        errors = self.errors[:met]
        bound = images.product_bound(errors, errors.amax())
        # The least similarities on a basis come from rounded products, and are computed and rounded again.
        twice = 0.0 if images.basis is None else output_error(images.dtype) + 2.0**-22
        dtype = torch.int32 if len(images) < 2**31 else torch.int64
        unproven = 0
        found: dict[str, NeighbourLists] = {}
        lowest = torch.empty(met, device=device) if self.farthest.width else None
        for name, count in self._lengths(met):
            own = int(name == "nearest")
            items = torch.empty(met, count + own, dtype=dtype, device=device)
            similarities = torch.ones(met, count + own, device=device)
            items[:, :own] = torch.arange(met, device=device).unsqueeze(1)
            found[name] = NeighbourLists(items, similarities)
        for start, stop in blocks_of(met, self.step):
            some = slice(start, stop)
            for name, count in self._lengths(met):
                lists, own = found[name], int(name == "nearest")
                lists.items[some, own:], lists.similarities[some, own:], failed = resolve_lists(
                    images, some, self.running[name], bound[some], (met, count)
                )
                unproven += failed
            if lowest is not None:
                lowest[some] = resolve_lowest(images, some, self.farthest, bound[some] + twice, met)
        if lowest is not None and self.known is not None:
            before = self.known.lowest
            assert before is not None
            lowest[: len(before)] = torch.minimum(lowest[: len(before)], before)
        log.info(
            "neighbours of %d images verified exact, by %s products: %d lists needed an exhaustive search",
            *(met, str(images.dtype).removeprefix("torch."), unproven),
        )
        lists = found["nearest"]
        within, across = found.get("within"), found.get("across")
        cams = None if self.cams is None else self.cams[:met]
        return NeighbourGraph(lists.items, lists.similarities, lowest, within, across, images, cams)

    def _lengths(self, met: int) -> Iterator[tuple[str, int]]:
        """Each kind of list, and how long it is among the first `met` images."""
        for name in self.running:
            yield name, min(getattr(self.sizes, name), met - 1)
