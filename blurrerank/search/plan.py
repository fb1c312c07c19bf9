"""How the work is cut so that it fits the memory budget."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from ..compute.compute import Compute
from ..compute.processes import Group
from ..data.features import FeatureSet
from ..data.side import Side
from ..errors import BudgetError, InputError
from .nearest import TILE_PROBES
from .precision import pick_precision
from .rows import RowBudget, UnitRows

log = logging.getLogger(__name__)

# More probes than this at a time gain nothing when the gallery need not be read again for each batch.
_BATCH_PROBES = 1024
# Gallery rows in a block that is read, and in one that is in memory.
_BLOCK_READ, _BLOCK_HELD = 8192, 32768
# For fewer probes than this, rounding the gallery takes longer than their products.
_FEW_PROBES = 64


@dataclass(frozen=True)
class Demand:
    """What a piece of work needs for each probe.

    Attributes:
        listed: candidates that a probe keeps.
        head: candidates that it needs the rows of.
        whole_rows: numbers that it keeps for each item of the whole gallery at once.
        workspace_bytes: bytes that re-ranking it takes.
        asking: how many images ask for their nearest; by default the probes.
        together: whether probes are searched like the gallery.
    """

    listed: int
    head: int = 0
    whole_rows: int = 0
    workspace_bytes: int = 0
    asking: int | None = None
    together: bool = False


@dataclass(frozen=True)
class Plan:
    """How the work is cut so that it fits the memory budget.

    Attributes:
        device: where it runs.
        resident: whether the normalised rows that are searched are held whole.
        gallery_block: gallery rows per block.
        probe_batch: probes carried through the whole pipeline together.
        budget: how many rows may be held, and bytes to work with.
        dtype: what products are computed in where exact scores follow.
        picks_basis: whether these may take fewer dimensions where that is faster.
    """

    device: torch.device
    resident: bool
    gallery_block: int
    probe_batch: int
    budget: RowBudget
    dtype: torch.dtype = torch.float32
    picks_basis: bool = False

    @classmethod
    def fit(cls, data: FeatureSet, demand: Demand, compute: Compute) -> Plan:
        """Cut the work of re-ranking `data`; `DEFAULT_MEMORY` says what the budget is for.

        Raises:
            ParameterError: for an unknown precision.
            BudgetError: for a budget that not even one probe fits.
        """
        gallery, row, memory = len(data.gallery), 4 * data.dim, compute.memory
        searched = gallery + demand.together * len(data.probe)
        asking = len(data.probe) if demand.asking is None else demand.asking
        shares = cls.of_images(searched, asking, data.dim, compute)
        # Rows that lie there normalised take no memory of ours, unless they are joined with others.
        lies_there = data.gallery.unit and _device_of(data.gallery) == compute.device
        resident = shares.resident or (lies_there and not demand.together)
        # While a batch is made, whoever asked for it still holds the one before.
        per_probe = row + 48 * max(demand.listed, demand.head) + 8 * gallery * demand.whole_rows
        if not resident:
            per_probe += row * demand.head
        needed = max(16 * per_probe, 32 * row, 8 * demand.workspace_bytes)
        if memory < needed:
            raise BudgetError(
                f"a memory budget of {memory:,} bytes is too small for one probe: raise it to {needed:,} bytes "
                f"or lower {'topn or ' * bool(demand.head)}depth"
            )
        # More than a tile gains nothing when the gallery need not be read again for each batch.
        batch = min(memory // 16 // per_probe, _BATCH_PROBES) if resident else memory // 8 // per_probe
        plan = replace(
            shares,
            resident=resident,
            gallery_block=min(compute.block or _block(memory, data.dim, resident, compute.device), gallery),
            probe_batch=min(batch, len(data.probe)),
        )
        log.info(
            "on %s: normalised gallery %s, %d rows a block, %d probes at a time, products in %s",
            *(plan.device, "held" if resident else "read for each batch", plan.gallery_block, plan.probe_batch),
            str(plan.dtype).removeprefix("torch."),
        )
        return plan

    @classmethod
    def of_similarities(cls, probes: int, gallery: int, compute: Compute) -> Plan:
        """Cut the work of re-ranking by similarities that are given, some rows of them at a time."""
        memory = compute.memory
        batch = max(1, min(memory // 16 // (64 * gallery), _BATCH_PROBES, probes))
        return cls(compute.device, True, gallery, batch, RowBudget(probes + gallery, memory // 8))

    @classmethod
    def of_images(cls, images: int, asking: int, dim: int, compute: Compute) -> Plan:
        """Cut the work that is done with so many images of `dim` dimensions, of which `asking` ask."""
        if not dim:
            raise InputError(
                "these are similarities, not features: only `run`, `eval` and `fuse` accept them (in the "
                "library rerank, evaluate and fuse)"
            )
        memory = compute.memory
        held = memory * 3 // 8 // (4 * dim)
        gallery_block = compute.block or _block(memory, dim, images <= held, compute.device)
        dtype, auto = pick_precision(compute.precision, compute.device), compute.precision == "auto"
        if auto and asking < _FEW_PROBES:
            dtype = torch.float32
        budget = RowBudget(held, memory // 8)
        return cls(compute.device, images <= held, gallery_block, 1, budget, dtype, auto)

    def agreed(self, group: Group) -> Plan:
        """The plan that all processes of `group` can follow in step."""
        batch, block, held, working, low = group.all_reduce_min(
            [
                self.probe_batch,
                self.gallery_block,
                self.budget.held_rows,
                self.budget.working_bytes,
                int(self.dtype == torch.bfloat16),
            ]
        )
        return replace(
            self,
            gallery_block=block,
            probe_batch=batch,
            budget=RowBudget(held, working),
            dtype=torch.bfloat16 if low else torch.float32,
            picks_basis=False,  # each would pick another
        )

    def rows(self, *sides: Side) -> UnitRows:
        """What is searched: the normalised rows of `sides`."""
        return UnitRows(
            *sides,
            device=self.device,
            block=self.gallery_block,
            resident=self.resident,
            dtype=self.dtype,
            keep=sum(map(len, sides)) <= self.budget.held_rows,
            budget=self.budget,
            picks_basis=self.picks_basis,
        )

    def probes(self, side: Side) -> UnitRows:
        """The probes, which are read a batch at a time."""
        return UnitRows(side, device=self.device, block=self.probe_batch, resident=False, dtype=self.dtype)


def _device_of(side: Side) -> torch.device | None:
    """Where the features of a side are, if they are a tensor."""
    return side.features.device if isinstance(side.features, torch.Tensor) else None


def _block(memory: int, dim: int, resident: bool, device: torch.device) -> int:
    """Gallery rows in a block, of which a sixteenth of the memory holds the products with a tile of probes."""
    if resident:
        return max(1, min(_BLOCK_HELD, memory // 16 // (4 * max(TILE_PROBES[device.type], dim))))
    # Of a block there are the next, as it is stored, float32 rows, and what products take.
    return max(1, min(_BLOCK_READ, memory // 8 // (16 * dim)))
