"""The command line: one module per command; errors become messages and exit codes here.

Nothing heavy is imported here; a command imports the library when it runs.
"""

from __future__ import annotations

import io
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..errors import BlurrerankError, ParameterError
from . import signals
from .bench import bench, measure
from .calibrate import calibrate
from .completion import completion
from .convert import convert
from .eval import evaluate
from .fuse import fuse
from .help import help_command, shown_commands, suggestion
from .index import index
from .info import info
from .options import printable, shortened
from .plot import plot
from .report import report
from .run import run
from .sweep import sweep
from .synth import synth
from .together import is_first
from .tune import tune

_LIBRARIES = (
    *("numpy", "torch", "scipy", "h5py", "click", "triton"),
    *("faiss-cpu", "scikit-learn", "pillow", "matplotlib"),  # extras
)


class _ClosedPipeError(Exception):
    """The reader of standard output closed the pipe, as in `... | head`."""


class _Commands(click.Group):
    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command that the arguments start with; where there is none, say what to type."""
        name = args[0]
        if name.startswith("-") or name in self.commands:
            return super().resolve_command(ctx, args)
        if Path(name).is_file():
            hint = f"to rank its probes, type: blurrerank run {name}"
        else:
            hint = suggestion(name, shown_commands(self))
        raise click.UsageError(f"there is no command {name!r}: {hint}", ctx)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. By default click exits with 1 on a closed pipe and prints an extra line on Ctrl-C."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ClosedPipeError from None
        except KeyboardInterrupt:
            raise click.Abort from None


def _show_versions(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"blurrerank {__version__}")
    click.echo(f"python {platform.python_version()}")
    for name in _LIBRARIES:
        try:
            click.echo(f"{name} {version(name)}")
        except PackageNotFoundError:
            click.echo(f"{name} not installed")
    ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the versions of blurrerank and of the libraries that results depend on, and exit.",
)
def cli() -> None:
    """Re-ranking for re-identification, from features alone.

    Local blurring, the default method of `run`, builds a similarity graph of the best gallery items of each
    probe, smooths their features over this graph, and sorts the items again. `run --method` names other
    methods, and `index` prepares a gallery for probes that arrive one by one.

    \b
    blurrerank run feats.h5 --topn 50 --sigma 0.1
    blurrerank convert pytorch_result.mat feats.h5
    blurrerank eval feats.lbr.ranking.h5 feats.h5
    blurrerank report feats.lbr.ranking.h5 feats.h5 -o report.html
    blurrerank bench feats.h5
    blurrerank tune feats.h5 --method center+camera-graph --grid ki=2,4,6
    blurrerank index feats.h5 -o gallery.index.h5
    blurrerank run --index gallery.index.h5 probes.h5
    """


cli.add_command(run)
cli.add_command(evaluate)
cli.add_command(calibrate)
cli.add_command(fuse)
cli.add_command(info)
cli.add_command(convert)
cli.add_command(index)
cli.add_command(bench)
cli.add_command(measure)
cli.add_command(sweep)
cli.add_command(tune)
cli.add_command(report)
cli.add_command(plot)
cli.add_command(synth)
cli.add_command(completion)
cli.add_command(help_command)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 for success, 1 for a named error, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    _open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
    # Schedulers stop a job with SIGTERM and terminals with SIGHUP (unless nohup ignores it): handle both like
    # Ctrl-C.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signals.raise_on_signal(
                number, KeyboardInterrupt if name == "SIGINT" else partial(signals.EndedBySignalError, number)
            )
    try:
        with signals.resend_lost_signals():
            code = cli.main(arguments or ["--help"], prog_name="blurrerank", standalone_mode=False)
            sys.stdout.flush()
    except click.UsageError as error:
        if error.ctx is not None and not is_first():
            # All processes have the same arguments. Let the first one report the error before this one exits:
            # torchrun stops the others as soon as one exits.
            time.sleep(2)
            sys.exit(2)
        where = error.ctx.command_path if error.ctx else "blurrerank"
        code = _fail(f"{error.format_message().rstrip('.')} (see '{where} --help')", 2)
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted", 130)
    except signals.EndedBySignalError as error:
        code = _fail(f"terminated by {error.name}", error.exit_code)
    except (_ClosedPipeError, BrokenPipeError):
        # The interpreter flushes what is still buffered when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except BaseException as error:
        if debug:
            raise
        code = _fail(*_message_and_exit_code(error))
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open standard input, output and error if closed, so that no other file gets their descriptors."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _message_and_exit_code(error: BaseException) -> tuple[str, int]:
    """Return the one-line message for an error, and the exit code."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, ParameterError):
        return str(error), 2
    if isinstance(error, BlurrerankError):
        return str(error), 1
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's message
        return "out of memory: try a smaller --memory", 1
    if isinstance(error, PermissionError) and error.filename:
        # An input: `targets` has its own message for outputs.
        return f"{error.filename} cannot be read: permission denied", 1
    if isinstance(error, OSError):
        return f"{error.filename or 'standard output'}: {error.strerror or error}", 1
    name = type(error).__name__
    return f"internal error, {name}: {error} (--debug shows the traceback; please report this)", 1


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # the terminal may be gone
        click.echo(printable(shortened(f"error: {' '.join(message.split())}")), err=True)
    return code
