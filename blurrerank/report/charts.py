"""Draw the figures of the report as inline SVG and HTML; the style sheet sets colours and fonts."""

from __future__ import annotations

import math
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


def cmc_chart(before: Metrics, after: Metrics, one: str, other: str) -> str:
    """Draw both cumulative match curves, ranks 1 to 50; `one` and `other` name the rankings."""
    marks = _marks(min(before.cmc[0], after.cmc[0]), max(before.cmc[-1], after.cmc[-1]))
    body = _axes(
        [(_x(rank, 1, 50), str(rank)) for rank in (1, 10, 20, 30, 40, 50)],
        [(_y(mark, marks), f"{mark:.2f}") for mark in marks],
        "rank k",
        "share of probes with a match by rank k",
    )
    for name, metrics in (("before", before), ("after", after)):
        points = " ".join(
            f"{_x(rank, 1, 50):.1f},{_y(value, marks):.1f}" for rank, value in enumerate(metrics.cmc, start=1)
        )
        body += f'<polyline class="line {name}" points="{points}"/>'
    said = ", ".join(f"rank {k} {before.rank(k):.4f} to {after.rank(k):.4f}" for k in (1, 5, 10, 20, 50))
    key = _key([("line before", f"before: {one}"), ("line after", f"after: {other}")])
    return key + _svg("cmc", f"Cumulative match curves before and after: {said}", body)


def change_chart(comparison: BeforeAfter) -> str:
    """Draw the change of AP of each probe, largest gain first."""
    change = comparison.sorted_change()
    marks = _marks(min(0.0, *change), max(0.0, *change))
    number = len(change)
    body = _axes(
        [(_x(tick, 0, number), f"{tick:,}") for tick in _ticks(number)],
        [(_y(mark, marks), _signed(mark)) for mark in marks],
        "probes with a match, by change",
        "change of AP",
    )
    zero = _y(0, marks)
    for name, values in (("better", change.clip(0)), ("worse", change.clip(None, 0))):
        heights = _sampled(values)
        points = "".join(
            f"V{_y(value, marks):.1f}H{_x(step + 1, 0, len(heights)):.1f}" for step, value in enumerate(heights)
        )
        body += f'<path class="area {name}" d="M{_LEFT},{zero:.1f}{points}V{zero:.1f}Z"/>'
    body += f'<line class="zero" x1="{_LEFT}" x2="{_RIGHT}" y1="{zero:.1f}" y2="{zero:.1f}"/>'
    said = ", ".join(f"{count} {name}" for name, count in comparison.counts().items())
    return _svg("change", f"Change of average precision of each probe, sorted: {said}", body)


def neighbourhood_chart(near: Neighbourhoods) -> str:
    """Draw how many neighbours list an image in turn, with the sizes that are read from it."""
    every = near.estimates()
    longest = max(len(found.curve) for found in every.values())
    lines = [("line chance", next(iter(every.values())).chance, 0, "without identities")]
    lines += [
        (f"line {style}", found.curve, found.size if found.sure else 0, f"{KINDS[kind]}: {found}")
        for style, (kind, found) in zip(("after", "other"), every.items(), strict=False)
    ]
    values = [value for _, curve, _, _ in lines for value in curve]
    marks = _marks(min(values), max(values))
    body = _axes(
        [(_x(k, 1, longest), str(k)) for k in (1, *range(10, longest + 1, 10))],
        [(_y(mark, marks), f"{mark:.2f}") for mark in marks],
        "neighbours k",
        "share of neighbours that list an image too",
    )
    for style, curve, size, _ in lines:
        points = " ".join(f"{_x(k, 1, longest):.1f},{_y(m, marks):.1f}" for k, m in enumerate(curve, start=1))
        body += f'<polyline class="{style}" points="{points}"/>'
        if size:
            x, height = _x(size, 1, longest), _y(curve[size - 1], marks)
            body += f'<circle class="{style.split()[1]}" cx="{x:.1f}" cy="{height:.1f}" r="4"/>'
    key = _key([(style, text) for style, _, _, text in lines])
    return key + _svg("neighbourhoods", f"Other images per identity, estimated from neighbours: {near}", body)


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


def _y(value: float, marks: Sequence[float]) -> float:
    return _BOTTOM - (value - marks[0]) / (marks[-1] - marks[0]) * (_BOTTOM - _TOP)


def _marks(low: float, high: float) -> list[float]:
    """Return two to eight round numbers, at equal distances, from at most `low` to at least `high`."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1):
        # A curve that ends on a mark, but for rounding, needs none beyond it.
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= 7:
            break
    if first == last:
        first, last = (first - 1, last) if first > 0 else (first, last + 1)
    return [round(step * mark, 2) for mark in range(first, last + 1)]


def _key(entries: Sequence[tuple[str, str]]) -> str:
    """Say what each line is, above the figure, where it hides nothing."""
    items = "".join(
        f'<li><svg class="sample" viewBox="0 0 28 4" aria-hidden="true">'
        f'<line class="{style}" x1="0" x2="28" y1="2" y2="2"/></svg>{escape(text)}</li>'
        for style, text in entries
    )
    return f'<ul class="key">{items}</ul>'


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
