"""The command `fastdiff`. Bad input prints one sentence and exits with code 2."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import click

from fastdiff._version import __version__
from fastdiff.cli.bench import bench
from fastdiff.cli.export import export
from fastdiff.cli.info import info
from fastdiff.cli.noise import noise
from fastdiff.cli.sample import sample
from fastdiff.cli.train import train
from fastdiff.errors import InputError


class Refused(click.ClickException):
    exit_code = 2


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        warnings.showwarning = lambda message, *_: click.echo(f"note: {message}", err=True)
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise Refused(str(error)) from error

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise Refused(f"unknown command {args[0]!r}; accepted: {', '.join(sorted(self.commands))}{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fastdiff")
def main() -> None:
    """Sample pixel-space diffusion models fast, the same images on every machine.

    \b
    fastdiff sample fashion-mnist                     64 garments, as a grid
    fastdiff sample sprites --context item=1 -n 16    sprites of one class
    fastdiff info my_model.pt                         what a checkpoint is
    fastdiff noise photo.jpg                          the forward process, as a strip
    fastdiff train --preset annotated -o runs/mine    train a model of your own
    fastdiff export sprites --web page/               a page that samples in the browser; or ONNX files
    fastdiff bench --quick                            how fast it is here, against the others

    `fastdiff COMMAND --help` tells more.
    """


for command in (sample, train, export, bench, noise, info):
    main.add_command(command)
