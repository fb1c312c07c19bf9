"""NumPy archives: `indices` (P, R), `scores` (P, R) and `info`, a JSON string.

`info` contains the root attributes of a native file. With `--reject` there are also `probability` and
`rejected`, as in a native file.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from shutil import copyfileobj
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data.features import FeatureSet
from ..data.ranking import Ranking
from ..data.sort_keys import index_dtype, strictly_decreasing
from ..errors import InputError
from .guard import guarded
from .rankings import RankingWriter, RunInfo
from .sink import Sink


class Writer(RankingWriter):
    """Writes an archive, list by list: indices directly, scores through a temporary file."""

    keeps_rejected: ClassVar[bool] = True

    def __init__(self, path: Path, data: FeatureSet, depth: int, method: str) -> None:
        """Open the archive for all probes of `data`."""
        self._gallery_size = len(data.gallery)
        self._shape = (len(data.probe), depth)
        self._index_type = np.dtype(index_dtype(self._gallery_size))
        self._sink = Sink(path)
        self._archive = zipfile.ZipFile(self._sink, "w")
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115
        self._indices = self._member("indices.npy", self._index_type)

    def write(self, start: int, indices: NDArray[Any], scores: NDArray[np.float32]) -> None:
        """Write the lists of consecutive probes, which must come in order."""
        self._indices.write(np.ascontiguousarray(indices, dtype=self._index_type).tobytes())
        self._spool.write(np.ascontiguousarray(scores).tobytes())
        self._sink.check()

    def finish(self, info: RunInfo) -> None:
        """Write the scores and `info`."""
        self._indices.close()
        self._spool.seek(0)
        with self._member("scores.npy", np.dtype(np.float32)) as scores:
            copyfileobj(self._spool, scores)
        if info.verdicts is not None:
            for name, values in vars(info.verdicts).items():
                with self._archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, values, allow_pickle=False)
        known = {
            "gallery_size": self._gallery_size,
            "method": info.method,
            "params": dict(info.params),
            "setting": info.setting,
            "reranked_depth": info.reranked_depth,
            "cosine_tail": info.cosine_tail,
            "candidates": info.candidates,
            "digest": info.digest,
        }
        with self._archive.open("info.npy", "w") as member:
            np.lib.format.write_array(member, np.array(json.dumps(known)), allow_pickle=False)

    def close(self) -> None:
        """Close the archive."""
        with self._sink:
            self._spool.close()
            self._indices.close()
            self._archive.close()
            self._sink.check()

    def _member(self, name: str, dtype: np.dtype[Any]) -> Any:
        member = self._archive.open(name, "w", force_zip64=True)
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": self._shape,
        }
        np.lib.format.write_array_header_1_0(member, header)
        return member


def read(path: Path, data: FeatureSet, where: str) -> Ranking:
    """Read an archive; without `info`, the method is `unknown`.

    Raises:
        InputError: if it is not a ranking archive, or is damaged.
    """
    return guarded(lambda: _read(path, data, where), path)


def _read(path: Path, data: FeatureSet, where: str) -> Ranking:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            info = json.loads(str(archive["info"])) if "info" in archive else {}
            missing = {"indices", "scores"} - set(archive)
            if missing:
                raise InputError(f"{' and '.join(sorted(missing))} missing, it has {', '.join(archive)}")
            indices, scores = archive["indices"], archive["scores"]
            if not info and scores.dtype.kind == "f" and scores.ndim == 2:
                scores = scores.astype(np.float32)
                if (scores[:, 1:] <= scores[:, :-1]).all():  # but for equal ones
                    scores = strictly_decreasing(scores)
            info.setdefault("gallery_size", len(data.gallery))
            return Ranking(indices, scores, **info, source=where)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except Exception as error:  # of a damaged one, zipfile and NumPy raise what they like
        raise InputError(f"{where} is not a readable ranking archive: {error}") from error
