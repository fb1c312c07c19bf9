"""Probes shared among processes, each of which has all that is needed to answer any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..compute.compute import Compute
from ..compute.processes import Group
from ..data.features import FeatureSet
from ..search.rows import blocks_of
from .ranked_batch import RankedBatch
from .request import Request

# Probes that a process answers before all of them tell each other.
_PROBES = 256

RankAlone = Callable[[FeatureSet, Request, Compute], Iterator[RankedBatch]]
"""What yields the lists of probes in one process."""


def rank_shares(
    data: FeatureSet, request: Request, compute: Compute, rank_alone: RankAlone
) -> Iterator[RankedBatch]:
    """Yield the same batches in all processes, of which each answers a part of the probes.

    An answer is the same in any company, so that all are those of one process.

    Args:
        data: all probes, and a gallery of which every process has everything.
        request: with candidates that are found for each probe by itself.
        compute: how, with the processes.
        rank_alone: what answers probes.
    """
    group, probes = compute.group, len(data.probe)
    assert group is not None
    alone, todo = replace(compute, group=None, progress=None), probes - request.first
    for start, stop in blocks_of(todo, _PROBES * group.size):
        first, mine = request.first + start, group.share(stop - start)
        batches: list[RankedBatch] = []
        if mine.start < mine.stop:
            part = data.probe.part(slice(first + mine.start, first + mine.stop))
            asked = replace(request, first=0)
            batches += rank_alone(replace(data, probe=part), asked, alone)
        given = [batch.given for batch in batches if batch.given is not None]
        reranked = torch.tensor([max((batch.reranked for batch in batches), default=0)])
        yield RankedBatch(
            first,
            len(data.gallery),
            _joined([batch.indices for batch in batches], torch.int64, group),
            _joined([batch.scores for batch in batches], torch.float32, group),
            int(group.all_reduce(reranked, "max")),
            given=_joined(given, torch.int64, group),
        )
        compute.advance(first + stop - start, probes)


def _joined(lists: list[torch.Tensor], dtype: torch.dtype, group: Group) -> torch.Tensor:
    """The lists of all processes, one after another; of one that has none, too."""
    own = torch.cat(lists) if lists else None
    width = int(group.all_reduce(torch.tensor([0 if own is None else own.shape[1]]), "max"))
    return group.all_gather(torch.empty(0, width, dtype=dtype) if own is None else own.contiguous())
