"""The three kinds of feature steps: by statistics, by lists, by a graph."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from .base import FeatureStep, GraphMethod

if TYPE_CHECKING:
    import torch

    from ...graph.neighbour_graph import NeighbourGraph
    from ...graph.sparse_rows import SparseRows


@dataclass(frozen=True)
class CameraSums:
    """Sums over the images of each camera, the same in whatever order they are added.

    Attributes:
        cams: (C,) int64, ascending.
        counts: (C,) int64, images.
        sums: (C, D) float64, of the unit rows.
        squares: (C, D) float64, of the squares of their values.
    """

    cams: torch.Tensor
    counts: torch.Tensor
    sums: torch.Tensor
    squares: torch.Tensor


class Sample(Protocol):
    """Images that a step is fitted on."""

    def by_camera(self) -> CameraSums:
        """Return sums over each camera; images without cameras have camera 0."""

    def products(self) -> torch.Tensor:
        """Return the sum of x x' over all unit rows x, (D, D) float64."""

    def products_of(self, cams: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the same over the rows of each of some cameras, ascending; few are in memory at a time."""


@dataclass(frozen=True)
class Kept:
    """An array that `Transform.fit` returns, as an index keeps it.

    Attributes:
        axes: names of its dimensions; `D` is that of the features, others are equal where names are.
        dtype: `float32` or `float64`; or `int64` for what ascends.
        least: the smallest value that it can have.
    """

    axes: tuple[str, ...]
    dtype: str = "float32"
    least: float = -3e38


@dataclass(frozen=True)
class Transform(FeatureStep):
    """A step that treats each image by itself, by what is known of all gallery images."""

    keeps: ClassVar[Mapping[str, Kept]] = {}
    """What `fit` returns."""

    @abstractmethod
    def fit(self, gallery: Sample, others: Sequence[Sample]) -> Mapping[str, torch.Tensor]:
        """Return what `apply` needs.

        Args:
            gallery: its images.
            others: images of other cameras perhaps: camera images if there are any, and then,
                transductive, the probes.
        """

    @abstractmethod
    def apply(
        self, rows: torch.Tensor, cams: torch.Tensor | None, fitted: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return new features.

        Args:
            rows: (n, D) float32 unit rows.
            cams: (n,) int64, if `needs_cameras`.
            fitted: what `fit` returned.

        Returns:
            (n, D') float32; they are L2-normalised afterwards.
        """


@dataclass(frozen=True)
class ListStep(FeatureStep):
    """A step that replaces features by a mixture of themselves and their nearest gallery items."""

    changes: ClassVar[str] = "probe"
    """Whose features are replaced, `probe` or `gallery`."""

    @abstractmethod
    def neighbours(self) -> int:
        """Return how many nearest gallery items `mix` is given; of a gallery item the first is itself."""

    @abstractmethod
    def mix(self, rows: torch.Tensor, near: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
        """Return new features.

        Args:
            rows: (n, D) float32 unit rows, what is replaced.
            near: (n, k, D) float32 unit rows, the nearest gallery items, best first.
            cosine: (n, k) float32, their cosine similarities.

        Returns:
            (n, D) float32; they are L2-normalised afterwards.
        """

    def notes(self, probes: int, gallery: int) -> list[str]:
        """More neighbours than there are gallery items."""
        count = self.neighbours()
        return [f"{self.name} k {count} is capped at the gallery's {gallery} items"] if count > gallery else []


@dataclass(frozen=True)
class GraphStep(FeatureStep, GraphMethod):
    """A step that replaces the features of probes and gallery by mixtures over the graph of them all.

    Where it can work online, it then replaces those of the gallery alone, over its own graph.
    """

    transductive: ClassVar[bool] = True
    online: ClassVar[bool] = False

    @property
    def apart(self) -> bool:
        """Whether probes are listed with probes alone, and gallery items with gallery items."""
        return False

    def times(self) -> int:
        """Return how many times features are replaced, each time over their own graph."""
        return 1

    @abstractmethod
    def mixture(self, graph: NeighbourGraph) -> SparseRows:
        """Return the weights of the sums that new features are made of, a row for each image.

        Their scale does not matter, unless `combine` makes something else of the sums.
        """

    def combine(self, rows: torch.Tensor, mixed: torch.Tensor, side: str) -> torch.Tensor:
        """Return new features: by default the sums.

        Args:
            rows: (n, D) float32 unit rows, what is replaced.
            mixed: (n, D) float32, the sums.
            side: what the images are, `probe` or `gallery`.

        Returns:
            (n, D') float32; they are L2-normalised afterwards.
        """
        return mixed
