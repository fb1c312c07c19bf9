"""The lists of all probes as the page's script takes them, with the images in them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.ranking import Ranking
from ..evaluation.metrics import Metrics
from ..files.images import Pictures
from ..methods import label_of
from ..studies.before_after import BeforeAfter
from .maps import ITEMS, make_maps
from .sprites import Sheets, make_sheets

_TYPES = {"u1": np.uint8, "i4": np.int32, "i8": np.int64, "f4": np.float32}


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


class Strips:
    """The strips of pictures: the lists of all probes, and the images in them."""

    def __init__(
        self,
        comparison: BeforeAfter,
        probes: Pictures | None,
        gallery: Pictures | None,
        *,
        device: str = "auto",
        memory: int | None = None,
    ) -> None:
        self.comparison = comparison
        self.order = comparison.by_change()
        lists = np.stack([comparison.before, comparison.after], axis=1)
        self.items, places = np.unique(lists, return_inverse=True)
        places = places.reshape(lists.shape).astype(np.int32)
        if self.items[0] == -1:
            self.items, places = self.items[1:], places - np.int32(1)
        self.lists = places
        self.maps = make_maps(comparison, device=device, memory=memory)
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
        said = (
            f"The first {shown} items of each probe's list, before and after. Below an item: its rank before "
            "and after, and its score."
        )
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
        count = len(self.lists)
        if self.maps.count < count:
            which = "first" if self.comparison.change is None else "probes that changed most: the first"
            said += f" There are affinity maps of the {which} {self.maps.count:,} of {count:,} only."
        return said

    def table(self) -> dict[str, Any]:
        """Return the data for the script of the page."""
        comparison, data = self.comparison, self.comparison.data
        count, shown = len(data.probe), comparison.before.shape[1]
        columns: dict[str, tuple[str, Any]] = {
            "before": ("i4", self.lists[:, 0]),
            "after": ("i4", self.lists[:, 1]),
            "kindsBefore": ("u1", comparison.kinds_before),
            "kindsAfter": ("u1", comparison.kinds_after),
            "ranksBefore": ("i4", comparison.ranks_before),
            "ranksAfter": ("i4", comparison.ranks_after),
            "scoresBefore": ("f4", comparison.reference.scores[:, :shown]),
            "scoresAfter": ("f4", comparison.ranking.scores[:, :shown]),
            "mapLevels": ("u1", self.maps.levels),
            "mapStarts": ("i4", self.maps.starts),
            "itemRows": ("i4", self.items),
        }
        texts: dict[str, dict[int, str]] = {}
        for name, labels in (("Ids", "ids"), ("Cams", "cams")):
            mine, theirs = getattr(data.probe, labels), getattr(data.gallery, labels)
            numbers: set[int] = set()
            for side, values in (("probe", mine), ("item", None if theirs is None else theirs[self.items])):
                if values is not None:
                    columns[f"{side}{name}"] = ("i8", values)
                    numbers.update(values.tolist())
            named = data.texts.get(labels, {})
            texts[labels] = {number: text for number, text in named.items() if number in numbers}
        if comparison.measured is not None:
            before, after = comparison.measured
            columns |= {
                "apBefore": ("f4", before.ap),
                "apAfter": ("f4", after.ap),
                "change": ("f4", comparison.change),
                "firstBefore": ("i4", _places(before)),
                "firstAfter": ("i4", _places(after)),
            }
        table: dict[str, Any] = {
            "probes": count,
            "shown": shown,
            "labels": {"before": label(comparison.reference), "after": label(comparison.ranking)},
            "texts": texts,
            "maps": {"items": ITEMS, "low": self.maps.low, "high": self.maps.high},
        }
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


def label(ranking: Ranking) -> str:
    """Return what a ranking is called on the page: its method with parameters."""
    if ranking.method == "unknown":
        return "another tool's lists"
    # The only parameter of cosine is how many items are looked at, which changes no list.
    return "cosine" if ranking.method == "cosine" else label_of(ranking.method, ranking.params)


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
