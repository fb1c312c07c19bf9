"""Synthetic features with the sizes and cameras of public data sets, to try out scale, not to support claims.

An identity is a point. Each camera scales and shifts the space in its own way, each image adds noise, and
everything is shrunk along fixed directions, most of them much, so that the spectrum is that of features of
real models. Images of one identity are thus most similar within a camera, and hard pairs exist in any number of
dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..compute.compute import Progress
from ..data.labels import DISTRACTOR, JUNK
from ..errors import ParameterError
from ..files.features_h5 import FORMAT, VERSION
from ..files.sink import new_hdf5
from ..files.targets import replacing

# The share of energy, squares of features, in the first so many of the directions: about that of real models.
_ENERGY = {1 / 16: 0.79, 1 / 8: 0.89, 1 / 4: 0.96, 1 / 2: 0.99, 1: 1.0}
_STRETCH, _SHIFT, _NOISE = 0.45, 0.35, 0.6
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Size:
    """The size and label counts of a synthetic test set.

    Attributes:
        probes: number of probe images.
        gallery: number of gallery images, including junk and distractors.
        dim: dimensions of a feature vector.
        ids: number of identities in the gallery.
        cams: number of cameras.
        distractors: number of distractors in the gallery, id 0.
        junk: number of junk images in the gallery, id -1.
        probe_ids: number of identities with probes; by default, and at most, all.
    """

    probes: int
    gallery: int
    dim: int
    ids: int
    cams: int
    distractors: int = 0
    junk: int = 0
    probe_ids: int | None = None

    def __post_init__(self) -> None:
        """Raise `ParameterError` for an impossible size."""
        if self.probe_ids is not None:
            object.__setattr__(self, "probe_ids", min(self.probe_ids, self.ids))
        for name, value in asdict(self).items():
            least = 0 if name in ("distractors", "junk") else 1
            if value is not None and value < least:
                raise ParameterError(f"{name} must be at least {least}, not {value}")
        if self.distractors + self.junk + self.ids > self.gallery:
            raise ParameterError(
                f"a gallery of {self.gallery} is too small for {self.ids} identities, {self.distractors} "
                f"distractors and {self.junk} junk images: reduce these too, or increase gallery"
            )


PRESETS: Mapping[str, Size] = {
    "market1501": Size(3368, 19732, 2048, ids=750, cams=6, distractors=2798, junk=3819),
    "dukemtmc": Size(2228, 17661, 2048, ids=1110, cams=8, probe_ids=702),
    "cuhk03": Size(1400, 5332, 2048, ids=700, cams=2),
    "msmt17": Size(11659, 82161, 2048, ids=3060, cams=15),
    "veri776": Size(1678, 11579, 2048, ids=200, cams=20),
}
"""Sizes of the test sets Market-1501 (including junk), DukeMTMC-reID (with its 408 gallery identities without
probes), CUHK03-NP detected, MSMT17, VeRi-776."""


def synthesize(
    path: str | Path,
    size: Size,
    *,
    dtype: str = "float32",
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a native feature file of synthetic features, block by block.

    The same size and seed give the same values.

    Args:
        path: the file; written to a temporary file and renamed into place.
        size: size of the set; see `PRESETS`.
        dtype: `float32`, or `float16`: the same values, rounded.
        seed: random seed, at least 0.
        force: replace an existing file.
        progress: called with (images written, images in all).

    Raises:
        OutputError: if the file cannot be written.
        ParameterError: for another dtype, or a seed that is negative or has more than 63 bits.
    """
    if dtype not in ("float16", "float32"):
        raise ParameterError(f"dtype must be float16 or float32, not {dtype!r}")
    if not 0 <= seed < 2**63:
        raise ParameterError(f"seed must be from 0 to 2^63 - 1, not {seed}")
    world = _World(size, seed)
    done = 0
    with replacing(Path(path), force=force) as temporary, new_hdf5(temporary) as file:
        made_by = f"blurrerank {__version__} synth, generated features"
        file.attrs.update({"format": FORMAT, "format_version": VERSION, "made_by": made_by, "seed": seed})
        for side, (ids, cams) in enumerate((world.probe_labels(), world.gallery_labels())):
            group = file.create_group(("probe", "gallery")[side])
            group["ids"], group["cams"] = ids, cams
            features = group.create_dataset("features", (len(ids), size.dim), np.dtype(dtype))
            for start, block in world.features(side, ids, cams):
                features[start : start + len(block)] = block
                done += len(block)
                if progress is not None:
                    progress(done, size.probes + size.gallery)


class _World:
    """The generator: identities, cameras, and their features."""

    def __init__(self, size: Size, seed: int) -> None:
        self.size, self.seed = size, seed
        random = np.random.default_rng([seed, 0])
        self.people = random.standard_normal((size.ids, size.dim), dtype=np.float32)
        self.stretch = 1 + _STRETCH * random.standard_normal((size.cams, size.dim), dtype=np.float32)
        self.shift = _SHIFT * random.standard_normal((size.cams, size.dim), dtype=np.float32)
        directions, _ = np.linalg.qr(random.standard_normal((size.dim, size.dim), dtype=np.float32))
        self.projection = _lengths(size.dim)[:, None] * directions
        self.labels = np.random.default_rng([seed, 1])

    def probe_labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ids and cameras: in turn, one probe of each identity, each time from its next camera."""
        size = self.size
        people = size.probe_ids or size.ids
        turn, person = np.divmod(np.arange(size.probes), people)
        first = self.labels.integers(0, size.cams, people)
        order = np.argsort(person, kind="stable")
        return 1 + person[order], 1 + (first[person] + turn)[order] % size.cams

    def gallery_labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ids and cameras: junk, distractors, then identities in order, each with at least one image."""
        size = self.size
        rest = size.gallery - size.junk - size.distractors - size.ids
        people = np.concatenate([np.arange(size.ids), self.labels.integers(0, size.ids, rest)])
        nobody = np.repeat([JUNK, DISTRACTOR], [size.junk, size.distractors])
        ids = np.concatenate([nobody, 1 + np.sort(people)])
        return ids, 1 + self.labels.integers(0, size.cams, size.gallery)

    def features(
        self, side: int, ids: NDArray[np.int64], cams: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield blocks of rows, each with the index of its first row."""
        for start in range(0, len(ids), _BLOCK_ROWS):
            random = np.random.default_rng([self.seed, 2, side, start])
            some, seen_by = ids[start : start + _BLOCK_ROWS], cams[start : start + _BLOCK_ROWS] - 1
            noise = random.standard_normal((2, len(some), self.size.dim), dtype=np.float32)
            # Junk and distractors look like identities with a single image.
            looks = np.where((some > DISTRACTOR)[:, None], self.people[some - 1], noise[0])
            latent = looks * self.stretch[seen_by] + self.shift[seen_by] + _NOISE * noise[1]
            yield start, latent @ self.projection


def _lengths(dim: int) -> NDArray[np.float32]:
    """The standard deviation along each of `dim` directions, so that energy is shared as in `_ENERGY`."""
    # Between the shares that are given energy grows with the logarithm of the number of directions.
    none = min(-np.log2(2 * dim), -5)
    shares = np.log2(np.arange(1, dim + 1) / dim)
    energy = np.interp(shares, [none, *np.log2(list(_ENERGY))], [0, *_ENERGY.values()])
    lengths: NDArray[np.float32] = np.sqrt(dim * np.diff(energy, prepend=0)).astype(np.float32)
    return lengths
