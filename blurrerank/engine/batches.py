"""Search and re-rank, batch of probes after batch, within the memory budget."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.device import budget, pick_device
from ..compute.progress import Progress
from ..compute.stopwatch import Stopwatch
from ..data.candidates import Candidates
from ..data.checks import check_count
from ..data.features import FeatureSet
from ..data.given_lists import GivenLists
from ..data.positions import Positions
from ..data.sort_keys import from_sort_keys, index_dtype, strictly_decreasing
from ..errors import BlurrerankError, BlurrerankWarning, ParameterError
from ..evaluation.match_finder import MatchFinder
from ..graph.neighbours import Keep, Neighbours, find_neighbours
from ..methods import GalleryMethod, HeadMethod, Method, WholeMethod
from ..search.exact import Batch, margin, search, similarities_of
from ..search.given import look_up
from ..search.plan import Plan
from ..search.rows import Gatherable, warn_of_reads
from ..search.tiles import best_keys
from .given import check_method, rescore


@dataclass(frozen=True)
class RankedBatch:
    """The lists of consecutive probes, on the device they were made on.

    Attributes:
        start: the first probe.
        gallery_size: G, how many items the gallery has.
        indices: (p, R) int64 into the gallery, best first; R is the depth asked for, or the re-ranked head's.
        scores: (p, R) float32; head and tail are each descending.
        reranked: how many items at the head may have changed place.
        similarities: gives the (p, G) float32 cosine similarities to the whole gallery, where asked for.
        final: (p, G) float32, the new scores of the whole gallery, from methods that give them.
        given: (p, R) int64, lists that came from elsewhere, by cosine similarity. R is then that of the longest
            of these, and past the end of a list indices are -1 and scores -inf.
    """

    start: int
    gallery_size: int
    indices: torch.Tensor
    scores: torch.Tensor
    reranked: int
    similarities: Callable[[], torch.Tensor] | None = None
    final: torch.Tensor | None = None
    given: torch.Tensor | None = None

    def lists(self, depth: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Indices (p, depth) and strictly decreasing scores as arrays, as a `Ranking` holds them."""
        indices = self.indices[:, :depth].cpu().numpy()
        scores = strictly_decreasing(self.scores[:, :depth].cpu().numpy())
        if self.given is not None:
            scores[indices < 0] = -np.inf
        return indices.astype(index_dtype(self.gallery_size)), scores

    def before(self, finder: MatchFinder) -> Positions:
        """Where the matches stand in the full lists by cosine similarity, or in those that were given."""
        if self.given is not None:
            return finder.in_lists(self.start, self.given)
        assert self.similarities is not None
        return finder.by_similarity(self.start, self.similarities())

    def after(self, finder: MatchFinder, before: Positions | None = None) -> Positions:
        """Where the matches stand in the re-ranked full lists; what is known of `before` saves finding it."""
        if self.final is not None:
            return finder.by_similarity(self.start, self.final)
        before = before or self.before(finder)
        if not self.reranked:
            return before
        if self.given is not None:
            return finder.in_lists(self.start, self.indices)
        return finder.in_lists(self.start, self.indices[:, : self.reranked], before=before)


def there(similarities: torch.Tensor) -> torch.Tensor:
    """Similarities that need not be computed any more, as `RankedBatch` takes them."""
    return similarities


def plan_for(
    data: FeatureSet,
    method: Method,
    *,
    depth: int | None = None,
    full_rows: bool = False,
    device: str = "auto",
    memory: int | None = None,
    block: int | None = None,
    precision: str = "auto",
    candidates: GivenLists | None = None,
) -> Plan:
    """How `rerank_batches` cuts the work; arguments and errors as there."""
    gallery = len(data.gallery) if candidates is None else candidates.depth
    head, workspace, rows, asking = 0, 0, 2, len(data.probe)
    if isinstance(method, HeadMethod):
        head, rows = method.depth(gallery), int(full_rows)
        workspace = method.workspace(head, data.dim)
    elif isinstance(method, GalleryMethod):
        head = min(method.pool, gallery)
        workspace = method.workspace(head)
        if data.gallery.encoded_for(method) is None:
            asking = len(data.gallery)
    else:
        asking += len(data.gallery)
    listed = max(head, depth or method.depth(gallery))
    if candidates is not None:
        # Pairs, whose they are, and how they are sorted take twice what a search keeps.
        listed = 2 * candidates.depth
    else:
        if isinstance(method, HeadMethod) and listed > head:
            rows = 1
        head = margin(head, gallery)
    return Plan.fit(
        data,
        listed=listed,
        head=head,
        full_rows=rows,
        together=isinstance(method, WholeMethod),
        asking=asking,
        device=pick_device(device),
        workspace=workspace,
        memory=memory,
        block=block,
        precision=precision,
    )


def rerank_batches(
    data: FeatureSet,
    method: Method,
    *,
    depth: int | None = None,
    full_rows: bool = False,
    device: str = "auto",
    memory: int | None = None,
    block: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    watch: Stopwatch | None = None,
    candidates: GivenLists | None = None,
    first: int = 0,
    known: Neighbours | None = None,
    checkpoint: Keep | None = None,
) -> Iterator[RankedBatch]:
    """Search and re-rank, as many probes at a time as the memory budget holds.

    Args:
        data: the features.
        method: what re-ranks.
        depth: how deep the lists go at least; by default as deep as the method's head. Capped at the gallery.
        full_rows: also yield each probe's similarities to the whole gallery.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget in bytes; see `Plan.fit`.
        block: gallery rows per block, instead of the plan's choice.
        precision: of the products that candidates are found by, `auto`, `float32` or `bfloat16`; the lists are
            the same.
        progress: called with (images done, images in all).
        watch: takes the seconds of the stages `index`, `search` and `re-rank`.
        candidates: lists to re-rank instead of searching, of these probes; `full_rows` has no meaning then.
        first: the probe to begin with.
        known: what `checkpoint` was called with before an interruption.
        checkpoint: called now and then with what is known, by a method that looks at many images first.

    Raises:
        ParameterError: for a depth or block below 1, a budget that is too small, or candidates for a method
            that does more than re-rank the head of a list.
        BlurrerankError: for a device that is not here.
        InputError: if the file that features are read from is changed meanwhile.
    """
    if candidates is not None:
        check_method(method)
        full_rows = False
    if depth is not None:
        check_count("depth", depth)
        depth = min(depth, len(data.gallery))
    shown = depth or method.depth(len(data.gallery))
    watch = watch or Stopwatch()
    where = pick_device(device)
    memory = budget(memory, where)
    full = ""
    while first < len(data.probe):
        data.check()
        try:
            plan = plan_for(
                data,
                method,
                depth=depth,
                full_rows=full_rows,
                device=device,
                memory=memory,
                block=block,
                precision=precision,
                candidates=candidates,
            )
        except ParameterError:
            if full:
                raise BlurrerankError(f"{where} is out of memory: {full}") from None
            raise
        if candidates is None and not plan.resident and not isinstance(method, WholeMethod):
            reads = math.ceil((len(data.probe) - first) / plan.probe_batch)
            warn_of_reads(reads, len(data.gallery), data.dim)
        if candidates is not None and isinstance(method, HeadMethod):
            batches = _given(data, method, plan, candidates, progress, watch, first)
        elif isinstance(method, HeadMethod):
            batches = _heads(data, method, plan, shown, full_rows, progress, watch, first)
        elif isinstance(method, WholeMethod):
            batches = _whole(data, method, plan, shown, progress, watch, first, known, checkpoint)
        else:
            assert isinstance(method, GalleryMethod)
            batches = _alone(data, method, plan, shown, progress, watch, first, known, checkpoint)
        try:
            for batch in batches:
                data.check()  # rows that are mapped are not copied when they are read
                yield batch
                first = batch.start + len(batch.indices)
            return
        except torch.OutOfMemoryError as error:
            full = str(error).partition(". ")[0]
        # Out of the handler, which holds on to all that was on the device.
        memory //= 2
        warnings.warn(
            f"{where} is out of memory: going on from probe {first} with half of the budget, {memory:,} bytes",
            BlurrerankWarning,
            stacklevel=2,
        )
        if where.type == "cuda":
            torch.cuda.empty_cache()


def _heads(
    data: FeatureSet,
    method: HeadMethod,
    plan: Plan,
    shown: int,
    full_rows: bool,
    progress: Progress | None,
    watch: Stopwatch,
    first: int,
) -> Iterator[RankedBatch]:
    """Search, and give the head of each list new scores."""
    head = method.depth(len(data.gallery))
    reranked = method.reranked(len(data.gallery))
    with watch("search"):
        gallery = plan.rows(data.gallery)

    def rerank(probe: torch.Tensor, found: Candidates, rows: Gatherable) -> Candidates:
        with watch("re-rank"):
            return found.sorted_by(method.rescore(probe, found, rows))

    def similarities(batch: Batch) -> torch.Tensor:
        if batch.similarities is not None:
            return batch.similarities
        assert batch.found is not None
        return similarities_of(batch.probe, gallery, batch.found)

    found_batches = search(
        plan.probes(data.probe),
        gallery,
        head,
        batch=plan.probe_batch,
        depth=shown,
        # What is read from disk is read once for both; otherwise lists need less than the whole rows.
        full_rows=full_rows and not gallery.resident,
        progress=progress,
        then=rerank,
        first=first,
    )
    for batch in watch.each("search", found_batches):
        found = batch.candidates
        rows = partial(similarities, batch)
        yield RankedBatch(batch.start, len(gallery), found.indices, found.scores, reranked, rows)


def _given(
    data: FeatureSet,
    method: HeadMethod,
    plan: Plan,
    lists: GivenLists,
    progress: Progress | None,
    watch: Stopwatch,
    first: int,
) -> Iterator[RankedBatch]:
    """Look up the given lists, and give the head of each new scores."""
    head, reranked = method.depth(lists.depth), method.reranked(lists.depth)
    with watch("search"):
        gallery = plan.rows(data.gallery)
    found_batches = look_up(
        plan.probes(data.probe), gallery, lists, batch=plan.probe_batch, progress=progress, first=first
    )
    for batch in watch.each("search", found_batches):
        with watch("re-rank"):
            found = batch.candidates
            near = rescore(method, batch.probe, found.head(head), gallery)
            indices = torch.cat([near.indices, found.indices[:, head:]], dim=1)
            scores = torch.cat([near.scores, found.scores[:, head:]], dim=1)
        yield RankedBatch(batch.start, len(gallery), indices, scores, reranked, given=found.indices)


def _whole(
    data: FeatureSet,
    method: WholeMethod,
    plan: Plan,
    shown: int,
    progress: Progress | None,
    watch: Stopwatch,
    first: int,
    known: Neighbours | None,
    checkpoint: Keep | None,
) -> Iterator[RankedBatch]:
    """Look at all images, search, and give the whole gallery new scores."""
    with watch("search"):
        images = plan.rows(data.probe, data.gallery)

    def advance(done: int, others: int = 0) -> None:
        if progress is not None:
            progress(others + done, len(images) + len(data.probe))

    score = method.prepare(
        images, len(data.probe), plan, watch, lambda done, _: advance(done), known, checkpoint
    )
    probe, gallery = images.parts()
    found_batches = search(
        probe,
        gallery,
        0,
        batch=plan.probe_batch,
        full_rows=True,
        progress=lambda done, _: advance(done, len(images)),
        first=first,
    )
    for batch in watch.each("search", found_batches):
        assert batch.similarities is not None
        with watch("re-rank"):
            final = score(batch.start, batch.similarities)
            indices, scores = from_sort_keys(best_keys(final, 0, shown))
        rows = partial(there, batch.similarities)
        yield RankedBatch(batch.start, len(gallery), indices, scores, len(gallery), rows, final)


def _alone(
    data: FeatureSet,
    method: GalleryMethod,
    plan: Plan,
    shown: int,
    progress: Progress | None,
    watch: Stopwatch,
    first: int,
    known: Neighbours | None,
    checkpoint: Keep | None,
) -> Iterator[RankedBatch]:
    """Look at the gallery unless that is done, search, and give the whole gallery new scores."""
    with watch("search"):
        gallery = plan.rows(data.gallery)
    encoded = data.gallery.encoded_for(method)
    others = 0 if encoded is not None else len(gallery)

    def advance(done: int, before: int = 0) -> None:
        if progress is not None:
            progress(before + done, others + len(data.probe))

    if encoded is None:
        with watch("index"):
            count = min(method.pool, len(gallery) - 1)
            near = find_neighbours(
                gallery,
                count,
                held=plan.held,
                working=plan.working,
                progress=lambda done, _: advance(done),
                known=known,
                checkpoint=checkpoint,
            )
            encoded = method.encode(gallery, near, plan.held, plan.working)
    encoded = encoded.to(plan.device)
    found_batches = search(
        plan.probes(data.probe),
        gallery,
        min(method.pool, len(gallery)),
        batch=plan.probe_batch,
        full_rows=True,
        progress=lambda done, _: advance(done, others),
        first=first,
    )
    for batch in watch.each("search", found_batches):
        assert batch.similarities is not None
        with watch("re-rank"):
            final = method.score(encoded, batch.candidates, batch.similarities, plan.working)
            indices, scores = from_sort_keys(best_keys(final, 0, shown))
        rows = partial(there, batch.similarities)
        yield RankedBatch(batch.start, len(gallery), indices, scores, len(gallery), rows, final)
