"""What pictures are drawn from, by either engine, and the words for how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.cli.options import chosen_nodes
from fastdiff.data.npy import numbers
from fastdiff.engine.context import parse_class, parse_context
from fastdiff.engine.request import Sampled
from fastdiff.errors import InputError
from fastdiff.images import fit_picture
from fastdiff.model import Model
from fastdiff.samplers.samplers import DEFAULT
from fastdiff.samplers.spacing import SPACING


@dataclass(frozen=True)
class Drawn:
    """Images in [-1, 1], frames if they were asked for, and how they were made, in words.

    Attributes:
        steps: what was made of --steps, in words: 25 steps.
        values: the images in the values of the model's data, see Model.values.
    """

    images: Tensor
    frames: Tensor | None
    sampler: str
    steps: str
    seconds: float
    where: str
    values: Tensor


def count_steps(steps: int, rows: int) -> str:
    """The sampler's steps in words, with the rows of its table where those are more, as with two evaluations a step."""
    return f"{steps} steps" if steps == rows else f"{steps} steps in {rows} rows"


def frame_interval(steps: int, most: int | None) -> int:
    """Every how many steps a frame is taken, for at most so many frames; None is a frame for each step."""
    return 1 if most is None else max(1, -(-steps // most))


def chosen_steps(options: dict[str, Any], model: Model) -> dict[str, Any]:
    """Of --sampler, --steps and node_options, taken out of the options, the fields of Samples."""
    sampler, steps, nodes = options.pop("sampler"), options.pop("steps"), chosen_nodes(options)
    if sampler is not None or model.scheduler is None:
        sampler, nodes["spacing"] = sampler or DEFAULT, nodes["spacing"] or SPACING
    if steps is None and nodes["timesteps"] is None:
        steps = model.default_steps(sampler)
    return {"sampler": sampler, "steps": steps, **nodes}


def parse_contexts(texts: Sequence[str], model: Sampled) -> list[Any]:
    """The contexts as typed, nested lists of one shape, or the numbers of classes; of FILE.npy what it holds."""
    width = model.context_width
    if texts and width == 0:
        raise InputError(f"--context {texts[0]!r} for a model that takes no context; leave it out")
    if model.num_classes is not None:
        return [parse_class(text, model.class_names, model.num_classes) for text in texts]
    rows = [
        _numbers(text) if text.lower().endswith(".npy") else parse_context(text, model.class_names) for text in texts
    ]
    for text, row in zip(texts, rows, strict=True):
        accepted = rows[0].shape if width is None else (width,)
        if tuple(row.shape) != tuple(accepted):
            raise InputError(f"--context {text!r} has {_sizes(row.shape)} numbers; accepted: {_sizes(accepted)}")
    return [row.tolist() for row in rows]


def _numbers(path: str) -> Tensor:
    """A context out of a file."""
    found = numbers(path)
    if found.dtype.kind not in "fiu" or found.ndim not in (1, 2):
        raise InputError(
            f"--context {path!r} holds {found.dtype} of shape {found.shape}; accepted: numbers, (L, D) or (K,)"
        )
    return torch.from_numpy(found.astype(np.float32))


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def given_pictures(options: dict[str, Any], model: Model) -> dict[str, Any]:
    """The pictures of --init, --known and --mask, which are taken out of the options, as fastdiff.sample takes them."""
    paths = {name: options.pop(name) for name in ("init", "known", "mask")}
    made = {
        name: fit_picture(paths[name], model.image_shape, model.value_range)
        for name in ("init", "known")
        if paths[name] is not None
    }
    if paths["mask"] is not None:
        made["mask"] = fit_picture(paths["mask"], (1, *model.image_shape[1:])) / 2 + 0.5
    return made


def where(device: torch.device, form: str, dtype: str) -> str:
    """How it ran, in words: "cuda:0, cuda, bfloat16"."""
    threads = torch.get_num_threads()
    cpu = f", {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else ""
    return f"{device}, {form}{cpu}, {dtype}"
