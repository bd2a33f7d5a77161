"""Folders that diffusers saves: of a pipeline, of a training run's checkpoint, or of a network alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.checkpoints.diffusers_files import INDEX, NETWORK, PARTS, SCHEDULER
from fastdiff.checkpoints.said import Said
from fastdiff.checkpoints.tensors import fill, made_for, read_tensors
from fastdiff.checkpoints.torch_file import read_torch
from fastdiff.diffusers.convert import LATENT, default_steps, model_of
from fastdiff.diffusers.package import diffusers, network_of, scheduler_of
from fastdiff.diffusers.scheduler import Scheduler
from fastdiff.errors import InputError, first_line, shown, warn_caller
from fastdiff.model import Model
from fastdiff.schema import check, read_json

STEM = "diffusion_pytorch_model"


def load_folder(path: Path, said: Said) -> Model:
    """The Model of such a folder; no code from it is run.

    Args:
        path: the folder.
        said: what the user says; a schedule and a prediction type only where the folder has no scheduler.

    Raises:
        InputError: for a pipeline of latents, a network or a scheduler that is not diffusers' own, and damaged files.
    """
    index = _read(path / INDEX) if (path / INDEX).is_file() else {}
    latent = [part for part in LATENT if _entry(index, part)]
    if latent:
        raise InputError(f"{str(path)!r} has a {latent[0]}, so it denoises latents; accepted: pipelines of pixels")
    for part in ("unet", "scheduler"):
        library, name = _entry(index, part) or ("diffusers", "")
        if library != "diffusers":
            raise InputError(f"{str(path)!r} has the {part} {library}.{name}, which is code of its own; nothing is run")
    found = next((path / part for part in PARTS if (path / part / NETWORK).is_file()), path)
    config = _read(found / NETWORK)
    made = network_of(config.get("_class_name"))
    tensors, file = _weights(found)
    try:
        network = made_for(tensors, file, made.from_config, config=dict(config))
    except InputError:
        raise
    except Exception as error:  # of another package, for options of any kind
        raise InputError(f"{str(found / NETWORK)!r} makes no network: {first_line(error)}") from error
    fill(network, tensors, file)
    scheduler = _scheduler(path, found, index, said)
    if scheduler is not None:
        return model_of(network, scheduler, said.image_size)
    return _unsaid(network, path, said)


def _scheduler(path: Path, found: Path, index: Mapping[str, Any], said: Said) -> Scheduler | None:
    """The scheduler that lies beside the network, if one does; raises InputError if the user says another schedule."""
    file = next((one for one in (path, found.parent) if (one / "scheduler" / SCHEDULER).is_file()), None)
    if file is None:
        return None
    if said.schedule is not None or said.prediction_type is not None:
        raise InputError(f"{str(path)!r} states its own schedule and prediction type; leave them out")
    options = _read(file / "scheduler" / SCHEDULER)
    name = options.pop("_class_name", None)
    pipeline = getattr(diffusers(str(name)), str(index.get("_class_name")), None)
    steps = default_steps(pipeline) if inspect.isclass(pipeline) else None
    try:
        return Scheduler.of(scheduler_of(name).from_config(options), steps)
    except InputError:
        raise
    except Exception as error:  # of another package, for options of any kind
        raise InputError(f"{str(file)!r} holds a scheduler that cannot be made: {first_line(error)}") from error


def _unsaid(network: Any, path: Path, said: Said) -> Model:
    """A network without a scheduler: with the schedule that is said, else DDPM's, with a warning."""
    kind = said.prediction_type or "epsilon"
    package = diffusers("DDPMScheduler")
    if said.schedule is None:
        assumed = package.DDPMScheduler(prediction_type=kind)
        warn_caller(
            f"{path.name} does not say the schedule of its model; assumed: DDPMScheduler(), linear with T = 1000; for "
            "another give schedule (--schedule, --timesteps), or put the folder scheduler beside it"
        )
        return model_of(network, Scheduler.of(assumed, 1000), said.image_size)
    betas = said.schedule.betas[said.schedule.first :].tolist()
    given = package.DDPMScheduler(len(betas), trained_betas=betas, prediction_type=kind)
    return model_of(network, Scheduler.of(given, len(betas)), said.image_size)


def _weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The network's weights, whole or in shards, and the file."""
    for suffix in (".safetensors", ".bin"):
        for file in sorted(folder.glob(f"{STEM}*{suffix}.index.json")):
            shards = sorted(set(check(dict[str, str], _read(file).get("weight_map", {}), repr(str(file))).values()))
            tensors: dict[str, Tensor] = {}
            for shard in shards:
                if Path(shard).name != shard or not (folder / shard).is_file():
                    raise InputError(f"{str(file)!r} names the file {shard!r}, which does not lie beside it")
                tensors |= _tensors(folder / shard)
            return tensors, file
        files: Sequence[Path] = sorted(folder.glob(f"{STEM}*{suffix}"), key=lambda file: (len(file.name), file.name))
        if files:
            return _tensors(files[0]), files[0]
    raise InputError(f"{str(folder)!r} holds no weights; looked for {STEM}.safetensors and {STEM}.bin")


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return read_tensors(file)[0]
    content = read_torch(file)
    if not isinstance(content, Mapping) or not all(isinstance(one, Tensor) for one in content.values()):
        raise InputError(f"{str(file)!r} holds no state dict; accepted: names and tensors")
    return dict(content)


def _read(file: Path) -> dict[str, Any]:
    """A JSON file of diffusers; raises InputError unless it is one."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{str(file)!r} holds a {type(content).__name__}; accepted: a configuration of diffusers")
    return content


def _entry(index: Mapping[str, Any], part: str) -> tuple[str, str] | None:
    """The library and the class of a pipeline's part; None if it has none."""
    entry = index.get(part)
    if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
        return None
    if not all(isinstance(one, str) for one in entry):
        raise InputError(f"the {INDEX} of a pipeline has {part} = {shown(entry)}; accepted: a library and a class")
    return entry[0], entry[1]
