"""How results look on a terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..metrics import Metrics


# Variants of a method that are not the usual one are said; the usual one is not.
_UNSAID = (("steps", 1), ("base_distance", "squared"))


def metrics_table(rows: Sequence[tuple[str, Metrics]]) -> str:
    """A line that says what was measured, then one row for each ranking."""
    from tabulate import tabulate

    from ..metrics import CMC_RANKS

    first = rows[0][1]
    depth = "" if first.depth is None else f", shortest list {first.depth}"
    head = (
        f"protocol {first.protocol}, {first.ap_kind} AP{depth}; "
        f"means over {first.valid_probes} valid of {first.probes} probes"
    )
    table = tabulate(
        [[name, m.mAP, m.mINP, *(m.rank(k) for k in CMC_RANKS)] for name, m in rows],
        headers=["", "mAP", "mINP", *(f"rank-{k}" for k in CMC_RANKS)],
        floatfmt=".4f",
    )
    return f"{head}\n\n{table}"


def method_label(method: str, params: Mapping[str, Any]) -> str:
    """Such as `lbr (topn 50, sigma 0.1)`; switches that are off are left out."""
    shown = []
    for name, value in params.items():
        words = name.removesuffix("_value").replace("_", " ")
        if (name, value) not in _UNSAID and value is not False:
            shown.append(words if value is True else f"{words} {value}")
    return f"{method} ({', '.join(shown)})" if shown else method


def print_json(value: Any, *, err: bool = False) -> None:
    """Indented JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False), err=err)
