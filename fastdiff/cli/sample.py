"""fastdiff sample."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from fastdiff.cli.options import (
    device_option,
    foreign_options,
    load_model,
    parse_clip,
    parse_device,
    parse_dtype,
    set_threads,
    threads_option,
)
from fastdiff.errors import InputError, whole

GIF_FRAMES = 40


@click.command(short_help="Images from a model.")
@click.argument("model")
@click.option("-n", "--number", "n", type=int, default=64, show_default=True, help="How many images.")
@click.option("-o", "--output", default="samples.png", show_default=True, help="Picture of all images in a grid.")
@click.option("--gif", metavar="FILE", help="Also write the denoising as an animation.")
@click.option("--npy", metavar="FILE", help="Also write the images as float32 (n, C, H, W) in [-1, 1].")
@click.option("--sampler", default="ddim", show_default=True,
              help="ddim, ddpm, ddpm_large, ddpm_no_noise, dpmpp_2m or dpmpp_2m_sde.")  # fmt: skip
@click.option("--steps", type=int, help="Network evaluations, 1 to the model's timesteps.  [default: 25; ddpm*: all]")
@click.option("--eta", type=float, default=0.0, show_default=True, help="ddim's noise, 0 (none) to 1 (as ddpm).")
@click.option("--spacing", default="trailing", show_default=True, help="trailing, leading, linspace or course.")
@click.option("--clip", metavar="CLIP", help="Clip the predicted image: off, a bound such as 1, dynamic.")
@click.option("--seed", type=int, default=0, show_default=True, help="Sample i depends on the seed and i alone.")
@click.option("--first", type=int, default=0, show_default=True, help="Index of the first sample.")
@click.option(
    "--context",
    "contexts",
    multiple=True,
    metavar="CONTEXT",
    help="item=1, a mixture monster=1,spell=0.6, or numbers 1,0,0.6. Given several times: in turn.",
)
@click.option("--guidance-scale", type=float, help="Classifier-free guidance towards the context.")
@click.option("--batch-size", type=int, help="Images run together.  [default: 64]")
@click.option("--columns", type=click.IntRange(1), help="Columns of the grid.")
@click.option("--scale", type=click.IntRange(1), help="Enlargement of the grid.")
@click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16.")
@device_option
@threads_option
@foreign_options
def sample(model: str, n: int, output: str, gif: str | None, npy: str | None, steps: int | None, clip: str | None,
           contexts: tuple[str, ...], columns: int | None, scale: int | None, dtype: str, device: str | None,
           threads: int | None, schedule: str | None, timesteps: int | None, image_size: int | None,
           **options: Any) -> None:  # fmt: skip
    """Sample images from MODEL: a shipped model's name or a checkpoint of yours.

    \b
    fastdiff sample fashion-mnist
    fastdiff sample fashion-mnist --sampler ddpm --gif denoising.gif
    fastdiff sample sprites --context item=1 --guidance-scale 2 -n 16 --gif frames.gif
    fastdiff sample sprites --context monster=1,spell=0.6 --steps 50 -o mixed.png
    fastdiff sample sprites --context monster --context item --columns 2
    fastdiff sample my_tutorial_model.pt --sampler dpmpp_2m --steps 15

    MODEL may be a fastdiff .safetensors, the folder of a training run, a state dict of the Annotated
    Diffusion U-Net or of ContextUnet (.pt, .pth), or the MindSpore tutorial's .ckpt.
    """
    _check_outputs(output, gif, npy)

    import numpy as np
    import torch

    from fastdiff import sampling
    from fastdiff.context import parse_context
    from fastdiff.files import write_atomically
    from fastdiff.images import grid, grid_layout, save_gif, save_picture
    from fastdiff.noise import LIMIT

    set_threads(threads)
    loaded = load_model(model, schedule, timesteps, image_size)
    count = steps if steps is not None else _default_steps(options["sampler"], loaded.schedule.num_timesteps)
    whole("n", n, 1, LIMIT - 1)
    grid_layout(n, *loaded.image_shape[1:], columns, scale, gap=1)
    rows = [parse_context(text, loaded.class_names) for text in contexts]
    if len({len(row) for row in rows}) > 1:
        raise InputError(f"contexts of {sorted({len(row) for row in rows})} numbers; accepted: all of one width")
    context = None
    if rows:
        start = options["first"]
        context = rows[0] if len(rows) == 1 else torch.stack([rows[(start + r) % len(rows)] for r in range(n)])
    chosen = parse_device(device)
    every = max(1, -(-count // GIF_FRAMES)) if gif else None

    began = time.perf_counter()
    result = sampling.sample(
        loaded, n, steps=count, clip=parse_clip(clip), context=context, frames=every, device=chosen,
        dtype=parse_dtype(dtype), progress=sys.stderr.isatty(), **options,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    images, frames = result if isinstance(result, tuple) else (result, None)

    save_picture(grid(images, columns, scale), output)
    written = [output]
    if gif and frames is not None:
        save_gif([grid(frame, columns, scale) for frame in frames], gif)
        written.append(gif)
    if npy:
        write_atomically(npy, lambda path: np.save(path, images.numpy()))
        written.append(npy)
    where = f"{chosen.type}, {torch.get_num_threads()} threads" if chosen.type == "cpu" else str(chosen)
    click.echo(
        f"{n} images, {options['sampler']}, {count} steps, in {seconds:.2f} s: "
        f"{n / seconds:.1f} images/s ({where}, {dtype})"
    )
    for path in written:
        click.echo(f"wrote {Path(path).resolve()}")


def _check_outputs(output: str, gif: str | None, npy: str | None) -> None:
    from fastdiff.files import check_writable
    from fastdiff.images import check_picture_name

    check_picture_name(check_writable(output))
    for path, ending in ((gif, ".gif"), (npy, ".npy")):
        if path is not None and check_writable(path).suffix.lower() != ending:
            raise InputError(f"output {path!r}; accepted: a name that ends in {ending}")
    names = [str(Path(path).resolve()) for path in (output, gif, npy) if path is not None]
    if len(set(names)) < len(names):
        raise InputError(f"two outputs have the name {output!r}; accepted: a name for each")


def _default_steps(sampler: str, timesteps: int) -> int:
    """25, and for the ddpm family, which is defined step by step, all of them."""
    return timesteps if sampler.startswith("ddpm") else min(25, timesteps)
