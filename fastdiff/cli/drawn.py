"""What pictures are drawn from, by either engine, and the words for how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.engine.context import parse_context
from fastdiff.errors import InputError


@dataclass(frozen=True)
class Drawn:
    """Images in [-1, 1], frames if they were asked for, and how they were made, in words."""

    images: Tensor
    frames: Tensor | None
    sampler: str
    steps: int
    seconds: float
    where: str


def frame_interval(steps: int, most: int | None) -> int:
    """Every how many steps a frame is taken, for at most so many frames; None is a frame for each step."""
    return 1 if most is None else max(1, -(-steps // most))


def parse_contexts(texts: Sequence[str], class_names: Sequence[str], width: int | None) -> list[list[float]]:
    """The contexts as typed, all of one width; width is that of the model's contexts, see Model.context_width."""
    if texts and width == 0:
        raise InputError(f"--context {texts[0]!r} for a model that takes no context; leave it out")
    rows = [parse_context(text, class_names).tolist() for text in texts]
    for text, row in zip(texts, rows, strict=True):
        accepted = len(rows[0]) if width is None else width
        if len(row) != accepted:
            raise InputError(f"--context {text!r} has {len(row)} numbers; accepted: {accepted}")
    return rows


def parse_classes(texts: Sequence[str], classes: int) -> list[int]:
    """Class numbers as typed, each below `classes`; raises InputError."""
    for text in texts:
        if not text.strip().isdecimal() or int(text) >= classes:
            raise InputError(f"--context {text!r} for a model of class numbers; accepted: 0 to {classes - 1}")
    return [int(text) for text in texts]


def where(device: torch.device, form: str, dtype: str) -> str:
    """How it ran, in words: "cuda:0, cuda, bfloat16"."""
    threads = torch.get_num_threads()
    cpu = f", {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else ""
    return f"{device}, {form}{cpu}, {dtype}"
