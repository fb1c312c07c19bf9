"""The kernel behind `fused`, in Triton; imported only where it is going to run.

No postponed annotations here: Triton reads `tl.constexpr` from them.
"""

import triton
import triton.language as tl


@triton.jit
def blur_kernel(
    table, places, scores, out, n, inverse, DIM: tl.constexpr, NODES: tl.constexpr, BLOCK: tl.constexpr
):
    """Blurred similarities of one neighbourhood, y = softmax(X X' / sigma) y0; one program a probe.

    Source: Luo et al., "Spectral Feature Transformation for Person Re-identification", ICCV 2019,
    arXiv:1811.11405, section 3.4, with T (X q) for (T X) q.

    Args:
        table: (G, DIM) float32 unit rows, contiguous.
        places: (p, n) int64 rows of the table, contiguous.
        scores: (p, n) float32, y0, contiguous.
        out: (p, n) float32, contiguous; written.
        n: how many nodes a neighbourhood has.
        inverse: float32, 1 / sigma, above 0.
        DIM: D. A constant, so that the last block's mask vanishes where D is a multiple of the block.
        NODES: n rounded up to a power of two, 16 at least, which is the least that `tl.dot` takes.
        BLOCK: how many dimensions are on the chip at a time, 16 at least.
    """
    node = tl.arange(0, NODES)
    listed = node < n
    here = tl.program_id(0).to(tl.int64) * n + node
    starts = table + tl.load(places + here, mask=listed, other=0) * DIM
    gram = tl.zeros((NODES, NODES), dtype=tl.float32)
    for start in range(0, DIM, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = listed[:, None] & (column < DIM)[None, :]
        x = tl.load(starts[:, None] + column[None, :], mask=inside, other=0.0)
        # Each number is split in two of 11 bits, and three of their four products are summed; `fused` says why.
        gram += tl.dot(x, tl.trans(x), input_precision="tf32x3")
    gram = tl.where(listed[None, :], gram, float("-inf"))
    # The difference first: near the maximum, where the weight is, it is exact.
    weights = tl.exp((gram - tl.max(gram, axis=1)[:, None]) * inverse)
    y0 = tl.load(scores + here, mask=listed, other=0.0)
    # No matrix product: every row is summed alike, so that equal items stay tied.
    blurred = tl.sum(weights * y0[None, :], axis=1) / tl.sum(weights, axis=1)
    tl.store(out + here, blurred, mask=listed)
