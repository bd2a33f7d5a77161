"""fastdiff sample."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastdiff import defaults
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

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GIF_FRAMES = 40
ONNX = ".onnx"


@click.command(short_help="Images from a model.")
@click.argument("model")
@click.option("-n", "--number", "n", type=int, default=64, show_default=True, help="How many images.")
@click.option("-o", "--output", default="samples.png", show_default=True,
              help="Picture of all images in a grid; or a folder (out/), for any number of images.")  # fmt: skip
@click.option("--gif", metavar="FILE", help="Also write the denoising as an animation.")
@click.option("--npy", metavar="FILE", help="Also write the images as float32 (n, C, H, W) in [-1, 1].")
@click.option("--sampler", default=defaults.SAMPLER, show_default=True,
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
@click.option("--format", help="Of a folder's shards: npz (uint8), npy (float32) or png.  [default: npz]")
@click.option("--shard-size", type=int, help="Images in a shard.  [default: a multiple of the batch size near 1000]")
@click.option("--dtype", help="float32, bfloat16 or float16.  [default: float32]")
@click.option("--form", help="How the network runs, such as eager.  [default: the fastest for the device]")
@device_option
@threads_option
@foreign_options
def sample(model: str, output: str, **options: Any) -> None:
    """Sample images from MODEL: a shipped model's name or a checkpoint of yours.

    \b
    fastdiff sample fashion-mnist
    fastdiff sample fashion-mnist --sampler ddpm --gif denoising.gif
    fastdiff sample sprites --context item=1 --guidance-scale 2 -n 16 --gif frames.gif
    fastdiff sample sprites --context monster=1,spell=0.6 --steps 50 -o mixed.png
    fastdiff sample sprites --context monster --context item --columns 2
    fastdiff sample my_tutorial_model.pt --sampler dpmpp_2m --steps 15

    MODEL may be a fastdiff .safetensors, the folder of a training run, a state dict of the Annotated
    Diffusion U-Net or of ContextUnet (.pt, .pth), the MindSpore tutorial's .ckpt, or a sampler of
    `fastdiff export` (.onnx), whose own sampler, steps and clip hold, and whose --device is a provider
    of ONNX Runtime: cpu, cuda, tensorrt, ... Such a file draws pictures, not folders, and a --gif if it
    was exported with --stepwise.

    \b
    fastdiff sample sprites -n 50000 -o out/
    fastdiff sample sprites -n 50000 -o out/ --format png --batch-size 256
    torchrun --nproc-per-node=4 -m fastdiff sample sprites -n 50000 -o out/

    A folder takes any number of images, in shards that are written as they finish: out/samples-00000000-00001024.npz
    and so on, with arr_0 uint8 (m, H, W, C); or --format npy, float32 (m, C, H, W) in [-1, 1]; or png, a folder of
    pictures for each shard. out/manifest.json tells what made them. After Ctrl-C, a crash or a kill the same command
    goes on where it stopped, with the same bytes as a run in one piece; with a larger -n it extends the run.

    torchrun splits a run over processes and machines that share the folder: on GPUs one process for each, on CPUs
    each with the threads that a single process would take (for the same bytes), unless --threads is given.
    """
    if output.endswith(("/", os.sep)) or (output and os.path.isdir(output)):
        if model.lower().endswith(ONNX):
            raise InputError(f"the folder {output!r} for {model!r}; accepted for an .onnx file: a picture")
        _refuse(options, "the folder", output, "gif", "npy", "columns", "scale")
        from fastdiff.cli.folder import sample_to_folder

        sample_to_folder(model, output, **options)
    else:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            if os.environ.get("RANK", "0") != "0":
                raise SystemExit(2)  # the first process tells
            raise InputError(f"output {output!r} with several processes; accepted: a folder, such as -o out/")
        _refuse(options, "the picture", output, "format", "shard_size")
        _to_picture(model, output, **options)


def _refuse(options: dict[str, Any], kind: str, output: str, *names: str) -> None:
    """Options that belong to the other kind of output, out of the options."""
    for name in names:
        if options.pop(name) is not None:
            other = "a picture, such as -o samples.png" if kind == "the folder" else "a folder, such as -o out/"
            raise InputError(f"--{name.replace('_', '-')} with {kind} {output!r}; accepted: with {other}")


@dataclass(frozen=True)
class Drawn:
    """Images in [-1, 1], frames if they were asked for, and how they were made, in words."""

    images: Tensor
    frames: Tensor | None
    sampler: str
    steps: int
    seconds: float
    where: str


def _to_picture(model: str, output: str, n: int, gif: str | None, npy: str | None, columns: int | None,
                scale: int | None, **options: Any) -> None:  # fmt: skip
    _check_outputs(output, gif, npy)

    import numpy as np

    from fastdiff.files import write_atomically
    from fastdiff.images import grid, grid_layout, save_gif, save_picture
    from fastdiff.noise import LIMIT

    set_threads(options["threads"])
    whole("n", n, 1, LIMIT - 1)

    def check_grid(image_shape: tuple[int, int, int]) -> None:
        grid_layout(n, *image_shape[1:], columns, scale, gap=1)

    draw: Callable[..., Drawn] = _draw
    if model.lower().endswith(ONNX):
        from fastdiff.cli.onnx import draw_from_onnx

        draw = draw_from_onnx
    drawn = draw(model, n, gif is not None, check_grid, **options)

    save_picture(grid(drawn.images, columns, scale), output)
    written = [output]
    if gif and drawn.frames is not None:
        save_gif([grid(frame, columns, scale) for frame in drawn.frames], gif)
        written.append(gif)
    if npy:
        write_atomically(npy, lambda path: np.save(path, drawn.images.numpy()))
        written.append(npy)
    click.echo(
        f"{n} images, {drawn.sampler}, {drawn.steps} steps, in {drawn.seconds:.2f} s: "
        f"{n / drawn.seconds:.1f} images/s ({drawn.where})"
    )
    for path in written:
        click.echo(f"wrote {Path(path).resolve()}")


def _draw(model: str, n: int, animated: bool, check_grid: Callable[..., None], steps: int | None, clip: str | None,
          contexts: tuple[str, ...], dtype: str | None, form: str | None, device: str | None, threads: int | None,
          schedule: str | None, timesteps: int | None, image_size: int | None, **options: Any) -> Drawn:  # fmt: skip
    from fastdiff import sampling
    from fastdiff.forms import choose_form

    loaded = load_model(model, schedule, timesteps, image_size)
    count = steps if steps is not None else default_steps(options["sampler"], loaded.schedule.num_timesteps)
    check_grid(loaded.image_shape)
    context = contexts_in_turn(parse_contexts(contexts, loaded.class_names), options["first"], n)
    chosen, dtype = parse_device(device), dtype or "float32"
    form = choose_form(form, chosen, parse_dtype(dtype)).name

    began = time.perf_counter()
    result = sampling.sample(
        loaded, n, steps=count, clip=parse_clip(clip), context=context, frames=frames_of(count) if animated else None,
        device=chosen, dtype=parse_dtype(dtype), form=form, progress=sys.stderr.isatty(), **options,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    images, frames = result if isinstance(result, tuple) else (result, None)
    return Drawn(images, frames, options["sampler"], count, seconds, where(chosen, form, dtype))


def frames_of(steps: int) -> int:
    """Every how many steps a frame is taken."""
    return max(1, -(-steps // GIF_FRAMES))


def contexts_in_turn(rows: list[Tensor], first: int, n: int) -> Tensor | None:
    """One context for all, or a row for each sample, the contexts taking turns by the sample's index."""
    import torch

    if len(rows) < 2:
        return rows[0] if rows else None
    return torch.stack([rows[(first + r) % len(rows)] for r in range(n)])


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


def default_steps(sampler: str, timesteps: int) -> int:
    """25, and for the ddpm family, which is defined step by step, all of them."""
    return timesteps if sampler.startswith("ddpm") else min(defaults.STEPS, timesteps)


def parse_contexts(texts: Sequence[str], class_names: Sequence[str]) -> list[Tensor]:
    """The contexts as typed, all of one width."""
    from fastdiff.context import parse_context

    rows = [parse_context(text, class_names) for text in texts]
    if len({len(row) for row in rows}) > 1:
        raise InputError(f"contexts of {sorted({len(row) for row in rows})} numbers; accepted: all of one width")
    return rows


def where(device: torch.device, form: str, dtype: str) -> str:
    """How it ran, in words: "cpu, native, 2 threads, float32"."""
    import torch

    threads = torch.get_num_threads()
    cpu = f", {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else ""
    return f"{device}, {form}{cpu}, {dtype}"
