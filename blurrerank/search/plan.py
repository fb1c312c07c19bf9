"""How the work is cut so that it fits the memory budget."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from ..compute.device import budget
from ..data.features import FeatureSet
from ..data.side import Side
from ..errors import ParameterError
from .exact import TILE_PROBES
from .precision import pick_precision
from .rows import UnitRows

log = logging.getLogger(__name__)


# More probes than this at a time gain nothing when the gallery need not be read again for each batch.
_BATCH_PROBES = 1024


# Gallery rows in a block that is read, and in one that is in memory.
_BLOCK_READ, _BLOCK_HELD = 8192, 32768


# For fewer probes than this, rounding the gallery takes longer than their products.
_FEW_PROBES = 64


@dataclass(frozen=True)
class Plan:
    """How the work is cut so that it fits the memory budget.

    Attributes:
        device: where it runs.
        resident: whether the normalised rows that are searched are held whole.
        gallery_block: gallery rows per block.
        probe_batch: probes carried through the whole pipeline together.
        held: rows that fit the share of the normalised gallery, whether or not these are all.
        working: bytes for working on a batch.
        dtype: what products are computed in where exact scores follow.
    """

    device: torch.device
    resident: bool
    gallery_block: int
    probe_batch: int
    held: int
    working: int
    dtype: torch.dtype = torch.float32

    @classmethod
    def fit(
        cls,
        data: FeatureSet,
        *,
        listed: int,
        head: int,
        full_rows: int,
        device: torch.device,
        together: bool = False,
        asking: int | None = None,
        workspace: int = 0,
        memory: int | None = None,
        block: int | None = None,
        precision: str = "auto",
    ) -> Plan:
        """Cut the work for `memory` bytes; `DEFAULT_MEMORY` says for what how much.

        Args:
            data: the features.
            listed: how many candidates a probe keeps.
            head: how many candidates it needs the rows of.
            full_rows: how many numbers a probe keeps for each item of the whole gallery at once.
            device: where it runs.
            together: whether probes are searched like the gallery.
            asking: how many images ask for their nearest, by default the probes.
            workspace: bytes that re-ranking one probe needs.
            memory: bytes; by default 2 GiB, and half of what is free on a CUDA device.
            block: gallery rows per block, instead of the plan's choice.
            precision: see `pick_precision`.

        Raises:
            ParameterError: for a block below 1, an unknown precision, or a budget that not even one probe fits.
        """
        if block is not None and block < 1:
            raise ParameterError(f"block must be at least 1, not {block}")
        memory = budget(memory, device)
        gallery, row = len(data.gallery), 4 * data.dim
        searched = gallery + together * len(data.probe)
        asking = len(data.probe) if asking is None else asking
        shares = cls.of_images(searched, asking, data.dim, device, memory, block=block, precision=precision)
        # Rows that lie there normalised take no memory of ours, unless they are joined with others.
        resident = shares.resident or (data.gallery.unit and not together)
        # While a batch is made, whoever asked for it still holds the one before.
        per_probe = row + 48 * max(listed, head) + 8 * gallery * full_rows
        if not resident:
            per_probe += row * head
        needed = max(16 * per_probe, 32 * row, 8 * workspace)
        if memory < needed:
            raise ParameterError(
                f"a memory budget of {memory:,} bytes is too small for one probe: raise it to {needed:,} bytes "
                f"or lower {'topn or ' * bool(head)}depth"
            )
        # More than a tile gains nothing when the gallery need not be read again for each batch.
        batch = min(memory // 16 // per_probe, _BATCH_PROBES) if resident else memory // 8 // per_probe
        plan = replace(
            shares,
            resident=resident,
            gallery_block=min(block or _block(memory, data.dim, resident, device), gallery),
            probe_batch=min(batch, len(data.probe)),
        )
        log.info(
            "on %s: normalised gallery %s, %d rows a block, %d probes at a time, products in %s",
            *(device, "held" if resident else "read for each batch", plan.gallery_block, plan.probe_batch),
            str(plan.dtype).removeprefix("torch."),
        )
        return plan

    @classmethod
    def of_images(
        cls,
        images: int,
        asking: int,
        dim: int,
        device: torch.device,
        memory: int | None = None,
        *,
        block: int | None = None,
        precision: str = "auto",
    ) -> Plan:
        """Cut the work that is done with so many images alone, of which `asking` ask; arguments as in `fit`."""
        memory, row = budget(memory, device), 4 * dim
        held = memory * 3 // 8 // row
        gallery_block = block or _block(memory, dim, images <= held, device)
        dtype = pick_precision(precision, device)
        if precision == "auto" and asking < _FEW_PROBES:
            dtype = torch.float32
        return cls(device, images <= held, gallery_block, 1, held, memory // 8, dtype)

    def rows(self, *sides: Side) -> UnitRows:
        """What is searched: the normalised rows of `sides`."""
        return UnitRows(
            *sides,
            device=self.device,
            block=self.gallery_block,
            resident=self.resident,
            dtype=self.dtype,
            keep=sum(map(len, sides)) <= self.held,
        )

    def probes(self, side: Side) -> UnitRows:
        """The probes, which are read a batch at a time."""
        return UnitRows(side, device=self.device, block=self.probe_batch, resident=False, dtype=self.dtype)


def _block(memory: int, dim: int, resident: bool, device: torch.device) -> int:
    """Gallery rows in a block, of which a sixteenth of the memory holds the products with a tile of probes."""
    if resident:
        return max(1, min(_BLOCK_HELD, memory // 16 // (4 * max(TILE_PROBES[device.type], dim))))
    # Of a block there are the next, as it is stored, float32 rows, and what products take.
    return max(1, min(_BLOCK_READ, memory // 8 // (16 * dim)))
