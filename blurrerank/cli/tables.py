"""Format results as tables, lines and JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from .options import shortened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..evaluation.metrics import Metrics
    from ..evaluation.open_set import OpenSetMetrics
    from ..evaluation.significance import Comparison


def table(
    head: str,
    rows: Sequence[Sequence[str]],
    headers: Sequence[str],
    style: str | None = None,
    *,
    names: int = 1,
) -> str:
    """Return a heading line followed by a table.

    Args:
        head: the heading line.
        rows: the cells, as text.
        headers: the column headers.
        style: `latex_booktabs`, `github`, or None for a terminal.
        names: number of columns, from the left, that are left-aligned.
    """
    from tabulate import tabulate

    if style == "github":
        rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    align = ("left",) * names + ("right",) * (len(headers) - names)
    figures = tabulate(rows, headers, tablefmt=style or "simple", disable_numparse=True, colalign=align)
    return f"{remark(head, style)}\n\n{figures}"


def remark(line: str, style: str | None = None) -> str:
    """Return a line to print with a table; in LaTeX it becomes a comment."""
    return f"% {line}" if style == "latex_booktabs" else line


def metrics_table(rows: Sequence[tuple[str, Metrics]], style: str | None = None) -> str:
    """Return a table of metrics, one row per ranking, with a heading that says how they were measured."""
    from ..evaluation.metrics import CMC_RANKS

    first = rows[0][1]
    depths = {m.depth for _, m in rows}
    depth = f", shortest list {first.depth}" if depths == {first.depth} and first.depth is not None else ""
    head = (
        f"protocol {first.protocol}, {first.ap_kind} AP{depth}; "
        f"means over {first.valid_probes} valid of {first.probes} probes"
    )
    cells = [
        [
            name if len(depths) == 1 or m.depth is None else f"{name}, shortest list {m.depth}",
            *(f"{value:.4f}" for value in (m.mAP, m.mINP, *map(m.rank, CMC_RANKS))),
        ]
        for name, m in rows
    ]
    return table(head, cells, ["", "mAP", "mINP", *(f"rank-{k}" for k in CMC_RANKS)], style)


def open_set_tables(rows: Sequence[tuple[str, OpenSetMetrics]], style: str | None = None) -> str:
    """Return a table of what needs no threshold, one row per ranking, and one of what each threshold does."""
    import numpy as np

    first = rows[0][1]
    head = (
        f"open set, protocol {first.protocol}: {first.known} known probes of {first.known_identities} "
        f"identities, {first.unknown} unknown of {first.unknown_identities}"
    )
    cells = [
        [name, *map(_fraction, (one.auroc, one.balanced_accuracy, *one.identity_top.values()))]
        for name, one in rows
    ]
    tops = [f"identity top-{k}" for k in first.identity_top]
    points = [
        [
            name,
            "given" if point.limit is None else f"FPR {point.limit:.0%}",
            "-" if np.isnan(point.threshold) else str(np.float32(point.threshold)),
            *map(_fraction, (point.tpr, point.fpr, point.fnir, point.baks, point.baus)),
        ]
        for name, one in rows
        for point in one.points
    ]
    measures = ["TPR", "FPR, FPIR", "FNIR", "BAKS", "BAUS"]
    accepted = "a probe is accepted if its score reaches the threshold"
    return (
        f"{table(head, cells, ['', 'AUROC', 'balanced accuracy', *tops], style)}\n\n"
        f"{table(accepted, points, ['', '', 'threshold', *measures], style, names=2)}"
    )


def _fraction(value: float) -> str:
    return "-" if value != value else f"{value:.4f}"


def comparison_line(a: str, b: str, found: Comparison, style: str | None = None) -> str:
    """Return a line such as `lbr against cosine: mAP +0.0417, ...`."""
    p_value = "p < 0.0001" if found.p_value < 1e-4 else f"p = {found.p_value:.4f}"
    return remark(
        f"{a} against {b}: mAP {found.difference:+.4f}, 95 % interval {found.low:+.4f} to {found.high:+.4f}, "
        f"{p_value} (two-sided paired permutation test); {found.probes} probes, {found.better} better, "
        f"{found.equal} equal, {found.worse} worse",
        style,
    )


def method_label(method: str, params: Mapping[str, Any]) -> str:
    """Return what `methods.label_of` does, cut to a length that a table has room for."""
    from ..methods import label_of

    return shortened(label_of(method, params))


def print_json(value: Any, *, err: bool = False) -> None:
    """Print indented JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False), err=err)
