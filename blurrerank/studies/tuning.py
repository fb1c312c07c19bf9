"""`Tuning`: what a method gives at the settings of a grid, and what the chosen one gives elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..evaluation.metrics import MEANS
from ..evaluation.significance import Interval, intervals_over_identities
from .grids import ParameterGrid, Setting
from .halves import Half


@dataclass(frozen=True)
class Basis:
    """What a tuning is of; another one cannot go on from it.

    Attributes:
        method: the text of the chain, with the parameters that are fixed.
        setting: `transductive` or `online`, None if that makes no difference.
        digest: `FeatureSet.digest()` of the features.
        labels_digest: `FeatureSet.labels_digest()` of the same.
        camera_images_digest: `Side.digest()` of the camera images, None without.
        camera_images_cams: `Side.cameras_digest()` of the same.
        protocol: by which it was measured.
        ap: the kind of average precision.
        seed: of the draw of the halves.
    """

    method: str
    setting: str | None
    digest: str
    labels_digest: str
    camera_images_digest: str | None
    camera_images_cams: str | None
    protocol: str
    ap: str
    seed: int


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a method gives at each setting of a grid.

    Attributes:
        basis: the method, the features, and how they were measured and halved.
        metric: the mean that settings are compared by.
        grid: name of a parameter -> its values.
        tuning: the size of the half that the choice is made on.
        reporting: the size of the half that is reported on.
        rows: setting -> mean -> value on the tuning half, in the order of the grid.
        counts: (I,) int64, probes of each identity of the reporting half.
        sums: (I, M) float64 of `cosine`, `defaults` (the chain as it was given) and `chosen`: what each of the
            `MEANS` averages, summed over the probes of each identity of the reporting half.
        sampled: the setting that `chosen` is of.
        finished: whether every setting that was asked for is there.
    """

    basis: Basis
    metric: str
    grid: Mapping[str, tuple[Any, ...]]
    tuning: Half
    reporting: Half
    rows: Mapping[Setting, Mapping[str, float]]
    counts: NDArray[np.int64]
    sums: Mapping[str, NDArray[np.float64]]
    sampled: Setting
    finished: bool = True

    @property
    def chosen(self) -> Setting:
        """The setting where the metric is highest on the tuning half; of equal ones the first of the grid."""
        return best_of(self.rows, self.metric, self._settings)

    def text_at(self, setting: Setting) -> str:
        """Return the text of the chain at a setting, such as `center+camera-graph:ki=4`."""
        return self._settings.text_at(setting)

    @property
    def _settings(self) -> ParameterGrid:
        return ParameterGrid(self.basis.method, self.grid)

    def report(self) -> dict[str, dict[str, Interval]]:
        """Return the means on the reporting half, with intervals.

        Keys are `cosine`, `defaults` and `chosen`, and for differences `chosen - defaults` and
        `chosen - cosine`; then `MEANS`.
        """
        tables = {name: self.sums[name] for name in ("cosine", "defaults", "chosen")}
        for other in ("defaults", "cosine"):
            tables[f"chosen - {other}"] = self.sums["chosen"] - self.sums[other]
        stacked = np.concatenate(list(tables.values()), axis=1)
        found = iter(intervals_over_identities(stacked, self.counts))
        return {name: {mean: next(found) for mean in MEANS} for name in tables}


def best_of(rows: Mapping[Setting, Mapping[str, float]], metric: str, grid: ParameterGrid) -> Setting:
    """Return the setting whose `metric` is highest; of equal ones the first of the grid."""
    return min(rows, key=lambda setting: (-rows[setting][metric], grid.place(setting)))


class Store(Protocol):
    """Where finished settings are kept."""

    @property
    def known(self) -> Tuning | None:
        """What was kept before."""

    def keep(self, tuning: Tuning) -> None:
        """Keep what is known now, in place of what was kept before."""
