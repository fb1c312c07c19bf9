"""The options of `blurrerank run` that all methods share, and what they must not ask for together."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .candidates import Source
from .options import ANY_FORMAT

if TYPE_CHECKING:
    from ..evaluation.score_calibration import Rejection


@dataclass(frozen=True)
class RunOptions:
    """The options that do not depend on the method; each is described where it is declared."""

    feats: str
    gallery: str | None
    index: str | None
    method: str | None
    preset: str | None
    online: bool
    camera_images: str | None
    calibration: str | None
    reject: float | None
    output: str | None
    format: str | None
    depth: int | str | None
    metrics_file: str | None
    force: bool
    resume: bool
    protocol: str
    ap: str
    as_json: bool
    by: str
    matrix: str | None
    precision: str
    source: Source

    @property
    def piped(self) -> bool:
        """Whether lists go to standard output."""
        return self.output == "-"

    @property
    def path(self) -> Path:
        """The file that lists go to; by default named after the methods, without their parameters."""
        methods = re.sub(r":[^+]*|\s", "", self.method or "")
        return Path(self.output or f"{_file(self.feats).stem}.{methods}.ranking.{self.format or 'h5'}")

    def depth_of(self, size: int) -> int | None:
        """How deep lists of so many items are to be; None where nobody said."""
        return size if self.depth == "all" else cast("int | None", self.depth)

    def check_stream(self, indexed: bool) -> None:
        """Refuse what probes from standard input cannot have.

        Raises:
            ParameterError: saying what.
        """
        from ..errors import ParameterError

        if not indexed:
            raise ParameterError("- reads probes from standard input, which needs --index: name a file")
        if self.output not in (None, "-") or self.format not in (None, "jsonl"):
            raise ParameterError("probes from standard input are answered on standard output, as JSON lines")
        if self.metrics_file or self.as_json:
            raise ParameterError("probes from standard input are answered on standard output, as JSON lines")
        if self.resume:
            raise ParameterError(
                "--resume needs an output file: no partial results are kept for probes from standard input"
            )

    def check_outputs(self, leads: bool) -> None:
        """Refuse outputs that cannot be written, before any work.

        Raises:
            ParameterError: for options that contradict each other, or a file that is named twice.
            OutputError: for a file that cannot be written.
        """
        from ..errors import ParameterError
        from ..files.targets import check_target

        if self.piped and self.format is None:
            raise ParameterError(f"standard output needs --format: {ANY_FORMAT}")
        if self.piped and self.resume:
            raise ParameterError(
                "--resume needs an output file: no partial results are kept for standard output"
            )
        if self.metrics_file == "-":
            raise ParameterError(
                "--metrics needs a file name: metrics are printed on standard output anyway, as JSON with "
                "--json"
            )
        outputs = [] if self.piped else [self.path]
        outputs += [Path(self.metrics_file)] if self.metrics_file else []
        inputs = [
            _file(name)
            for name in (
                *(self.feats, self.gallery, self.index),
                *(self.camera_images, self.calibration, self.source.file),
            )
            if name
        ]
        for number, file in enumerate(outputs if leads else []):
            check_target(file, force=self.force, resume=self.resume and file == self.path)
            if any(_same(file, other) for other in (*outputs[:number], *inputs)):
                raise ParameterError(f"{file} is named twice, as an output and as another input or output")

    def check(self, *, automatic: bool, alone: bool) -> None:
        """Refuse options that contradict each other, before anything is read.

        Args:
            automatic: whether the method or one of its parameters is `auto`.
            alone: whether there is one process.

        Raises:
            ParameterError: saying which.
        """
        from ..errors import ParameterError

        if automatic and self.index is not None:
            raise ParameterError(
                "auto looks at all items of a gallery, and an index does not allow that: leave --method out, "
                "or give numbers instead of auto"
            )
        if automatic and not self.source.exact:
            raise ParameterError(
                "auto looks at neighbours among all items, and candidates are only some of them: name a "
                "method, or give numbers"
            )
        if (self.calibration is None) != (self.reject is None):
            raise ParameterError(
                "--reject P and --calibration FILE, which `blurrerank calibrate` writes, need each other: give "
                "both; --reject 0 rejects nothing"
            )
        if not alone and self.feats == "-":
            raise ParameterError(
                "probes from standard input are answered by one process: start this without torchrun"
            )
        if not alone and not self.source.exact:
            raise ParameterError("candidates are re-ranked in one process: start this without torchrun")
        if self.index is not None and self.gallery is not None:
            raise ParameterError("--index and --gallery both name a gallery: choose one")
        if self.index is not None and self.camera_images is not None:
            raise ParameterError(
                "an index takes camera images only when it is built: see `blurrerank index --camera-images`"
            )

    def rejection(self) -> Rejection | None:
        """When lists are rejected, None if they are not.

        Raises:
            InputError: for a calibration that cannot be read.
            ParameterError: for a probability outside of 0 to 1.
        """
        from ..evaluation.score_calibration import Rejection
        from ..files import read_calibration

        if self.calibration is None or self.reject is None:
            return None
        return Rejection(read_calibration(self.calibration), self.reject)


def _file(address: str) -> Path:
    """The file that an address such as file.h5::/group is in."""
    return Path(address.partition("::")[0])


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
