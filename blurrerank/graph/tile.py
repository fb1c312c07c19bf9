"""Tiles of products of two blocks of images, and which of them may enter the lists of either block.

Of a tile nearly nothing enters any list once these have seen some others. So the columns of a tile are put into
groups, the greatest product of each group is compared with what the row's list asks for, and only groups that
exceed it are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..search.tiles import greatest
from .running_lists import RunningLists

# Columns whose greatest product is found at once.
_GROUP = 16
# Rows in which more than this share of the groups exceeds what is asked for are looked at whole.
_CROWDED = 0.5
# In how many pieces at least to look at all groups of a tile, as what is noted of a product takes more memory
# than the product; and at all whole rows, of which only the best are noted.
_PIECES, _PIECES_OF_ROWS = 32, 4


@dataclass(frozen=True)
class Block:
    """Images that meet others together.

    Attributes:
        images: (n,) int64, which ones.
        rows: (n, D) their factors.
        cams: (n,) int64, their cameras, where lists are by camera.
    """

    images: torch.Tensor
    rows: torch.Tensor
    cams: torch.Tensor | None = None

    def by_camera(self, cams: torch.Tensor) -> Block:
        """The same images in such an order that as few groups as can be are of several cameras."""
        order = cams[self.images].argsort(stable=True)
        groups = len(order) // _GROUP
        # Group g has the columns g, g + groups, g + 2 groups and so on.
        whole = order[: groups * _GROUP].view(groups, _GROUP).T.flatten()
        order = torch.cat([whole, order[groups * _GROUP :]])
        images = self.images[order]
        return Block(images, self.rows[order], cams[images])


def offer(products: torch.Tensor, block: Block, others: Block, lists: Sequence[RunningLists]) -> None:
    """Let lists of both blocks of images have those products that exceed their ends.

    Args:
        products: (n, m), of the images of `block`, the rows, with `others`, the columns, in any float dtype.
        block: images.
        others: images; if these are the same, their products are taken note of once.
        lists: all of the greatest products, or all of the smallest.
    """
    lists = [running for running in lists if running.width]
    if not lists or not products.numel():
        return
    _offer_to_rows(products, block, others, lists)
    if others is not block:
        _offer_to_rows(products.T, others, block, lists)


def _extremes(products: torch.Tensor, *, smallest: bool) -> torch.Tensor:
    """The greatest product of each group of columns, (n, groups) float32, or minus the smallest."""
    rows, groups = len(products), products.shape[1] // _GROUP
    whole = products[:, : groups * _GROUP]
    # As it lies in memory, which is twenty times faster.
    turned = not products.is_contiguous()
    grouped = whole.T.view(_GROUP, groups, rows) if turned else whole.view(rows, _GROUP, groups)
    axis = 0 if turned else 1
    found = (-grouped.amin(dim=axis) if smallest else grouped.amax(dim=axis)).to(torch.float32)
    return found.T if turned else found


def _offer_to_rows(products: torch.Tensor, block: Block, others: Block, lists: Sequence[RunningLists]) -> None:
    """Let the lists of the rows have their products with the columns.

    Args:
        products: (n, m), in rows or columns.
        block: the images that the rows are of.
        others: those of the columns.
        lists: some.
    """
    extremes = _extremes(products, smallest=lists[0].sign < 0)
    sign, groups = lists[0].sign, extremes.shape[1]
    own, other = (_least(block, lists, same=same) for same in (True, False))
    least = torch.minimum(own, other)
    reach = extremes > _least_of_groups(block, others, own, other, groups)
    crowded = torch.nonzero(reach.sum(dim=1) > _CROWDED * groups).flatten()
    if len(crowded):
        reach[crowded] = False
        least[crowded] = torch.inf
        # Turned first: to pick columns as rows takes ten times as long.
        rows_first = products.contiguous()
        for some in torch.split(crowded, -(-len(products) // _PIECES_OF_ROWS)):
            _offer_whole(sign * rows_first[some], block.images[some], others, lists)
        del rows_first
    if products.is_contiguous():
        rows, group = torch.nonzero(reach).unbind(1)
    else:
        group, rows = torch.nonzero(reach.T).unbind(1)
    members = groups * torch.arange(_GROUP, device=group.device)
    step = -(-products.numel() // (_PIECES * _GROUP))
    for some, these in zip(torch.split(rows, step), torch.split(group, step), strict=True):
        columns = these.unsqueeze(1) + members
        _offer_some(products[some.unsqueeze(1), columns], some, columns, least, block, others, lists)
    rest = torch.arange(groups * _GROUP, products.shape[1], device=group.device)
    if len(rest):
        rows = torch.arange(len(products), device=group.device)
        columns = rest.expand(len(rows), -1)
        _offer_some(products[:, rest], rows, columns, least, block, others, lists)


def _least(block: Block, lists: Sequence[RunningLists], *, same: bool) -> torch.Tensor:
    """What a product with an image of the own camera, or of another, must exceed to enter any of the lists."""
    ends = [running.ends[block.images] for running in lists if running.pairs.may_be(same=same)]
    if not ends:
        return torch.full_like(block.images, torch.inf, dtype=torch.float32)
    return torch.stack(ends).amin(dim=0)


def _least_of_groups(
    block: Block, others: Block, own: torch.Tensor, other: torch.Tensor, groups: int
) -> torch.Tensor:
    """What a group of columns must exceed, (n, groups), or (n, 1) where it is the same for all."""
    own, other = own.unsqueeze(1), other.unsqueeze(1)
    if block.cams is None or others.cams is None:
        return own
    cams = others.cams[: groups * _GROUP].view(_GROUP, groups)
    least = torch.where(block.cams.unsqueeze(1) == cams[0], own, other)
    mixed = torch.nonzero((cams != cams[0]).any(dim=0)).flatten()
    least[:, mixed] = torch.minimum(own, other)
    return least


def _offer_whole(
    values: torch.Tensor, images: torch.Tensor, others: Block, lists: Sequence[RunningLists]
) -> None:
    """Offer each list the best of whole rows of products, times the sign of the lists."""
    for running in lists:
        alike = running.pairs.alike(images.unsqueeze(1), others.images)
        wanted = values if alike is None else values.masked_fill(~alike, -torch.inf)
        best, places = greatest(wanted, min(running.width, values.shape[1]))
        each = images.repeat_interleave(best.shape[1])
        running.offer(each, others.images[places].flatten(), best.flatten().to(torch.float32))


def _offer_some(
    products: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    least: torch.Tensor,
    block: Block,
    others: Block,
    lists: Sequence[RunningLists],
) -> None:
    """Offer the lists those of (H, c) products, in H rows at (H, c) columns, that exceed the row's `least`."""
    values = lists[0].sign * products.to(torch.float32)
    which, where = torch.nonzero(values > least[rows].unsqueeze(1)).unbind(1)
    rows, order = rows[which].sort()
    which, where = which[order], where[order]
    images, listed = block.images[rows], others.images[columns[which, where]]
    for running in lists:
        running.offer(images, listed, values[which, where])
