"""`blurrerank eval`: compute metrics of rankings, also of those from other tools."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from .options import (
    FILE,
    FORMAT_NAMES,
    Runtime,
    by_option,
    check_ranking,
    features_argument,
    json_option,
    matrix_option,
    metrics_options,
    printable,
    ranking_of,
    ranking_or_matrix,
    runtime_options,
    style_options,
)
from .tables import comparison_line, method_label, metrics_table, open_set_tables, print_json

if TYPE_CHECKING:
    from ..data.features import FeatureSet
    from ..data.ranking import Ranking


@click.command("eval", short_help="Compute metrics of rankings.")
@click.argument("rankings", type=FILE, metavar="[RANKING]...", nargs=-1)
@features_argument
@click.option(
    "--format",
    type=click.Choice(FORMAT_NAMES),
    help="Format of every RANKING, instead of the one its extension implies.",
)
@click.option(
    "compare",
    "--compare",
    nargs=2,
    type=FILE,
    metavar="A B",
    help="Also test whether ranking file A is better than ranking file B. They need not be given as RANKING "
    "too.",
)
@click.option(
    "--open-set",
    is_flag=True,
    help="Also measure how well scores separate probes with a match in the gallery from probes without one.",
)
@click.option(
    "--threshold",
    type=float,
    metavar="SCORE",
    help="With --open-set, also measure at this score, such as a threshold chosen on other probes.",
)
@style_options
@by_option
@matrix_option
@metrics_options
@json_option
@runtime_options
def evaluate(runtime: Runtime, **arguments: Any) -> None:
    """Compute metrics of each RANKING of FEATS, using the ids and cameras in FEATS.

    RANKING is a file written by `run`, a TREC run from any tool, or a matrix of similarities or distances
    (.npy, .npz, .mat, .pt), probes by gallery items; - is standard input. Native files and matrices are
    measured over the whole gallery. Others are measured to the depth of their lists, and unlisted matches count
    as missed.

    With --by track, the gallery consists of tracks. If RANKING lists images, each track takes the rank of its
    best image, as in the image-to-track search of VeRi-776. A RANKING that was made with --by track lists
    tracks already.

    --open-set adds AUROC, the thresholds for false positive rates of 1 % and 10 % with the error rates at each,
    and the means over identities that are usual for animals. docs/thresholds.md defines them.

    If FEATS has a matrix such as distmat instead of features, and no RANKING is given, the matrix is measured.

    \b
    blurrerank eval feats.lbr.ranking.h5 feats.h5 --ap trapezoid
    blurrerank eval other.trec feats.h5 --protocol plain
    blurrerank eval distmat.npy feats.h5
    blurrerank eval distances-and-labels.npz
    blurrerank eval cosine.h5 lbr.h5 feats.h5 --latex
    blurrerank eval feats.h5 --compare lbr.h5 cosine.h5
    blurrerank eval feats.lbr.ranking.h5 feats.h5 --open-set
    """
    from ..data.similarities import SimilaritySet
    from ..engine.evaluate import evaluate as measure
    from ..engine.open_set import evaluate_open_set
    from ..engine.rerank import rerank
    from ..errors import BlurrerankWarning, ParameterError
    from ..evaluation.significance import compare as test
    from ..files import load

    options = EvalOptions(**arguments)
    compare = options.compare
    if options.threshold is not None and not options.open_set:
        raise ParameterError("--threshold applies to open-set metrics only: add --open-set")
    runtime.start()
    named = list(dict.fromkeys([*options.rankings, *(compare or ())]))
    for name in named:
        check_ranking(name, options.format)
    data = load(
        options.feats,
        options.gallery,
        memory=runtime.memory,
        notify=runtime.note,
        similarities=True,
        matrix=options.matrix if not named else None,
    )
    if not named and not isinstance(data, SimilaritySet):
        raise ParameterError("no ranking to measure: give ranking files before the feature file")
    tracks = data.by_track() if options.by == "track" else None
    found, measured, opened = [], {}, {}
    with warnings.catch_warnings():
        # Warnings about labels apply to every ranking: show each of them once.
        warnings.simplefilter("default", BlurrerankWarning)
        named = named or [options.feats]
        for name in named:
            ranking: Ranking | SimilaritySet
            of = data
            if isinstance(data, SimilaritySet) and name == options.feats:
                ranking = data
            elif tracks is not None:
                ranking, of = _of_tracks(name, data, tracks, options)
            else:
                ranking = ranking_or_matrix(name, data, options.format, options.matrix)
            method, params = "as given", {}
            if not isinstance(ranking, SimilaritySet):
                method, params = ranking.method, dict(ranking.params)
            found.append({"ranking": name, "method": method, "params": params})
            measured[name] = measure(
                ranking,
                of,
                protocol=options.protocol,
                ap=options.ap,
                device=runtime.device,
                memory=runtime.memory,
                progress=runtime.progress("measuring"),
            )
            if options.open_set:
                if isinstance(ranking, SimilaritySet):
                    ranking = replace(rerank(ranking, "cosine", depth=len(data.gallery)), digest=None)
                opened[name] = evaluate_open_set(
                    ranking, of, protocol=options.protocol, threshold=options.threshold
                )
    comparison = None if compare is None else test(*(measured[name] for name in compare))
    if options.as_json:
        summaries = [one | measured[one["ranking"]].summary() for one in found]
        for name, summary in zip(named, summaries, strict=True):
            summary |= {"open_set": opened[name].summary()} if opened else {}
        if comparison is not None and compare is not None:
            pair = {"a": compare[0], "b": compare[1]}
            print_json({"rankings": summaries, "comparison": pair | comparison.summary()})
        else:
            print_json(summaries if len(summaries) > 1 else summaries[0])
        return
    labels = _labels(found)
    click.echo(
        printable(metrics_table([(labels[name], measured[name]) for name in named], options.style), lines=True)
    )
    if opened:
        tables = open_set_tables([(labels[name], opened[name]) for name in named], options.style)
        click.echo(printable(f"\n{tables}", lines=True))
    if comparison is not None and compare is not None:
        click.echo(f"\n{comparison_line(labels[compare[0]], labels[compare[1]], comparison, options.style)}")


@dataclass(frozen=True)
class EvalOptions:
    """The options of `eval`; each is described where it is declared."""

    rankings: tuple[str, ...]
    feats: str
    gallery: str | None
    format: str | None
    compare: tuple[str, str] | None
    open_set: bool
    threshold: float | None
    style: str | None
    by: str
    matrix: str | None
    protocol: str
    ap: str
    as_json: bool


def _of_tracks(
    name: str, data: FeatureSet, tracks: FeatureSet, options: EvalOptions
) -> tuple[Ranking, FeatureSet]:
    """A ranking of the tracks of the gallery, and what it ranks; `tracks` is `data` by track."""
    from ..data.similarities import SimilaritySet
    from ..engine.rerank import rerank
    from ..errors import InputError

    try:
        ranking = ranking_or_matrix(name, data, options.format, options.matrix)
        if isinstance(ranking, SimilaritySet):
            ranking = rerank(ranking, "cosine", depth=len(data.gallery))
    except InputError as error:
        try:
            return ranking_of(name, tracks, options.format), tracks
        except InputError:
            raise error from None
    return ranking.by_track(data.gallery), replace(tracks, probe=data.probe)


def _labels(found: list[dict[str, Any]]) -> dict[str, str]:
    """Return a label for each ranking: its method, with its file name if several share the method."""
    methods = [method_label(one["method"], one["params"]) for one in found]
    labels = {}
    for one, method in zip(found, methods, strict=True):
        label = "standard input" if one["ranking"] == "-" else one["ranking"]
        if one["method"] != "unknown":
            label = f"{label}, {method}" if methods.count(method) > 1 else method
        labels[one["ranking"]] = printable(label)
    return labels
