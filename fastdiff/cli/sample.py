"""fastdiff sample."""

from __future__ import annotations

import os
from typing import Any

import click

from fastdiff.cli.options import ONNX, device_option, foreign_options, listed, steps_help, threads_option
from fastdiff.errors import InputError
from fastdiff.samplers.samplers import DEFAULT, SAMPLERS
from fastdiff.samplers.spacing import SPACINGS


@click.command(short_help="Images from a model.")
@click.argument("model")
@click.option("-n", "--number", "n", type=int, default=64, show_default=True, help="How many images.")
@click.option(
    "-o",
    "--output",
    default="samples.png",
    show_default=True,
    help="Picture of all images in a grid; or a folder (out/), for any number of images.",
)
@click.option("--gif", metavar="FILE", help="Also write the denoising as an animation.")
@click.option("--npy", metavar="FILE", help="Also write the images as float32 (n, C, H, W) in [-1, 1].")
@click.option("--sampler", default=DEFAULT, show_default=True, help=f"{listed(SAMPLERS)}.")
@click.option("--steps", type=int, help=steps_help())
@click.option("--eta", type=float, default=0.0, show_default=True, help="ddim's noise, 0 (none) to 1 (as ddpm).")
@click.option("--spacing", default="trailing", show_default=True, help=f"{listed(SPACINGS)}.")
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
        from fastdiff.cli.picture import sample_to_picture

        sample_to_picture(model, output, **options)


def _refuse(options: dict[str, Any], kind: str, output: str, *names: str) -> None:
    """Options that belong to the other kind of output, out of the options."""
    for name in names:
        if options.pop(name) is not None:
            other = "a picture, such as -o samples.png" if kind == "the folder" else "a folder, such as -o out/"
            raise InputError(f"--{name.replace('_', '-')} with {kind} {output!r}; accepted: with {other}")
