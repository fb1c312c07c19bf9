"""`blurrerank run`: from features to a re-ranked list and its metrics."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .candidates import candidates_options
from .method_options import (
    MethodCommand,
    chosen_method,
    given_parameters,
    method_option,
    preset_option,
)
from .options import (
    FILE,
    FORMAT_NAMES,
    Depth,
    Runtime,
    by_option,
    camera_images_option,
    features_argument,
    json_option,
    load_camera_images,
    matrix_option,
    metrics_options,
    precision_option,
    runtime_options,
)
from .run_options import RunOptions
from .serving import answer_stream
from .tables import method_label, metrics_table, print_json
from .together import of_process, together

if TYPE_CHECKING:
    from ..compute.processes import Group
    from ..data.features import FeatureSet
    from ..engine.runs import Outcome
    from ..evaluation.score_calibration import Rejection
    from ..index.gallery_index import GalleryIndex
    from ..methods import AnyMethod


@click.command(
    cls=MethodCommand,
    method="lbr",
    with_index=True,
    short_help="Re-rank, write the lists, print metrics before and after.",
)
@features_argument
@click.option(
    "--index",
    type=FILE,
    metavar="FILE",
    help="Take the gallery from an index written by `blurrerank index`. FEATS then gives the probes; - reads "
    "them from standard input.",
)
@method_option(
    "A method, a chain such as dba:k=4+k-reciprocal, or auto, which chooses a chain for the data",
    "lbr; with --index but without --candidates, the method of the index",
    auto=True,
)
@preset_option
@click.option(
    "--online",
    is_flag=True,
    help="Rank each probe independently of the other probes; refused for methods that need all of them. The "
    "output records this setting.",
)
@camera_images_option
@candidates_options
@click.option(
    "--calibration",
    type=FILE,
    metavar="FILE",
    help="File written by `blurrerank calibrate` for this method and these parameters; --reject needs it to "
    "turn scores into probabilities.",
)
@click.option(
    "--reject",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Reject probes whose first item is right with a probability below P. Outputs in .h5, .npz and "
    ".jsonl mark them; .trec and .csv leave out their lists. Metrics count all probes. The gallery "
    "should not contain a probe's own images.",
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="Output file of the lists. Its extension sets the format: .h5, .trec or .run, .jsonl, .csv, .npz; - "
    "is standard output.  [default: NAME.METHOD.ranking.h5 in this folder, for NAME.h5]",
)
@click.option(
    "--format",
    type=click.Choice(FORMAT_NAMES),
    help="Output format, instead of the one the extension implies.",
)
@click.option(
    "--depth", type=Depth(), metavar="N|all", help="Number of items to write per list.  [default: topn, or 50]"
)
@click.option(
    "metrics_file", "--metrics", type=FILE, metavar="FILE", help="Also write the metrics to this JSON file."
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace existing files; without --resume, also discard what an interrupted run left.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue an interrupted run from the partial results that it left beside its output.",
)
@by_option
@matrix_option
@metrics_options
@json_option
@precision_option
@runtime_options
def run(runtime: Runtime, **arguments: Any) -> None:
    """Rank the gallery for every probe of FEATS and re-rank the lists.

    FEATS is an HDF5 file with groups /probe and /gallery, a group in a file (file.h5::/group), or a file of
    another tool (see `blurrerank help other-tools`). It may have similarities or distances instead of features:
    q_g_dist, g_g_dist, q_q_dist. The lists are written to a file. If there are ids, metrics before and after
    re-ranking are printed.

    With --index and - for FEATS, probes are read from standard input, as JSON lines ([number, ...] or
    {"features": [...], "name": "...", "cam": 1}) or as .npy arrays. Each is answered at once, by a line of JSON
    on standard output.

    Each method has its own options: blurrerank run --method NAME --help.

    With --candidates or --search faiss, the lists do not cover the whole gallery. Metrics are then computed to
    the depth of the lists, and matches that are not listed count as missed.

    Under torchrun, several processes share the work, and each reads a part of the gallery.

    \b
    blurrerank run feats.h5 --topn 50 --sigma 0.1
    blurrerank run feats.h5 -o - --format trec | head
    blurrerank run probes.h5 --gallery gallery.h5 -o lists.trec
    blurrerank run --index gallery.index.h5 probes.h5
    blurrerank run feats.h5 --method dba:k=4+k-reciprocal
    blurrerank run feats.h5 --candidates lists.ibin
    blurrerank run feats.h5 --by track
    blurrerank run feats.h5 --search faiss --index-factory IVF64,Flat --nprobe 8
    torchrun --nproc-per-node 2 -m blurrerank run feats.h5
    """
    names = RunOptions.__dataclass_fields__
    options = RunOptions(**{name: arguments.pop(name) for name in names})
    method = options.method or chosen_method()
    with together(runtime.device) as group:
        runtime = of_process(runtime, group)
        _run(group, runtime, replace(options, method=method), given_parameters(arguments))


def _run(group: Group | None, runtime: Runtime, options: RunOptions, given: dict[str, Any]) -> None:
    """What each process does."""
    from ..engine.auto import checked, choose, is_auto
    from ..engine.request import Request, check_takes_camera_images
    from ..engine.runs import Measurement, Output, rerank_to
    from ..errors import ParameterError
    from ..files import format_of
    from ..index.gallery_index import GalleryIndex
    from ..methods import AUTO
    from ..studies.cameras import camera_bias

    runtime.start()
    index, source = options.index, options.source
    assert options.method is not None
    automatic = is_auto(options.method, given)
    options.check(automatic=automatic, alone=group is None)
    # What is wrong with a method is told before anything is read.
    chosen = checked(options.method, preset=options.preset, online=options.online, **given)
    if chosen is not None and options.camera_images is not None:
        check_takes_camera_images(chosen, online=options.online)
    if chosen is not None:
        source.check(chosen, feats=options.feats, index=index)
    indexed = None if index is None else GalleryIndex.open(index, device=runtime.device)
    if indexed is not None and indexed.method.feature_steps and not source.exact:
        raise ParameterError(
            f"the features of {index} were transformed, so candidates found with the original ones do not "
            "fit: replace --index by --gallery"
        )
    if indexed is not None:
        chosen = indexed.method_for(options.method, preset=options.preset, **given)
    rejection = options.rejection()
    if options.feats == "-":
        options.check_stream(indexed is not None)
        assert indexed is not None
        assert chosen is not None
        _answer(indexed, chosen, options, rejection, runtime)
        return
    leads = group is None or group.rank == 0
    options.check_outputs(leads)
    form = format_of(options.path, options.format)
    measurement = Measurement(options.protocol, options.ap)
    data = _load(group, runtime, options, indexed)
    camera_images = load_camera_images(options.camera_images, runtime)
    if camera_images is not None:
        camera_images = camera_images.cameras_like(data.gallery)
    if automatic:
        looking = replace(
            runtime.compute("looking" if leads else None, precision=options.precision), group=group
        )
        asked = Request(online=options.online, camera_images=camera_images)
        choice = choose(options.method, data, asked, looking, preset=options.preset, **given)
        chosen, asked = choice.method, choice.request
        runtime.note(f"auto: {choice.reason}")
        told = {"auto": choice.reason, "neighbourhoods": choice.near and choice.near.summary()}
    else:
        assert chosen is not None
        asked, told = Request(camera_images=camera_images), {}
    lists, found_by = source.find(data, chosen, options.depth, runtime)
    if indexed is not None and lists is None:
        deep = options.depth_of(len(indexed))
        by_index = indexed.request(chosen, deep, exact=source.search == "exact", effort=source.effort)
        asked = replace(asked, online=True, candidates=by_index.candidates)
        if by_index.candidates is not None:
            found_by = {"search": by_index.candidates.source}
    elif source.effort is not None:
        raise ParameterError(
            "--effort applies to the search of the index, which --candidates replaces: leave one of them out"
        )
    size, whole = (len(data.gallery), "the gallery's") if lists is None else (lists.depth, "the longest list's")
    for note in chosen.notes(len(data.probe), size):
        runtime.note(f"note: {note.replace(_GALLERY, whole)}")
    looks = options.method != AUTO and not chosen.needs_cameras
    if group is None and indexed is None and lists is None and looks and data.dim:
        bias = camera_bias(data)
        if bias is not None and bias.matters:
            runtime.note(f"note: {bias}: try --method center+camera-graph")
    depth = options.depth_of(size)
    if depth is not None and depth > size:
        runtime.note(f"note: depth {depth} is capped at {whole} {size} items")
    target = sys.stdout.buffer if options.piped else options.path
    compute = runtime.compute(
        "re-ranking" if leads else None,
        precision=options.precision,
        device=None if indexed is None else indexed.device,
    )
    with _noting_what_is_kept(runtime, options, leads):
        outcome = rerank_to(
            Output(target, form, options.force, options.resume, rejection),
            data,
            chosen,
            replace(
                asked,
                depth=depth,
                online=asked.online or options.online,
                candidates=asked.candidates if lists is None else lists,
            ),
            measurement,
            replace(compute, group=group),
        )
    if group is not None:
        group.close()  # the file is there: what may fail now is this process's own
    if leads:
        _show(outcome, data, chosen, runtime, options, found_by | told)


_GALLERY = "the gallery's"


def _answer(
    indexed: GalleryIndex,
    chosen: AnyMethod,
    options: RunOptions,
    rejection: Rejection | None,
    runtime: Runtime,
) -> None:
    """Answer probes from standard input."""
    from ..engine.request import setting_of

    if rejection is not None:
        setting = setting_of(chosen, online=True)
        rejection.calibration.check_fits(
            chosen.name, chosen.params(), setting, gallery_size=len(indexed), dim=indexed.dim
        )
    depth, source = options.depth_of(len(indexed)), options.source
    asked = indexed.request(chosen, depth, exact=source.search == "exact", effort=source.effort)
    answer_stream(indexed, chosen, asked, runtime, rejection)


def _load(
    group: Group | None, runtime: Runtime, options: RunOptions, indexed: GalleryIndex | None
) -> FeatureSet:
    """The features that FEATS, --gallery and --index name."""
    from ..errors import ParameterError
    from ..files import load, load_sharded, load_side
    from ..index.sharing import shared

    feats, gallery = options.feats, options.gallery
    by_track = options.by == "track"
    if by_track and (group is not None or indexed is not None):
        raise ParameterError("--by track works neither with --index nor under torchrun: leave it out")
    if indexed is not None:
        probe = load_side(feats, "probe", memory=runtime.memory)
        exact = options.source.search == "exact" or indexed.approximation is None
        return indexed.features(probe) if group is None or not exact else shared(indexed, probe, group)
    if group is not None:
        return load_sharded(feats, gallery, group=group, memory=runtime.memory)
    data = load(
        feats, gallery, memory=runtime.memory, notify=runtime.note, similarities=True, matrix=options.matrix
    )
    return data.by_track() if by_track else data


@contextmanager
def _noting_what_is_kept(runtime: Runtime, options: RunOptions, leads: bool) -> Iterator[None]:
    """Say what is kept of a run that does not end well, and how to continue it."""
    from ..files.targets import what_is_kept

    path, writes = options.path, leads and not options.piped
    left = what_is_kept(path) if writes else {}
    if options.resume and writes and not left:
        runtime.note(f"note: there are no partial results of {path}: starting from the beginning")
    try:
        yield
    except BaseException as error:
        # What another run left may be what the error is about.
        kept = what_is_kept(path) if writes else {}
        if kept and (kept != left or not isinstance(error, Exception)):
            runtime.note(
                f"note: partial results of {path} are kept; run the same command with --resume to continue"
            )
        elif writes and not isinstance(error, Exception):
            runtime.note(f"note: no partial results of {path} were kept")
        if isinstance(error, BrokenPipeError) and options.metrics_file:
            raise click.ClickException(
                f"standard output was closed before the run ended: {options.metrics_file} was not written"
            ) from None
        raise


def _show(
    outcome: Outcome,
    data: FeatureSet,
    chosen: AnyMethod,
    runtime: Runtime,
    options: RunOptions,
    found_by: dict[str, Any],
) -> None:
    """Print the metrics, and write them where they are wanted."""
    from ..files.targets import opener, replacing

    piped, path = options.piped, options.path
    summary = outcome.summary() | found_by | {"output": "-" if piped else str(path)}
    if options.metrics_file:
        with (
            replacing(Path(options.metrics_file), force=options.force) as temporary,
            open(temporary, "w", encoding="utf-8", opener=opener) as metrics,
        ):
            metrics.write(json.dumps(summary, indent=2) + "\n")
    # Standard output belongs to the lists when they go there.
    if options.as_json:
        print_json(summary, err=piped)
    elif outcome.before is None or outcome.after is None:
        runtime.note(f"note: {data.lacking('ids')}, so there are no metrics")
    else:
        known = chosen.feature_steps if data.gallery.fitted_for(chosen.feature_steps) else ()
        plain = "cosine" if data.dim else "as given"
        rows = [("+".join([*(step.name for step in known), plain]), outcome.before)]
        if outcome.info.reranked_depth:
            rows.append((method_label(chosen.name, chosen.params()), outcome.after))
        if not (piped and runtime.quiet):
            click.echo(metrics_table(rows), err=piped)
    if outcome.rejected is not None:
        runtime.note(
            f"rejected {outcome.rejected} of {len(data.probe)} probes, whose first item is right with a "
            f"probability below {options.reject:g}"
        )
    if not piped:
        before = f", {outcome.resumed} of them from before the interruption" if outcome.resumed else ""
        runtime.note(f"wrote {path}: {len(data.probe) - outcome.left_out} lists of {outcome.depth}{before}")
