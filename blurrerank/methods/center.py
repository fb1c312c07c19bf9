"""Camera centring: what all images of a camera have in common is taken away.

With m_c the mean of the L2-normalised features of camera c, n_c how many they are, and m the mean of all
gallery features, every feature x of camera c becomes

    x'  = normalise(x - (n_c m_c + shrink m) / (n_c + shrink))

Means are those of the gallery. Of a camera that the gallery lacks, the mean is that of camera images,
or, transductive, of the probes; online and without any, nothing is known of it, and its probes stay as they
are. With `scale`, what is left is divided by the camera's standard deviation in each dimension.

Source: the subtraction of the camera's mean is a part of "Profile Vector Generation" in Zhang, Qian, Liu, Chen,
Wang, Li, Jin, "Graph Convolution for Re-ranking in Person Re-identification", arXiv:2107.02220.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .kinds.cameras import first_seen, places_of
from .kinds.parameters import choice, ranged
from .kinds.steps import Kept, Sample, Transform

if TYPE_CHECKING:
    import torch

# Less than this of a unit row is rounding, and so is a smaller variance in a dimension.
_LEAST_NORM, _LEAST_SQUARE = 1e-6, 1e-8


@dataclass(frozen=True)
class Centring(Transform):
    """Subtract from each feature the mean of its camera.

    Attributes:
        by: subtract the mean of the camera, or of the whole gallery.
        shrink: weight of the gallery's mean in that of a camera, as a number of images.
        scale: also divide each dimension by the camera's standard deviation.
    """

    name: ClassVar[str] = "center"
    transductive: ClassVar[bool] = True
    keeps: ClassVar[Mapping[str, Kept]] = {
        "cams": Kept(("C",), "int64"),
        "means": Kept(("C", "D")),
        "deviations": Kept(("C", "D"), least=_LEAST_SQUARE),
    }

    by: str = choice("camera", ("camera", "gallery"))
    # A camera with few images loses what tells them apart, and with hundreds 5 more make no difference.
    shrink: float = ranged(5.0, least=0)
    scale: bool = False

    @property
    def needs_cameras(self) -> bool:
        """Unless the mean is the gallery's."""
        return self.by == "camera"

    def fit(self, gallery: Sample, others: Sequence[Sample]) -> Mapping[str, torch.Tensor]:
        """Return the cameras, ascending, and the mean and deviation of each."""
        import torch

        samples = [gallery, *(others if self.needs_cameras else ())]
        every = [sample.by_camera() for sample in samples]
        mean, square = (part.sum(dim=0) / every[0].counts.sum() for part in (every[0].sums, every[0].squares))
        cams, means, deviations = [], [], []
        for cameras, new in zip(every, first_seen(every), strict=True):
            weight = (cameras.counts[new] + self.shrink).unsqueeze(1)
            centre = (cameras.sums[new] + self.shrink * mean) / weight
            variance = (cameras.squares[new] + self.shrink * square) / weight - centre**2
            cams.append(cameras.cams[new])
            means.append(centre)
            deviations.append(variance.clamp_min(_LEAST_SQUARE).sqrt())
        order = torch.cat(cams).argsort()
        return {
            "cams": torch.cat(cams)[order],
            "means": torch.cat(means)[order].float(),
            "deviations": torch.cat(deviations)[order].float(),
        }

    def apply(
        self, rows: torch.Tensor, cams: torch.Tensor | None, fitted: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Subtract, and divide."""
        import torch

        places, known = places_of(rows.new_zeros(len(rows)).long() if cams is None else cams, fitted["cams"])
        new = rows - fitted["means"][places]
        # An image that is all its camera has leaves nothing but rounding.
        known &= torch.linalg.vector_norm(new, dim=1) > _LEAST_NORM
        if self.scale:
            new = new / fitted["deviations"][places]
        return torch.where(known.unsqueeze(1), new, rows)


METHOD = Centring
