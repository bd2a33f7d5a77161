"""Models from files: fastdiff's own, and what people already have. No code from a file is ever run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.checkpoints.config import FORMAT, model_from_config
from fastdiff.checkpoints.foreign import load_foreign
from fastdiff.checkpoints.shipped import locate
from fastdiff.checkpoints.tensors import load_weights, looks_like_safetensors, read_tensors
from fastdiff.errors import InputError
from fastdiff.model import Model
from fastdiff.samplers.schedule import Schedule


def load(
    name_or_path: str | Path,
    schedule: Schedule | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Model:
    """A model by name (`fashion-mnist`, `sprites`) or from a file; weights on the CPU in float32, eval mode.

    Files: fastdiff's own safetensors (a training checkpoint too: its EMA weights); state dicts of the two reference
    systems (.pt, .pth, .safetensors; bare or under "ema", "model", "state_dict", ...), told apart by their keys;
    the MindSpore tutorial's .ckpt.
    schedule, image_size: for files that do not say; the tutorial's (linear, T = 200, 28x28) or the course's unless
    given.

    Raises InputError for an unknown name, and for a file that is truncated, foreign, or would need code to be run.
    """
    path = locate(name_or_path)
    tensors, config = None, None
    if looks_like_safetensors(path):
        tensors, config = read_tensors(path)
        if config is not None:
            return _own(path, tensors, config, schedule, image_size)
    return load_foreign(path, tensors, schedule, image_size)


def stored_info(name_or_path: str | Path) -> dict[str, Any]:
    """What was kept with a model about its making: save()'s info, or how far a training run is."""
    path = locate(name_or_path)
    config = read_tensors(path)[1] if looks_like_safetensors(path) else None
    if config is None:
        return {"file": "foreign state dict"}
    if "training" in config:
        return {"file": f"training checkpoint, {config['training']['steps_done']} steps done"}
    info = config.get("info")
    return dict(info) if isinstance(info, dict) else {}


def _own(path: Path, tensors: dict[str, Tensor], config: dict[str, Any], schedule, image_size) -> Model:
    if schedule is not None or image_size is not None:
        raise InputError(f"{str(path)!r} states its own schedule and image size; leave them out")
    if config.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} has format {config.get('format')!r}; this version reads {FORMAT}")
    if "training" in config:  # a training checkpoint holds the raw weights, and the averaged ones with EMA
        part = "ema." if any(name.startswith("ema.") for name in tensors) else "model."
        tensors = {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
    try:
        model = model_from_config(config)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"{str(path)!r} has a configuration that makes no model: {error}") from error
    load_weights(model.network, tensors, path)
    return model
