"""The command `fastdiff`. Bad input prints one sentence and exits with code 2."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Any

import click

from fastdiff._version import __version__
from fastdiff.cli.bench import bench
from fastdiff.cli.completion import completion
from fastdiff.cli.eval import evaluate
from fastdiff.cli.export import export
from fastdiff.cli.group import Group
from fastdiff.cli.info import info
from fastdiff.cli.invert import invert
from fastdiff.cli.noise import noise
from fastdiff.cli.options import printable
from fastdiff.cli.sample import sample
from fastdiff.cli.stop import INTERRUPTED
from fastdiff.cli.train import train
from fastdiff.errors import InputError
from fastdiff.temporary import say_command


class Refused(click.ClickException):
    exit_code = 2


class Commands(Group):
    def main(self, *args: Any, **options: Any) -> Any:
        # Read when torch is loaded. Else the threads of its own operations spin while they wait for one another, and on
        # a busy machine the one that has work waits for the spinning ones to be put to sleep.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        try:
            return super().main(*args, **options)
        except OSError as error:
            *_, (frame, _) = traceback.walk_tb(error.__traceback__)
            if frame.f_code is not click.echo.__code__:
                raise
            # What is still in stdout's buffer would fail once more when the process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            click.echo(f"Error: cannot write to standard output: {error.strerror}", err=True)
            raise SystemExit(1) from None

    def invoke(self, context: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: click.echo(f"note: {printable(str(message))}", err=True)
            try:
                return super().invoke(context)
            except InputError as error:
                raise Refused(printable(str(error))) from error
            except KeyboardInterrupt:
                click.echo("stopped", err=True)
                raise SystemExit(INTERRUPTED) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fastdiff")
@click.pass_context
def main(context: click.Context) -> None:
    """Sample pixel-space diffusion models, fast and reproducibly.

    \b
    fastdiff sample fashion-mnist                     64 garments, as a grid
    fastdiff sample sprites --context item=1 -n 16    sprites of one class
    fastdiff info my_model.pt                         what a checkpoint is
    fastdiff invert sprites cat.png                   the noise from which a model makes a picture
    fastdiff noise photo.jpg                          the forward process, as a strip
    fastdiff train --preset annotated -o runs/mine    train a model of your own
    fastdiff eval runs/mine --data my_pictures/       how good it is: Fréchet distance, precision, recall, copies
    fastdiff export sprites --web page/               a page that samples in the browser; or ONNX files
    fastdiff bench --quick                            how fast it is here, against the others
    fastdiff completion bash                          the Tab key completes commands and models

    `fastdiff COMMAND --help` says more.
    """
    say_command(str(context.invoked_subcommand))


for command in (sample, train, evaluate, export, bench, invert, noise, info, completion):
    main.add_command(command)
