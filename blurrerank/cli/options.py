"""Options that several commands share, and what they turn into."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import BlurrerankWarning, ParameterError
from ..evaluation.protocols import PROTOCOLS

if TYPE_CHECKING:
    from ..compute.compute import Compute
    from ..data.features import FeatureSet
    from ..data.ranking import Ranking
    from ..data.side import Side
    from ..data.similarities import SimilaritySet

F = TypeVar("F", bound=Callable[..., Any])

FORMAT_NAMES = ("h5", "trec", "jsonl", "csv", "npz")
"""Those of `formats.FORMATS`, which is too heavy to import for a help text; a test compares them."""
MATRIX_KINDS = ("similarity", "distance", "squared-distance", "cosine-distance")
"""Those of `data.similarities.KINDS`, likewise."""
ANY_FORMAT = f"{', '.join(FORMAT_NAMES[:-1])} or {FORMAT_NAMES[-1]}"

# Characters: a part of a file's name has up to 255 of them, and all of it up to 4096.
_LONGEST_WORD, _LONGEST_LINE = 300, 5_000

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgt", start=1)}


def printable(text: str, *, lines: bool = False) -> str:
    """The same in one line, or in the `lines` of a table: what a stranger's file says, or is called, cannot
    move the cursor, or colour what follows.
    """
    # NumPy makes text of any numbers, also of such as no letter has.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8", "replace")
    spared = "\n" if lines else ""
    return "".join(
        letter if letter.isprintable() or letter in spared else letter.encode("unicode_escape").decode()
        for letter in text
    )


def shortened(line: str) -> str:
    """The same without the middle of what is too long to read: a stranger's file may say anything."""
    words = rf"[^\s/]{{{_LONGEST_WORD + 1},}}"
    return _cut(re.sub(words, lambda word: _cut(word[0], _LONGEST_WORD), line), _LONGEST_LINE)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[:end]}[... {len(text) - 2 * end:,} characters ...]{text[-end:]}"


class Bytes(click.ParamType):  # type: ignore[type-arg]  # not subscriptable in click before 8.4
    """A size such as 512MiB or 2G, as a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, or fail as wrong usage."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(value), re.IGNORECASE)
        size = 0.0 if match is None else float(match[1]) * _UNITS.get(match[2].lower(), 0)
        if not 0 < size < 1 << 63:
            self.fail(f"{value!r} is not a size such as 512MiB or 2GiB", param, ctx)
        return int(size)


class File(click.Path):
    """The name of a file, or the address of a group in it: shells complete it."""

    def __init__(self, path_type: type[Any] | None = None) -> None:
        """Leave it to who opens the file to say that this is not allowed: that is no wrong usage."""
        super().__init__(readable=False, path_type=path_type)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As `click.Path`, but nothing is no name."""
        if not value:
            self.fail("it is empty: name a file", param, ctx)
        return super().convert(value, param, ctx)


FILE = File()


class Depth(click.ParamType):  # type: ignore[type-arg]
    """A number of list entries, or `all`."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Parse, or fail as wrong usage."""
        if value == "all":
            return "all"
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of at least 1 nor 'all'", param, ctx)
        return int(value)


@dataclass(frozen=True)
class Runtime:
    """Where and how loudly a command runs."""

    device: str = "auto"
    threads: int | None = None
    memory: int | None = None
    quiet: bool = False
    verbose: bool = False

    def start(self) -> None:
        """Apply what is set for the whole process."""
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.verbose:
            # Ours alone: what other libraries log is for those who work on them.
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(message)s"))
            logging.getLogger("blurrerank").handlers = [handler]
            logging.getLogger("blurrerank").setLevel(logging.INFO)
        # Each warning is shown in our words, whatever -W or PYTHONWARNINGS says of warnings in general.
        warnings.simplefilter("always", BlurrerankWarning)
        warnings.showwarning = self._show_warning

    def compute(
        self,
        what: str | None = None,
        *,
        precision: str = "auto",
        device: str | None = None,
        unit: str = " images",
    ) -> Compute:
        """How the command computes; `what` is what a progress bar says, None for no bar."""
        from ..compute.compute import Compute

        return Compute.choose(
            device or self.device,
            self.memory,
            precision=precision,
            progress=None if what is None else self.progress(what, unit),
        )

    def note(self, message: str) -> None:
        """Print a line that is not a result, on stderr."""
        if not self.quiet:
            click.echo(printable(shortened(message)), err=True)

    def _show_warning(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, BlurrerankWarning):
            self.note(f"warning: {message}")

    def progress(self, what: str, unit: str = " images") -> Callable[[int, int], None]:
        """A progress bar on stderr, silent where that is no terminal."""
        from tqdm import tqdm

        bar: list[Any] = []

        def advance(done: int, total: int) -> None:
            if not bar:
                bar.append(tqdm(total=total, desc=what, unit=unit, leave=False, disable=self.quiet or None))
            bar[0].update(done - bar[0].n)
            if done == total:
                bar[0].close()

        return advance


def _default_from(option: str) -> dict[str, Any]:
    """An environment variable that stands in where the option is not given."""
    return {"envvar": f"BLURRERANK_{option.upper()}", "show_envvar": True}


def features_argument(command: F) -> F:
    """FEATS and --gallery."""
    command = click.option(
        "--gallery",
        type=FILE,
        metavar="FILE",
        help="Take the gallery from this file; FEATS then gives only the probes.",
    )(command)
    return click.argument("feats", type=FILE, metavar="FEATS")(command)


def by_option(command: F) -> F:
    """--by."""
    return click.option(
        "--by",
        type=click.Choice(["image", "track"]),
        default="image",
        show_default=True,
        help="Rank single images, or tracks: track first averages the features of each track, on every side "
        "that has tracks.",
    )(command)


def matrix_option(command: F) -> F:
    """--matrix."""
    return click.option(
        "--matrix",
        type=click.Choice(MATRIX_KINDS),
        help="What a matrix contains that is given instead of features or of a ranking. distance is "
        "Euclidean; cosine-distance is 1 - cosine.  [default: distance if its name says so, otherwise "
        "similarity]",
    )(command)


def ranking_argument(command: F) -> F:
    """RANKING and --format."""
    command = click.option(
        "--format",
        type=click.Choice(FORMAT_NAMES),
        help="Format of RANKING, instead of the one its extension implies.",
    )(command)
    return click.argument("ranking", type=FILE, metavar="RANKING")(command)


def check_ranking(ranking: str, format: str | None) -> None:
    """Raise `ParameterError` if RANKING is standard input and --format does not say what comes."""
    if ranking == "-" and format is None:
        raise ParameterError(f"standard input needs --format: {ANY_FORMAT}")


def ranking_of(ranking: str, data: FeatureSet, format: str | None) -> Ranking:
    """The ranking of `data` that RANKING names; - is standard input.

    Raises:
        InputError: if it cannot be read as one.
    """
    from ..files import read_ranking

    return read_ranking(sys.stdin.buffer if ranking == "-" else ranking, data, format=format)


def ranking_or_matrix(
    name: str, data: FeatureSet, format: str | None, matrix: str | None
) -> Ranking | SimilaritySet:
    """The ranking that RANKING names, or the similarities of a matrix.

    Raises:
        InputError: if it cannot be read as either.
    """
    from ..files import is_matrix_file, load_matrix

    if format is None and name != "-" and is_matrix_file(name):
        return load_matrix(name, data, matrix=matrix)
    return ranking_of(name, data, format)


def metrics_options(command: F) -> F:
    """--protocol and --ap."""
    command = click.option(
        "--ap",
        type=click.Choice(["plain", "trapezoid"]),
        default="plain",
        show_default=True,
        **_default_from("ap"),
        help="How average precision is computed: plain as in torchreid and fast-reid, trapezoid as in the "
        "Market-1501 toolbox.",
    )(command)
    return protocol_option(command)


def protocol_option(command: F) -> F:
    """--protocol."""
    return click.option(
        "--protocol",
        type=click.Choice(list(PROTOCOLS)),
        default="market1501",
        show_default=True,
        **_default_from("protocol"),
        help="Which gallery items count for a probe: market1501 drops those of its identity and camera; "
        "cuhk03 also draws one image per identity for CMC; leave-one-out drops the probe's own image, "
        "found by name or by equal features; plain drops none of these. Junk (id -1) never counts.",
    )(command)


def camera_images_option(command: F) -> F:
    """--camera-images."""
    return click.option(
        "--camera-images",
        type=FILE,
        metavar="FILE",
        help="Features of earlier images from cameras that the gallery has no images of, for steps such as "
        "center. They need cameras but no identities: the probes of FILE, or a group file.h5::/group.",
    )(command)


def load_camera_images(address: str | None, runtime: Runtime) -> Side | None:
    """Return the images that --camera-images names; None without."""
    from ..files import load_side

    return None if address is None else load_side(address, "probe", memory=runtime.memory)


def json_option(command: F) -> F:
    """--json."""
    return click.option("as_json", "--json", is_flag=True, help="Print JSON instead of a table.")(command)


def style_options(command: F) -> F:
    """--latex and --markdown."""
    command = click.option("style", "--markdown", flag_value="github", help="Print a Markdown table.")(command)
    return click.option("style", "--latex", flag_value="latex_booktabs", help="Print a LaTeX table.")(command)


_COMPUTING = (
    click.option(
        "--memory",
        type=Bytes(),
        **_default_from("memory"),
        help="Budget for working memory, such as 512MiB.  [default: 2GiB; on a GPU, half of the free memory]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        metavar="N",
        **_default_from("threads"),
        help="Number of CPU threads.  [default: torch's choice]",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda[:i]",
        **_default_from("device"),
        help="Where to compute.",
    ),
)
_TALKING = (
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    click.option("verbose", "-v", "--verbose", is_flag=True, help="Also print how the work is done."),
    click.option("-q", "--quiet", is_flag=True, help="Print only results and errors."),
)


def runtime_options(command: F) -> F:
    """--device, --threads, --memory, --quiet, -v, --debug, collected as `runtime`."""
    return _collected(command, (*_TALKING, *_COMPUTING))


def precision_option(command: F) -> F:
    """--precision."""
    return click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        **_default_from("precision"),
        help="Precision of the matrix products that find candidates. Candidates are then scored in float32, "
        "so the lists are the same. auto chooses the faster one on this machine.",
    )(command)


def talking_options(command: F) -> F:
    """--quiet, -v and --debug alone, collected as `runtime`: for a command that computes nothing."""
    return _collected(command, _TALKING)


def _collected(command: F, options: Sequence[Callable[[Any], Any]]) -> F:
    names = [field.name for field in fields(Runtime)]

    def collected(**arguments: Any) -> Any:
        arguments.pop("debug")
        runtime = Runtime(**{name: arguments.pop(name) for name in names if name in arguments})
        return command(runtime=runtime, **arguments)

    collected.__doc__ = command.__doc__
    collected.__name__ = command.__name__
    collected.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in options:
        collected = option(collected)
    return collected  # type: ignore[return-value]
