"""The command `fastdiff`. Bad input prints one sentence and exits with code 2."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
from fastdiff.cli.sample import sample
from fastdiff.cli.stop import INTERRUPTED, Interrupter, handled_by
from fastdiff.cli.train import train
from fastdiff.cli.tune import tune
from fastdiff.errors import InputError, printable
from fastdiff.temporary import say_command
from fastdiff.terminal import heard, note, open_streams, say, silence


class Refused(click.ClickException):
    exit_code = 2


@contextmanager
def refusals() -> Iterator[None]:
    """Bad input in click's own form, in a sentence that is printable; a stop as an exit."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except InputError as error:
        raise Refused(printable(str(error))) from error
    except getattr(click.exceptions, "NoArgsIsHelpError", ()):  # the help, of many lines
        raise
    except click.UsageError as error:
        raise click.UsageError(printable(error.format_message()), error.ctx) from error


class Commands(Group):
    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command, and end the process: 0, 2 for bad input, 130 where it was stopped."""
        # Read when torch is loaded. Else the threads of its own operations spin while they wait for one another, and on
        # a busy machine the one that has work waits for the spinning ones to be put to sleep.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        if not options.get("standalone_mode", True):
            return super().main(*args, **options)
        open_streams()
        try:
            with handled_by(Interrupter()):
                code = super().main(*args, **{**options, "standalone_mode": False})
        except click.ClickException as error:
            with heard():
                error.show()
            code = error.exit_code
        except (KeyboardInterrupt, click.Abort):  # outside of any command
            say("stopped", err=True)
            code = INTERRUPTED
        except OSError as error:
            *_, (frame, _) = traceback.walk_tb(error.__traceback__)
            if frame.f_code is not click.echo.__code__:
                raise
            silence(sys.stdout)
            say(f"Error: cannot write to standard output: {error.strerror}", err=True)
            code = 1
        raise SystemExit(code or 0)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with refusals():
            return super().make_context(*args, **options)

    def invoke(self, context: click.Context) -> Any:
        with refusals(), warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: note(str(message))
            return super().invoke(context)


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
    fastdiff tune sprites                             fit the kernels to a GPU, once
    fastdiff completion bash                          the Tab key completes commands and models

    `fastdiff COMMAND --help` says more.
    """
    say_command(str(context.invoked_subcommand))


for command in (sample, train, evaluate, export, bench, tune, invert, noise, info, completion):
    main.add_command(command)
