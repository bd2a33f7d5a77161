"""fastdiff sample, from a sampler's .onnx file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch
from tqdm.auto import tqdm

from fastdiff.cli.drawn import Drawn, parse_contexts
from fastdiff.cli.options import FOREIGN, NODES, chosen_nodes, given_flags
from fastdiff.engine.context import in_turn
from fastdiff.errors import InputError, whole_number
from fastdiff.export import OnnxSampler
from fastdiff.images import from_unit
from fastdiff.samplers.samplers import DEFAULT

# Options that the file has settled; those of the table are free where it holds none.
SETTLED = ("clip", "dtype", "form", "gif_of", *FOREIGN)
OF_PICTURES = ("init", "strength", "noise", "known", "mask", "resample")
MOST_DEVICES = 1024
OF_TABLES = ("sampler", "steps", "eta", *NODES)


def draw_from_onnx(
    model: str,
    n: int,
    every: Callable[[int], int] | None,
    check_grid: Callable[..., None],
    contexts: tuple[str, ...],
    device: str | None,
    threads: int | None,
    **options: Any,
) -> Drawn:
    """What `sample` draws, by ONNX Runtime; see picture._draw."""
    sampler = OnnxSampler(model, None if device is None else [_provider(device)], threads=threads)
    own = sampler.description["sampler"]
    _refuse(model, SETTLED if own is None else (*SETTLED, *OF_TABLES), "which has settled that when it was exported")
    _refuse(model, OF_PICTURES, "which begins with noise of its own and goes to the end")
    table = None
    if own is None:
        options["sampler"] = options["sampler"] or DEFAULT
        table = sampler.table(options["sampler"], options["steps"], eta=options["eta"], **chosen_nodes(options))
    if every is not None and not sampler.stepwise:
        raise InputError(f"--gif from {model!r}, which runs its loop whole; accepted: a file made with --stepwise")
    check_grid(sampler.image_shape)
    total = sampler.steps(table)
    given = in_turn(parse_contexts(contexts, sampler))

    began = time.perf_counter()
    with tqdm(total=n * total, disable=not sys.stderr.isatty(), unit="evaluation", leave=False) as bar:
        result = sampler.sample(
            n,
            seed=options["seed"],
            first=options["first"],
            context=given,
            guidance_scale=options["guidance_scale"],
            table=table,
            frames=None if every is None else every(total),
            batch_size=options["batch_size"],
            on_step=bar.update,
        )
    seconds = time.perf_counter() - began
    images, frames = result if isinstance(result, tuple) else (result, None)
    name = own["name"] if own is not None else options["sampler"]
    short = sampler.provider.removesuffix("ExecutionProvider")
    drawn, value_range = _in_range(images), sampler.description.get("value_range")
    return Drawn(
        drawn,
        None if frames is None else torch.from_numpy(frames),
        name,
        f"{total} steps",
        seconds,
        f"ONNX Runtime, {short}, {sampler.description['dtype']}",
        drawn if value_range is None else from_unit(drawn, value_range),
    )


def _in_range(images: np.ndarray) -> torch.Tensor:
    """uint8 pictures (n, H, W, C) → (n, C, H, W) in [-1, 1]; floats stay as they are."""
    if images.dtype != np.uint8:
        return torch.from_numpy(images)
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _provider(device: str) -> Any:
    """cuda:1 as a provider with its device; a name stays one."""
    name, colon, number = device.partition(":")
    if not colon:
        return name
    index = whole_number(number)
    if index is None or index > MOST_DEVICES:
        raise InputError(f"device {device!r}; accepted for an .onnx file: cpu, cuda, cuda:1, tensorrt, ...")
    return name, {"device_id": index}


def _refuse(model: str, names: tuple[str, ...], why: str) -> None:
    for name, flag in given_flags(click.get_current_context()).items():
        if name in names:
            raise InputError(f"{flag} with {model!r}, {why}; leave it out")
