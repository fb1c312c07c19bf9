"""Whitening: directions in which the gallery varies much count less, those in which it varies little more.

With m the mean of the gallery's L2-normalised features, C their covariance, v_1, v_2 .. the unit eigenvectors
of C, largest eigenvalue first, and e_1, e_2 .. the eigenvalues, whose mean is e, every feature x becomes

    x'_k = v_k . (x - m) / sqrt(e_k + ridge e) for k up to `dim`, then normalised

Without the ridge, directions in which nothing varies would count most. Eigenvectors are turned so that their
largest component is positive.

Source: Jegou, Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA and
whitening", ECCV 2012; the ridge is this project's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .kinds.parameters import ranged
from .kinds.steps import Kept, Sample, Transform

if TYPE_CHECKING:
    import torch

# Rows and eigenvectors are whole parts of this. Their products are then whole parts of 2^52, and sums of these
# stay below 2: float64 is exact, so that no row depends on how many are multiplied with it.
_PARTS = 1 << 26
# Less than this of a unit row is rounding, and so is a smaller variance.
_LEAST_NORM, _LEAST_VARIANCE = 1e-6, 1e-12


@dataclass(frozen=True)
class Whitening(Transform):
    """Divide each feature by the standard deviation of the gallery in each of its principal directions.

    Attributes:
        dim: number of principal directions to keep, by decreasing variance; 0 keeps all. Capped at the
            dimensions of the features.
        ridge: added to each variance, in units of the mean variance.
    """

    name: ClassVar[str] = "whiten"
    keeps: ClassVar[Mapping[str, Kept]] = {
        "axes": Kept(("D", "D"), "float64"),
        "centre": Kept(("D",), "float64"),
        "deviations": Kept(("D",), "float64", least=_LEAST_VARIANCE),
    }

    dim: int = ranged(0, least=0)
    ridge: float = ranged(1.0, above=0)

    def fit(self, gallery: Sample, others: Sequence[Sample]) -> Mapping[str, torch.Tensor]:
        """Return the principal directions, where the mean is in each, and what they are divided by."""
        import torch

        cameras, products = gallery.by_camera(), gallery.products()
        count = cameras.counts.sum()
        mean = (cameras.sums.sum(dim=0) / count).cpu()
        variances, columns = torch.linalg.eigh((products / count).cpu() - torch.outer(mean, mean))
        kept = self.dim or len(mean)
        axes = columns.T.flip(0)[:kept]
        axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
        axes = (axes * _PARTS).round()
        spread = variances.flip(0)[:kept].clamp_min(0) + self.ridge * variances.mean().clamp_min(0)
        fitted = {
            "axes": axes,
            "centre": axes @ mean / _PARTS,
            "deviations": spread.clamp_min(_LEAST_VARIANCE).sqrt(),
        }
        return {name: values.to(products) for name, values in fitted.items()}

    def apply(
        self, rows: torch.Tensor, cams: torch.Tensor | None, fitted: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Project, subtract, and divide."""
        import torch

        seen = (rows.double() * _PARTS).round() @ fitted["axes"].T / _PARTS**2
        left = seen - fitted["centre"]
        # An image that is the mean itself is not centred, and one without any of these directions has all.
        left = torch.where(_nothing(left), seen, left)
        left = torch.where(_nothing(left), 1.0, left)
        return (left / fitted["deviations"]).float()


def _nothing(rows: torch.Tensor) -> torch.Tensor:
    """Whether each of (n, D) rows is nothing but rounding, (n, 1)."""
    return (rows**2).sum(dim=1, keepdim=True) < _LEAST_NORM**2


METHOD = Whitening
