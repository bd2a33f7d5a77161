"""fastdiff sample."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import click

from fastdiff.cli.completion import complete, complete_model
from fastdiff.cli.options import (
    ONNX,
    engine_options,
    foreign_options,
    listed,
    node_options,
    refusing_nan,
    sampler_list,
    sampler_options,
)
from fastdiff.errors import InputError
from fastdiff.samplers.prediction import FRAMES
from fastdiff.samplers.spacing import STRENGTH
from fastdiff.shards.formats import DEFAULT as DEFAULT_FORMAT
from fastdiff.shards.formats import FORMATS
from fastdiff.shards.launch import Launch


@click.command(short_help="Images from a model.", epilog=sampler_list())
@click.argument("model", shell_complete=complete_model)
@click.option("-n", "--number", "n", type=int, default=64, show_default=True, help="Number of images, at least 1.")
@click.option(
    "-o",
    "--output",
    default="samples.png",
    show_default=True,
    help="A picture of all images in a grid; or a folder (out/), for any number of images.",
)
@click.option("--gif", metavar="FILE.gif", help="Also write the denoising as an animation.")
@click.option("--gif-frames", metavar="N", help="At most N frames of the animation, or all: one a step.  [default: 40]")
@click.option(
    "--gif-of",
    help="What it shows: x, the noisy images, or x0, what the network takes them for.  [default: x]",
    shell_complete=complete(FRAMES),
)
@click.option(
    "--npy",
    metavar="FILE.npy",
    help="Also write the images as float32 (n, C, H, W) in [-1, 1], or in the values "
    "that the model was trained on, if they were not of 8 bits.",
)
@sampler_options
@node_options
@click.option(
    "--clip",
    metavar="CLIP",
    help="Clip the predicted image: off, a bound such as 1, dynamic (at the 0.995 quantile) or dynamic=0.99.  "
    "[default: the model's own]",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="0 to 2^63 - 1. Image i depends on the seed and i alone."
)
@click.option("--first", type=int, default=0, show_default=True, help="Index i of the first image, 0 to 2^63 - 1 - n.")
@click.option(
    "--context",
    "contexts",
    multiple=True,
    metavar="CONTEXT",
    help="item, a mixture monster=1,spell=0.6, numbers 1,0,0.6, or FILE.npy of (L, D) tokens. Given several times: the "
    "images take turns.",
)
@click.option(
    "--guidance-scale",
    type=float,
    help="Classifier-free guidance towards the context; 1 is none, and half the work.  [default: 1]",
)
@click.option(
    "--init", metavar="PICTURE", help="Begin with this picture, cut and resized to the model's images and noised."
)
@click.option(
    "--strength",
    type=float,
    help=f"With --init, the share of the steps that are run: 1 keeps hardly anything.  [default: {STRENGTH}]",
)
@click.option("--noise", metavar="FILE.npy", help="Begin with this noise, float32 (n, C, H, W); see fastdiff invert.")
@click.option("--known", metavar="PICTURE", help="With --mask: keep this picture, cut and resized, where the mask is.")
@click.option("--mask", metavar="PICTURE", help="With --known: white where it is kept, black where it is drawn.")
@click.option(
    "--resample",
    type=int,
    default=1,
    show_default=True,
    help="With --mask: how often each step is run, so that what is drawn fits in; for samplers that have no memory, "
    "such as ddim and ddpm.",
)
@click.option("--batch-size", type=int, help="Images computed together, at least 1.  [default: 64]")
@click.option(
    "--columns", type=click.IntRange(1), help="Images in a row of the grid.  [default: the square root of their number]"
)
@click.option("--scale", type=click.IntRange(1), help="Enlargement of the grid.  [default: to about 640 pixels]")
@click.option(
    "--format",
    help=f"Of a folder's shards: {listed(f'{name} ({one.holds})' for name, one in FORMATS.items())}.  "
    f"[default: {DEFAULT_FORMAT}]",
    shell_complete=complete(FORMATS),
)
@click.option("--shard-size", type=int, help="Images in a shard.  [default: a multiple of the batch size near 1000]")
@click.option("--allow-nan", is_flag=True, help="Write images that hold NaN or infinity too; NaN is black there.")
@engine_options
@foreign_options
def sample(model: str, output: str, **options: Any) -> None:
    """Sample images from MODEL: a shipped model's name, or a checkpoint of your own.

    \b
    fastdiff sample fashion-mnist
    fastdiff sample fashion-mnist --sampler ddpm --gif denoising.gif --gif-frames all
    fastdiff sample sprites --context item --guidance-scale 2 -n 16 --gif frames.gif
    fastdiff sample sprites --context monster=1,spell=0.6 --steps 50 -o mixed.png
    fastdiff sample sprites --context monster --context item --columns 2
    fastdiff sample fashion-mnist --init shoe.png --strength 0.6 -n 16
    fastdiff sample fashion-mnist --known shoe.png --mask sole.png --sampler ddpm --steps 50 --resample 5
    fastdiff sample my_tutorial_model.pt --sampler dpmpp_2m --steps 15 --sigmas karras
    fastdiff sample my-ddpm-folder/ --steps 50
    fastdiff sample my_course_model.pth --class-names hero,food,spell --context food

    A checkpoint is a .safetensors of fastdiff, the folder of a training run, a state dict of the Annotated
    Diffusion U-Net or of ContextUnet (.pt, .pth, .safetensors), the MindSpore tutorial's .ckpt, or a folder that
    diffusers saved, which is sampled with its own scheduler unless --sampler names another.

    A sampler of `fastdiff export` (.onnx) runs in ONNX Runtime, with the sampler, steps and clip that were exported;
    --device is a provider: cpu, cuda, tensorrt, ... It draws pictures, and an animation if it was exported with
    --stepwise; not folders.

    \b
    fastdiff sample sprites -n 50000 -o out/
    fastdiff sample sprites -n 50000 -o out/ --format png --batch-size 256
    torchrun --nproc-per-node=4 -m fastdiff sample sprites -n 50000 -o out/

    A folder takes any number of images, in shards that are written as they finish, such as
    out/samples-00000000-00001024.npz, with arr_0 uint8 (m, H, W, C); with --format npy float32 (m, C, H, W), as
    --npy has them; with png a folder of pictures, of 16 bits if the model was trained on such. out/manifest.json says
    what made them. After Ctrl-C, a crash or a kill, the same command goes on where it stopped, and gives the same bytes
    as a run in one piece; a larger -n extends the run.

    --init, --known and --mask go into a folder as well, --noise does not.

    torchrun splits a run over processes and machines that share the folder: one process for each GPU. On CPUs each
    process takes as many threads as a single one would, for the same bytes, unless --threads is given.
    """
    with nullcontext() if options.pop("allow_nan") else refusing_nan("; --allow-nan writes them all the same"):
        _sample(model, output, options)


def _sample(model: str, output: str, options: dict[str, Any]) -> None:
    if output.endswith(("/", os.sep)) or (output and os.path.isdir(output)):
        if model.lower().endswith(ONNX):
            raise InputError(f"the folder {output!r} for {model!r}; accepted for an .onnx file: a picture")
        _refuse(options, "the folder", output, *OF_GRIDS, "noise")
        from fastdiff.cli.folder import sample_to_folder

        sample_to_folder(model, output, **options)
    else:
        launch = Launch.read()
        if launch.world > 1:
            if launch.rank > 0:
                raise SystemExit(2)  # the first process reports it
            raise InputError(f"output {output!r} with several processes; accepted: a folder, such as -o out/")
        _refuse(options, "the picture", output, "format", "shard_size")
        from fastdiff.cli.picture import sample_to_picture

        sample_to_picture(model, output, **options)


OF_GRIDS = ("gif", "gif_frames", "gif_of", "npy", "columns", "scale")


def _refuse(options: dict[str, Any], kind: str, output: str, *names: str) -> None:
    """Options that belong to the other kind of output, out of the options."""
    for name in names:
        if options.pop(name) is not None:
            other = "a picture, such as -o samples.png" if kind == "the folder" else "a folder, such as -o out/"
            raise InputError(f"--{name.replace('_', '-')} with {kind} {output!r}; accepted: with {other}")
