"""fastdiff completion, and what the shell offers while a command is being typed. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from fastdiff.checkpoints.shipped import shipped_models
from fastdiff.errors import unknown_name
from fastdiff.terminal import show

SHELLS = ("bash", "zsh", "fish")
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete(names: Iterable[str]) -> Complete:
    """Completion among names."""
    return lambda context, parameter, begun: [CompletionItem(name) for name in names if name.startswith(begun)]


def complete_model(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The shipped models, and files."""
    return [*complete_file(context, parameter, begun), *complete(shipped_models())(context, parameter, begun)]


def complete_file(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Files, as the shell itself finds them; before any names, which bash would forget otherwise."""
    return [CompletionItem(begun, type="file")]


def complete_folder(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Folders, as the shell itself finds them."""
    return [CompletionItem(begun, type="dir")]


@click.command(short_help="Completion of commands, models and samplers by the Tab key.")
@click.argument("shell", shell_complete=complete(SHELLS))
def completion(shell: str) -> None:
    """Print the script that has SHELL (bash, zsh or fish) complete fastdiff's commands, options, models and samplers.

    \b
    bash   add to ~/.bashrc:  eval "$(fastdiff completion bash)"
    zsh    add to ~/.zshrc:   eval "$(fastdiff completion zsh)"
    fish   once:              fastdiff completion fish > ~/.config/fish/completions/fastdiff.fish
    """
    made = get_completion_class(shell) if shell in SHELLS else None
    if made is None:
        raise unknown_name("shell", shell, SHELLS)
    root = click.get_current_context().find_root().command
    show(made(root, {}, "fastdiff", "_FASTDIFF_COMPLETE").source())
