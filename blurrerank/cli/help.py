"""`blurrerank help`: show help for commands and for file formats."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files

import click

TOPICS: Mapping[str, tuple[str, ...]] = {
    "features": ("files/features_h5",),
    "rankings": ("files/ranking_h5", "files/trec", "files/jsonl", "files/csv_lists", "files/npz"),
    "candidates": ("files/candidates",),
    "index-files": ("index/index_h5",),
    "probes": ("files/probes",),
    "calibrations": ("files/score_calibrations",),
    "sweeps": ("studies/sweep_files",),
    "tunings": ("studies/tune_files",),
    "other-tools": ("files/foreign/__init__",),
}
"""Topic -> the modules whose docstrings describe it."""


def topic_text(topic: str) -> str:
    """Return the help text of a topic of `TOPICS`."""
    # Parsed, not imported, to be fast.
    sources = [
        files("blurrerank").joinpath(f"{module}.py").read_text(encoding="utf-8") for module in TOPICS[topic]
    ]
    return "\n\n".join(ast.get_docstring(ast.parse(source)) or "" for source in sources)


def shown_commands(group: click.Group) -> list[str]:
    """Return the names of the commands of a group, without the hidden ones."""
    return [name for name, command in sorted(group.commands.items()) if not command.hidden]


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return which of the known names to take in place of an unknown one."""
    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"


def _list_topics(root: click.Context) -> list[str]:
    commands = root.command
    assert isinstance(commands, click.Group)
    return [*shown_commands(commands), *TOPICS]


def _complete_topic(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _list_topics(ctx.find_root()) if name.startswith(incomplete)]


@click.command("help", short_help="Show help for a command or a file format.")
@click.argument("topic", required=False, shell_complete=_complete_topic)
@click.pass_context
def help_command(ctx: click.Context, topic: str | None) -> None:
    """Show help for a command or a topic; without an argument, list them all.

    \b
    blurrerank help run
    blurrerank help features
    """
    root = ctx.find_root()
    commands = root.command
    assert isinstance(commands, click.Group)
    if topic is None:
        click.echo(commands.get_help(root))
        click.echo("\nTopics (blurrerank help TOPIC):")
        for name in TOPICS:
            click.echo(f"  {name:<12}  {topic_text(name).splitlines()[0]}")
        return
    if topic in TOPICS:
        click.echo_via_pager(topic_text(topic) + "\n")
        return
    command = commands.get_command(root, topic)
    if command is None:
        raise click.UsageError(f"there is no help for {topic!r}: {suggestion(topic, _list_topics(root))}")
    with click.Context(command, info_name=topic, parent=root) as context:
        click.echo(command.get_help(context))
