"""How much a method needs for each probe, and how its work is cut."""

from __future__ import annotations

from dataclasses import replace

from ..compute.compute import Compute
from ..compute.processes import Group
from ..data.features import FeatureSet
from ..data.sharded import ShardedSet
from ..data.similarities import SimilaritySet
from ..methods import GraphRanker, HeadRanker, Ranker
from ..methods.kinds.camera_head import CameraHeadRanker
from ..search.exact import margin
from ..search.plan import Demand, Plan
from .request import TRANSDUCTIVE, Request, setting_of


def plan_for(data: FeatureSet, ranker: Ranker, request: Request, compute: Compute) -> Plan:
    """Return how the work of ranking `data` is cut; all processes get the same.

    Raises:
        ParameterError: for a budget that is too small, or an unknown precision.
    """
    if isinstance(data, SimilaritySet):
        return Plan.of_similarities(len(data.probe), len(data.gallery), compute)
    demand = _demand(data, ranker, request)
    if not isinstance(data, ShardedSet):
        return Plan.fit(data, demand, compute)
    # A process searches its own rows. What travels: the rows of a probe's candidates twice, asked for and
    # answered, and its keys or similarities from everywhere.
    size, here, group = len(data.gallery), len(data.shard), data.group
    local = replace(
        demand,
        listed=min(demand.listed, here),
        head=min(demand.head, here),
        asking=len(data.probe) if demand.asking is None else demand.asking,
        together=False,
    )
    plan = Plan.fit(data.part, local, compute)
    head = ranker.depth(size) if isinstance(ranker, HeadRanker) else 0
    per_probe = 8 * data.dim * head // group.size + 24 * demand.listed * (1 + bool(demand.whole_rows))
    plan = replace(
        plan,
        probe_batch=max(1, min(plan.probe_batch, plan.budget.working_bytes // max(1, per_probe))),
        gallery_block=Plan.of_images(size, size, data.dim, compute).gallery_block,
    ).agreed(group)
    held = plan.budget.held_rows // 2 if isinstance(ranker, GraphRanker) else plan.budget.held_rows
    return replace(plan, resident=plan.resident and here <= held)


def images_plan(data: FeatureSet, images: int, compute: Compute) -> Plan:
    """Return how work is cut that looks at so many images of `data`; all processes get the same."""
    plan = Plan.of_images(images, images, data.dim, compute)
    plan = replace(plan, probe_batch=plan.gallery_block)
    return shared_plan(plan, len(data.shard), data.group) if isinstance(data, ShardedSet) else plan


def shared_plan(plan: Plan, held: int, group: Group) -> Plan:
    """Return the plan that all processes follow, of which this one has so many rows of the gallery."""
    plan = plan.agreed(group)
    return replace(plan, resident=plan.resident and held <= plan.budget.held_rows // 2)


def _demand(data: FeatureSet, ranker: Ranker, request: Request) -> Demand:
    """What `ranker` needs for each probe of `data`."""
    candidates = request.candidates
    gallery = len(data.gallery) if candidates is None else candidates.depth
    deepest = request.depth or ranker.depth(gallery)
    if isinstance(ranker, HeadRanker):
        head = ranker.depth(gallery)
        workspace = ranker.workspace_bytes(head, data.dim)
        if candidates is not None:
            # Pairs, whose they are, and how they are sorted take twice what a search keeps.
            return Demand(2 * candidates.depth, head, workspace_bytes=workspace)
        whole_rows = request.whole_rows or deepest > head or isinstance(ranker, CameraHeadRanker)
        return Demand(max(head, deepest), margin(head, gallery), int(whole_rows), workspace)
    assert isinstance(ranker, GraphRanker)
    if candidates is not None:
        # What encodings reach comes beside the candidates.
        return Demand(8 * candidates.depth, workspace_bytes=ranker.workspace_bytes(ranker.neighbours()))
    if setting_of(ranker, request.online) == TRANSDUCTIVE:
        asking = len(data.probe) + len(data.gallery)
        return Demand(deepest, 0, 2, asking=asking, together=True)
    head = min(ranker.neighbours(), gallery)
    encoded = data.gallery.encoded_for(ranker) is not None
    return Demand(
        max(head, deepest),
        margin(head, gallery),
        2,
        ranker.workspace_bytes(head),
        asking=len(data.probe) if encoded else len(data.gallery),
    )
