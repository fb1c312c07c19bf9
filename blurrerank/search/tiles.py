"""Tiles of similarities, some probes to some of the gallery: how they are computed, what is best in them."""

from __future__ import annotations

import torch

from ..compute.products import widen
from ..data.sort_keys import sort_keys

# Columns whose greatest similarity is found at once.
_GROUP = 16
# BLAS libraries take other kernels, which round otherwise, for products of a few rows or columns (seen with
# MKL below 32). Padding to this width keeps every similarity independent of how the work was cut.
_LEAST_ROWS = 32
# Gallery rows in one float32 product. Wider ones are slower (by a sixth at 4,096, with MKL on 2 cores).
_PRODUCT_GALLERY = 1024
# Similarities at a time whose ties are settled: bounds what that takes when every row ties.
_TIED_ELEMENTS = 1 << 18


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


def greatest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` greatest of each row and their columns, in no order.

    They are among the groups of columns with the `count` greatest maxima, and maxima are found fast.
    """
    rows, columns = values.shape
    groups = columns // _GROUP
    if values.device.type != "cpu" or groups < 2 * count:
        found, places = values.topk(count, dim=1, sorted=False)
        return found, places
    whole = groups * _GROUP
    maxima = values[:, :whole].view(rows, _GROUP, groups).amax(dim=1)
    best = maxima.topk(count, dim=1, sorted=False).indices
    among = (best.unsqueeze(1) + groups * torch.arange(_GROUP).view(1, -1, 1)).flatten(1)
    among = torch.cat([among, torch.arange(whole, columns).expand(rows, -1)], dim=1)
    found, places = values.gather(1, among).topk(count, dim=1, sorted=False)
    return found, among.gather(1, places)
