"""From candidates by fast products to exact neighbour lists.

Whose list an image is in decides about the encodings of many: where float32 cannot tell which of two is nearer,
float64 does. A list whose candidates are not proved to hold the nearest is searched for among all images.
"""

from __future__ import annotations

import torch

from ..data.sort_keys import NOBODY, fine_keys, from_fine_keys, from_sort_keys
from ..search.nearest import exhaustive_top_k
from ..search.precision import fine_scores, order_error, pair_scores
from ..search.rows import UnitRows
from .pairs import pair_similarities
from .running_lists import Pairs, RunningLists

# Bytes that a candidate takes while lists are put together, and images at a time for exhaustive search.
_CANDIDATE_BYTES, _EXHAUSTIVE_ROWS = 96, 256


def images_at_a_time(working_bytes: int, width: int) -> int:
    """Return how many images' lists to put together at a time, of `width` candidates each."""
    return max(1, working_bytes // (_CANDIDATE_BYTES * max(1, width)))


def resolve_lists(
    images: UnitRows,
    some: slice,
    running: RunningLists,
    bound: torch.Tensor,
    shape: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return exact lists of consecutive images.

    Args:
        images: N rows.
        some: which of them.
        running: their candidates.
        bound: (n,) float32, how far products may be off.
        shape: how many images have been met, and how long the lists are to be.

    Returns:
        (n, count) int64 items and float32 similarities, nearest first, -1 and -inf where there are no more; and
        how many lists were not proved by their candidates.
    """
    met, count = shape
    scores, items = _score_candidates(images, running, some)
    if not count:
        return items[:, :0], scores[:, :0], 0
    keys = fine_keys(_refined(images, some, scores, items, count), items, len(images))
    at = keys.topk(count, dim=1).indices
    found, similarities = items.gather(1, at), scores.gather(1, at)
    slack = order_error(images.dim)
    complete = torch.isfinite(scores).sum(dim=1) == running.pairs.available(met).to(scores.device)[some]
    most = running.unlisted_score_bound(some) + bound
    failed = torch.nonzero(~complete & (similarities[:, -1] <= most + slack)).flatten()
    step = max(1, min(_EXHAUSTIVE_ROWS, images.budget.working_bytes // (8 * images.dim * (count + 1))))
    for rows in torch.split(failed, step):
        found[rows], similarities[rows] = _search_all(
            images, some.start + rows, similarities[rows, -1] - slack, running.pairs, shape
        )
    return found.masked_fill_(similarities == -torch.inf, -1), similarities, len(failed)


def resolve_lowest(
    images: UnitRows, some: slice, running: RunningLists, bound: torch.Tensor, met: int
) -> torch.Tensor:
    """Return the smallest similarity of each of consecutive images to any of the first `met`, itself too."""
    scores, _ = _score_candidates(images, running, some)
    most = running.unlisted_score_bound(some) + bound
    best = scores.amax(dim=1)
    complete = torch.isfinite(scores).sum(dim=1) == met
    failed = torch.nonzero(~complete & (best <= most)).flatten()
    for rows in torch.split(failed, _EXHAUSTIVE_ROWS):
        table, places = images.gather(some.start + rows)
        keys = exhaustive_top_k(-table[places], images, best[rows], 1, items=met)
        best[rows] = from_sort_keys(keys[:, 0])[1]
    return -best


def _score_candidates(
    images: UnitRows, running: RunningLists, some: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact scores of images' candidates, negative for the farthest and -inf where there is none; the items."""
    keys = running.best(some)
    listed = keys != NOBODY
    items = from_sort_keys(keys)[0].masked_fill_(~listed, 0)
    scores = torch.full(keys.shape, -torch.inf, device=keys.device)
    found = pair_similarities(images, images, listed.sum(dim=1), items[listed], first=some.start)
    scores[listed] = running.sign * found
    return scores, items


def _refined(
    images: UnitRows, some: slice, scores: torch.Tensor, items: torch.Tensor, count: int
) -> torch.Tensor:
    """The scores in float64, recomputed where float32 does not tell the first `count` and their order."""
    unsure = torch.zeros_like(scores, dtype=torch.bool)
    ordered, order = scores.sort(dim=1, descending=True)
    slack = order_error(images.dim)
    close = ordered[:, :-1] - ordered[:, 1:] <= slack
    close &= ordered[:, :-1] >= ordered[:, count - 1 : count] - slack
    unsure[:, :-1] |= close
    unsure[:, 1:] |= close
    unsure = torch.zeros_like(unsure).scatter_(1, order, unsure)
    fine = scores.to(torch.float64)
    fine[unsure] = pair_similarities(
        images, images, unsure.sum(dim=1), items[unsure], first=some.start, fine=True
    )
    return fine


def _search_all(
    images: UnitRows, who: torch.Tensor, least: torch.Tensor, pairs: Pairs, shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lists of the images `who`, looked for among all; `least` are similarities that the lists reach."""
    met, count = shape
    table, places = images.gather(who)
    queries = table[places]
    keys = exhaustive_top_k(
        queries,
        images,
        least,
        count,
        rank=_rank_finely,
        items=met,
        allowed=lambda rows, start, stop: pairs.allowed(who[rows], start, stop),
    )
    listed = keys != NOBODY
    found = from_fine_keys(keys, len(images)).masked_fill_(~listed, 0)
    table, places = images.gather(found)
    similarities = pair_scores(table[places], queries.unsqueeze(1))
    return found, similarities.masked_fill_(~listed, -torch.inf)


def _rank_finely(rows: torch.Tensor, queries: torch.Tensor, items: torch.Tensor, total: int) -> torch.Tensor:
    """Keys by scores in float64."""
    return fine_keys(fine_scores(rows, queries), items, total)
