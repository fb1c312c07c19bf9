"""`blurrerank completion`: print the shell completion script."""

from __future__ import annotations

import click


@click.command(short_help="Print a shell completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL: it completes commands, options, methods and files.

    \b
    blurrerank completion bash >> ~/.bashrc
    blurrerank completion zsh >> ~/.zshrc
    blurrerank completion fish > ~/.config/fish/completions/blurrerank.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "blurrerank", "_BLURRERANK_COMPLETE").source())
