"""Neighbour feature centralisation: each image moves towards its mutual nearest neighbours.

Over the probes, and over the gallery by itself, with lists by cosine similarity, ties to the lower index:

    M(i)  = j among the k1 nearest others of i that have i among their k2 nearest others
    x'_i  = normalise(x_i + sum of x_j over j in M(i))

With `together`, probes and gallery are each other's neighbours. Online, only the gallery changes: a probe by
itself has no neighbours.

Source: Yuan, Zhang, Ma, Zhang, Niu, "From Poses to Identity: Training-Free Person Re-Identification via Feature
Centralization", CVPR 2025, arXiv:2503.00938. The authors' program compares the sums by Euclidean distance,
without normalising them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .kinds.parameters import ranged
from .kinds.steps import GraphStep

if TYPE_CHECKING:
    from ..graph.neighbour_graph import NeighbourGraph
    from ..graph.sparse_rows import SparseRows


@dataclass(frozen=True)
class NeighbourCentralisation(GraphStep):
    """Add to each probe and gallery item those of its nearest others that count it among theirs.

    Attributes:
        k1: nearest other images that can be added to an image.
        k2: nearest other images of each of these, among which the image must be.
        together: search the neighbours of probes and of gallery items among both.
    """

    name: ClassVar[str] = "nfc"
    online: ClassVar[bool] = True

    k1: int = ranged(2, least=1, most=1000)
    k2: int = ranged(2, least=1, most=1000)
    together: bool = False

    @property
    def apart(self) -> bool:
        """Unless both are to be looked at together."""
        return not self.together

    def neighbours(self) -> int:
        """As many as either list asks for."""
        return max(self.k1, self.k2)

    def notes(self, probes: int, gallery: int) -> list[str]:
        """More neighbours than there are images."""
        sides = {"images": probes + gallery} if self.together else {"probes": probes, "gallery items": gallery}
        return [
            f"{name} {count} is capped at the {images - 1} other {side}"
            for side, images in sides.items()
            for name, count in (("k1", self.k1), ("k2", self.k2))
            if count > images - 1
        ]

    def mixture(self, graph: NeighbourGraph) -> SparseRows:
        """Return each image and its mutual neighbours, all with the same weight."""
        return graph.reciprocal(self.k1, self.k2).uniform()


METHOD = NeighbourCentralisation
