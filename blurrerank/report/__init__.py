"""Write a self-contained HTML page about a ranking: metrics, figures, and each probe's list before and after.

The page needs no network, and its content security policy forbids any. Content from files is escaped or
inserted as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..engine.request import ONLINE
from ..errors import InputError
from ..evaluation.metrics import Metrics
from ..files.images import Pictures
from ..files.targets import opener, replacing
from ..studies.before_after import DROPPED, IS_JUNK, RIGHT, WRONG, BeforeAfter
from ..studies.describe import quick_estimate
from ..studies.heat_map import Grid, grid_of
from ..studies.sweep import Sweep
from ..studies.tuning import Tuning
from .charts import change_chart, cmc_chart, heat_map, neighbourhood_chart
from .sprites import Sheets, make_sheets

_TYPES = {"u1": np.uint8, "i4": np.int32, "i8": np.int64, "f4": np.float32}
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


@dataclass(frozen=True)
class Written:
    """The size and content of a written page.

    Attributes:
        size: size of the file in bytes.
        images: number of distinct images in the lists, including probes.
        pictures: number of images shown as pictures; the others are tiles with identity and camera.
        missing: number of pictures that were not found or could not be read.
        left_out: number of pictures that did not fit.
        complete: number of probes, from the one that changed most up to the first one with a left-out picture,
            that have all their pictures, except missing ones; all probes if none were left out.
    """

    size: int
    images: int
    pictures: int
    missing: int
    left_out: int
    complete: int


def write_report(
    *,
    comparison: BeforeAfter,
    path: str | Path,
    probe_pictures: Pictures | None = None,
    gallery_pictures: Pictures | None = None,
    sweep: Sweep | Tuning | Grid | None = None,
    facts: Mapping[str, str] | None = None,
    force: bool = False,
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

    Returns:
        The size of the page and the number of pictures in it.

    Raises:
        OutputError: if the file cannot be written.
        InputError: if the sweep is of other features, labels or settings, or the pictures cannot be read.
        BlurrerankError: if there are pictures and Pillow, the extra `report`, is not installed.
    """
    if not comparison.data.has_ids and sweep is not None:
        raise InputError(f"{comparison.data.lacking('ids')}, so the sweep cannot belong to these features")
    strips = _Strips(comparison, probe_pictures, gallery_pictures)
    heat = "" if sweep is None else heat_map(grid_of(sweep, comparison))
    style, script, page = (_file(name) for name in ("page.css", "page.js", "page.html"))
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    method = comparison.ranking.method
    text = Template(page).substitute(
        policy=policy,
        style=style,
        script=script,
        title=escape(f"blurrerank report: {method}"),
        heading=escape(f"{_label(comparison)} against cosine"),
        lead=_lead(comparison),
        notes="".join(f'<p class="note">{escape(caveat)}</p>' for caveat in comparison.caveats()),
        figures=_figures(comparison, heat),
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


class _Strips:
    """The strips of pictures: the lists of all probes, and the images in them."""

    def __init__(self, comparison: BeforeAfter, probes: Pictures | None, gallery: Pictures | None) -> None:
        self.comparison = comparison
        self.order = comparison.by_change()
        lists = np.stack([comparison.before, comparison.after], axis=1)
        self.items, places = np.unique(lists, return_inverse=True)
        places = places.reshape(lists.shape).astype(np.int32)
        if self.items[0] == -1:
            self.items, places = self.items[1:], places - np.int32(1)
        self.lists = places
        self.has_pictures = probes is not None or gallery is not None
        count, listed = len(comparison.data.probe), len(self.items)
        self.cells = np.full(count + listed, -1, dtype=np.int32)
        self.sheets = Sheets(self.cells[:0])
        # Images are numbered: probes first, then the listed items.
        self.wanted = self._wanted(count, probes is not None, gallery is not None)
        if len(self.wanted):
            sources = [
                (probes, image) if image < count else (gallery, int(self.items[image - count]))
                for image in self.wanted.tolist()
            ]
            self.sheets = make_sheets(sources)  # type: ignore[arg-type]
            self.cells[self.wanted] = self.sheets.cells

    def _wanted(self, count: int, probes: bool, gallery: bool) -> NDArray[np.int64]:
        """Return the images to show as pictures, in order of appearance, the most changed probe first."""
        lists = self.lists.reshape(len(self.lists), -1)[self.order].astype(np.int64)
        met = np.concatenate([self.order[:, None], np.where(lists < 0, -1, lists + count)], axis=1).ravel()
        met = met[((met >= 0) & (met < count) & probes) | ((met >= count) & gallery)]
        _, first = np.unique(met, return_index=True)
        return met[np.sort(first)]

    def written(self, size: int) -> Written:
        """Return the size and content of the page."""
        sheets = self.sheets
        return Written(
            size=size,
            images=len(self.cells),
            pictures=int((self.cells >= 0).sum()),
            missing=sheets.missing,
            left_out=sheets.left_out,
            complete=self._complete(),
        )

    def _complete(self) -> int:
        count = len(self.lists)
        if not self.sheets.left_out:
            return count
        # Sheets are filled in the order of `wanted`: everything after the last picture was left out.
        last = int(np.flatnonzero(self.sheets.cells >= 0).max(initial=-1))
        out = np.zeros(len(self.cells) + 1, dtype=bool)
        out[self.wanted[last + 1 :]] = True
        lists = self.lists.reshape(count, -1)
        without = out[:count] | out[np.where(lists < 0, len(self.cells), lists + count)].any(axis=1)
        return int(np.argmax(without[self.order])) if without.any() else count

    def description(self) -> str:
        """Describe the strips and their pictures for the page."""
        shown = self.comparison.before.shape[1]
        said = f"The first {shown} items of each probe's list, before (cosine) and after."
        written = self.written(0)
        if written.left_out:
            said += (
                f" Only {written.pictures:,} of {len(self.wanted):,} pictures fit on the page: the "
                f"{written.complete:,} probes that changed most have all their pictures; for the others, "
                "some images are tiles with identity and camera."
            )
        elif not self.has_pictures:
            said += " There are no pictures: each image is a tile with its identity and camera."
        if written.missing:
            said += f" {written.missing:,} pictures were not found; these are tiles too."
        return said

    def table(self) -> dict[str, Any]:
        """Return the data for the script of the page."""
        comparison, data = self.comparison, self.comparison.data
        count = len(data.probe)
        columns: dict[str, tuple[str, Any]] = {
            "before": ("i4", self.lists[:, 0]),
            "after": ("i4", self.lists[:, 1]),
            "kindsBefore": ("u1", comparison.kinds_before),
            "kindsAfter": ("u1", comparison.kinds_after),
            "itemRows": ("i4", self.items),
        }
        for name, labels in (("Ids", "ids"), ("Cams", "cams")):
            mine, theirs = getattr(data.probe, labels), getattr(data.gallery, labels)
            if mine is not None:
                columns[f"probe{name}"] = ("i8", mine)
            if theirs is not None:
                columns[f"item{name}"] = ("i8", theirs[self.items])
        if comparison.measured is not None:
            before, after = comparison.measured
            columns |= {
                "apBefore": ("f4", before.ap),
                "apAfter": ("f4", after.ap),
                "change": ("f4", comparison.change),
                "firstBefore": ("i4", _places(before)),
                "firstAfter": ("i4", _places(after)),
            }
        table: dict[str, Any] = {"probes": count, "shown": comparison.before.shape[1]}
        if self.sheets.uris:
            columns |= {"probeCells": ("i4", self.cells[:count]), "itemCells": ("i4", self.cells[count:])}
            table["sheets"] = {
                "width": self.sheets.width,
                "height": self.sheets.height,
                "columns": self.sheets.columns,
                "perSheet": self.sheets.per_sheet,
                "pictures": int(self.cells.max()) + 1,
            }
        if data.probe.names is not None:
            table["probeNames"] = data.probe.names.tolist()
        if data.gallery.names is not None:
            table["itemNames"] = data.gallery.names[self.items].tolist()
        return table | {
            "columns": {
                name: {"type": kind, "base64": _base64(values, kind)}
                for name, (kind, values) in columns.items()
            }
        }


def _places(metrics: Metrics) -> NDArray[np.int32]:
    """Return (P,) int32, the rank of each probe's first match: -1 if it is not listed, 0 without a match."""
    first = metrics.first_match
    known = np.isfinite(first)
    places = np.where(np.isnan(first), 0, -1)
    places[known] = first[known]
    return places.astype(np.int32)


def _base64(values: Any, kind: str) -> str:
    array = np.ascontiguousarray(values, dtype=np.dtype(_TYPES[kind]).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode()


def _json(value: Any) -> str:
    """Return JSON that cannot end a script element and reads the same in HTML and JavaScript."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _label(comparison: BeforeAfter) -> str:
    method = comparison.ranking.method
    return "A ranking from another tool" if method == "unknown" else method


def _lead(comparison: BeforeAfter) -> str:
    data = comparison.data
    said = f"{len(data.probe):,} probes, {len(data.gallery):,} gallery items."
    if comparison.measured is not None:
        after = comparison.measured[1]
        said += (
            f" Means over {after.valid_probes:,} valid of {after.probes:,} probes, protocol {after.protocol}, "
            f"{after.ap_kind} AP."
        )
    return escape(said)


def _figures(comparison: BeforeAfter, heat: str) -> str:
    parts = []
    if comparison.measured is not None:
        before, after = comparison.measured
        if after.valid_probes:
            parts.append(_section("metrics", "Metrics", _metrics_table(before, after)))
            cmc = f"<figcaption>CMC</figcaption>{cmc_chart(before, after, _label(comparison))}"
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
    near = quick_estimate(comparison.data, online=comparison.ranking.setting == ONLINE)
    if near is not None and near.estimates():
        steps = f", after {'+'.join(near.steps)}" if near.steps else ""
        words = f"<p>Other images of an identity, estimated from neighbours{steps}: {escape(str(near))}.</p>"
        caption = "<figcaption>Share of the k nearest neighbours that list an image too</figcaption>"
        chart = f'<div class="figures"><figure>{caption}{neighbourhood_chart(near)}</figure></div>'
        parts.append(_section("sizes", "Neighbourhoods", words + chart))
    return "\n".join(parts)


def _section(name: str, heading: str, body: str) -> str:
    return f'<section aria-labelledby="{name}-heading"><h2 id="{name}-heading">{heading}</h2>{body}</section>'


def _metrics_table(before: Metrics, after: Metrics) -> str:
    rows = ""
    for (name, old), new in zip(before.means().items(), after.means().values(), strict=True):
        kind = "gain" if new > old else "loss" if new < old else ""
        change = f"{new - old:+.4f}".replace("-", "\u2212")
        rows += (
            f'<tr data-metric="{name}"><th scope="row">{name.replace("rank", "rank-")}</th>'
            f"<td>{old:.4f}</td><td>{new:.4f}</td>"
            f'<td class="{kind}">{change}</td></tr>'
        )
    return (
        '<table id="means"><thead><tr><td></td><th scope="col">before, cosine</th><th scope="col">after</th>'
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
    counts = "".join(
        f"<li><strong>{count:,}</strong> {'no match' if name == 'no match' else name}</li>"
        for name, count in comparison.counts().items()
    )
    return f'<ul class="counts" aria-label="Probes by change of AP">{counts}</ul>'


def _legend(comparison: BeforeAfter) -> str:
    if comparison.measured is None:
        return ""
    entries = "".join(
        f'<li class="{name}"><span class="mark" aria-hidden="true">{sign}</span> {said}</li>'
        for name, sign, said in _LEGEND.values()
    )
    return f'<ul class="legend" aria-label="Frames">{entries}</ul>'


def _filters(comparison: BeforeAfter) -> str:
    fields = ""
    if comparison.measured is not None:
        options = "".join(f'<option value="{value}">{text}</option>' for value, text in _FILTERS)
        fields += f'<label>Show <select name="show">{options}</select></label>'
    if comparison.data.probe.names is not None:
        fields += '<label>Name contains <input type="search" name="name" autocomplete="off"></label>'
    if comparison.data.probe.ids is not None:
        number = 'type="search" inputmode="numeric" autocomplete="off"'
        fields += f'<label>Identity <input name="identity" {number}></label>'
    return fields


def _facts(comparison: BeforeAfter, more: Mapping[str, str]) -> str:
    ranking = comparison.ranking
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
        "protocol": comparison.protocol,
        "AP": comparison.ap_kind,
        "digest of the features": comparison.data.digest(),
    }
    entries = [(name, text) for name, text in (*facts.items(), *more.items()) if text]
    return "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(text))}</dd>" for name, text in entries)
