"""Exact cosine search: the best n of the gallery for every probe, over blocks of gallery.

The scores are those of one float32 matrix product. They come out the same, bit for bit, at every block size
and thread count wherever the BLAS treats all rows of a large product alike, which is why no product here is
ever narrower than `_LEAST_ROWS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from .errors import BlurrerankError, ParameterError
from .features import DEFAULT_MEMORY, FeatureSet, Side
from .ranking import Candidates, from_sort_keys, sort_keys
from .rows import UnitRows

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (images done, images in all): probes, and all images for a method that looks at them first."""

# BLAS libraries take other kernels, which round otherwise, for products of a few rows or columns (seen with
# MKL below 32). Padding to this width keeps every score independent of how the work was cut.
_LEAST_ROWS = 64
# Similarities computed before the top-n reads them: few enough that they are still in cache.
_TILE_PROBES = 1024
_TILE_GALLERY = 4096
# Gallery rows in one product. Wider ones are slower (by a sixth at 4,096, with MKL on 2 cores).
_PRODUCT_GALLERY = 1024
# Similarities at a time whose ties are settled: bounds what that takes when every row ties.
_TIED_ELEMENTS = 1 << 18


def budget(memory: int | None, device: torch.device) -> int:
    """`memory`, or by default 2 GiB, and half of what is free on a CUDA device."""
    if memory is not None:
        return memory
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else DEFAULT_MEMORY


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
    """

    device: torch.device
    resident: bool
    gallery_block: int
    probe_batch: int
    held: int
    working: int

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
        workspace: int = 0,
        memory: int | None = None,
        block: int | None = None,
    ) -> Plan:
        """Cut the work for `memory` bytes; `DEFAULT_MEMORY` says for what how much.

        Args:
            data: the features.
            listed: how many candidates a probe keeps.
            head: how many of them are re-ranked.
            full_rows: how many numbers a probe keeps for each item of the whole gallery at once.
            device: where it runs.
            together: whether probes are searched like the gallery.
            workspace: bytes that re-ranking one probe needs.
            memory: bytes; by default 2 GiB, and half of what is free on a CUDA device.
            block: gallery rows per block, instead of the plan's choice.

        Raises:
            ParameterError: for a block below 1, or a budget that not even one probe fits.
        """
        if block is not None and block < 1:
            raise ParameterError(f"block must be at least 1, not {block}")
        memory = budget(memory, device)
        gallery, row = len(data.gallery), 4 * data.dim
        shares = cls.of_images(gallery + together * len(data.probe), data.dim, device, memory, block=block)
        # Rows that lie there normalised take no memory of ours, unless they are joined with others.
        resident = shares.resident or (data.gallery.unit and not together)
        # While a batch is made, whoever asked for it still holds the one before.
        per_probe = row + 48 * listed + 8 * gallery * (full_rows or listed == gallery)
        if not resident:
            per_probe += row * head
        needed = max(16 * per_probe, 32 * row, 8 * workspace)
        if memory < needed:
            raise ParameterError(
                f"a memory budget of {memory:,} bytes is too small for one probe: raise it to {needed:,} bytes "
                f"or lower {'topn or ' * bool(head)}depth"
            )
        # More than a tile gains nothing when the gallery need not be read again for each batch.
        batch = min(memory // 16 // per_probe, _TILE_PROBES) if resident else memory // 8 // per_probe
        plan = replace(
            shares,
            resident=resident,
            gallery_block=min(shares.gallery_block, gallery),
            probe_batch=min(batch, len(data.probe)),
        )
        log.info("plan: %s", plan)
        return plan

    @classmethod
    def of_images(
        cls, images: int, dim: int, device: torch.device, memory: int | None = None, *, block: int | None = None
    ) -> Plan:
        """Cut the work that is done with so many images alone, probe by probe; arguments as in `fit`."""
        memory, row = budget(memory, device), 4 * dim
        held = memory * 3 // 8 // row
        # A block read from disk exists three times while it is converted: stored, float32, normalised.
        gallery_block = block or max(1, min(_TILE_GALLERY, memory // 8 // (4 * row)))
        return cls(device, images <= held, gallery_block, 1, held, memory // 8)

    def rows(self, *sides: Side) -> UnitRows:
        """What is searched: the normalised rows of `sides`."""
        return UnitRows(*sides, device=self.device, block=self.gallery_block, resident=self.resident)

    def probes(self, side: Side) -> UnitRows:
        """The probes, which are read a batch at a time."""
        return UnitRows(side, device=self.device, block=self.probe_batch, resident=False)


@dataclass(frozen=True)
class Batch:
    """What search found for consecutive probes.

    Attributes:
        start: the first probe's row.
        probe: (p, D) float32, their L2-normalised features.
        candidates: their best n.
        similarities: (p, G) float32 cosine to the whole gallery, where asked for.
    """

    start: int
    probe: torch.Tensor
    candidates: Candidates
    similarities: torch.Tensor | None


def search(
    probe: UnitRows,
    gallery: UnitRows,
    topn: int,
    *,
    batch: int,
    full_rows: bool = False,
    progress: Progress | None = None,
) -> Iterator[Batch]:
    """The exact top-n of the gallery by cosine similarity, for `batch` probes at a time.

    Ties go to the lower gallery index. One pass over the gallery per batch.

    Args:
        probe: the probes, P rows.
        gallery: the gallery, G rows of the same dimension on the same device.
        topn: how many to keep, up to G; 0, with `full_rows`, for none.
        batch: probes per batch.
        full_rows: also keep each batch's similarities to the whole gallery.
        progress: called at the start and after each batch.

    Yields:
        `Batch` after `Batch`, in the order of the probes.
    """
    full_rows = full_rows or topn == len(gallery)
    if progress is not None:
        progress(0, len(probe))
    for start in range(0, len(probe), batch):
        queries = probe.rows(start, min(start + batch, len(probe)))
        if full_rows:
            similarities = torch.empty(len(queries), len(gallery), device=gallery.device)
            for first, block in gallery.blocks():
                columns = similarities[:, first : first + len(block)]
                for rows, tile in zip(_split(queries), _split(columns), strict=True):
                    multiply(rows, block, out=tile)
            best = torch.cat([best_keys(rows, 0, topn) for rows in _split(similarities)])
        else:
            similarities = None
            best = torch.empty(len(queries), 0, dtype=torch.int64, device=gallery.device)
            scratch = torch.empty(min(len(queries), _TILE_PROBES), gallery.block, device=gallery.device)
            for first, block in gallery.blocks():
                found = []
                for rows in _split(queries):
                    tile = scratch[: len(rows), : len(block)]
                    multiply(rows, block, out=tile)
                    found.append(best_keys(tile, first, topn))
                merged = torch.cat([best, torch.cat(found)], dim=1)
                best = merged.topk(min(topn, merged.shape[1]), dim=1).values
        yield Batch(start, queries, Candidates(*from_sort_keys(best)), similarities)
        if progress is not None:
            progress(start + len(queries), len(probe))


def _split(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(rows, _TILE_PROBES)


def multiply(queries: torch.Tensor, block: torch.Tensor, *, out: torch.Tensor) -> None:
    """Similarities of (p, D) `queries` to one (b, D) gallery block, into (p, b) `out`."""
    for left in range(0, len(block), _PRODUCT_GALLERY):
        part = block[left : left + _PRODUCT_GALLERY]
        columns = out[:, left : left + len(part)]
        if min(len(queries), len(part)) < _LEAST_ROWS:
            product = widen(queries, _LEAST_ROWS) @ widen(part, _LEAST_ROWS).T
            columns.copy_(product[: len(queries), : len(part)])
        else:
            torch.mm(queries, part.T, out=columns)


def widen(rows: torch.Tensor, least: int) -> torch.Tensor:
    """(..., n, d) `rows` with rows of zeros below, up to `least` of them; as they are if there are as many."""
    missing = least - rows.shape[-2]
    return pad(rows, (0, 0, 0, missing)) if missing > 0 else rows


def best_keys(scores: torch.Tensor, first: int, topn: int) -> torch.Tensor:
    """Sort keys of each row's best `topn`, best first; column 0 is gallery item `first`."""
    columns = torch.arange(first, first + scores.shape[1], device=scores.device)
    if not topn:
        return columns.new_empty(len(scores), 0)
    if topn >= scores.shape[1]:
        return sort_keys(scores, columns).sort(dim=1, descending=True).values
    values, found = scores.topk(topn + 1, dim=1)
    keys = sort_keys(values, first + found)[:, :topn]
    # topk takes any of several equal scores. Where a tie crosses the end of the list, choose by key instead.
    tied = torch.nonzero(values[:, topn - 1] == values[:, topn]).flatten()
    for rows in torch.split(tied, max(1, _TIED_ELEMENTS // scores.shape[1])):
        keys[rows] = sort_keys(scores[rows], columns).topk(topn, dim=1).values
    return keys.sort(dim=1, descending=True).values


def pick_device(device: str = "auto") -> torch.device:
    """The torch device a name means: `auto`, `cpu`, `cuda` or `cuda:1`.

    Raises:
        BlurrerankError: if it is no such name, or there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ParameterError(f"device {device!r} is not known: use auto, cpu, cuda or cuda:1") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ParameterError(f"device {device!r} is not supported: use auto, cpu, cuda or cuda:1")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise BlurrerankError(
            f"device {device!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    if chosen.type == "cuda" and chosen.index is None:
        # As tensors name it, so that the two can be compared.
        return torch.device("cuda", torch.cuda.current_device())
    return chosen
