"""Local blurring re-ranking: the spectral feature transformation of each probe's neighbourhood.

Source: Luo, Chen, Wang, Zhang, "Spectral Feature Transformation for Person Re-identification", ICCV 2019,
arXiv:1811.11405, section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from .kinds.base import HeadRanker
from .kinds.parameters import ranged

if TYPE_CHECKING:
    import torch

    from ..data.candidates import Candidates
    from ..graph.neighbourhoods import Neighbourhoods
    from ..search.rows import Gatherable
    from ..spectral.neighbourhoods import Blurring


def _temperature(near: Neighbourhoods) -> float | None:
    """Where a row of T spreads over as many images as an identity has; over two where the data do not tell."""
    return None if near.temperature is None else near.temperature(1 + (near.size("nearest") or 1))


@dataclass(frozen=True)
class LocalBlurring(HeadRanker):
    """Sort the n best of a probe q by y = T (X q), with T the transition probabilities among them.

    Attributes:
        topn: size n of the neighbourhood.
        sigma: temperature of the affinity exp(cos / sigma).
        probe_in_graph: also make the probe a node of the graph.
        cosine: compare transformed features by cosine similarity instead of the dot product.
        steps: number of steps of the random walk.
    """

    name: ClassVar[str] = "lbr"
    needs_features: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "market1501": {"topn": 50, "sigma": 0.1},
        "dukemtmc": {"topn": 50, "sigma": 0.1},
        "cuhk03": {"topn": 50, "sigma": 0.1},
        "msmt17": {"topn": 150, "sigma": 0.02},
    }

    sigma: float = ranged(0.1, above=0, fits=_temperature)
    probe_in_graph: bool = False
    cosine: bool = False
    # Long before 100 steps, a random walk has forgotten where it began.
    steps: int = ranged(1, least=1, most=100)

    def rescore(self, probe: torch.Tensor, candidates: Candidates, gallery: Gatherable) -> torch.Tensor:
        """Return the blurred similarity of each candidate, (p, n) float32."""
        return self.rescore_each(probe, candidates, gallery, [self.sigma])[0]

    def rescore_each(
        self, probe: torch.Tensor, candidates: Candidates, gallery: Gatherable, sigmas: Sequence[float]
    ) -> torch.Tensor:
        """Return what `rescore` gives for every one of `sigmas`, (sigmas, p, n) float32."""
        if hasattr(gallery, "among"):
            return self._blurring.of_graphs(gallery.among(candidates.indices), candidates.scores, sigmas)
        table, places = gallery.gather(candidates.indices)
        return self._blurring.scores(table, places, probe, candidates.scores, sigmas)

    @classmethod
    def rescore_settings(
        cls, rankers: Sequence[HeadRanker], probe: torch.Tensor, candidates: Candidates, gallery: Gatherable
    ) -> Sequence[torch.Tensor]:
        """Compare the candidates among each other once for all settings that differ in sigma alone."""
        sigmas: dict[LocalBlurring, list[float]] = {}
        for ranker in rankers:
            assert isinstance(ranker, LocalBlurring)
            sigmas.setdefault(replace(ranker, sigma=cls.sigma), []).append(ranker.sigma)
        found = {
            replace(like, sigma=sigma): scores
            for like, some in sigmas.items()
            for sigma, scores in zip(some, like.rescore_each(probe, candidates, gallery, some), strict=True)
        }
        return [found[ranker] for ranker in rankers if isinstance(ranker, LocalBlurring)]

    def workspace_bytes(self, topn: int, dim: int) -> int:
        """Return what one neighbourhood takes."""
        return self._blurring.workspace_bytes(topn, dim, self.sigma)

    @property
    def _blurring(self) -> Blurring:
        # Imported here, so that the help text of the default method does not wait for torch.
        from ..spectral.neighbourhoods import Blurring

        return Blurring(self.steps, self.cosine, self.probe_in_graph)


METHOD = LocalBlurring
