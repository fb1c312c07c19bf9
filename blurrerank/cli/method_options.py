"""Options of methods, made from their parameters: a command has just those of its method."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import BlurrerankError, ParameterError
from ..methods import AUTO, available, is_available, options_of, presets_of
from ..methods.kinds.parameters import Parameter

F = TypeVar("F", bound=Callable[..., Any])

_META = f"{__name__}.method"
# What an index is built for unless somebody says.
_INDEXED = "k-reciprocal-online"


class MethodCommand(click.Command):
    """A command with the options of one method, beside its own.

    Args:
        method: whose options, unless --method names another.
        with_index: whether --index names an index, whose method it is then if neither --method nor other
            candidates are given.
    """

    def __init__(self, *arguments: Any, method: str, with_index: bool = False, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._method, self._with_index = method, with_index

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Look for --method first, since it says which options there are."""
        ctx.meta[_META] = self._named_in(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise self._explained(error, ctx) from None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters and those of the method."""
        own = super().get_params(ctx)
        return [*own[:-1], *self._of_method(ctx), own[-1]]  # --help comes last

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of the method under a heading of their own."""
        own = super().get_params(ctx)
        options = [param for param in own if isinstance(param, click.Option) and not param.hidden]
        presets = presets_of(self.method(ctx))
        presetting = [param for param in options if param.name == "preset" and presets]
        records = [_help_record(param, ctx, presets) for param in (*self._of_method(ctx), *presetting)]
        if records:
            with formatter.section(f"Options of method {self.method(ctx)}"):
                formatter.write_dl(records)
        with formatter.section("Options"):
            formatter.write_dl(
                [_help_record(param, ctx, presets) for param in options if param.name != "preset"]
            )

    def method(self, ctx: click.Context) -> str:
        """Return the method whose options the command has."""
        found: str = ctx.meta.get(_META, self._method)
        return found

    def _of_method(self, ctx: click.Context) -> list[click.Parameter]:
        taken = {flag for param in super().get_params(ctx) for flag in param.opts}
        method = self.method(ctx)
        try:
            options = options_of(method)
        except ParameterError:
            if ctx.resilient_parsing:  # a shell completes a method whose name is not all there
                return []
            raise
        ranker = method.rpartition("+")[2].partition(":")[0].strip()
        return [_option(key, *described, taken, ranker) for key, described in options.items()]

    def _named_in(self, args: Sequence[str]) -> str:
        """The method that the arguments mean; as for any option, the last one counts."""
        given: dict[str, str] = {}
        for argument, following in zip(args, [*args[1:], ""], strict=False):
            flag, equals, value = argument.partition("=")
            if flag.startswith("--"):
                given[flag] = value if equals else following
        if "--method" in given:
            return given["--method"]
        listed = "--candidates" in given or given.get("--search") == "faiss"
        if self._with_index and "--index" in given and not listed:
            from ..index.index_files import method_of

            with suppress(BlurrerankError, OSError):  # what is wrong with it is told when it is opened
                found = method_of(Path(given["--index"]))
                if found is not None and is_available(found):
                    return found
            return _INDEXED
        return self._method

    def _explained(self, error: click.NoSuchOption, ctx: click.Context) -> click.UsageError:
        """The error for an option that another method has."""
        others: set[str] = set()
        for name in available():
            with suppress(ParameterError):  # a method of another package that cannot be loaded
                for key, described in options_of(name).items():
                    others.update(_option(key, *described).opts)
        if error.option_name not in others:
            return error
        method = self.method(ctx)
        if method == AUTO:
            return click.UsageError(
                f"{error.option_name}: method {AUTO} chooses all parameters; leave it out, or name a method",
                ctx=error.ctx,
            )
        its = ", ".join(param.opts[0] for param in self._of_method(ctx)) or "none"
        return click.UsageError(
            f"{error.option_name} is not an option of method {method}; it has {its}", ctx=error.ctx
        )


def _help_record(param: click.Parameter, ctx: click.Context, presets: Sequence[str]) -> tuple[str, str]:
    """What a help text says of a parameter."""
    record = param.get_help_record(ctx)
    assert record is not None
    return (record[0], f"{record[1]}: {', '.join(presets)}.") if param.name == "preset" else record


def method_option(what: str, default: str, *, auto: bool = False) -> Callable[[F], F]:
    """Return --method, with the names of all methods in its help, and `auto` if it is one."""
    return click.option(
        "--method",
        metavar="NAME",
        shell_complete=complete_method,
        help=f"{what}. Methods: {', '.join([*[AUTO] * auto, *available()])}.  [default: {default}]",
    )


def preset_option(command: F) -> F:
    """Return the command with --preset; its help goes on with the names that the method has."""
    return click.option("--preset", metavar="NAME", help="Parameters for a public data set")(command)


def chosen_method() -> str:
    """Return the method of the running command, where --method does not name it."""
    ctx = click.get_current_context()
    assert isinstance(ctx.command, MethodCommand)
    return ctx.command.method(ctx)


def given_parameters(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a method that somebody gave."""
    return {_key_of(name): value for name, value in params.items() if value is not None}


def complete_method(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Return what a shell offers for the name of a method; after a +, for the next part of a chain."""
    before, plus, last = incomplete.rpartition("+")
    names = available() if plus else [AUTO, *available()]
    return [f"{before}{plus}{name}" for name in names if name.startswith(last)]


def _option(
    key: str, parameter: Parameter, alone: bool, taken: Collection[str] = (), ranker: str = ""
) -> click.Option:
    """The option for a parameter.

    Args:
        key: what `create` calls it.
        parameter: what it is.
        alone: whether no other part of a chain has one of that name.
        taken: flags that the command has already; the option is then called with the method's name.
        ranker: that name, where the key does not have it.
    """
    part = key.rpartition(".")[0]
    flags = [f"--{part}-{parameter.option}"] if part else []
    own = f"--{parameter.option}"
    if alone and own not in taken:
        flags = [own, *flags]
        if parameter.name.endswith("_value"):
            flags.append(f"--{parameter.name.replace('_', '-')}")
    flags = flags or [f"--{ranker}-{parameter.option}"]
    text = parameter.help[:1].upper() + parameter.help[1:].rstrip(".") + "."
    # What is not given must stay None: presets come before defaults.
    if parameter.kind is bool:
        return click.Option([_as_identifier(key), *flags], is_flag=True, default=None, help=text)
    kind: Any = click.Choice(parameter.choices) if parameter.choices else parameter.kind
    metavar = None if parameter.choices else {int: "N", float: "X"}.get(parameter.kind, "TEXT")
    if parameter.fits is not None:
        kind, metavar = _NumberOrAuto(parameter.kind), f"{metavar}|{AUTO}"
    return click.Option(
        [_as_identifier(key), *flags],
        type=kind,
        metavar=metavar,
        help=f"{text}{_range(parameter)}  [default: {parameter.default}]",
    )


class _NumberOrAuto(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number, or `auto`."""

    def __init__(self, kind: type) -> None:
        self._number = click.types.convert_type(kind)
        self.name = self._number.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or the word."""
        return value if value == AUTO else self._number.convert(value, param, ctx)


# Parameters of methods have names of their own among those that click passes on.
_PREFIX = "method__"


def _as_identifier(key: str) -> str:
    """A name such as `dba-2.k` as click can pass it on."""
    return _PREFIX + key.replace(".", "__of__").replace("-", "__dash__")


def _key_of(name: str) -> str:
    return name.removeprefix(_PREFIX).replace("__of__", ".").replace("__dash__", "-")


def _range(parameter: Parameter) -> str:
    """The range of a number, in words."""
    least, most = parameter.least, parameter.most
    if least is not None and most is not None:
        return f"  [{least} to {most}]"
    if parameter.above is not None and least is None:
        return f"  [above {parameter.above}]"
    return "" if least is None else f"  [at least {least}]"
