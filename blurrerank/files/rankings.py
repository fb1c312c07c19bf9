"""Ranking files: the list of formats, and a common interface to write and read them.

Each format is a module with `Writer` and `read`. Text formats are written to a stream list by list, so that
they can be piped; binary ones are written to a file.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from shutil import copyfileobj
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, TextIO, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..data.arguments import check_features, check_ranking
from ..data.features import FeatureSet
from ..data.positions import Positions
from ..data.ranking import Ranking, nearly_always_rise
from ..data.side import Side
from ..data.sort_keys import index_dtype, strictly_decreasing
from ..errors import InputError, ParameterError
from ..evaluation.match_finder import MatchFinder
from ..evaluation.score_calibration import Verdicts
from .access import check_readable
from .limits import FREE, check_unpacked
from .targets import opener, replacing

if TYPE_CHECKING:
    from ..evaluation.metrics import Metrics

FORMATS: Mapping[str, tuple[str, ...]] = {
    "h5": (".h5", ".hdf5"),
    "trec": (".trec", ".run"),
    "jsonl": (".jsonl",),
    "csv": (".csv",),
    "npz": (".npz",),
}
"""Format name -> its file extensions."""

GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)
_MODULES = {"h5": "ranking_h5", "trec": "trec", "jsonl": "jsonl", "csv": "csv_lists", "npz": "npz"}
_TEXT = ("trec", "jsonl", "csv")


@dataclass(frozen=True)
class RunInfo:
    """The properties of a ranking besides its lists; see `Ranking` for the fields."""

    method: str
    params: Mapping[str, Any]
    reranked_depth: int
    cosine_tail: bool
    digest: str | None = None
    labels_digest: str | None = None
    positions: Positions | None = None
    candidates: str | None = None
    setting: str | None = None
    camera_images: str | None = None
    metrics: Mapping[str, Metrics] = field(default_factory=dict)
    verdicts: Verdicts | None = None
    rejected_below: float | None = None


class RankingWriter(ABC):
    """Writes the lists of one ranking in order, then its other properties."""

    keeps_rejected: ClassVar[bool] = False
    """Whether the format has a place for `Verdicts`."""

    @abstractmethod
    def write(self, start: int, indices: NDArray[Any], scores: NDArray[np.float32]) -> None:
        """Write the (p, R) lists of consecutive probes, starting with probe `start`."""

    def write_judged(
        self, start: int, indices: NDArray[Any], scores: NDArray[np.float32], verdicts: Verdicts
    ) -> None:
        """As `write`, but leave out the lists that are rejected, unless the format says which they are."""
        self.write(start, indices if self.keeps_rejected else verdicts.blanked(indices), scores)

    def finish(self, info: RunInfo) -> None:  # noqa: B027  (most formats have no place for it)
        """Write the other properties, if the format supports them."""

    def close(self) -> None:  # noqa: B027
        """Close the file."""


def format_of(path: str | Path, name: str | None = None) -> str:
    """Return the format called `name`, or else the one that the extension of `path` implies.

    Raises:
        ParameterError: if neither determines a format.
    """
    if name is not None:
        if name not in FORMATS:
            raise ParameterError(f"format {name!r} is not known: use {' or '.join(FORMATS)}")
        return name
    for known, endings in FORMATS.items():
        if str(path).lower().endswith(endings):
            return known
    endings = tuple(ending for some in FORMATS.values() for ending in some)
    raise ParameterError(f"{path}: unknown extension: use one of {', '.join(endings)}, or pass --format")


@contextmanager
def open_ranking(
    target: Path | BinaryIO,
    data: FeatureSet,
    depth: int,
    *,
    format: str,
    method: str,
    force: bool = False,
    resume: bool = False,
) -> Iterator[RankingWriter]:
    """Open a writer to a binary stream, or to a file that appears only if the block succeeds.

    Args:
        target: the file, or a stream such as standard output.
        data: the ranked features, for their size and names.
        depth: R, the length of each list.
        format: a name from `FORMATS`.
        method: the method's name.
        force: replace an existing file.
        resume: keep the partial results of an interrupted run; see `replacing`.

    Raises:
        OutputError: if the file cannot be written.
    """
    module = import_module(f".{_MODULES[format]}", __package__)
    if isinstance(target, Path):
        with (
            replacing(target, force=force, resume=resume) as temporary,
            _writer(module, temporary, data, depth, format, method) as writer,
        ):
            yield writer
    elif format in _TEXT:
        text = TextIOWrapper(target, encoding="utf-8", newline="", write_through=False)
        try:
            yield module.Writer(text, data, depth, method)
            text.flush()
        finally:
            text.detach()
    else:
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, "ranking")
            with _writer(module, temporary, data, depth, format, method) as writer:
                yield writer
            with open(temporary, "rb") as written:
                copyfileobj(written, target)


@contextmanager
def _writer(
    module: Any, path: Path, data: FeatureSet, depth: int, format: str, method: str
) -> Iterator[RankingWriter]:
    if format in _TEXT:
        with open(path, "w", encoding="utf-8", newline="", opener=opener) as text:
            yield module.Writer(text, data, depth, method)
    else:
        writer = module.Writer(path, data, depth, method)
        try:
            yield writer
        except BaseException as error:
            try:
                writer.close()
            except OSError as cause:
                # What else went wrong with the file did so because the disk did not take it.
                if isinstance(error, RuntimeError):
                    raise cause from error
            except (RuntimeError, ValueError):
                pass  # it would hide why
            raise
        writer.close()


def save_ranking(
    ranking: Ranking, data: FeatureSet, path: str | Path, *, format: str | None = None, force: bool = False
) -> None:
    """Write a ranking.

    Args:
        ranking: a ranking of the probes of `data`.
        data: the ranked features.
        path: the file; its extension implies the format unless `format` is given.
        format: a name from `FORMATS`.
        force: replace an existing file.

    Raises:
        InputError: for something else than a `Ranking` and a `FeatureSet`.
        OutputError: if the file cannot be written.
        ParameterError: if the format is unknown.
    """
    check_ranking(ranking)
    check_features(data)
    path = Path(path)
    chosen = format_of(path, format)
    with open_ranking(path, data, ranking.depth, format=chosen, method=ranking.method, force=force) as writer:
        writer.write(0, ranking.indices, ranking.scores)
        writer.finish(
            RunInfo(
                ranking.method,
                ranking.params,
                ranking.reranked_depth,
                ranking.cosine_tail,
                ranking.digest,
                ranking.labels_digest,
                ranking.positions,
                ranking.candidates,
                ranking.setting,
            )
        )


def read_ranking(
    source: str | Path | BinaryIO, data: FeatureSet, *, format: str | None = None, ordered: bool = True
) -> Ranking:
    """Read a ranking of the probes of `data`, also from another tool.

    Args:
        source: the file (text formats may be compressed as .gz), or a binary stream such as standard input.
        data: the ranked features; probes and gallery items are identified by name or by row number.
        format: a name from `FORMATS`; by default the one that the file's extension implies.
        ordered: whether text formats must have the larger scores first, where they say the order.

    Raises:
        InputError: if the file cannot be read or does not fit `data`; names the line in text formats. Also if
            scores rise with the rank, as distances do.
        ParameterError: if the format is unknown.
    """
    check_features(data)
    path = Path(source) if isinstance(source, str | Path) else None
    where = "standard input" if path is None else str(path)
    chosen = format_of(where.removesuffix(".gz"), format)
    module = import_module(f".{_MODULES[chosen]}", __package__)
    if path is not None and not path.exists():
        raise InputError(f"{path}: no such file")
    if path is not None and path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it")
    if path is not None and not path.is_file():
        raise InputError(f"{path} is not a regular file: pass - and pipe it in")
    if path is not None:
        check_readable(path)
    if chosen in _TEXT:
        try:
            stream = open_text(source) if isinstance(source, str | Path) else source
        except GZIP_ERRORS as error:
            raise InputError(f"{where} is a damaged gzip file: {error}") from None
        with _text(stream, where) as text:
            ranking: Ranking = module.read(text, data, where, ordered=ordered)
    elif path is not None:
        ranking = module.read(path, data, where)
    else:
        with tempfile.NamedTemporaryFile() as spooled:
            copyfileobj(cast(BinaryIO, source), spooled)
            spooled.flush()
            try:
                ranking = module.read(Path(spooled.name), data, where)
            except InputError as error:
                raise InputError(str(error).replace(spooled.name, where)) from error
    ranking.check_size(len(data.probe), len(data.gallery))
    # With other labels than these they are of no use, and may say what they like.
    if ranking.positions is not None and data.has_ids and ranking.labels_digest == data.labels_digest():
        finder = MatchFinder(data, single_shot=False, device=torch.device("cpu"))
        if not finder.is_consistent(ranking.positions, ranking.indices):
            raise InputError(
                f"{where}: match positions contradict the lists or ids; the file is damaged: run again"
            )
    return ranking


def open_text(path: str | Path) -> BinaryIO:
    """Open a text file to read bytes, decompressed if it is a gzip file.

    Raises:
        InputError: if it is not a regular file, or looks like a decompression bomb.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} is not a regular file: pass - and pipe it in")
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed:
        _check_gzip(Path(path))
    return cast(BinaryIO, gzip.open(path) if packed else open(path, "rb"))


def _check_gzip(path: Path) -> None:
    """Refuse what becomes far larger, by unpacking it; deflate shrinks to a thousandth at most."""
    packed, unpacked = path.stat().st_size, 0
    if packed * 1032 < FREE:
        return
    with gzip.open(path) as file:
        while some := file.read(1 << 20):
            unpacked += len(some)
            check_unpacked(unpacked, packed, str(path))


@contextmanager
def _text(stream: BinaryIO, where: str) -> Iterator[TextIO]:
    # -sig: a byte order mark, as some editors leave, is no part of the text.
    with TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        try:
            yield text
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not utf-8 text: {error.reason} at byte {error.start}") from None
        except GZIP_ERRORS as error:
            raise InputError(f"{where} is a damaged gzip file: {error}") from None


def check_name(side: Side, row: int, name: object, where: str) -> None:
    """Check that what a file calls a row is what the features call it, where both say something.

    Raises:
        InputError: if it is not.
    """
    if name and side.names is not None and side.names[row] != str(name):
        raise InputError(
            f"{where} calls row {row} {name!r}, and in the features it is {side.names[row]!r}: pass the "
            "features that the ranking was made from"
        )


def from_entries(
    probes: ArrayLike,
    items: ArrayLike,
    scores: ArrayLike,
    data: FeatureSet,
    where: str,
    *,
    ranks: ArrayLike | None = None,
) -> Ranking:
    """Build a ranking from unordered entries; lists are sorted by score, ties by lower gallery index.

    Args:
        probes: (T,) probe rows.
        items: (T,) gallery rows.
        scores: (T,) scores, higher is better.
        data: the ranked features.
        where: name of the source in messages.
        ranks: (T,) the place of each entry in its list, if the source says it.

    Raises:
        InputError: if there are no entries, a score is NaN, an item is listed twice for a probe, or scores rise
            with the rank.
    """
    probe, item = np.asarray(probes, dtype=np.int64), np.asarray(items, dtype=np.int64)
    score = np.asarray(scores, dtype=np.float64)
    if not len(probe):
        raise InputError(f"{where} has no entries")
    if np.isnan(score).any():
        raise InputError(f"{where} has a score that is not a number (entry {int(np.argmax(np.isnan(score)))})")
    if ranks is not None and _rise(probe, np.asarray(ranks, dtype=np.float64), score):
        raise InputError(
            f"{where} has scores that rise with the rank, as distances do: write minus the distance as score"
        )
    order = np.lexsort((item, -score, probe))
    probe, item, score = probe[order], item[order], score[order]
    counts = np.bincount(probe, minlength=len(data.probe))
    place = np.arange(len(probe)) - np.repeat(np.cumsum(counts) - counts, counts)
    indices = np.full((len(counts), counts.max()), -1, dtype=index_dtype(len(data.gallery)))
    table = np.full(indices.shape, -np.inf, dtype=np.float32)
    indices[probe, place] = item
    # Far below float32 only the order is left of a score: there must be room to lower each of a list further.
    limit = 3e38
    table[probe, place] = score.clip(-limit, limit).astype(np.float32)
    table = np.where(indices >= 0, strictly_decreasing(table), np.float32(-np.inf))
    try:
        return Ranking(indices, table, gallery_size=len(data.gallery), source=where)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _rise(probe: NDArray[np.int64], rank: NDArray[np.float64], score: NDArray[np.float64]) -> bool:
    """Whether scores nearly always rise from one rank to the next."""
    order = np.lexsort((rank, probe))
    same = np.diff(probe[order]) == 0
    # Ranks that come twice say nothing of their list.
    unclear = np.unique(probe[order][1:][same & (np.diff(rank[order]) == 0)])
    follows = same & ~np.isin(probe[order][1:], unclear)
    return nearly_always_rise(np.diff(score[order])[follows])
