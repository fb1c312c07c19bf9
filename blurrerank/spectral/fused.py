"""Local blurring of whole neighbourhoods in one kernel, where there is a card for it and Triton.

The plain path copies the rows of all neighbourhoods out of the table, reads the copy for the Gram matrices, and
passes over those again for the softmax and the product. The kernel reads each row of a neighbourhood once,
keeps the Gram matrix in registers, and writes n scores. `docs/gpu.md` counts what that takes at least.

Precision. With e the largest error of a Gram entry, y_i = sum_j T_ij y0_j is off by at most

    e / sigma * sum_j T_ij |y0_j - y_i|

where the sum is never above 1, and of the order of sqrt(2 sigma), because |y0_j - y0_i| <= |x_j - x_i| =
sqrt(2 - 2 G_ij) and T_ij falls off with exp((G_ij - 1) / sigma). For unit rows, whose sum_k |x_ik x_jk| is at
most 1:

- TF32 rounds each factor to 11 bits: e reaches 2 * 2^-11 = 1e-3, and the score at sigma 0.1 is off by 1e-2 at
  worst, 4e-3 by the estimate. With many dimensions most of that cancels, with few or with sparse features it
  does not. Lists may differ from the reference only where scores differ by less than 1e-5: not good enough.
- 3xTF32 splits x = h + l + r, with h of 11 bits, |l| <= 2^-11 |x|, and |r| <= 2^-21 |x| what the matrix units
  cut off l. It sums h h', h l' and l h'. Without l l', and r on either side, e <= 2^-22 + 2 * 2^-21 = 1.2e-6:
  the score is off by 1.2e-5 at worst, if all errors conspired, 5e-6 by the estimate, in practice far less.
- float32 on the ordinary cores has no such error, but runs at 67 TFLOPS instead of 495 / 3 (an H100's data
  sheet).

To each comes the rounding of the sum over D, as in the plain path: D 2^-24 in theory, 1e-7 in practice. Matrix
units cut off where they should round, so that their sums drift; but Triton lets them sum each block of 32
dimensions by itself, and adds the blocks in float32, rounded. So 3xTF32 it is.

Ties. Entry (i, j) of the Gram matrix depends on rows i and j alone, and is summed over the dimensions in one
order wherever i stands; each row of it is then reduced over the columns in one order. Equal rows get equal
scores.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch

from ..errors import BlurrerankWarning

# The Gram matrix of so many nodes still fits the registers of one program.
LARGEST = 128

# Dimensions on the chip at a time: 128 bytes of each row, which is what memory hands out at once.
_BLOCK = 32
# Tiles under way: two are being read while the third is multiplied. At 64 nodes that and the split halves take
# 32 KiB of shared memory and some 125 registers a thread on compute capability 9.0: four programs share a
# multiprocessor, and one computes while others wait. (As Triton 3.7.1 compiles it; not measured.)
_STAGES = 3
# The first compute capability that has TF32.
_CAPABILITY = (8, 0)

# Where the kernel failed once, by device and size: it is not tried there again.
_faults: set[tuple[torch.device, int]] = set()


def available(device: torch.device) -> bool:
    """Whether the kernel can be asked for tensors on `device`.

    It can on CUDA devices of compute capability 8.0 and later where Triton is installed, which torch's builds
    for CUDA bring on Linux; and anywhere, slowly, if the environment has TRITON_INTERPRET=1 from the start.
    """
    return (_interpreted() or _has_tf32(device)) and _kernel() is not None


def _has_tf32(device: torch.device) -> bool:
    # torch calls AMD's cards "cuda" too.
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= _CAPABILITY


@cache
def _interpreted() -> bool:
    """Whether Triton interprets kernels; it decides when it is imported, so this does not change either."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@cache
def _kernel() -> Any:
    """The kernel, or None without Triton."""
    try:
        from .fused_kernel import blur_kernel
    except ImportError:
        return None
    return blur_kernel


def attempt(
    table: torch.Tensor, places: torch.Tensor, scores: torch.Tensor, sigmas: Sequence[float]
) -> torch.Tensor | None:
    """`blur` for each of `sigmas`, or None where that is for the plain path to do.

    The rows are read again for each sigma. The plain path would have its Gram matrices from one reading, but
    another rounding: a sweep is to find the numbers that a run then gives.

    Args:
        table: (G, D) unit rows.
        places: (p, n) int64 rows of the table.
        scores: (p, n) float32 cosine to the probe, y0.
        sigmas: temperatures, above 0.

    Returns:
        (sigmas, p, n) float32; None for more than `LARGEST` nodes, where the kernel is not `available`, or
        where it cannot be compiled or launched, which is told once, as a `BlurrerankWarning`.
    """
    where = table.device, nodes_for(places.shape[1])
    if where[1] > LARGEST or where in _faults or table.dtype != torch.float32 or not available(table.device):
        return None
    try:
        return torch.stack([blur(table, places, scores, sigma) for sigma in sigmas])
    # Whatever it is (no C compiler, no room on the card, a release of Triton that wants it otherwise), there is
    # another way to the scores. What goes wrong while the kernel runs, torch raises later, and it ends the run.
    except Exception as error:
        _faults.add(where)
        told = (str(error).splitlines() or [""])[0]
        warnings.warn(
            f"the fused kernel does not work on {table.device} ({type(error).__name__}: {told}); local "
            "blurring continues without it, more slowly, and its scores may differ by rounding",
            BlurrerankWarning,
            stacklevel=2,
        )
        return None


def blur(table: torch.Tensor, places: torch.Tensor, scores: torch.Tensor, sigma: float) -> torch.Tensor:
    """Similarity to the probe after one step of the walk: softmax(X X' / sigma) y0 with X = table[places[p]].

    Source: Luo et al., "Spectral Feature Transformation for Person Re-identification", ICCV 2019,
    arXiv:1811.11405, section 3.4.

    Args:
        table: (G, D) float32 unit rows, on a device that is `available`.
        places: (p, n) int64 rows of the table, n up to `LARGEST`; not checked against G.
        scores: (p, n) float32 cosine to the probe, y0.
        sigma: temperature, above 0; not checked here.

    Returns:
        (p, n) float32.

    Raises:
        Exception: whatever Triton raises where it cannot compile or launch the kernel.
    """
    number, nodes = places.shape[1], nodes_for(places.shape[1])
    # Heads of lists are views with gaps between the rows.
    table, places, scores = table.contiguous(), places.contiguous(), scores.contiguous()
    out = torch.empty_like(scores)
    if not out.numel():
        return out
    # Triton launches on the current device, wherever the tensors are.
    with torch.cuda.device(table.device) if table.device.type == "cuda" else nullcontext():
        _kernel()[(len(places),)](
            table,
            places,
            scores,
            out,
            number,
            # Never 0 in float32: times the -inf of columns that are not there, that would be no number.
            max(1 / float(sigma), 1e-30),
            DIM=table.shape[1],
            NODES=nodes,
            BLOCK=_BLOCK,
            # Of 64 and of 128 nodes a warp holds 16 rows of the Gram matrix, as the matrix units have it.
            num_warps=nodes // 16,
            num_stages=_STAGES,
            # No products contracted with sums: each row is to be rounded like any other. It is also the one
            # setting whose default differs between releases of Triton.
            enable_fp_fusion=False,
        )
    return out


def nodes_for(number: int) -> int:
    """How many nodes the kernel works on for `number` of them: the next power of two, 16 at least."""
    return max(16, 1 << (number - 1).bit_length())
