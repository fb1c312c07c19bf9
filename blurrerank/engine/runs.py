"""One run from features to a ranking file, measured before and after, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..compute.device import pick_device
from ..compute.progress import Progress
from ..compute.stopwatch import Stopwatch
from ..data.features import FeatureSet
from ..data.given_lists import GivenLists
from ..data.positions import Positions
from ..data.sharded import ShardedSet
from ..errors import ParameterError
from ..evaluation.match_finder import MatchFinder
from ..evaluation.metrics import Metrics, check_ap, measure, warn_about
from ..evaluation.protocols import get_protocol
from ..evaluation.sharded_finder import ShardFinder
from ..files.ranking_h5 import versions
from ..files.rankings import RankingWriter, RunInfo, open_ranking
from ..methods import HeadMethod, Method
from .batches import RankedBatch, rerank_batches
from .checkpoint import Checkpoint, Done, keeping
from .distributed import rerank_sharded
from .given import check_method


@dataclass(frozen=True)
class Outcome:
    """What a run found out.

    Attributes:
        depth: how deep the written lists are.
        before: metrics of the lists by cosine similarity; None without ids.
        after: metrics of the re-ranked lists; None without ids.
        info: what a native file records.
        resumed: how many of the lists an interrupted run had left.
    """

    depth: int
    before: Metrics | None
    after: Metrics | None
    info: RunInfo
    resumed: int = 0

    def summary(self) -> dict[str, Any]:
        """Everything but the lists, ready for JSON."""
        return {
            "method": self.info.method,
            "params": dict(self.info.params),
            "reranked_depth": self.info.reranked_depth,
            "depth": self.depth,
            "before": None if self.before is None else self.before.summary(),
            "after": None if self.after is None else self.after.summary(),
            "candidates": self.info.candidates,
            "digest": self.info.digest,
        }


@dataclass(frozen=True)
class Measured:
    """What came of re-ranking: metrics before and after, and where the matches stand; None without ids.

    Of the lists, `resumed` were known.
    """

    before: Metrics | None = None
    after: Metrics | None = None
    positions: Positions | None = None
    resumed: int = 0


class _Nowhere(RankingWriter):
    """For processes that do not write."""

    def write(self, start: int, indices: NDArray[Any], scores: NDArray[np.float32]) -> None:
        """Nothing."""


def _leads(data: FeatureSet) -> bool:
    """Whether this process writes and measures."""
    return not isinstance(data, ShardedSet) or data.group.rank == 0


# The two places where a gallery that is cut among processes goes another way.


def _batches(data: FeatureSet, method: Method, **options: Any) -> Iterator[RankedBatch]:
    if not isinstance(data, ShardedSet):
        return rerank_batches(data, method, **options)
    if options.pop("candidates") is not None:
        raise ParameterError("candidates are re-ranked in one process: start this without torchrun")
    return rerank_sharded(data, method, **options)


def _finder(data: FeatureSet, **options: Any) -> MatchFinder:
    return ShardFinder(data, **options) if isinstance(data, ShardedSet) else MatchFinder(data, **options)


def rerank_measured(
    data: FeatureSet,
    method: Method,
    *,
    depth: int | None = None,
    protocol: str = "market1501",
    ap: str = "plain",
    device: str = "auto",
    memory: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    watch: Stopwatch | None = None,
    write: Callable[[int, NDArray[Any], NDArray[np.float32]], None] | None = None,
    candidates: GivenLists | None = None,
    checkpoint: Checkpoint | None = None,
) -> Measured:
    """Re-rank, hand on the lists as they come, and measure them over the whole gallery if there are ids.

    Given candidates are measured to the depth they have: a match that is not listed counts as missed.

    Args:
        data: the features.
        method: what re-ranks.
        depth: how deep the lists are; by default as deep as the method's head. Capped at the gallery.
        protocol: `market1501`, `cuhk03` or `plain`.
        ap: `plain` or `trapezoid`.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget in bytes; see `rerank`.
        precision: of the products that candidates are found by, `auto`, `float32` or `bfloat16`; the lists are
            the same.
        progress: called with (images done, images in all).
        watch: takes the seconds of the stages `search`, `re-rank` and `metrics`.
        write: called with the first probe, indices (p, depth) and scores (p, depth) of each batch.
        candidates: lists of these probes to re-rank instead of searching; `depth` is capped at theirs.
        checkpoint: what is done already, and keeps what is done now.

    Raises:
        ParameterError: for a parameter outside its range, or candidates that the method cannot work with.
    """
    rules = get_protocol(protocol)
    check_ap(ap)
    watch = watch or Stopwatch()
    size = len(data.gallery) if candidates is None else candidates.depth
    shown = min(depth or method.depth(size), size)
    finder = None
    if data.has_ids:
        with watch("metrics"):
            finder = _finder(data, single_shot=rules.single_shot, device=pick_device(device), memory=memory)
    located: list[tuple[Positions, Positions]] = []

    def take(done: Done) -> None:
        if write is not None:
            write(done.start, done.indices, done.scores)
        if done.before is not None and done.after is not None and _leads(data):
            located.append((done.before, done.after))

    first, kept = 0, {}
    if checkpoint is not None:
        for done in checkpoint.done():
            take(done)
            first = done.stop
        if not isinstance(data, ShardedSet):
            kept = {"known": checkpoint.neighbours(), "checkpoint": checkpoint.keep_neighbours}
    if isinstance(data, ShardedSet):
        (first,) = data.group.agreed([first if _leads(data) else len(data.probe)])
    resumed = first
    for batch in _batches(
        data,
        method,
        depth=depth,
        full_rows=finder is not None,
        device=device,
        memory=memory,
        precision=precision,
        progress=progress,
        watch=watch,
        candidates=candidates,
        first=first,
        **kept,
    ):
        with watch("re-rank"):
            done = Done(batch.start, *batch.lists(shown))
        if finder is not None:
            with watch("metrics"):
                before = batch.before(finder)
                done = replace(done, before=before, after=batch.after(finder, before))
        take(done)
        if checkpoint is not None:
            checkpoint.add(done)
    if finder is None or not _leads(data):
        return Measured(resumed=resumed)
    known = None if candidates is None or candidates.complete else candidates.shortest
    with watch("metrics"):
        earlier, later = (Positions.concatenate(parts) for parts in zip(*located, strict=True))
        measured = Measured(
            measure(earlier, data, rules, ap=ap, depth=known),
            measure(later, data, rules, ap=ap, depth=known),
            later,
            resumed,
        )
    assert measured.after is not None
    warn_about(measured.after, data)
    return measured


def rerank_to(
    target: Path | BinaryIO,
    data: FeatureSet,
    method: Method,
    *,
    format: str,
    depth: int | None = None,
    force: bool = False,
    resume: bool = False,
    protocol: str = "market1501",
    ap: str = "plain",
    device: str = "auto",
    memory: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    candidates: GivenLists | None = None,
) -> Outcome:
    """Re-rank, write the lists as they come, and measure them over the whole gallery if there are ids.

    Given candidates are measured to the depth they have: a match that is not listed counts as missed.

    Args:
        target: a file, which appears only when everything has gone well, or a binary stream.
        data: the features.
        method: what re-ranks.
        format: a name from `formats.FORMATS`.
        depth: how deep the written lists are; by default as deep as the method's head. Capped at the gallery.
        force: replace an existing file, and start over whatever an interrupted run left.
        resume: go on from what an interrupted run left, to the same file as without the interruption.
        protocol: `market1501`, `cuhk03` or `plain`.
        ap: `plain` or `trapezoid`.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget in bytes; see `rerank`.
        precision: of the products that candidates are found by, `auto`, `float32` or `bfloat16`; the lists are
            the same.
        progress: called with (images done, images in all).
        candidates: lists of these probes to re-rank instead of searching; `depth` is capped at theirs.

    Raises:
        InputError: if what is to be resumed is a run of other features or parameters.
        OutputError: if the file cannot be written; before any work where that shows.
        ParameterError: for a parameter outside its range, or candidates that the method cannot work with.
    """
    get_protocol(protocol)
    check_ap(ap)
    if candidates is not None:
        check_method(method)
        candidates.warn_about()
    size = len(data.gallery) if candidates is None else candidates.depth
    shown = min(depth or method.depth(size), size)
    writing: AbstractContextManager[RankingWriter] = nullcontext(_Nowhere())
    if _leads(data):
        writing = open_ranking(
            target, data, shown, format=format, method=method.name, force=force, resume=resume
        )
    # Of a gallery that is cut among processes, all must take part.
    digest = data.digest()
    labels_digest = data.labels_digest() if data.has_ids else None
    with writing as writer, ExitStack() as stack:
        checkpoint = None
        if isinstance(target, Path) and _leads(data):
            run = {
                "digest": digest,
                "labels_digest": labels_digest,
                "candidates_digest": None if candidates is None else candidates.digest(),
                "method": method.name,
                **method.params(),
                "depth": shown,
                "format": format,
                "protocol": protocol,
                "device": pick_device(device).type,  # others may differ in the last bit of a score
                "versions": versions(),
            }
            checkpoint = stack.enter_context(keeping(target, run))
        found = rerank_measured(
            data,
            method,
            depth=depth,
            protocol=protocol,
            ap=ap,
            device=device,
            memory=memory,
            precision=precision,
            progress=progress,
            write=writer.write,
            candidates=candidates,
            checkpoint=checkpoint,
        )
        # Positions say where matches stand in the whole gallery's order, which part of a gallery does not.
        positions = found.positions if candidates is None or candidates.complete else None
        info = RunInfo(
            method.name,
            method.params(),
            method.reranked(size),
            cosine_tail=candidates is None and isinstance(method, HeadMethod),
            digest=digest,
            labels_digest=None if positions is None else labels_digest,
            positions=positions,
            candidates=None if candidates is None else candidates.source,
            metrics={"before": found.before, "after": found.after} if found.before and found.after else {},
        )
        writer.finish(info)
        if isinstance(data, ShardedSet):
            data.group.barrier()  # no file, unless all came to the end
    return Outcome(shown, found.before, found.after, info, found.resumed)
