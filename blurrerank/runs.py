"""One run from features to a ranking file, measured before and after, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .features import FeatureSet
from .formats.rankings import RunInfo, open_ranking
from .methods import Method
from .metrics import Metrics, check_ap, measure, warn_about
from .pipeline import rerank_batches
from .positions import MatchFinder
from .protocols import get_protocol
from .ranking import Positions
from .search import Progress, pick_device


@dataclass(frozen=True)
class Outcome:
    """What a run found out.

    Attributes:
        depth: how deep the written lists are.
        before: metrics of the lists by cosine similarity; None without ids.
        after: metrics of the re-ranked lists; None without ids.
        info: what a native file records.
    """

    depth: int
    before: Metrics | None
    after: Metrics | None
    info: RunInfo

    def summary(self) -> dict[str, Any]:
        """Everything but the lists, ready for JSON."""
        return {
            "method": self.info.method,
            "params": dict(self.info.params),
            "reranked_depth": self.info.reranked_depth,
            "depth": self.depth,
            "before": None if self.before is None else self.before.summary(),
            "after": None if self.after is None else self.after.summary(),
            "digest": self.info.digest,
        }


def rerank_to(
    target: Path | BinaryIO,
    data: FeatureSet,
    method: Method,
    *,
    format: str,
    depth: int | None = None,
    force: bool = False,
    protocol: str = "market1501",
    ap: str = "plain",
    device: str = "auto",
    memory: int | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Re-rank, write the lists as they come, and measure them over the whole gallery if there are ids.

    Args:
        target: a file, which appears only when everything has gone well, or a binary stream.
        data: the features.
        method: what re-ranks.
        format: a name from `formats.FORMATS`.
        depth: how deep the written lists are; by default as deep as the method's head. Capped at the gallery.
        force: replace an existing file.
        protocol: `market1501`, `cuhk03` or `plain`.
        ap: `plain` or `trapezoid`.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget in bytes; see `rerank`.
        progress: called with (probes done, probes in all).

    Raises:
        OutputError: if the file cannot be written; before any work where that shows.
        ParameterError: for a parameter outside its range.
    """
    rules = get_protocol(protocol)
    check_ap(ap)
    head = min(method.topn, len(data.gallery))
    reranked = min(method.reranked, len(data.gallery))
    shown = min(depth or head, len(data.gallery))
    finder = None
    if data.has_ids:
        finder = MatchFinder(data, single_shot=rules.single_shot, device=pick_device(device), memory=memory)
    located: list[tuple[Positions, Positions]] = []
    with open_ranking(target, data, shown, format=format, method=method.name, force=force) as writer:
        for batch in rerank_batches(
            data,
            method,
            depth=depth,
            full_rows=finder is not None,
            device=device,
            memory=memory,
            progress=progress,
        ):
            writer.write(batch.start, *batch.lists(shown))
            if finder is not None:
                assert batch.similarities is not None
                located.append(finder.around(batch.start, batch.similarities, batch.indices[:, :reranked]))
        metrics: dict[str, Metrics] = {}
        positions = None
        if finder is not None:
            before, positions = (Positions.concatenate(parts) for parts in zip(*located, strict=True))
            metrics["before"] = measure(before, data, rules, ap=ap)
            metrics["after"] = measure(positions, data, rules, ap=ap)
            warn_about(metrics["after"], data)
        info = RunInfo(
            method.name,
            method.params(),
            reranked,
            cosine_tail=True,
            digest=data.digest(),
            labels_digest=data.labels_digest() if finder is not None else None,
            positions=positions,
            metrics=metrics,
        )
        writer.finish(info)
    return Outcome(shown, metrics.get("before"), metrics.get("after"), info)
