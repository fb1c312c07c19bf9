"""Native ranking files, `blurrerank-ranking` version 1.

    indices         (P, R) int32 or int64 into the gallery, best first, -1 past the end of a list
    scores          (P, R) float32, strictly decreasing along each list, -inf past its end
    probability     (P,) float32, with --reject: the probability that the first item is right
    rejected        (P,) bool, with --reject: whether this is below the attribute `rejected_below`
    positions/      optional: the ranks of all matches in the list of the whole gallery, even if R is smaller
        offsets     (P + 1,) int64: probe p owns entries offsets[p] to offsets[p + 1]
        indices     (T,) gallery items of the probe's identity
        ranks       (T,) int64, zero-based, junk not counted
        within      (T, 50) float64, optional, for protocol cuhk03
    metrics/        optional: groups `before` and `after`
        ap, inp, first_match    (P,) float64, NaN for probes without a match
        cmc                     (50,) float64

Root attributes:

    format, format_version  `blurrerank-ranking`, 1
    gallery_size            number of gallery items
    method, params          text and JSON; a chain is written `dba+lbr`, and its parameters `dba.k`
    setting                 `transductive` or `online`, for methods that look at neighbours of many images
    reranked_depth          how many items at the head of each list were re-ranked
    cosine_tail             whether the items after these are in the order of cosine similarity
    candidates              source of the lists, if they are not from a search of the whole gallery
    digest, labels_digest   digests of the features and of their labels
    camera_images_digest    digest of the camera images, if there were any
    rejected_below          the probability that --reject was given
    versions                JSON: versions of the libraries

The groups in `metrics` have the means as attributes.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from .. import __version__
from ..data.features import FeatureSet
from ..data.positions import Positions
from ..data.ranking import Ranking
from ..data.sort_keys import index_dtype
from ..errors import InputError
from .guard import guarded
from .hdf5 import Budget, attributes, member, open_hdf5, reading
from .rankings import RankingWriter, RunInfo
from .sink import Sink

FORMAT = "blurrerank-ranking"
VERSION = 1


class Writer(RankingWriter):
    """Writes one native ranking file."""

    keeps_rejected: ClassVar[bool] = True

    def __init__(self, path: Path, data: FeatureSet, depth: int, method: str) -> None:
        """Create the file and its datasets for all probes of `data`."""
        self.data = data
        self._sink = Sink(path)
        self._file = h5py.File(self._sink, "w")
        shape = (len(data.probe), depth)
        self._indices = self._file.create_dataset("indices", shape, index_dtype(len(data.gallery)))
        self._scores = self._file.create_dataset("scores", shape, np.float32)

    def write(self, start: int, indices: NDArray[Any], scores: NDArray[np.float32]) -> None:
        """Write the lists of consecutive probes."""
        self._indices[start : start + len(indices)] = indices
        self._scores[start : start + len(scores)] = scores
        self._sink.check()

    def finish(self, info: RunInfo) -> None:
        """Write attributes, positions and metrics."""
        attributes = {
            "format": FORMAT,
            "format_version": VERSION,
            "gallery_size": len(self.data.gallery),
            "method": info.method,
            "params": json.dumps(dict(info.params)),
            "setting": info.setting,
            "camera_images_digest": info.camera_images,
            "reranked_depth": info.reranked_depth,
            "cosine_tail": info.cosine_tail,
            "candidates": info.candidates,
            "digest": info.digest,
            "labels_digest": info.labels_digest,
            "versions": json.dumps(versions()),
            "rejected_below": info.rejected_below,
        }
        self._file.attrs.update({name: value for name, value in attributes.items() if value is not None})
        if info.verdicts is not None:
            for name, values in vars(info.verdicts).items():
                self._file[name] = values
        if info.positions is not None:
            group = self._file.create_group("positions")
            for name in ("offsets", "indices", "ranks", "within"):
                if getattr(info.positions, name) is not None:
                    group[name] = getattr(info.positions, name)
        for stage, metrics in info.metrics.items():
            group = self._file.create_group(f"metrics/{stage}")
            group.attrs.update({name: value for name, value in metrics.summary().items() if value is not None})
            for name in ("ap", "inp", "first_match", "cmc"):
                group[name] = getattr(metrics, name)

    def close(self) -> None:
        """Close the file; HDF5 flushes its last data here."""
        with self._sink:
            self._file.close()
            self._sink.check()


def versions() -> dict[str, str]:
    """Return the versions of blurrerank and of the libraries that results depend on."""
    return {
        "blurrerank": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "h5py": h5py.__version__,
    }


def made_by(path: Path) -> dict[str, str]:
    """Return the `versions()` stored in a native ranking file; empty if there are none."""

    def read() -> Any:
        with open_hdf5(path) as file:
            return json.loads(attributes(file).get("versions", "{}"))

    try:
        stored = guarded(read, path)
    except (InputError, ValueError, TypeError, RecursionError):
        return {}
    return {str(name): str(version) for name, version in stored.items()} if isinstance(stored, dict) else {}


def read(path: Path, data: FeatureSet, where: str) -> Ranking:
    """Read a native ranking file; `where` is its name in messages.

    Raises:
        InputError: if it is not a native ranking file, or is damaged.
    """
    return guarded(lambda: _read(path, where), path)


def _read(path: Path, where: str) -> Ranking:
    with open_hdf5(path) as file, reading(f"{where}, a {FORMAT} file,"):
        known = attributes(file)
        stated, version = known.get("format"), known.get("format_version")
        if stated != FORMAT:
            raise InputError(f"{where} is {stated or 'an HDF5 file'}: expected a {FORMAT} file")
        if not isinstance(version, int | np.integer) or not 1 <= version <= VERSION:
            shown = repr(version) if isinstance(version, str) else version
            raise InputError(f"{where} has format_version {shown}: this program reads {VERSION}")

        budget = Budget(path)

        def values(name: str) -> Any:
            dataset = member(file, name)
            if not isinstance(dataset, h5py.Dataset):
                raise InputError(f"{where} is a damaged {FORMAT} file: it has no {name}")
            return budget.read(dataset, f"{where}::/{name}")

        indices, scores, found = values("indices"), values("scores"), None
        if member(file, "positions") is not None:
            within = ["within"] if member(file, "positions/within") is not None else []
            found = [values(f"positions/{name}") for name in ("offsets", "indices", "ranks", *within)]
        try:
            return Ranking(
                indices,
                scores,
                gallery_size=int(known["gallery_size"]),
                method=str(known["method"]),
                params=json.loads(known["params"]),
                setting=known.get("setting"),
                reranked_depth=int(known["reranked_depth"]),
                cosine_tail=bool(known["cosine_tail"]),
                candidates=known.get("candidates"),
                digest=known.get("digest"),
                labels_digest=known.get("labels_digest"),
                positions=None if found is None else Positions(*found),
                source=where,
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
