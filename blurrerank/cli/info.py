"""`blurrerank info`: show the content of a feature file or an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import Runtime, features_argument, json_option, printable, runtime_options, shortened
from .tables import method_label, print_json


@click.command(short_help="Show the content of a feature file and its problems.")
@features_argument
@json_option
@runtime_options
@click.pass_context
def info(ctx: click.Context, feats: str, gallery: str | None, as_json: bool, runtime: Runtime) -> None:
    """Show the content of FEATS, all problems found, and what `run` would do by default.

    FEATS may also be an index, whose checksums are then verified. The exit code is 1 if there are problems.
    """
    from ..files.access import check_readable
    from ..index.index_files import is_index
    from ..studies.describe import describe, describe_index

    runtime.start()
    check_readable(Path(feats))
    if gallery is None and is_index(Path(feats)):
        indexed = describe_index(feats)
        if as_json:
            print_json(indexed)
        else:
            click.echo(_index_lines(indexed))
        return
    described = describe(feats, gallery, device=runtime.device, memory=runtime.memory)
    if as_json:
        print_json(described)
    else:
        click.echo(printable(_table(described), lines=True))
    if described["problems"]:
        ctx.exit(1)


def _table(described: dict[str, Any]) -> str:
    from tabulate import tabulate

    sides = [described[name] or {} for name in ("probe", "gallery")]
    rows = [
        ["features", *(_features(side) for side in sides)],
        *(
            [name, *(side.get(name, "-") for side in sides)]
            for name in ("identities", "junk", "distractors", "cameras", "tracks")
            if name != "tracks" or any(name in side for side in sides)
        ),
        ["images per camera", *(_spread(side.get("images_per_camera")) for side in sides)],
        ["names", *("yes" if side.get("names") else "-" for side in sides)],
        ["images", *(" x ".join(map(str, side["images"])) if side.get("images") else "-" for side in sides)],
    ]
    # A value may contain line breaks.
    lines = ["\n" + f"{name}: {value}".replace("\n", "\\n") for name, value in described["attributes"].items()]
    if described["problems"]:
        lines += ["\nproblems:", *(f"  - {printable(problem)}" for problem in described["problems"])]
    else:
        lines += [
            "",
            *(f"warning: {printable(doubt)}" for doubt in described["warnings"]),
            *_camera_lines(described["camera_bias"]),
            *_neighbourhood_lines(described["neighbourhoods"]),
            *_run_lines(described["run"]),
        ]
    table = tabulate(rows, headers=["", "probe", "gallery"], disable_numparse=True)
    return "\n".join([table, *map(shortened, lines)])


def _spread(counts: list[float] | None) -> str:
    if counts is None:
        return "-"
    least, median, most = counts
    return f"{least}" if least == most else f"{least} to {most}, median {median:g}"


def _camera_lines(bias: dict[str, Any] | None) -> list[str]:
    if bias is None:
        return []
    from ..studies.cameras import CameraBias

    found = CameraBias(bias["share"], bias["chance"], bias["error"])
    hint = ": try --method center+camera-graph" if found.matters else ""
    return [f"cameras: {found}{hint}"]


def _neighbourhood_lines(near: dict[str, Any] | None) -> list[str]:
    if near is None or not near["words"]:
        return []
    after = f", after {'+'.join(near['steps'])}" if near["steps"] else ""
    return [f"other images per identity, estimated from neighbours{after}: {near['words']}"]


def _index_lines(described: dict[str, Any]) -> str:
    side = described["gallery"]
    lines = [
        f"index of {' x '.join(map(str, side['features']))}, {described['bytes'] / 2**20:.1f} MiB, "
        "checksums verified",
        f"for {method_label(described['method'], described['params'])}",
        *(f"and {method}" for method in described["also"]),
    ]
    if described["search"]:
        search = described["search"]
        recall = ", ".join(f"{kind} {share:.2%}" for kind, share in search["recall"].items())
        lines.append(
            f"searched approximately: {search['kind']}, effort {search['effort']}; recall of neighbour lists "
            f"{recall}"
        )
    if described["drift"]:
        lines.append(described["drift"]["summary"])
    labels = ("identities", "junk", "distractors", "cameras")
    lines += [f"{name}: {side[name]}" for name in labels if name in side]
    if described["further_cameras"]:
        lines.append(f"cameras known from --camera-images: {', '.join(map(str, described['further_cameras']))}")
    lines += [f"names: {'yes' if side['names'] else '-'}", f"tracks: {side.get('tracks', '-')}"]
    return "\n".join([*lines, f"digest: {described['digest']}"])


def _features(side: dict[str, Any]) -> str:
    if not side:
        return "unreadable"
    where = "" if side["in_memory"] else ", on disk"
    return f"{' x '.join(map(str, side['features']))} {side['dtype']}{where}"


def _run_lines(run: dict[str, Any]) -> list[str]:
    gallery = "in memory" if run["gallery_resident"] else "read again for each batch"
    lines = [
        f"default run: {method_label(run['method'], run['params'])} on {run['device']}, "
        f"{run['probe_batch']} probes at a time, normalised gallery {gallery}, "
        f"{run['gallery_block']} rows per block",
    ]
    if run["valid_probes"] is not None:
        valid = ", ".join(f"{name} {count}" for name, count in run["valid_probes"].items())
        lines.append(f"probes with a match, by protocol: {valid}")
    return lines
