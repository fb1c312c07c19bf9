"""Write the pages that come from the code: commands.md from --help, formats.md from docstrings.

make docs runs it, and a test fails where a page is stale.
"""

from __future__ import annotations

from pathlib import Path

import click

from blurrerank.cli import cli
from blurrerank.cli.help import TOPICS, topic_text


def commands() -> str:
    """The command reference."""
    with click.Context(cli, info_name="blurrerank", terminal_width=100, **cli.context_settings) as root:
        parts = ["# Commands\n\nWhat `--help` says of each; made by `make docs`.", _fenced(cli.get_help(root))]
        for name, command in sorted(cli.commands.items()):
            if not command.hidden:
                with click.Context(command, info_name=name, parent=root) as context:
                    parts += [f"## {name}", _fenced(command.get_help(context))]
    return "\n\n".join(parts) + "\n"


def formats() -> str:
    """The file formats."""
    parts = [
        "# File formats\n\n"
        "What `blurrerank help TOPIC` says of each; made by `make docs`. Native files have a version,\n"
        "`format_version`, which is raised when an older program could no longer read them; a file of a later\n"
        "version is refused, never guessed at."
    ]
    for topic in TOPICS:
        parts += [f"## {topic}", topic_text(topic)]
    return "\n\n".join(parts) + "\n"


PAGES = {"commands.md": commands, "formats.md": formats}


def _fenced(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"


if __name__ == "__main__":
    for name, page in PAGES.items():
        Path(__file__).with_name(name).write_text(page(), encoding="utf-8")
