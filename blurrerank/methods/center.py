"""Camera centring: what all images of a camera have in common is taken away.

With m_c the mean of the L2-normalised features of camera c, n_c how many they are, and m the mean of all
gallery features, every feature x of camera c becomes

    x'  = normalise(x - (n_c m_c + shrink m) / (n_c + shrink))

Means are those of the gallery. Of a camera that the gallery lacks, the mean is that of calibration features,
or, transductive, of the probes; online and without any, nothing is known of it, and its probes stay as they
are. With `scale`, what is left is divided by the camera's standard deviation in each dimension.

Source: the subtraction of the camera's mean is a part of "Profile Vector Generation" in Zhang, Qian, Liu, Chen,
Wang, Li, Jin, "Graph Convolution for Re-ranking in Person Re-identification", arXiv:2107.02220.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import BlurrerankWarning
from .kinds.parameters import choice, ranged
from .kinds.steps import Sample, Transform

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Centring(Transform):
    """Subtract from each feature the mean of its camera.

    Attributes:
        by: whose mean, that of the camera or of the whole gallery.
        shrink: how many images' worth of the gallery's mean are added to those of a camera.
        scale: divide by the standard deviation in each dimension too.
    """

    name: ClassVar[str] = "center"
    transductive: ClassVar[bool] = True

    by: str = choice("camera", ("camera", "gallery"))
    shrink: float = ranged(0.0, least=0)
    scale: bool = False

    @property
    def needs_cameras(self) -> bool:
        """Unless the mean is the gallery's."""
        return self.by == "camera"

    def fit(self, gallery: Sample, others: Sequence[Sample]) -> Mapping[str, torch.Tensor]:
        """Return the cameras, ascending, and the mean and deviation of each."""
        import torch

        first = gallery.by_camera()
        total = first.counts.sum()
        mean, square = first.sums.sum(dim=0) / total, first.squares.sum(dim=0) / total
        found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for sample in (gallery, *(others if self.needs_cameras else ())):
            cameras = first if sample is gallery else sample.by_camera()
            for cam, count, sums, squares in zip(
                cameras.cams.tolist(), cameras.counts.tolist(), cameras.sums, cameras.squares, strict=True
            ):
                weight = count + self.shrink
                centre = (sums + self.shrink * mean) / weight
                spread = ((squares + self.shrink * square) / weight - centre**2).clamp_min(1e-12).sqrt()
                found.setdefault(cam, (centre, spread))
        cams = torch.tensor(sorted(found))
        means, deviations = (
            torch.stack([found[cam][part] for cam in cams.tolist()]).float() for part in (0, 1)
        )
        return {"cams": cams.to(means.device), "means": means, "deviations": deviations}

    def apply(
        self, rows: torch.Tensor, cams: torch.Tensor | None, fitted: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Subtract, and divide."""
        import torch

        places, known = _places(rows.new_zeros(len(rows)).long() if cams is None else cams, fitted["cams"])
        new = rows - fitted["means"][places]
        if self.scale:
            new = new / fitted["deviations"][places]
        return torch.where(known.unsqueeze(1), new, rows)

    def warn_about(self, cams: torch.Tensor | None, fitted: Mapping[str, torch.Tensor]) -> None:
        """Warn of probes whose camera is unknown."""
        if cams is None:
            return
        unknown = cams[~_places(cams, fitted["cams"])[1].cpu()]
        if len(unknown):
            warnings.warn(
                f"nothing is known of camera {unknown[0]}, which the gallery lacks: {len(unknown)} of "
                f"{len(cams)} probes are not centred; give earlier images of such cameras as calibration features",
                BlurrerankWarning,
                stacklevel=2,
            )


def _places(cams: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each camera is among those that are known, and whether it is."""
    import torch

    cams = cams.to(known.device)
    places = torch.searchsorted(known, cams).clamp_max_(len(known) - 1)
    return places, known[places] == cams


METHOD = Centring
