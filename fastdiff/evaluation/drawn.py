"""A model's samples for an evaluation, in a folder where an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.data.images import ImageData
from fastdiff.engine.request import check_batch_size
from fastdiff.evaluation.proportions import held_out, repeated
from fastdiff.images import to_unit
from fastdiff.model import Model
from fastdiff.shards.manifest import RESTORED, Samples, model_facts, plain, read_manifest
from fastdiff.shards.processes import Processes
from fastdiff.shards.run import ShardRun

SEED = 0
SHARD_BATCHES = 4  # batches that are lost at most when a run is stopped
OF_THE_FOLDER = ("batch_size", "threads", "device")  # a folder that is there keeps its own


class Stopped(Exception):
    """The samples were not finished: a stop was asked for."""


def in_turn(model: Model) -> list[Any]:
    """A context for each class of the model; none where it takes no classes."""
    if model.num_classes is not None:
        named = len(model.class_names) or model.num_classes  # the null class has no name
        return [k for k in range(named) if k != model.null_class]
    return torch.eye(model.context_width or 0).tolist()


def class_names(model: Model) -> list[str]:
    """Of those classes, as reports call them; numbers where they have no names."""
    turns = in_turn(model)
    numbers = range(len(turns)) if model.num_classes is None else turns
    return [model.class_names[k] if model.class_names else str(k) for k in numbers]


@dataclass(frozen=True)
class Classes:
    """The classes that a model's samples have, and which of the data's they are.

    Attributes:
        contexts: what the samples are given, one after another and again; none where the model takes no classes.
        order: of each of these, its place in `in_turn`.
        known: of each in `in_turn`, its name, and its column in the data's labels; none where that is not known.
        why: it is not known, or "".
        alike: whether the classes come as often as among the held-out pictures; else they come in turn, if at all.
    """

    contexts: list[Any]
    order: list[int]
    known: list[tuple[str, int]]
    why: str
    alike: bool

    @classmethod
    def of(cls, model: Model, data: ImageData) -> Classes:
        turns, (known, why) = in_turn(model), _known(model, data)
        counts = held_out(data)
        own = [counts[column] for _, column in known]
        order = repeated(own) if sum(own) else list(range(len(turns)))
        return cls([turns[k] for k in order], order, known, why, sum(own) > 0)


def _known(model: Model, data: ImageData) -> tuple[list[tuple[str, int]], str]:
    """Which class of the data each of the model's is.

    Returns:
        The model's classes, in turn, each with its column in the data's labels; and why there are none, or "".
    """
    names, width = class_names(model), data.labels.shape[1]
    if not names:
        return [], "the model takes no classes"
    if not width:
        return [], "the data has no labels"
    if len(names) != width:
        return [], f"the model has {len(names)} classes, the data {width}"
    if set(names) == set(data.class_names):
        return [(name, data.class_names.index(name)) for name in names], ""
    if data.unnamed or not model.class_names:
        return [(name, column) for column, name in enumerate(names)], ""
    return [], f"the model's classes are {', '.join(names)}, the data's {', '.join(data.class_names)}"


def folder_name(name: str, model: Model, asked: Samples, options: dict[str, Any], format: str = "npz") -> str:
    """One for each model, by its weights, and each way to sample from it and to keep that, whatever their number."""
    values: Any = {**model_facts(model, ""), **{k: v for k, v in asked.values(model).items() if k != "n"}}
    values["computed"] = [options.get("dtype"), options.get("form"), format]
    digest = hashlib.sha256(json.dumps(plain(values), sort_keys=True).encode()).hexdigest()
    words = "-".join([*Path(name).parts[:-1], Path(name).stem][-2:])
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', words).lstrip('.-') or 'model'}-{digest[:10]}"


def draw(
    model: Model,
    name: str,
    asked: Samples,
    folder: Path,
    options: dict[str, Any],
    *,
    format: str = "npz",
    progress: Callable[[int], object] = lambda made: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, str]:
    """The folder's images, made where they are missing.

    Args:
        model: what is sampled from.
        name: as the user gave it.
        asked: which samples.
        folder: of shards; one that is there keeps its batch size, threads and device.
        options: batch_size, threads, dtype, form and device, as far as they were given.
        format: npz, or npy.
        progress: called with the number of images that are there.
        stop: asked before every batch.

    Returns:
        (n, C, H, W), uint8 of npz, float32 in [-1, 1] of npy; and what made them, in words.

    Raises:
        Stopped: if `stop` said so.
        InputError: for a folder of other samples, and what ShardRun raises.
    """
    given = {**dict.fromkeys(RESTORED), **options, "format": format, "shard_size": None}
    there, wanted = read_manifest(folder), asked.n
    if there is None:
        given["shard_size"] = SHARD_BATCHES * check_batch_size(given["batch_size"])
    else:  # its first samples serve, where it was begun for more
        given.update(dict.fromkeys(OF_THE_FOLDER))
        asked = replace(asked, n=max(wanted, there["samples"]["n"]))
    with ShardRun(model, name, asked, folder, given, Processes(given["device"])) as run:
        progress(min(wanted, run.images_done))
        if not run.run(lambda made: progress(min(wanted, run.images_done + made)), stop, end=wanted):
            raise Stopped
        parts = [_read(run.folder.file(shard), format) for shard in run.plan if shard.begin < wanted]
        if format == "npy" and model.value_range is not None:  # in which they were written
            parts = [to_unit(part, model.value_range) for part in parts]
        used, made_by = run.manifest["configuration"], run.manifest["fastdiff"]
    threads = used.get("threads")
    counted = [f"{threads} thread{'s' if threads > 1 else ''}"] if threads else []
    how = ", ".join([used["device"], used["form"], *counted, used["dtype"]])
    return torch.cat(parts)[:wanted], f"fastdiff {made_by} ({how})"


def _read(path: Path, format: str) -> Tensor:
    found = np.load(path, allow_pickle=False)
    return torch.from_numpy(found if format == "npy" else found["arr_0"].transpose(0, 3, 1, 2))
