"""fastdiff invert."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click

from fastdiff.cli.completion import complete, complete_file, complete_model
from fastdiff.cli.options import DTYPES, device_option, foreign_options, listed, threads_option
from fastdiff.errors import InputError
from fastdiff.samplers.spacing import SPACINGS
from fastdiff.terminal import say


@click.command(short_help="The noise from which a model makes pictures.")
@click.argument("model", shell_complete=complete_model)
@click.argument("pictures", nargs=-1, required=True, shell_complete=complete_file)
@click.option(
    "-o", "--output", metavar="FILE.npy", default="noise.npy", show_default=True, help="x_T, float32 (n, C, H, W)."
)
@click.option("--steps", type=int, default=50, show_default=True, help="Of the DDIM run that leads back, from 2.")
@click.option(
    "--spacing",
    default="trailing",
    show_default=True,
    help=f"Which timesteps it takes: {listed(SPACINGS)}.",
    shell_complete=complete(SPACINGS),
)
@click.option(
    "--context", "contexts", multiple=True, metavar="CONTEXT", help="Of the pictures, as in fastdiff sample; in turn."
)
@click.option(
    "--dtype",
    help=f"What the network computes in: {listed(DTYPES)}.  [default: float32]",
    shell_complete=complete(DTYPES),
)
@device_option
@threads_option
@foreign_options
def invert(model: str, pictures: tuple[str, ...], output: str, **options: Any) -> None:
    """Find the noise from which MODEL makes PICTURES, by DDIM backwards.

    \b
    fastdiff invert sprites cat.png --steps 100
    fastdiff sample sprites -n 1 --sampler ddim --steps 100 --clip off --noise noise.npy

    The second command draws what is near to the picture: the distance halves where the steps double. Pictures are cut
    and resized to the model's images.
    """
    from fastdiff.files import check_writable, save_npy

    if check_writable(output).suffix != ".npy":
        raise InputError(f"output {output!r}; accepted: a name that ends in .npy")

    import torch

    from fastdiff.cli.drawn import parse_contexts
    from fastdiff.cli.options import load_model, parse_device, parse_dtype, refusing_nan
    from fastdiff.engine.context import in_turn
    from fastdiff.engine.placement import set_threads
    from fastdiff.images import fit_picture
    from fastdiff.inversion import invert as inverted

    set_threads(options["threads"])
    loaded = load_model(model, options)
    images = torch.stack([fit_picture(path, loaded.image_shape, loaded.value_range) for path in pictures])
    began = time.perf_counter()
    with refusing_nan():
        noise = inverted(
            loaded,
            images,
            steps=options["steps"],
            spacing=options["spacing"],
            context=in_turn(parse_contexts(options["contexts"], loaded)),
            device=parse_device(options["device"]),
            dtype=parse_dtype(options["dtype"] or "float32"),
            progress=sys.stderr.isatty(),
        )
    save_npy(noise.numpy(), output)
    steps, seconds = options["steps"], time.perf_counter() - began
    say(f"{len(images)} picture{'s' * (len(images) > 1)}, {steps} steps of ddim backwards, in {seconds:.2f} s")
    say(f"wrote {Path(output).resolve()}")
    words = f"-n {len(images)} --sampler ddim --steps {steps} --clip off --noise {os.path.relpath(output)}"
    words += "".join(f" --context {shlex.quote(text)}" for text in options["contexts"])
    say(f"back again: fastdiff sample {shlex.quote(model)} {words}")
