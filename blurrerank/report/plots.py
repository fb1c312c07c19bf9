"""Draw the figures of a report for print, with matplotlib.

matplotlib is an extra: `pip install "blurrerank[plot]"`. It is only imported when a figure is drawn.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.request import ONLINE
from ..engine.rule import estimate_neighbourhoods
from ..errors import BlurrerankError, InputError, ParameterError
from ..evaluation.metrics import Metrics
from ..files.targets import check_target, opener, replacing
from ..graph.neighbourhoods import KINDS, Neighbourhoods
from ..studies.before_after import BeforeAfter
from ..studies.heat_map import Grid, grid_of
from ..studies.sweep import Sweep
from ..studies.tuning import Tuning
from .strips import label

ENDINGS = (".png", ".pdf", ".svg")
FIGURES = ("cmc", "ap", "sweep", "neighbourhoods", "all")

_PANEL = (4.2, 3.1)  # inches
# Okabe and Ito's colours, which colour-blind readers can distinguish, also in print.
_BEFORE, _AFTER, _BETTER, _WORSE = "#5f6b76", "#0072b2", "#009e73", "#d55e00"


def check_figure(path: str | Path, figure: str, *, sweep: bool) -> None:
    """Check, before any work, that a figure can be drawn.

    Raises:
        ParameterError: for an extension not in `ENDINGS`, an unknown figure, or figure `sweep` without a sweep.
        BlurrerankError: if matplotlib is not installed; names the extra.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise ParameterError(
            f"{path}: figures need the extension {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}: rename the output"
        )
    if figure not in FIGURES:
        raise ParameterError(f"figure {figure!r} is not known: use {' or '.join(FIGURES)}")
    if figure == "sweep" and not sweep:
        raise ParameterError(
            "the heat map needs a sweep: pass --sweep FILE, written by `blurrerank sweep -o` or `tune -o`"
        )
    if figure in ("cmc", "ap", "neighbourhoods") and sweep:
        raise ParameterError(
            f"--figure {figure} does not draw a sweep: leave --sweep out, or pass --figure all"
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BlurrerankError(
            "figures need matplotlib, which is not installed: pip install 'blurrerank[plot]'"
        ) from None


def draw(
    *,
    comparison: BeforeAfter,
    path: str | Path,
    figure: str = "all",
    sweep: Sweep | Tuning | Grid | None = None,
    force: bool = False,
) -> None:
    """Draw one or several figures into one file; no display is needed.

    Args:
        comparison: the comparison to show, from `before_and_after`.
        path: the file, `.png` (300 dots per inch), `.pdf` or `.svg`.
        figure: `cmc`, `ap` (sorted change of AP of each probe), `sweep` (heat map), `neighbourhoods` (how many
            images an identity has, as estimated), or `all` but the last side by side, with the heat map if
            there is a sweep.
        sweep: a sweep or tuning of the same features, or from `grid_of` a heat map of one.
        force: replace an existing file.

    Raises:
        ParameterError: see `check_figure`.
        InputError: without ids on both sides or any match, where metrics are drawn; if the sweep is of other
            features, labels or settings.
        OutputError: if the file cannot be written.
        BlurrerankError: if matplotlib, the extra `plot`, is not installed.
    """
    path = Path(path)
    check_figure(path, figure, sweep=sweep is not None)
    check_target(path, force=force)
    near = None
    if figure == "neighbourhoods":
        near = estimate_neighbourhoods(comparison.data, online=comparison.ranking.setting == ONLINE)
    elif comparison.measured is None:
        raise InputError(f"{comparison.data.lacking('ids')}: without metrics this figure cannot be drawn")
    elif not comparison.measured[1].valid_probes:
        raise InputError("no probe has a match in the gallery: there is nothing to draw")
    grid = None if sweep is None else grid_of(sweep, comparison)

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    in_all = ["cmc", "ap", *["sweep"] * (grid is not None)]
    panels = in_all if figure == "all" else [figure]
    # Keep text as text in PDF and SVG, as journals ask, and make the output reproducible.
    style: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "blurrerank", "font.size": 9}
    with rc_context(style):
        canvas = Figure(figsize=(_PANEL[0] * len(panels), _PANEL[1]), layout="constrained")
        axes = canvas.subplots(1, len(panels), squeeze=False)[0]
        for name, axis in zip(panels, axes, strict=True):
            if name == "cmc" and comparison.measured is not None:
                _cmc(axis, *comparison.measured, label(comparison.reference), label(comparison.ranking))
            elif name == "ap":
                _changes(axis, comparison)
            elif near is not None:
                _neighbourhoods(axis, near)
            elif grid is not None:
                _heat_map(axis, grid)
        kind = path.suffix.lower()[1:]
        undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
        # Draw to memory first: on a full disk, matplotlib's PDF writer raises an error of its own.
        drawn = io.BytesIO()
        canvas.savefig(drawn, format=kind, dpi=300, metadata=undated)
    with replacing(path, force=force) as temporary, open(temporary, "wb", opener=opener) as file:
        file.write(drawn.getvalue())


def _cmc(axis: Any, before: Metrics, after: Metrics, one: str, other: str) -> None:
    ranks = np.arange(1, len(after.cmc) + 1)
    for metrics, colour, line, name in ((before, _BEFORE, "--", one), (after, _AFTER, "-", other)):
        # The name of the method comes from a file: disable math text.
        text = name.replace("$", r"\$").lstrip("_")
        axis.plot(ranks, metrics.cmc, color=colour, linestyle=line, label=text)
    axis.set(xlabel="rank k", ylabel="probes with a match by rank k", xlim=(1, len(ranks)))
    axis.set_xticks([1, 10, 20, 30, 40, 50])
    axis.legend(loc="lower right", frameon=False)
    _plain(axis)


def _changes(axis: Any, comparison: BeforeAfter) -> None:
    change, counts = comparison.sorted_change(), comparison.counts()
    # One step per probe.
    edges = np.arange(len(change) + 1)
    for name, values, colour in (
        ("better", change.clip(0), _BETTER),
        ("worse", change.clip(None, 0), _WORSE),
    ):
        axis.stairs(values, edges, fill=True, color=colour, linewidth=0, label=f"{counts[name]:,} {name}")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel="probes with a match, by change", ylabel="change of AP", xlim=(0, len(change)))
    # As far as there are changes, so that no half is empty.
    axis.set_ylim(1.08 * min(0.0, *change), 1.08 * max(0.01, *change))
    axis.legend(loc="upper right", frameon=False)
    _plain(axis)


def _neighbourhoods(axis: Any, near: Neighbourhoods) -> None:
    colours = {"nearest": _AFTER, "within": _AFTER, "across": _WORSE}
    for kind, found in near.estimates().items():
        places = np.arange(1, len(found.curve) + 1)
        axis.plot(places, found.curve, color=colours[kind], label=f"{KINDS[kind]}: {found}")
        if found.sure:
            axis.plot(found.size, found.curve[found.size - 1], "o", color=colours[kind])
        chance = found.chance
    if near.estimates():
        axis.plot(np.arange(1, len(chance) + 1), chance, ":", color=_BEFORE, label="without identities")
    axis.set(xlabel="neighbours k", ylabel="neighbours that list an image too", ylim=(0, 1.02))
    axis.legend(loc="lower right", frameon=False)
    _plain(axis)


def _heat_map(axis: Any, grid: Grid) -> None:
    from matplotlib.patches import Rectangle

    low, high = np.nanmin(grid.values), np.nanmax(grid.values)
    axis.imshow(grid.values, cmap="Blues", aspect="auto", vmin=low, vmax=high + (high == low))
    for (row, column), value in np.ndenumerate(grid.values):
        if np.isnan(value):
            continue
        best = (row, column) == grid.best
        dark = high > low and (value - low) / (high - low) > 0.6
        axis.text(
            *(column, row, f"{value:.4f}" + ("\nbest" if best else "")),
            ha="center",
            va="center",
            color="white" if dark else "black",
            weight="bold" if best else "normal",
        )
    row, column = grid.best
    axis.add_patch(
        Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, fill=False, edgecolor="black", linewidth=2)
    )
    axis.set_xticks(range(len(grid.columns)), grid.columns)
    axis.set_yticks(range(len(grid.rows)), grid.rows)
    axis.set(xlabel=grid.x, ylabel=grid.y, title=grid.mean)


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e1e6eb", linewidth=0.6)
    axis.set_axisbelow(True)
