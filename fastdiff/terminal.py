"""The one place where words reach a terminal."""

from __future__ import annotations

import click
from tqdm import tqdm

from fastdiff.errors import printable


def say(text: str, *, err: bool = False) -> None:
    """A line, above any bar, whatever it quotes of a file or of the user; err: on the standard error."""
    with tqdm.external_write_mode():
        click.echo(printable(text), err=err)


def note(text: str) -> None:
    """A line that goes with a result and is no part of it."""
    say(f"note: {text}", err=True)


def show(text: str, *, newline: bool = True) -> None:
    """Lines that fastdiff made and that are printable as they are: a report, JSON, a script."""
    click.echo(text, nl=newline)
