"""What an interrupted run has done, kept beside its output so that it can go on from there.

In `targets.work_folder(output)`:

    kept.json           what the run is: digests of the input, method, parameters, versions
    kept-START.npz      the lists of consecutive probes from START on, and where their matches stand
    kept-neighbours.h5  of a method that looks at all images first: what it knows of them

Each of these appears whole or not at all, and has the digest of what the first holds.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.positions import Positions
from ..errors import BlurrerankWarning, InputError, OutputError
from ..files.neighbours_h5 import read_partial, write_partial
from ..files.sink import Sink
from ..files.targets import KEPT, opener, replacing, work_folder
from ..graph.neighbour_graph import NeighbourGraph

SECONDS = 30.0
"""How often a run writes what it has done, and after which time first."""

# Writing takes no more than about a tenth of the time, but is put off no longer than this many times `SECONDS`.
_PAUSES, _LONGEST = 9, 20

# Lists that wait to be written take no more than this.
_WAITING_BYTES = 64 << 20


@dataclass(frozen=True)
class Done:
    """The lists of consecutive probes.

    Attributes:
        start: the first probe.
        indices: (p, R) into the gallery, as they are written.
        scores: (p, R) float32.
        before: where the matches stand by cosine similarity; None without ids.
        after: where they stand in the re-ranked lists; None without ids.
    """

    start: int
    indices: NDArray[Any]
    scores: NDArray[np.float32]
    before: Positions | None = None
    after: Positions | None = None

    @property
    def stop(self) -> int:
        """The probe after the last."""
        return self.start + len(self.indices)


class Checkpoint:
    """What is known of a run before its output is complete.

    Args:
        folder: where it is kept.
        run: what tells this run from others, as JSON can hold it.
        output: how messages call the output.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], output: Path) -> None:
        """Begin to count the time."""
        self._folder, self._output = folder, output
        self._run: dict[str, Any] = json.loads(json.dumps(run))
        self._digest = hashlib.sha256(json.dumps(self._run, sort_keys=True).encode()).hexdigest()
        self._waiting: list[Done] = []
        self._due = time.monotonic() + SECONDS
        self._kept = self._over = self._warned = False

    def check(self) -> None:
        """Refuse what another run left.

        Raises:
            InputError: naming the first thing that differs.
        """
        path = self._folder / f"{KEPT}.json"
        if not path.exists():
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            different = [name for name, value in self._run.items() if known[name] != value]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self._output}: the partial results of an interrupted run are damaged; {_OVER}"
            ) from None
        if different:
            name = different[0]
            what = f"of other {_WORDS[name]}" if name in _WORDS else f"with {name} {known[name]}"
            now = "" if name in _WORDS else f", not {self._run[name]}"
            raise InputError(f"{self._output}: an interrupted run left lists {what}{now}; {_OVER}")
        self._kept = True

    def done(self) -> Iterator[Done]:
        """The lists that are known, from the first probe on without a gap."""
        stop = 0
        for path in sorted(self._folder.glob(f"{KEPT}-*.npz")):
            found = _read(path, self._digest)
            # What follows a damaged file is computed again.
            if found is None or found.start != stop:
                continue
            stop = found.stop
            yield found

    def add(self, some: Done) -> None:
        """Keep the lists of the next probes, if it is time."""
        if self._over:
            return
        self._waiting.append(some)
        many = sum(done.indices.nbytes + done.scores.nbytes for done in self._waiting) > _WAITING_BYTES
        if many or time.monotonic() >= self._due:
            self._write()
        if many and self._waiting:
            # They could not be written, and what came after a gap could not be used.
            self._over = True
            self._waiting.clear()
            why = "more lists wait than can be held"
            warnings.warn(
                f"no further partial results are kept for --resume: {why}", BlurrerankWarning, stacklevel=2
            )

    @property
    def known(self) -> NeighbourGraph | None:
        """What an interrupted run knew of the first images."""
        path = self._folder / _NEIGHBOURS
        try:
            known, _, digest = read_partial(path)
        except InputError:
            return None
        return known if digest == self._digest else None

    def keep(self, answer: Callable[[], NeighbourGraph]) -> None:
        """Keep the graph of the images met so far, if it is time."""
        if not self._over and time.monotonic() >= self._due:
            path = self._folder / _NEIGHBOURS
            self._keep(lambda: write_partial(path, answer(), pool=0, digest=self._digest))

    def interrupted(self) -> None:
        """Keep what there is, if it was worth keeping before or has taken long."""
        if self._waiting and (self._kept or time.monotonic() >= self._due):
            self._write()

    def _write(self) -> None:
        """Keep the lists that wait."""
        first = self._waiting[0]
        joined = {
            "run": np.array(self._digest),
            "start": np.array(first.start),
            "indices": np.concatenate([done.indices for done in self._waiting]),
            "scores": np.concatenate([done.scores for done in self._waiting]),
        }
        for stage in ("before", "after"):
            parts = [part for done in self._waiting if (part := getattr(done, stage)) is not None]
            if parts:
                whole = Positions.concatenate(parts)
                for field in fields(whole):
                    values = getattr(whole, field.name)
                    if values is not None:
                        joined[f"{stage}_{field.name}"] = values

        def write() -> None:
            path = self._folder / f"{KEPT}-{first.start:012}.npz"
            with replacing(path, force=True) as temporary, Sink(temporary) as file:
                np.savez(file, **joined)  # type: ignore[arg-type]
                file.check()

        if self._keep(write):
            self._waiting.clear()

    def _keep(self, write: Callable[[], None]) -> bool:
        """Write something, after what run it is of; whether that went well.

        A run need not end because nothing can be kept of it, and there may be room again later.
        """
        began = time.monotonic()
        try:
            if not self._kept:
                with (
                    replacing(self._folder / f"{KEPT}.json", force=True) as temporary,
                    open(temporary, "w", encoding="utf-8", opener=opener) as file,
                ):
                    file.write(json.dumps(self._run, indent=2) + "\n")
                self._kept = True
            write()
        except OutputError as error:
            if not self._warned:
                warnings.warn(f"partial results cannot be kept: {error}", BlurrerankWarning, stacklevel=2)
            self._warned = True
            return False
        finally:
            now = time.monotonic()
            self._due = now + max(SECONDS, min(_PAUSES * (now - began), _LONGEST * SECONDS))
        return True


@contextmanager
def keeping(output: Path, run: Mapping[str, Any]) -> Iterator[Checkpoint]:
    """What an interrupted run left for `output`, and a place for what this one does, should it not end well.

    Args:
        output: the file that is written.
        run: what tells this run from others.

    Raises:
        InputError: if something was left by another run.
    """
    checkpoint = Checkpoint(work_folder(output), run, output)
    checkpoint.check()
    try:
        yield checkpoint
    except BaseException:
        checkpoint.interrupted()
        raise


_NEIGHBOURS = f"{KEPT}-neighbours.h5"
_OVER = "start over with --force and without --resume, or choose another name"
_WORDS = {
    "digest": "features",
    "labels_digest": "labels",
    "candidates_digest": "candidates",
    "camera_images_digest": "camera images",
    "camera_images_cams": "cameras of the camera images",
}


def _read(path: Path, digest: str) -> Done | None:
    """One file of lists, None if it is damaged or of a run of another digest."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        if str(arrays["run"]) != digest:
            return None
        positions = {
            stage: Positions(
                *(arrays.get(f"{stage}_{field.name}") for field in fields(Positions))  # type: ignore[arg-type]
            )
            for stage in ("before", "after")
            if f"{stage}_offsets" in arrays
        }
        return Done(int(arrays["start"]), arrays["indices"], arrays["scores"], **positions)
    except Exception:  # of a damaged one, zipfile and NumPy raise what they like
        return None
