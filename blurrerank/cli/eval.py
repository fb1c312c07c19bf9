"""`blurrerank eval`: metrics of rankings, ours or another tool's."""

from __future__ import annotations

import warnings
from typing import Any

import click

from .options import (
    FILE,
    FORMAT_NAMES,
    Runtime,
    check_ranking,
    features_argument,
    json_option,
    metrics_options,
    printable,
    ranking_of,
    runtime_options,
    style_options,
)
from .tables import comparison_line, method_label, metrics_table, print_json


@click.command("eval", short_help="Measure rankings, ours or another tool's.")
@click.argument("rankings", type=FILE, metavar="[RANKING]...", nargs=-1)
@features_argument
@click.option(
    "--format",
    type=click.Choice(FORMAT_NAMES),
    help="What every RANKING is, instead of what its ending says.",
)
@click.option(
    "compare",
    "--compare",
    nargs=2,
    type=FILE,
    metavar="A B",
    help="Also test whether ranking A is better than ranking B, two files, named as RANKING too or not.",
)
@style_options
@metrics_options
@json_option
@runtime_options
def evaluate(
    rankings: tuple[str, ...],
    feats: str,
    gallery: str | None,
    format: str | None,
    compare: tuple[str, str] | None,
    style: str | None,
    protocol: str,
    ap: str,
    as_json: bool,
    runtime: Runtime,
) -> None:
    """Measure each RANKING, made from FEATS, by the ids and cameras in FEATS.

    RANKING is a file that `run` wrote, or a TREC run by any tool; - is standard input. Native files are
    measured over the whole gallery, however short their lists. Others are measured to the depth they have, and
    matches that are not listed count as missed.

    \b
    blurrerank eval feats.ranking.h5 feats.h5 --ap trapezoid
    blurrerank eval other.trec feats.h5 --protocol plain
    blurrerank eval cosine.h5 lbr.h5 feats.h5 --latex
    blurrerank eval feats.h5 --compare lbr.h5 cosine.h5
    """
    from ..engine.evaluate import evaluate as measure
    from ..errors import BlurrerankWarning, ParameterError
    from ..evaluation.significance import compare as test
    from ..files import load

    runtime.start()
    named = list(dict.fromkeys([*rankings, *(compare or ())]))
    if not named:
        raise ParameterError("there is no ranking to measure: name its file before the features")
    for name in named:
        check_ranking(name, format)
    data = load(feats, gallery, memory=runtime.memory, told=runtime.note)
    found, measured = [], {}
    with warnings.catch_warnings():
        # What is wrong with the labels is so for every ranking: the same words are said once.
        warnings.simplefilter("default", BlurrerankWarning)
        for name in named:
            ranking = ranking_of(name, data, format)
            found.append({"ranking": name, "method": ranking.method, "params": dict(ranking.params)})
            measured[name] = measure(
                ranking,
                data,
                protocol=protocol,
                ap=ap,
                device=runtime.device,
                memory=runtime.memory,
                progress=runtime.progress("measuring"),
            )
    comparison = None if compare is None else test(*(measured[name] for name in compare))
    if as_json:
        told = [one | measured[one["ranking"]].summary() for one in found]
        if comparison is not None and compare is not None:
            pair = {"a": compare[0], "b": compare[1]}
            print_json({"rankings": told, "comparison": pair | comparison.summary()})
        else:
            print_json(told if len(told) > 1 else told[0])
        return
    labels = _labels(found)
    click.echo(printable(metrics_table([(labels[name], measured[name]) for name in named], style), lines=True))
    if comparison is not None and compare is not None:
        click.echo(f"\n{comparison_line(labels[compare[0]], labels[compare[1]], comparison, style)}")


def _labels(found: list[dict[str, Any]]) -> dict[str, str]:
    """What to call each ranking: its method, and its file too where the method does not tell it apart."""
    methods = [method_label(one["method"], one["params"]) for one in found]
    labels = {}
    for one, method in zip(found, methods, strict=True):
        label = "standard input" if one["ranking"] == "-" else one["ranking"]
        if one["method"] != "unknown":
            label = f"{label}, {method}" if methods.count(method) > 1 else method
        labels[one["ranking"]] = printable(label)
    return labels
