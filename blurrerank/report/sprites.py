"""Pack thumbnails into sprite sheets, within a size limit."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.images import Pictures, Thumbnail, pillow

EDGE = 64
"""Maximum width and height of a picture, in pixels."""
BUDGET = 10 << 20
"""Maximum size of all sheets of a page, in bytes of base64 text."""
MOST = 20_000
"""Maximum number of pictures on a page."""

_COLUMNS, _PER_SHEET = 16, 256
_PADDING = 128  # grey value where a picture does not fill its cell


@dataclass
class Sheets:
    """Sprite sheets: pictures in cells of equal size, 16 per row, up to 256 per sheet.

    Attributes:
        width: width of a cell in pixels.
        height: height of a cell in pixels.
        columns: number of cells per row.
        per_sheet: number of cells on each sheet except the last.
        uris: the sheets, as data URIs.
        cells: (M,) int32, the cell of each requested picture, or -1.
        missing: number of pictures that were not found or are not images.
        left_out: number of pictures that did not fit.
    """

    cells: NDArray[np.int32]
    width: int = 1
    height: int = 1
    columns: int = _COLUMNS
    per_sheet: int = _PER_SHEET
    uris: list[str] = field(default_factory=list)
    missing: int = 0
    left_out: int = 0


def make_sheets(wanted: Sequence[tuple[Pictures, int]]) -> Sheets:
    """Pack pictures into sheets in the given order, until `BUDGET` or `MOST` is reached.

    Args:
        wanted: (source, row) of each picture.

    Raises:
        InputError: if a source cannot be read.
        BlurrerankError: if Pillow is not installed.
    """
    pillow()
    thumbnails = _read(wanted[:MOST])
    found = [place for place, thumbnail in enumerate(thumbnails) if thumbnail is not None]
    sheets = Sheets(np.full(len(wanted), -1, dtype=np.int32), missing=len(thumbnails) - len(found))
    if not found:
        return sheets
    shown = [thumbnail for thumbnail in thumbnails if thumbnail is not None]
    sheets.height, sheets.width = (max(thumbnail.shape[axis] for thumbnail in shown) for axis in (0, 1))
    colour = any(thumbnail.ndim == 3 for thumbnail in shown)
    spent = 0
    for start in range(0, len(found), _PER_SHEET):
        some = found[start : start + _PER_SHEET]
        uri = _encoded(_drawn(shown[start : start + _PER_SHEET], sheets.height, sheets.width, colour))
        spent += len(uri)
        if spent > BUDGET:
            break
        sheets.uris.append(uri)
        sheets.cells[some] = np.arange(start, start + len(some))
    sheets.left_out = len(wanted) - sheets.missing - int((sheets.cells >= 0).sum())
    return sheets


def _read(wanted: Sequence[tuple[Pictures, int]]) -> list[Thumbnail | None]:
    """Read the thumbnails in the order of their rows in each source."""
    thumbnails: list[Thumbnail | None] = [None] * len(wanted)
    for source in {id(source): source for source, _ in wanted}.values():
        places = {row: place for place, (of, row) in enumerate(wanted) if of is source}
        for row, thumbnail in source.read(sorted(places), EDGE):
            thumbnails[places[row]] = thumbnail
    return thumbnails


def _drawn(thumbnails: Sequence[Thumbnail], height: int, width: int, colour: bool) -> NDArray[np.uint8]:
    rows = -(-len(thumbnails) // _COLUMNS)
    shape = (rows * height, _COLUMNS * width, *((3,) if colour else ()))
    sheet = np.full(shape, _PADDING, dtype=np.uint8)
    for place, thumbnail in enumerate(thumbnails):
        row, column = divmod(place, _COLUMNS)
        h, w = thumbnail.shape[:2]
        top, left = row * height + (height - h) // 2, column * width + (width - w) // 2
        pixels: Any = thumbnail[..., None] if colour and thumbnail.ndim == 2 else thumbnail
        sheet[top : top + h, left : left + w] = pixels
    return sheet


def _encoded(sheet: NDArray[np.uint8]) -> str:
    """Encode a sheet as PNG (lossless; small for drawings) or as JPEG (for photographs) if that is smaller."""
    picture, best = pillow().fromarray(sheet), b""
    for kind, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": 80})):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        if not best or len(stream.getvalue()) < len(best):
            best, mime = stream.getvalue(), f"image/{kind.lower()}"
    return f"data:{mime};base64,{base64.b64encode(best).decode()}"
