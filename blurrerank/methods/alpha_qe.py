"""Alpha query expansion: each probe moves towards its nearest gallery items, the nearer the more.

With g_1 .. g_k the unit rows of the k nearest gallery items of a probe q, and c their cosine similarities:

    q' = normalise(q + sum_i max(c_i, 0)^alpha g_i)

It is `aqe` with the parameters of the paper. Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval
with No Human Annotation", TPAMI 2019, arXiv:1711.02512.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .aqe import QueryExpansion
from .kinds.parameters import ranged


@dataclass(frozen=True)
class AlphaQueryExpansion(QueryExpansion):
    """Add to each probe its k nearest gallery items, weighted by cosine^alpha.

    Attributes:
        k: nearest gallery items that are added to the probe; capped at the size of the gallery.
    """

    name: ClassVar[str] = "alpha-qe"

    k: int = ranged(10, least=1)
    alpha: float = ranged(3.0, least=0)


METHOD = AlphaQueryExpansion
