"""One run from features to a ranking file, measured before and after, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..compute.compute import Compute
from ..compute.stopwatch import Stopwatch
from ..data.features import FeatureSet
from ..data.positions import Positions
from ..data.sharded import ShardedSet
from ..evaluation.match_finder import MatchFinder
from ..evaluation.metrics import Metrics, check_ap, measure, warn_about
from ..evaluation.protocols import Protocol, get_protocol
from ..evaluation.score_calibration import Rejection, Verdicts
from ..evaluation.sharded_finder import ShardFinder
from ..files.ranking_h5 import versions
from ..files.rankings import RankingWriter, RunInfo, open_ranking
from ..methods import AnyMethod, HeadRanker, create
from .checkpoint import Checkpoint, Done, keeping
from .likeness import warn_of_likeness
from .ranking import rank_batches
from .request import Request, check_reranks_candidates, setting_of


@dataclass(frozen=True)
class Outcome:
    """What a run found out.

    Attributes:
        depth: how deep the written lists are.
        before: metrics of the lists by cosine similarity; None without ids.
        after: metrics of the re-ranked lists; None without ids.
        info: what a native file records.
        resumed: how many of the lists an interrupted run had left.
        rejected: how many lists were rejected; None where none could be.
        left_out: how many of these were not written, as the format has no place for them.
    """

    depth: int
    before: Metrics | None
    after: Metrics | None
    info: RunInfo
    resumed: int = 0
    rejected: int | None = None
    left_out: int = 0

    def summary(self) -> dict[str, Any]:
        """Everything but the lists, ready for JSON."""
        return {
            "method": self.info.method,
            "params": dict(self.info.params),
            "setting": self.info.setting,
            "reranked_depth": self.info.reranked_depth,
            "depth": self.depth,
            "before": None if self.before is None else self.before.summary(),
            "after": None if self.after is None else self.after.summary(),
            "candidates": self.info.candidates,
            "digest": self.info.digest,
            **({} if self.rejected is None else {"rejected": self.rejected, "below": self.info.rejected_below}),
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


def _finder(data: FeatureSet, single_shot: bool, compute: Compute) -> MatchFinder:
    """Where the matches stand, also when the gallery is cut among processes."""
    kind = ShardFinder if isinstance(data, ShardedSet) else MatchFinder
    return kind(data, single_shot=single_shot, device=compute.device, memory=compute.memory)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Measurement:
    """How lists are measured.

    Attributes:
        protocol: `market1501`, `cuhk03`, `leave-one-out` or `plain`.
        ap: `plain` or `trapezoid`.

    Raises:
        ParameterError: on construction, for others.
    """

    protocol: str = "market1501"
    ap: str = "plain"

    def __post_init__(self) -> None:
        """Check both."""
        get_protocol(self.protocol)
        check_ap(self.ap)

    @property
    def rules(self) -> Protocol:
        """What the protocol drops and draws."""
        return get_protocol(self.protocol)


@dataclass(frozen=True)
class Output:
    """Where and how lists are written.

    Attributes:
        target: a file, which appears only when everything has gone well, or a binary stream.
        format: a name from `files.FORMATS`.
        force: replace an existing file, and start over whatever an interrupted run left.
        resume: continue from what an interrupted run left, to the same file as without the interruption.
        rejection: which lists are rejected, by the score of their first item, whatever the labels are.
    """

    target: Path | BinaryIO
    format: str
    force: bool = False
    resume: bool = False
    rejection: Rejection | None = None


def rerank_measured(
    data: FeatureSet,
    method: AnyMethod,
    request: Request,
    measurement: Measurement,
    compute: Compute,
    *,
    write: Callable[[int, NDArray[Any], NDArray[np.float32]], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Measured:
    """Re-rank, hand on the lists as they come, and measure them over the whole gallery if there are ids.

    Given candidates are measured to the depth they have: a match that is not listed counts as missed.

    Args:
        data: the features.
        method: what re-ranks.
        request: how deep the lists are, and what else is wanted.
        measurement: how they are measured.
        compute: how; the stopwatch gets the stages `index`, `search`, `re-rank` and `metrics`.
        write: called with the first probe, indices (p, depth) and scores (p, depth) of each batch.
        checkpoint: what is done already, and keeps what is done now.

    Raises:
        ParameterError: for a parameter outside its range, or candidates that the method cannot work with.
    """
    watch, candidates, rules = compute.watch, request.candidates, measurement.rules
    shown = _depth(data, method, request)
    finder = None
    if data.has_ids:
        with watch("metrics"):
            finder = _finder(data, rules.single_shot, compute)
    if compute.leads:
        warn_of_likeness(data, method)
    located: list[tuple[Positions, Positions]] = []

    def take(done: Done) -> None:
        if write is not None:
            write(done.start, done.indices, done.scores)
        if done.before is not None and done.after is not None and compute.leads:
            located.append((done.before, done.after))

    first = 0
    if checkpoint is not None:
        for done in checkpoint.done():
            take(done)
            first = done.stop
    if compute.group is not None:
        (first,) = compute.group.all_reduce_min([first if compute.leads else len(data.probe)])
    resumed = first
    # Under torchrun all would have to know what one process kept of a graph.
    graphs = None if compute.group is not None else checkpoint
    request = replace(request, whole_rows=finder is not None, first=first)
    for batch in rank_batches(data, method, request, compute, graphs):
        with watch("re-rank"):
            done = Done(batch.start, *batch.lists(shown))
        if finder is not None:
            with watch("metrics"):
                before = batch.before(finder)
                done = replace(done, before=before, after=batch.after(finder, before))
        take(done)
        if checkpoint is not None:
            checkpoint.add(done)
    baseline = None
    # An index has the features that its steps gave alone.
    if finder is not None and method.feature_steps and data.gallery.fitted_for(method.feature_steps) is None:
        baseline = _locate_by_cosine(data, finder, compute)
    if finder is None or not compute.leads:
        return Measured(resumed=resumed)
    known = None if candidates is None or candidates.complete else candidates.shortest
    with watch("metrics"):
        earlier, later = (Positions.concatenate(parts) for parts in zip(*located, strict=True))
        measured = Measured(
            measure(baseline or earlier, data, rules, ap=measurement.ap, depth=known),
            measure(later, data, rules, ap=measurement.ap, depth=known),
            later,
            resumed,
        )
    assert measured.after is not None
    warn_about(measured.after, data)
    return measured


def _depth(data: FeatureSet, method: AnyMethod, request: Request) -> int:
    """How deep the written lists are."""
    size = len(data.gallery) if request.candidates is None else request.candidates.depth
    return min(request.depth or method.depth(size), size)


def _locate_by_cosine(data: FeatureSet, finder: MatchFinder, compute: Compute) -> Positions:
    """Where the matches stand by cosine similarity of the features as they came."""
    quiet = replace(compute, progress=None, watch=Stopwatch())
    with compute.watch("metrics"):
        batches = rank_batches(data, create("cosine", topn=1), Request(whole_rows=True), quiet)
        return Positions.concatenate([batch.before(finder) for batch in batches])


def rerank_to(
    output: Output,
    data: FeatureSet,
    method: AnyMethod,
    request: Request,
    measurement: Measurement,
    compute: Compute,
) -> Outcome:
    """Re-rank, write the lists as they come, and measure them over the whole gallery if there are ids.

    Given candidates are measured to the depth they have: a match that is not listed counts as missed.

    Args:
        output: where the lists go.
        data: the features.
        method: what re-ranks.
        request: how deep the lists are, and what else is wanted.
        measurement: how they are measured.
        compute: how.

    Raises:
        InputError: if what is to be resumed is a run of other features or parameters, or the calibration of
            scores is of another method, parameters or number of dimensions.
        OutputError: if the file cannot be written; before any work where that shows.
        ParameterError: for a parameter outside its range, or candidates that the method cannot work with.
    """
    candidates, images, target = request.candidates, request.camera_images, output.target
    setting = setting_of(method, request.online)
    rejection = output.rejection
    if rejection is not None:
        rejection.calibration.check_fits(
            method.name, method.params(), setting, gallery_size=len(data.gallery), dim=data.dim
        )
    if candidates is not None:
        check_reranks_candidates(method, candidates)
        candidates.warn_about()
    shown = _depth(data, method, request)
    writing: AbstractContextManager[RankingWriter] = nullcontext(_Nowhere())
    if compute.leads:
        writing = open_ranking(
            target,
            data,
            shown,
            format=output.format,
            method=method.name,
            force=output.force,
            resume=output.resume,
        )
    # Of a gallery that is cut among processes, all must take part.
    digest = data.digest()
    images_digest = None if images is None else images.digest()
    labels_digest = data.labels_digest() if data.has_ids else None
    verdicts: list[Verdicts] = []
    with writing as writer, ExitStack() as stack:
        checkpoint = None
        if isinstance(target, Path) and compute.leads:
            run = {
                "digest": digest,
                "labels_digest": labels_digest,
                "candidates_digest": None if candidates is None else candidates.digest(),
                "camera_images_digest": images_digest,
                "camera_images_cams": None if images is None else images.cameras_digest(),
                "method": method.name,
                **method.params(),
                "setting": setting,
                "depth": shown,
                "format": output.format,
                "protocol": measurement.protocol,
                "device": compute.device.type,  # others may differ in the last bit of a score
                "versions": versions(),
            }
            checkpoint = stack.enter_context(keeping(target, run))

        def write(start: int, indices: NDArray[Any], scores: NDArray[np.float32]) -> None:
            if rejection is None:
                writer.write(start, indices, scores)
                return
            verdicts.append(rejection.verdicts(scores))
            writer.write_judged(start, indices, scores, verdicts[-1])

        found = rerank_measured(data, method, request, measurement, compute, write=write, checkpoint=checkpoint)
        # Positions say where matches stand in the whole gallery's order, which part of a gallery does not.
        positions = found.positions if candidates is None or candidates.complete else None
        size = len(data.gallery) if candidates is None else candidates.depth
        info = RunInfo(
            method.name,
            method.params(),
            method.reranked(size),
            cosine_tail=candidates is None and isinstance(method, HeadRanker),
            digest=digest,
            labels_digest=None if positions is None else labels_digest,
            positions=positions,
            candidates=None if candidates is None else candidates.source,
            setting=setting,
            camera_images=images_digest,
            metrics={"before": found.before, "after": found.after} if found.before and found.after else {},
            verdicts=Verdicts.concatenate(verdicts) if verdicts else None,
            rejected_below=None if rejection is None else rejection.least,
        )
        writer.finish(info)
        if compute.group is not None:
            compute.group.barrier()  # no file, unless all came to the end
    rejected = None if info.verdicts is None else int(info.verdicts.rejected.sum())
    left_out = 0 if writer.keeps_rejected else rejected or 0
    return Outcome(shown, found.before, found.after, info, found.resumed, rejected, left_out)
