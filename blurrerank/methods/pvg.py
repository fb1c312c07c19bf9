"""Profile vector generation: camera centring, and then the inverse of the camera's regularised correlation.

With m_c the mean of the n_c L2-normalised features of camera c, and C_c the mean of their products x x', every
feature x of camera c becomes

    x' = normalise((C_c + ridge I)^-1 (x - m_c))

Means and products are those of the gallery. Of a camera that the gallery lacks, they are those of the camera
images, or, transductive, of the probes; online and without any, its probes stay as they are.

Source: Zhang, Qian, Liu, Chen, Wang, Li, Jin, "Graph Convolution for Re-ranking in Person Re-identification",
arXiv:2107.02220. With the authors' ridge of 10 it is little more than centring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .kinds.cameras import first_seen, places_of
from .kinds.parameters import ranged
from .kinds.steps import Kept, Sample, Transform

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ProfileVectors(Transform):
    """Subtract from each feature the mean of its camera, and divide by the camera's correlation.

    Attributes:
        ridge: added to the diagonal of the correlation; the larger it is, the closer this is to centring alone.
    """

    name: ClassVar[str] = "pvg"
    transductive: ClassVar[bool] = True
    keeps: ClassVar[Mapping[str, Kept]] = {
        "cams": Kept(("C",), "int64"),
        "means": Kept(("C", "D")),
        "matrices": Kept(("C", "D", "D")),
    }

    ridge: float = ranged(10.0, above=0)

    @property
    def needs_cameras(self) -> bool:
        """Always."""
        return True

    def fit(self, gallery: Sample, others: Sequence[Sample]) -> Mapping[str, torch.Tensor]:
        """Return the cameras, ascending, and the mean and matrix of each."""
        import torch

        samples = [gallery, *others]
        every = [sample.by_camera() for sample in samples]
        seen = first_seen(every)
        cams = torch.cat([cameras.cams[new] for cameras, new in zip(every, seen, strict=True)]).sort().values
        means = every[0].sums.new_empty(len(cams), every[0].sums.shape[1], dtype=torch.float32)
        matrices = means.new_empty(*means.shape, means.shape[1])
        for sample, cameras, new in zip(samples, every, seen, strict=True):
            places = torch.searchsorted(cams, cameras.cams[new])
            counts = cameras.counts[new]
            means[places] = (cameras.sums[new] / counts.unsqueeze(1)).float()
            for place, count, products in zip(
                places, counts, sample.products_of(cameras.cams[new]), strict=True
            ):
                correlation = products.div_(count)
                correlation.diagonal().add_(self.ridge)
                matrices[place] = (torch.linalg.inv(correlation) * self.ridge).float()
        return {"cams": cams, "means": means, "matrices": matrices}

    def apply(
        self, rows: torch.Tensor, cams: torch.Tensor | None, fitted: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Subtract, and multiply."""
        import torch

        from ..compute.products import row_products

        assert cams is not None
        places, known = places_of(cams, fitted["cams"])
        new = rows.clone()
        for place in torch.unique(places[known]).tolist():
            own = known & (places == place)
            new[own] = row_products(rows[own] - fitted["means"][place], fitted["matrices"][place].T)
        return new


METHOD = ProfileVectors
