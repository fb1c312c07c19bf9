"""A sweep or a tuning as a table over two parameters, for the heat maps of `report` and `plot`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ParameterError
from ..methods import find_parameter
from ..methods.kinds.parameters import written
from .before_after import BeforeAfter
from .sweep import Sweep
from .tuning import Tuning


@dataclass(frozen=True, eq=False)
class Grid:
    """The values of a mean at the settings of two parameters.

    Attributes:
        x: name of the parameter that the columns are of.
        y: name of that of the rows.
        columns: (C,) its value in each column, as text.
        rows: (R,) likewise.
        values: (R, C) float64, NaN for a setting that was not measured.
        best: row and column of the best setting.
        mean: what the values are, in words.
        of: of which method, likewise.
    """

    x: str
    y: str
    columns: list[str]
    rows: list[str]
    values: NDArray[np.float64]
    best: tuple[int, int]
    mean: str
    of: str


def grid_of(
    found: Sweep | Tuning | Grid, comparison: BeforeAfter, x: str | None = None, y: str | None = None
) -> Grid:
    """Return the heat map of a sweep or a tuning, which must be of the features in `comparison`.

    Args:
        found: the sweep, whose mAP is shown; the tuning, whose metric is shown on the half to choose by, other
            parameters being at the chosen setting; or what this function returned.
        comparison: what the heat map is shown with.
        x: the parameter of a tuning that the columns are of; by default the first with several values.
        y: that of the rows, by default the next.

    Raises:
        InputError: if it is of other features, labels, protocol or AP, or has no settings.
        ParameterError: for `x` or `y` with a sweep, or that the tuning does not have.
    """
    if isinstance(found, Grid):
        return found
    what, of = ("sweep", found) if isinstance(found, Sweep) else ("tuning", found.basis)
    data = comparison.data
    if of.digest != data.digest() or of.labels_digest != data.labels_digest():
        other = "features" if of.digest != data.digest() else "ids or cameras"
        raise InputError(f"the {what} was made from other {other}: pass a {what} of these features")
    if (of.protocol, of.ap) != (comparison.protocol, comparison.ap_kind):
        raise InputError(
            f"the {what} was measured with protocol {of.protocol} and {of.ap} AP: pass "
            f"--protocol {of.protocol} --ap {of.ap}, or run the {what} again with the ones given here"
        )
    if not found.rows:
        raise InputError(f"the {what} has no settings: run `blurrerank {what}` again")
    if isinstance(found, Tuning):
        return _of_tuning(found, x, y)
    if x is not None or y is not None:
        raise ParameterError("the heat map of a sweep is over topn and sigma: --x and --y are for a tuning")
    topns, sigmas = (sorted({setting[part] for setting in found.rows}) for part in (0, 1))
    at = {(sigma, topn): means["mAP"] for (topn, sigma), means in found.rows.items()}
    topn, sigma = found.best()["mAP"]
    return _grid(("topn", topns), ("sigma", sigmas), at, (sigma, topn), ("mAP", "of local blurring"))


def _of_tuning(tuning: Tuning, x: str | None, y: str | None) -> Grid:
    """The two parameters, the others at the chosen setting."""
    if len(tuning.grid) < 2:
        raise ParameterError(
            f"a heat map needs two parameters, and the tuning has only {', '.join(tuning.grid)}"
        )
    varied = [name for name, values in tuning.grid.items() if len(values) > 1]
    by_default = [*varied, *(name for name in tuning.grid if name not in varied)]
    given = [None if name is None else find_parameter(tuning.basis.method, name)[0] for name in (x, y)]
    stated = [name for name in given if name is not None]
    for name in stated:
        if name not in tuning.grid:
            raise ParameterError(f"the tuning does not vary {name}: it has {', '.join(tuning.grid)}")
    if len(set(stated)) < len(stated):
        raise ParameterError(f"--x and --y both name {stated[0]}: the tuning has {', '.join(tuning.grid)}")
    others = iter(name for name in by_default if name not in stated)
    across, down = (name or next(others) for name in given)
    chosen = dict(zip(tuning.grid, tuning.chosen, strict=True))
    at = {}
    for setting, means in tuning.rows.items():
        values = dict(zip(tuning.grid, setting, strict=True))
        if all(values[name] == chosen[name] for name in tuning.grid if name not in (across, down)):
            at[values[down], values[across]] = means[tuning.metric]
    columns, rows = ((name, sorted(tuning.grid[name])) for name in (across, down))
    of = f"by {tuning.basis.method}, other parameters as in {tuning.text_at(tuning.chosen)}"
    mean = f"{tuning.metric} on the tuning half"
    return _grid(columns, rows, at, (chosen[down], chosen[across]), (mean, of))


def _grid(
    x: tuple[str, list[Any]],
    y: tuple[str, list[Any]],
    at: dict[tuple[Any, Any], float],
    best: tuple[Any, Any],
    words: tuple[str, str],
) -> Grid:
    """A table of what `at` has, by values of y and of x."""
    values = np.array([[at.get((row, column), np.nan) for column in x[1]] for row in y[1]])
    columns, rows = ([written(value) for value in axis[1]] for axis in (x, y))
    return Grid(x[0], y[0], columns, rows, values, (y[1].index(best[0]), x[1].index(best[1])), *words)
