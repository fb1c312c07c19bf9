"""Times of probes against an index, and the quality of its lists."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import click

from .options import Runtime
from .tables import method_label, print_json, table

if TYPE_CHECKING:
    from ..data.ranking import Ranking
    from ..data.side import Side
    from ..index.gallery_index import GalleryIndex
    from ..methods import AnyMethod

ALL = "all"
"""Every method that there is."""


def show_latencies(
    path: str,
    feats: str,
    runtime: Runtime,
    *,
    methods: str,
    effort: str | None,
    exact_index: str | None,
    repeats: int,
    style: str | None,
    as_json: bool,
) -> None:
    """Time probes against an index, and print it; arguments are the options of `bench`."""
    import numpy as np
    import torch

    from ..data.features import FeatureSet
    from ..engine.evaluate import evaluate
    from ..errors import BlurrerankWarning, ParameterError
    from ..files import load_side
    from ..index.gallery_index import GalleryIndex
    from ..methods import split_methods
    from ..studies.benchmark import Asked, latency

    index = GalleryIndex.open(path, device=runtime.device)
    approximate = index.approximation is not None
    if not approximate and (effort is not None or exact_index is not None):
        raise ParameterError(f"{path} is searched exactly: leave --effort and --exact-index out")
    probe = load_side(feats, "probe", memory=runtime.memory)
    if methods == ALL:
        steps = "".join(f"{step.name}+" for step in index.method.feature_steps)
        chosen = [index.method_for(f"{steps}cosine"), index.method_for(f"{steps}lbr"), index.method]
    else:
        chosen = [index.method_for(name) for name in split_methods(methods)]
    efforts = _efforts(effort) if approximate else []
    # Where items were taken from an index, not all of it can be looked at.
    whole: list[dict[str, Any]] = [{"exact": approximate}] if index.gallery.all_stored() is None else []
    asked = [
        Asked(method, **how) for method in chosen for how in (*whole, *({"effort": one} for one in efforts))
    ]
    found = latency(
        index,
        probe,
        asked,
        repeats=repeats,
        memory=runtime.memory,
        progress=runtime.progress("benchmark", unit=" rounds"),
    )
    exact = {one.asked.method: one.ranking for one in found if one.asked.exact}
    if exact_index is not None:
        other = GalleryIndex.open(exact_index, device=runtime.device)
        exact = {method: _lists(other, probe, method, runtime) for method in chosen}
    data = FeatureSet(probe, index.gallery)
    figures: list[dict[str, Any]] = [
        {
            "method": one.asked.method.name,
            "params": one.asked.method.params(),
            "alone": len(one.alone),
            "p50_ms": 1e3 * float(np.percentile(one.alone, 50)),
            "p99_ms": 1e3 * float(np.percentile(one.alone, 99)),
            "together": one.probes,
            "search_us": 1e6 * one.search,
            "rerank_us": 1e6 * one.rerank,
        }
        for one in found
    ]
    if index.approximation is not None:
        usual = index.approximation.search.effort
        for one, row in zip(found, figures, strict=True):
            row["looks_at"] = "all items" if one.asked.exact else f"effort {one.asked.effort or usual}"
            if exact:
                row["overlap"] = one.overlap(exact[one.asked.method])
            if data.has_ids:
                with warnings.catch_warnings():  # to this depth, as the head says
                    warnings.simplefilter("ignore", BlurrerankWarning)
                    row["mAP"] = evaluate(one.ranking, data, device=runtime.device).mAP
    if as_json:
        print_json(figures)
        return
    head = (
        f"{len(index)} gallery items x {index.dim}; {index.device}, {torch.get_num_threads()} threads, "
        f"{os.cpu_count()} cores; {figures[0]['alone']} times one probe, {figures[0]['together']} together"
    )
    depth = found[0].ranking.depth
    columns = [
        ("alone: p50 ms", "p50_ms", 2),
        ("p99 ms", "p99_ms", 2),
        ("together: search us/probe", "search_us", 1),
        ("re-rank us/probe", "rerank_us", 1),
        (f"overlap@{depth}", "overlap", 4),
        (f"mAP to {depth}", "mAP", 4),
    ]
    columns = [column for column in columns if column[1] in figures[0]]
    headers = ["", *(title for title, _, _ in columns)]
    rows = [
        [
            ", ".join([method_label(row["method"], row["params"]), *filter(None, [row.get("looks_at")])]),
            *(f"{row[name]:.{digits}f}" for _, name, digits in columns),
        ]
        for row in figures
    ]
    if index.approximation is not None:
        recall = ", ".join(f"{kind} {share:.4f}" for kind, share in index.approximation.recall.items())
        head += f"\n{index.approximation.search.kind}; recall of neighbour lists: {recall}"
        if exact_index is not None:
            head += f"; overlap with {exact_index}"
    click.echo(table(head, rows, headers, style))


def _efforts(text: str | None) -> list[int | None]:
    """The efforts of --effort.

    Raises:
        ParameterError: for what is no list of whole numbers.
    """
    from ..errors import ParameterError

    if text is None:
        return [None]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ParameterError(f"--effort takes whole numbers, separated by commas, not {text!r}") from None


def _lists(index: GalleryIndex, probe: Side, method: AnyMethod, runtime: Runtime) -> Ranking:
    """The lists of an index that is searched exactly."""
    from ..engine.rerank import rank

    return rank(index.features(probe), method, index.request(method), runtime.compute(device=index.device))
