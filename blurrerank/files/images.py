"""Read thumbnails of the images behind the features, from the feature file or from image files.

Pillow is an extra: `pip install "blurrerank[report]"`. It is only imported when a picture is needed.
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import BlurrerankError, InputError
from .features_h5 import are_thumbnails, open_group
from .guard import guarded
from .hdf5 import check_dataset, member, reading
from .limits import check_unpacked

Thumbnail = NDArray[np.uint8]
"""(h, w) grey or (h, w, 3) RGB."""

# Only what decodes pixels: no formats that run programs or open other files.
_FILE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Rows read at a time from a dataset that is not stored in chunks.
_ROWS = 64


class Pictures(Protocol):
    """A source of thumbnails for one side."""

    def read(self, rows: Sequence[int], size: int) -> Iterator[tuple[int, Thumbnail | None]]:
        """Yield (row, thumbnail) for ascending `rows`, scaled to fit `size` x `size`; None if there is none."""


class StoredImages:
    """The dataset `images` of one side of a native feature file, read on demand."""

    def __init__(self, dataset: Any, where: str) -> None:
        """Keep `dataset`, (N, H, W) or (N, H, W, 3) uint8, and its file open; `where` names it in messages."""
        self._dataset, self._file, self._where = dataset, dataset.file, where

    def read(self, rows: Sequence[int], size: int) -> Iterator[tuple[int, Thumbnail]]:
        """Yield thumbnails, see `Pictures`. Each chunk of the file is read at most once.

        Raises:
            InputError: if they cannot be read.
            BlurrerankError: if Pillow is not installed and they must be scaled.
        """
        step = self._dataset.chunks[0] if self._dataset.chunks else _ROWS
        for _, stored_together in groupby(rows, lambda row: row // step):
            wanted = list(stored_together)
            with reading(self._where):
                block = self._dataset[wanted[0] : wanted[-1] + 1]
            for row in wanted:
                yield row, _fitted(block[row - wanted[0]], size)


class ImageFiles:
    """Image files in one folder, found by the names of one side."""

    def __init__(self, root: str | Path, names: Sequence[str]) -> None:
        """Look below `root` for `names`, relative paths, one for each row.

        Raises:
            InputError: if `root` is not a folder.
        """
        self._root, self._names = Path(root).resolve(), names
        if not self._root.is_dir():
            raise InputError(f"{root} is not a folder: name the folder that contains the images")

    def read(self, rows: Sequence[int], size: int) -> Iterator[tuple[int, Thumbnail | None]]:
        """Yield thumbnails, see `Pictures`: None for a name outside the folder, or without an image file.

        Raises:
            BlurrerankError: if Pillow is not installed.
        """
        pillow()
        for row in rows:
            path = self._inside(self._names[row])
            yield row, None if path is None else _opened(path, size)

    def _inside(self, name: str) -> Path | None:
        """The file that `name` means, unless it lies elsewhere, by `..`, a root of its own or a link."""
        try:
            path = (self._root / name).resolve()
            # A pipe or a device would never end.
            inside = path.is_relative_to(self._root) and stat.S_ISREG(path.stat().st_mode)
        except (OSError, ValueError, RuntimeError):
            return None
        return path if inside else None


def stored_images(address: str | Path, side: str) -> StoredImages | None:
    """Return the `images` of a side of a native feature file, or None.

    Args:
        address: `feats.h5` or `feats.h5::/group`, as for `load`, where the side is a group or the root itself.
        side: `probe` or `gallery`.

    Raises:
        InputError: if the file cannot be opened, or its images are not uint8 (N, H, W) or (N, H, W, 3).
    """
    path = str(address).partition("::")[0]
    return guarded(lambda: _stored_images(address, side), path) if h5py.is_hdf5(path) else None


def _stored_images(address: str | Path, side: str) -> StoredImages | None:
    root, label = open_group(address)
    group = member(root, side) or root
    images = member(group, "images") if isinstance(group, h5py.Group) else None
    if not isinstance(images, h5py.Dataset):
        return None
    where, shape = f"{label}/{side}/images", tuple(images.shape or ())
    check_dataset(images, where)
    if 0 in shape:
        raise InputError(f"{where} is {shape}: there are no pixels")
    if not are_thumbnails(images):
        raise InputError(f"{where} is {images.dtype} {shape}: expected uint8 (N, H, W) or (N, H, W, 3)")
    return StoredImages(images, where)


def pillow() -> ModuleType:
    """Import and return Pillow's module `PIL.Image`.

    Raises:
        BlurrerankError: naming the extra, if it is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise BlurrerankError(
            "pictures need Pillow, which is not installed: pip install 'blurrerank[report]'"
        ) from None
    return Image


def _fitted(image: Thumbnail, size: int) -> Thumbnail:
    if max(image.shape[:2]) <= size:
        return image
    picture = pillow().fromarray(image)
    picture.thumbnail((size, size))
    return np.asarray(picture)


def _opened(path: Path, size: int) -> Thumbnail | None:
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            # Pillow warns of pictures so large that they may be an attack, and of odd metadata.
            warnings.simplefilter("ignore")
            with pillow().open(path, formats=_FILE_FORMATS) as opened:
                check_unpacked(8 * opened.width * opened.height, path.stat().st_size, str(path))
                opened.draft("RGB", (2 * size, 2 * size))  # JPEG decodes at a fraction of its size
                picture = ImageOps.exif_transpose(opened).convert("RGB")
                picture.thumbnail((size, size))
                return np.asarray(picture)
    except Exception:  # Pillow's decoders raise what they like for damaged files
        return None
