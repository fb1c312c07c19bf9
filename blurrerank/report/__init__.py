"""Write a self-contained HTML page about a ranking: metrics, figures, and each probe's list before and after.

The page needs no network, and its content security policy forbids any. Content from files is escaped or
inserted as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from .. import __version__
from ..engine.request import ONLINE
from ..errors import InputError
from ..evaluation.metrics import Metrics
from ..files.images import Pictures
from ..files.targets import opener, replacing
from ..graph.neighbourhoods import Neighbourhoods
from ..studies.before_after import DROPPED, IS_JUNK, RIGHT, WRONG, BeforeAfter
from ..studies.cameras import camera_bias
from ..studies.describe import quick_estimate
from ..studies.heat_map import Grid, grid_of
from ..studies.sweep import Sweep
from ..studies.tuning import Tuning
from .charts import change_chart, cmc_chart, heat_map, neighbourhood_chart
from .strips import Strips, Written, label

_FILTERS = (
    ("all", "all probes"),
    ("better", "better"),
    ("worse", "worse"),
    ("equal", "unchanged"),
    ("gained", "match at rank 1 gained"),
    ("lost", "match at rank 1 lost"),
    ("none", "no match"),
)
_LEGEND = {
    RIGHT: ("right", "✓", "right identity"),
    WRONG: ("wrong", "✗", "wrong identity"),
    IS_JUNK: ("junk", "–", "junk"),
    DROPPED: ("dropped", "–", "dropped by the protocol: same identity and camera"),
}


def write_report(
    *,
    comparison: BeforeAfter,
    path: str | Path,
    probe_pictures: Pictures | None = None,
    gallery_pictures: Pictures | None = None,
    sweep: Sweep | Tuning | Grid | None = None,
    facts: Mapping[str, str] | None = None,
    force: bool = False,
    device: str = "auto",
    memory: int | None = None,
) -> Written:
    """Write the page.

    Pictures beyond `sprites.BUDGET` bytes or `sprites.MOST` pictures are left out, those of the probes that
    changed least first; the page says so.

    Args:
        comparison: the comparison to show, from `before_and_after`.
        path: the file; written to a temporary file and renamed into place.
        probe_pictures: thumbnails of the probes, from `files.images`; without them, images are tiles with
            identity and camera.
        gallery_pictures: thumbnails of the gallery, likewise.
        sweep: a sweep or tuning of the same features, drawn as a heat map; or from `grid_of` a heat map of one.
        facts: further facts about how the ranking was made, name -> text.
        force: replace an existing file.
        device: device for the similarities of the affinity maps.
        memory: memory budget in bytes for the same.

    Returns:
        The size of the page and the number of pictures in it.

    Raises:
        OutputError: if the file cannot be written.
        ParameterError: for an unknown device.
        InputError: if the sweep is of other features, labels or settings, or the pictures cannot be read.
        BlurrerankError: if there are pictures and Pillow, the extra `report`, is not installed.
    """
    if not comparison.data.has_ids and sweep is not None:
        raise InputError(f"{comparison.data.lacking('ids')}, so the sweep cannot belong to these features")
    strips = Strips(comparison, probe_pictures, gallery_pictures, device=device, memory=memory)
    heat = "" if sweep is None else heat_map(grid_of(sweep, comparison))
    style, script, page = (_file(name) for name in ("page.css", "page.js", "page.html"))
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    heading = escape(f"{label(comparison.ranking)} against {label(comparison.reference)}")
    near = quick_estimate(comparison.data, online=comparison.ranking.setting == ONLINE)
    text = Template(page).substitute(
        policy=policy,
        style=style,
        script=script,
        title=f"blurrerank report: {heading}",
        heading=heading,
        lead=_lead(comparison, near),
        notes="".join(f'<p class="note">{escape(caveat)}</p>' for caveat in comparison.caveats()),
        figures=_figures(comparison, heat, near),
        strips=escape(strips.description()),
        legend=_legend(comparison),
        filters=_filters(comparison),
        facts=_facts(comparison, facts or {}),
        version=escape(__version__),
        data=_json(strips.table()),
        sheets="".join(
            f'<script type="text/plain" id="sheet-{place}">{uri}</script>\n'
            for place, uri in enumerate(strips.sheets.uris)
        ),
    )
    # Damaged names can contain lone surrogates, which utf-8 cannot encode.
    content = text.encode("utf-8", "replace")
    with replacing(Path(path), force=force) as temporary, open(temporary, "wb", opener=opener) as file:
        file.write(content)
    return strips.written(len(content))


def _json(value: Any) -> str:
    """Return JSON that cannot end a script element and reads the same in HTML and JavaScript."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _lead(comparison: BeforeAfter, near: Neighbourhoods | None) -> str:
    """Say what was ranked and measured, and what is known of it without identities, one paragraph each."""
    data = comparison.data
    said = [f"{len(data.probe):,} probes, {len(data.gallery):,} gallery items."]
    if comparison.measured is not None:
        after = comparison.measured[1]
        said[0] += (
            f" Means over {after.valid_probes:,} valid of {after.probes:,} probes, protocol {after.protocol}, "
            f"{after.ap_kind} AP."
        )
    if near is not None and str(near):
        steps = f", after {'+'.join(near.steps)}" if near.steps else ""
        said.append(f"Other images per identity, estimated from neighbours{steps}: {near}.")
    bias = camera_bias(data)
    if bias is not None:
        said.append(f"Cameras: {bias}.")
    return "".join(f"<p>{escape(line)}</p>" for line in said)


def _figures(comparison: BeforeAfter, heat: str, near: Neighbourhoods | None) -> str:
    parts = []
    if comparison.measured is not None:
        before, after = comparison.measured
        if after.valid_probes:
            names = label(comparison.reference), label(comparison.ranking)
            parts.append(_section("metrics", "Metrics", _metrics_table(before, after, *names)))
            cmc = f"<figcaption>CMC</figcaption>{cmc_chart(before, after, *names)}"
            changes = f"<figcaption>Change of AP, probe by probe</figcaption>{change_chart(comparison)}"
            figures = f"<figure>{cmc}{_cmc_table(before, after)}</figure><figure>{changes}</figure>"
            parts.append(
                _section("curves", "Curves", _counts(comparison) + f'<div class="figures">{figures}</div>')
            )
        else:
            parts.append(
                '<p class="note">No probe has a match in the gallery: there is nothing to measure.</p>'
            )
    if heat:
        wide = f'<div class="wide" tabindex="0" role="region" aria-label="Sweep table">{heat}</div>'
        parts.append(_section("sweep", "Sweep", wide))
    if near is not None and near.estimates():
        caption = "<figcaption>Share of the k nearest neighbours that list an image too</figcaption>"
        chart = f'<div class="figures"><figure>{caption}{neighbourhood_chart(near)}</figure></div>'
        parts.append(_section("sizes", "Neighbourhoods", chart))
    return "\n".join(parts)


def _section(name: str, heading: str, body: str) -> str:
    return f'<section aria-labelledby="{name}-heading"><h2 id="{name}-heading">{heading}</h2>{body}</section>'


def _metrics_table(before: Metrics, after: Metrics, one: str, other: str) -> str:
    rows = ""
    for (name, old), new in zip(before.means().items(), after.means().values(), strict=True):
        change = f"{new - old:+.4f}".replace("-", "\u2212")
        kind = "gain" if change[0] == "+" else "loss"
        if float(change[1:]) == 0:
            change, kind = change[1:], ""
        rows += (
            f'<tr data-metric="{name}"><th scope="row">{name.replace("rank", "rank-")}</th>'
            f"<td>{old:.4f}</td><td>{new:.4f}</td>"
            f'<td class="{kind}">{change}</td></tr>'
        )
    return (
        f'<table id="means"><thead><tr><td></td><th scope="col">before: {escape(one)}</th>'
        f'<th scope="col">after: {escape(other)}</th>'
        f'<th scope="col">change</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _cmc_table(before: Metrics, after: Metrics) -> str:
    rows = "".join(
        f'<tr><th scope="row">{rank}</th><td>{old:.4f}</td><td>{new:.4f}</td></tr>'
        for rank, (old, new) in enumerate(zip(before.cmc, after.cmc, strict=True), start=1)
    )
    return (
        '<details><summary>The curves as numbers</summary><table><thead><tr><th scope="col">rank</th>'
        f'<th scope="col">before</th><th scope="col">after</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></details>"
    )


def _counts(comparison: BeforeAfter) -> str:
    colours = {"better": "gain", "worse": "loss"}
    counts = "".join(
        f'<li class="{colours.get(name, "")}"><strong>{count:,}</strong> {name}</li>'
        for name, count in comparison.counts().items()
    )
    return f'<ul class="counts" aria-label="Probes by change of AP">{counts}</ul>'


def _legend(comparison: BeforeAfter) -> str:
    frames = "".join(
        f'<li class="{name}"><span class="mark" aria-hidden="true">{sign}</span> {said}</li>'
        for name, sign, said in (_LEGEND.values() if comparison.measured is not None else ())
    )
    moves = (
        '<li><span class="move came">23 \u2192 2</span> came into the shown list</li>'
        '<li><span class="move left">2 \u2192 23</span> left it</li>'
    )
    return f'<ul class="legend" aria-label="Frames and ranks">{frames}{moves}</ul>'


def _filters(comparison: BeforeAfter) -> str:
    number = 'type="search" inputmode="numeric" autocomplete="off"'
    fields = f'<label>Probe no. <input name="probe" {number}></label>'
    if comparison.measured is not None:
        options = "".join(f'<option value="{value}">{text}</option>' for value, text in _FILTERS)
        fields += f'<label>Show <select name="show">{options}</select></label>'
    if comparison.data.probe.names is not None:
        fields += '<label>Name contains <input type="search" name="name" autocomplete="off"></label>'
    if comparison.data.probe.ids is not None:
        fields += f'<label>Identity <input name="identity" {number}></label>'
    return fields


def _facts(comparison: BeforeAfter, more: Mapping[str, str]) -> str:
    ranking, reference = comparison.ranking, comparison.reference
    if ranking.candidates is not None:
        lists = f"from candidates, {ranking.candidates}"
    elif ranking.digest is not None:
        lists = "from a search of the whole gallery"
    else:
        lists = "from another tool"
    known = ranking.method != "unknown"
    facts = {
        "method": ranking.method,
        "parameters": ", ".join(f"{name} {json.dumps(value)}" for name, value in ranking.params.items()),
        "re-ranked": f"{ranking.reranked_depth:,} items at the head" if known else "",
        "lists": lists,
        "depth": f"{ranking.depth:,} of {ranking.gallery_size:,}",
        "compared with": f"{label(reference)}, to depth {reference.depth:,}",
        "protocol": comparison.protocol,
        "AP": comparison.ap_kind,
        "digest of the features": comparison.data.digest(),
    }
    entries = [(name, text) for name, text in (*facts.items(), *more.items()) if text]
    return "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(text))}</dd>" for name, text in entries)
