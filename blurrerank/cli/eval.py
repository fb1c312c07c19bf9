"""`blurrerank eval`: metrics of a ranking, ours or another tool's."""

from __future__ import annotations

import click

from .options import (
    Runtime,
    check_ranking,
    features_argument,
    json_option,
    metrics_options,
    ranking_argument,
    ranking_of,
    runtime_options,
)
from .tables import method_label, metrics_table, print_json


@click.command("eval", short_help="Measure a ranking, ours or another tool's.")
@ranking_argument
@features_argument
@metrics_options
@json_option
@runtime_options
def evaluate(
    ranking: str,
    feats: str,
    gallery: str | None,
    format: str | None,
    protocol: str,
    ap: str,
    as_json: bool,
    runtime: Runtime,
) -> None:
    """Measure RANKING, made from FEATS, by the ids and cameras in FEATS.

    RANKING is a file that `run` wrote, or a TREC run by any tool; - is standard input. Native files are
    measured over the whole gallery, however short their lists. Others are measured to the depth they have, and
    matches that are not listed count as missed.

    \b
    blurrerank eval feats.ranking.h5 feats.h5 --ap trapezoid
    blurrerank eval other.trec feats.h5 --protocol plain
    """
    from ..formats import load
    from ..pipeline import evaluate as measure

    runtime.start()
    check_ranking(ranking, format)
    data = load(feats, gallery, memory=runtime.memory)
    found = ranking_of(ranking, data, format)
    metrics = measure(
        found,
        data,
        protocol=protocol,
        ap=ap,
        device=runtime.device,
        memory=runtime.memory,
        progress=runtime.progress("measuring"),
    )
    if as_json:
        print_json(
            {"ranking": ranking, "method": found.method, "params": dict(found.params)} | metrics.summary()
        )
        return
    source = "standard input" if ranking == "-" else ranking
    name = source if found.method == "unknown" else method_label(found.method, found.params)
    click.echo(metrics_table([(name, metrics)]))
