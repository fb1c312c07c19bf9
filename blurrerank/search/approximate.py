"""Approximate search by FAISS, and how much of the exact answer it finds.

FAISS is an extra: `pip install "blurrerank[faiss]"`. Nothing imports it before it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch

from ..compute.compute import Compute, Progress
from ..data.arguments import check_features
from ..data.checks import check_count
from ..data.features import FeatureSet
from ..data.given_lists import GivenLists
from ..data.side import Side
from ..errors import BlurrerankError, InputError, ParameterError
from .exact import Query, margin, search
from .given import listed_scores
from .plan import Demand, Plan
from .rows import UnitRows, blocks_of, evenly_spread

DEFAULT_FACTORY = "IVF1024,Flat"
RECALL_PROBES = 2000
"""How many probes recall is measured with at most: exact search for all would cost what FAISS saves."""

# FAISS ends the process (HNSW0) or never ends (NSG0) with these.
_FATAL = re.compile(r"(?:HNSW|NSG)0+(?!\d)")


@dataclass(frozen=True)
class Recall:
    """How much of the exact answer approximate lists hold.

    Attributes:
        value: the mean over the measured probes, 0 to 1.
        topn: how deep the exact answer is.
        probes: how many probes it was measured with.
    """

    value: float
    topn: int
    probes: int


def faiss_candidates(
    data: FeatureSet,
    topn: int,
    *,
    index_factory: str = DEFAULT_FACTORY,
    nprobe: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> GivenLists:
    """The `topn` best of the gallery for every probe, by a FAISS index on the CPU.

    The index is made for inner products of L2-normalised rows, and holds the gallery in the form the factory
    string says, beside the budget. FAISS runs with as many threads as torch does.

    Args:
        data: the features.
        topn: how many to look for, capped at the gallery; a probe may get fewer.
        index_factory: what kind of index, as `faiss.index_factory` takes it.
        nprobe: how many of its lists an IVF index looks into; by default FAISS's 1.
        memory: budget in bytes for blocks of gallery and probes, and for the rows that the index is trained on.
        progress: called with (probes done, probes in all).

    Returns:
        Lists for `blurrerank.rerank(data, candidates=...)`.

    Raises:
        BlurrerankError: if FAISS is not installed.
        ParameterError: for a factory string that FAISS does not know or cannot train on this gallery, or a
            number below 1.
    """
    check_features(data)
    check_count("topn", topn)
    if nprobe is not None:
        check_count("nprobe", nprobe)
    faiss = load_faiss()
    size = len(data.gallery)
    topn = min(topn, size)
    compute = Compute.choose("cpu", memory, progress=progress)
    plan = Plan.fit(data, Demand(topn), compute)
    # Not held here: the index keeps what it needs.
    gallery = UnitRows(data.gallery, device=plan.device, block=plan.gallery_block, resident=False)
    source = f"faiss {index_factory}" + (f" nprobe {nprobe}" if nprobe else "")
    with threads_as_torch(faiss), _faiss_errors(index_factory, size):
        index = _trained(faiss, index_factory, gallery, plan.budget.held_rows)
        for _, block in gallery.blocks():
            index.add(block.numpy())
        if nprobe is not None:
            _set_nprobe(faiss, index, index_factory, nprobe)
        found = np.empty((len(data.probe), topn), dtype=np.int64)
        probe = plan.probes(data.probe)
        compute.advance(0, len(probe))
        for start, stop in blocks_of(len(probe), plan.probe_batch):
            _, found[start:stop] = index.search(probe.rows(start, stop).numpy(), topn)
            compute.advance(stop, len(probe))
    return GivenLists.of(found, len(data.probe), size, source)


def recall(
    data: FeatureSet,
    lists: GivenLists,
    topn: int,
    *,
    device: str = "auto",
    memory: int | None = None,
) -> Recall:
    """The mean share of each probe's exact `topn` that its list holds.

    A listed item counts if its cosine similarity is at least that of the n-th of the exact list, so that which
    of several equal items an index returns does not matter; and no more than n count.

    Args:
        data: the features.
        lists: of its probes.
        topn: n, capped at the gallery.
        device: where the exact search runs, `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget in bytes.

    Returns:
        Measured with all probes, or with `RECALL_PROBES` of them at equal distances if there are more.

    Raises:
        InputError: for lists of other probes or another gallery.
        ParameterError: for a `topn` below 1, or a budget that is too small.
    """
    check_features(data)
    check_count("topn", topn)
    lists = GivenLists.of(lists, len(data.probe), len(data.gallery))
    topn = min(topn, len(data.gallery))
    demand = Demand(2 * max(topn, lists.depth), margin(topn, len(data.gallery)))
    plan = Plan.fit(data, demand, Compute.choose(device, memory))
    gallery = plan.rows(data.gallery)
    chosen = evenly_spread(len(data.probe), RECALL_PROBES)
    # Read one by one, as what is chosen from may be on disk.
    rows = torch.cat([data.probe.block(row, row + 1) for row in chosen.tolist()])
    probe = UnitRows(Side(rows), device=plan.device, block=plan.probe_batch, resident=False)
    shares = []
    for batch in search(probe, gallery, Query(topn, plan.probe_batch)):
        some = chosen[batch.start : batch.start + len(batch.probe)]
        given = torch.from_numpy(lists.indices[some]).to(plan.device)
        least = batch.candidates.scores[:, -1:]
        reached = (listed_scores(batch.probe, given, gallery) >= least).sum(dim=1)
        shares.append(reached.clamp_max(topn).to(torch.float64) / topn)
    return Recall(float(torch.cat(shares).mean()), topn, len(chosen))


def load_faiss() -> Any:
    """Return the module.

    Raises:
        BlurrerankError: if it is not installed.
    """
    try:
        return import_module("faiss")
    except ImportError:
        raise BlurrerankError('FAISS is not installed: pip install "blurrerank[faiss]"') from None


@contextmanager
def threads_as_torch(faiss: Any) -> Iterator[None]:
    """FAISS brings an OpenMP of its own, with its own idea of how many threads to run."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextmanager
def _faiss_errors(factory: str, size: int) -> Iterator[None]:
    """Raise what FAISS refuses in one line: its own messages begin with C++ signatures."""
    try:
        yield
    except (InputError, ParameterError):
        raise
    except (RuntimeError, AssertionError) as error:
        raise ParameterError(
            f"index factory {factory!r}: FAISS says: {faiss_reason(error)}; choose another"
        ) from None


def faiss_reason(error: Exception) -> str:
    """Return what FAISS says, without where in its source it says it."""
    told = re.sub(r"(?s)^.*?\.(?:cpp|h):\d+: |Error: '.*?' failed: ?", "", str(error))
    return " ".join(told.split()).rstrip(". ")


def _trained(faiss: Any, factory: str, gallery: UnitRows, held: int) -> Any:
    """An empty index, trained on the gallery or on as many of its rows as may be held."""
    if _FATAL.search(factory):
        raise ParameterError(
            f"index factory {factory!r} asks for 0 links: give a number of links, such as HNSW32"
        )
    try:
        index = faiss.index_factory(gallery.dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        if "could not parse" not in str(error) and "stoi" not in str(error):
            raise
        raise ParameterError(
            f"index factory {factory!r} is not known to FAISS: use one such as Flat, {DEFAULT_FACTORY} or "
            "HNSW32"
        ) from None
    if index.is_trained:
        return index
    size = len(gallery)
    count = min(size, held)
    _accept_few(faiss, index)
    chosen = torch.from_numpy(evenly_spread(size, count))
    table, _ = gallery.gather(chosen)
    try:
        index.train(table.numpy())
    except RuntimeError as error:
        if "number of clusters" not in str(error):
            raise
        few = max(1, min(int(4 * size**0.5), size // 39))
        raise ParameterError(
            f"index factory {factory!r} cannot be trained on {count} of {size} gallery items: it needs one for "
            f"each of its clusters; use fewer, such as IVF{few},Flat, or Flat"
        ) from None
    return index


def _accept_few(faiss: Any, index: Any) -> None:
    """Keep FAISS from writing to standard error that items are few: recall tells what that does."""
    with suppress(RuntimeError):  # other kinds of index
        faiss.extract_index_ivf(index).cp.min_points_per_centroid = 1


def _set_nprobe(faiss: Any, index: Any, factory: str, nprobe: int) -> None:
    try:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", nprobe)
    except RuntimeError:
        raise ParameterError(
            f"index factory {factory!r} has no nprobe, which is for IVF indexes: leave it out"
        ) from None
