"""Draw the figures of the report as inline SVG and HTML; the style sheet sets colours and fonts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from ..evaluation.metrics import Metrics
from ..graph.neighbourhoods import KINDS, Neighbourhoods
from ..studies.before_after import BeforeAfter
from ..studies.heat_map import Grid

_WIDTH, _HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 344, 12, 192
# Maximum number of columns in the plot of changes; more would not be visible.
_STEPS = 400


def cmc_chart(before: Metrics, after: Metrics, label: str) -> str:
    """Draw both cumulative match curves, ranks 1 to 50; `label` names the ranking."""
    low = np.floor(min(before.cmc[0], after.cmc[0], 0.95) * 20) / 20
    marks = np.linspace(low, 1, 6)
    body = _axes(
        [(_x(rank, 1, 50), str(rank)) for rank in (1, 10, 20, 30, 40, 50)],
        [(_y(mark, low, 1), f"{mark:.2f}") for mark in marks],
        "rank k",
        "share of probes with a match by rank k",
    )
    for name, metrics in (("before", before), ("after", after)):
        points = " ".join(
            f"{_x(rank, 1, 50):.1f},{_y(value, low, 1):.1f}" for rank, value in enumerate(metrics.cmc, start=1)
        )
        body += f'<polyline class="line {name}" points="{points}"/>'
    for row, (name, text) in enumerate((("before", "before: cosine"), ("after", f"after: {label}"))):
        y = _BOTTOM - 34 + 18 * row
        body += (
            f'<line class="line {name}" x1="{_RIGHT - 150}" x2="{_RIGHT - 122}" y1="{y}" y2="{y}"/>'
            f'<text x="{_RIGHT - 116}" y="{y + 4}">{escape(text)}</text>'
        )
    said = ", ".join(f"rank {k} {before.rank(k):.4f} to {after.rank(k):.4f}" for k in (1, 5, 10, 20, 50))
    return _svg("cmc", f"Cumulative match curves before and after: {said}", body)


def change_chart(comparison: BeforeAfter) -> str:
    """Draw the change of AP of each probe, largest gain first."""
    change = comparison.sorted_change()
    counts = comparison.counts()
    limit = max(0.05, float(np.ceil(np.abs(change).max(initial=0) * 10) / 10))
    number = len(change)
    body = _axes(
        [(_x(tick, 0, number), f"{tick:,}") for tick in _ticks(number)],
        [(_y(mark, -limit, limit), _signed(mark)) for mark in np.linspace(-limit, limit, 5)],
        "probes with a match, by change",
        "change of AP",
    )
    zero = _y(0, -limit, limit)
    for name, values in (("better", change.clip(0)), ("worse", change.clip(None, 0))):
        heights = _sampled(values)
        points = "".join(
            f"V{_y(value, -limit, limit):.1f}H{_x(step + 1, 0, len(heights)):.1f}"
            for step, value in enumerate(heights)
        )
        body += f'<path class="area {name}" d="M{_LEFT},{zero}{points}V{zero}Z"/>'
    body += f'<line class="zero" x1="{_LEFT}" x2="{_RIGHT}" y1="{zero}" y2="{zero}"/>'
    body += f'<text x="{_LEFT + 8}" y="{zero + 16}">{counts["better"]:,} better</text>'
    body += f'<text class="end" x="{_RIGHT - 4}" y="{zero - 8}">{counts["worse"]:,} worse</text>'
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    return _svg("change", f"Change of average precision of each probe, sorted: {said}", body)


def neighbourhood_chart(near: Neighbourhoods) -> str:
    """Draw how many neighbours list an image in turn, with the sizes that are read from it."""
    every = near.estimates()
    longest = max(len(found.curve) for found in every.values())
    body = _axes(
        [(_x(k, 1, longest), str(k)) for k in (1, *range(10, longest + 1, 10))],
        [(_y(mark, 0, 1), f"{mark:.1f}") for mark in np.linspace(0, 1, 6)],
        "neighbours k",
        "share of neighbours that list an image too",
    )
    lines = [("after", next(iter(every.values())).chance, 0, "without identities", True)]
    lines += [
        (style, found.curve, found.size if found.sure else 0, f"{KINDS[kind]}: {found}", False)
        for style, (kind, found) in zip(("after", "other"), every.items(), strict=False)
    ]
    for row, (style, curve, size, text, dotted) in enumerate(lines):
        points = " ".join(f"{_x(k, 1, longest):.1f},{_y(m, 0, 1):.1f}" for k, m in enumerate(curve, start=1))
        kind = f"line {'chance' if dotted else style}"
        y = _BOTTOM - 14 - 18 * row
        body += f'<polyline class="{kind}" points="{points}"/>'
        if size:
            x, height = _x(size, 1, longest), _y(curve[size - 1], 0, 1)
            body += f'<circle class="{style}" cx="{x:.1f}" cy="{height:.1f}" r="4"/>'
        body += (
            f'<line class="{kind}" x1="{_RIGHT - 210}" x2="{_RIGHT - 182}" y1="{y}" y2="{y}"/>'
            f'<text x="{_RIGHT - 176}" y="{y + 4}">{escape(text)}</text>'
        )
    return _svg("neighbourhoods", f"Other images of an identity, estimated from neighbours: {near}", body)


def heat_map(grid: Grid) -> str:
    """Draw a table of the values at each setting, with the best one marked."""
    low, high = np.nanmin(grid.values), np.nanmax(grid.values)
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in grid.columns)
    rows = ""
    for row, name in enumerate(grid.rows):
        cells = ""
        for column, value in enumerate(grid.values[row]):
            if np.isnan(value):
                cells += "<td>not measured</td>"
                continue
            shade = round(8 * (value - low) / (high - low)) if high > low else 8
            best = (row, column) == grid.best
            cells += (
                f'<td class="heat h{shade}{" best" if best else ""}">{value:.4f}'
                f"{'<span>best</span>' if best else ''}</td>"
            )
        rows += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    caption = escape(f"{grid.mean} {grid.of}; columns: {grid.x}, rows: {grid.y}")
    corner = escape(f"{grid.y} \\ {grid.x}")
    return (
        f'<table class="heatmap"><caption>{caption}</caption>'
        f'<thead><tr><th scope="col">{corner}</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _ticks(number: int) -> range:
    """Return three to seven round numbers from 0 up to `number`."""
    step = 1
    while number // step > 6:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return range(0, number + 1, step)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212") if value else "0"


def _sampled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return at most `_STEPS` evenly spaced values, including the first and the last."""
    if len(values) <= _STEPS:
        return values
    some: NDArray[np.float64] = values[np.linspace(0, len(values) - 1, _STEPS).round().astype(int)]
    return some


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + (value - low) / max(high - low, 1e-12) * (_RIGHT - _LEFT)


def _y(value: float, low: float, high: float) -> float:
    return _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)


def _axes(
    columns: Sequence[tuple[float, str]], rows: Sequence[tuple[float, str]], x_label: str, y_label: str
) -> str:
    body = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{text}</text>'
        for y, text in rows
    )
    body += "".join(f'<text class="middle" x="{x:.1f}" y="{_BOTTOM + 16}">{text}</text>' for x, text in columns)
    return body + (
        f'<text class="middle axis" x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 4}">{x_label}</text>'
        f"<desc>{y_label} against {x_label}</desc>"
    )


def _svg(name: str, title: str, body: str) -> str:
    return (
        f'<svg id="{name}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{escape(title)}</title>{body}</svg>'
    )
