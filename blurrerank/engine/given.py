"""Re-ranking of lists that came from elsewhere."""

from __future__ import annotations

import torch

from ..data.candidates import Candidates
from ..errors import ParameterError
from ..methods import HeadMethod, Method
from ..search.given import _sorted
from ..search.rows import UnitRows


def check_method(method: Method) -> None:
    """Raise `ParameterError` unless `method` can work with candidates alone."""
    if not isinstance(method, HeadMethod):
        raise ParameterError(
            f"method {method.name} gives the whole gallery new scores, and candidates are only a part of it: "
            "use lbr or cosine"
        )


def rescore(method: HeadMethod, probe: torch.Tensor, near: Candidates, gallery: UnitRows) -> Candidates:
    """The heads of given lists, which may end early, with the method's new scores, best first.

    Args:
        method: sees lists of one length at a time, without padding.
        probe: (p, D) float32, unit rows.
        near: (p, n), -1 past the end of a list.
        gallery: the features they point into.
    """
    lengths = (near.indices >= 0).sum(dim=1)
    scores = torch.full_like(near.scores, -torch.inf)
    places, different = near.indices, torch.unique(lengths).tolist()
    if len(different) > 1 and not gallery.resident:
        # Once for all lengths, as each time may be a pass over the file.
        table, places = gallery.gather(near.indices.clamp_min(0))
        gallery = UnitRows.held(table)
    for length in filter(None, different):
        rows = torch.nonzero(lengths == length).flatten()
        some = Candidates(places[rows, :length], near.scores[rows, :length])
        scores[rows, :length] = method.rescore(probe[rows], some, gallery)
    return _sorted(near.indices, scores)
