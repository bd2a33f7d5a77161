"""Named tensors in safetensors files, and into networks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.files import write_atomically
from fastdiff.model import Model

# What reading a network's sizes off a state dict raises where keys are missing or shapes are not as expected.
ODD_SHAPES = (KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError, MemoryError)


def mismatch(error: Exception) -> str:
    """One of ODD_SHAPES in words: the key that is missing, or what the shapes gave."""
    return f"it has no {error.args[0]}" if isinstance(error, KeyError) else f"its tensors have odd shapes ({error})"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """A safetensors file, whole or not at all, its configuration as JSON in the metadata entry "fastdiff"."""
    metadata = {"fastdiff": json.dumps(config)}
    write_atomically(path, lambda temporary: save_file(dict(tensors), temporary, metadata=metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """A safetensors file's tensors, and its fastdiff configuration or None."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("fastdiff")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a whole safetensors file ({error})") from error
    try:
        config = json.loads(metadata) if metadata else None
        if config is not None and not isinstance(config, dict):
            raise ValueError(f"it is {metadata!r}")
    except ValueError as error:
        raise InputError(f"{str(path)!r} has a damaged configuration ({error})") from error
    return tensors, config


def looks_like_safetensors(path: Path) -> bool:
    """By its name, or by its ninth byte, with which the JSON header begins."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    return path.suffix == ".safetensors" or (len(head) == 9 and head[8:9] == b"{")


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy tensors into the network and put it in eval mode; an InputError names keys or shapes that do not match."""
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    if missing or unexpected or wrong:
        kinds = (("missing", missing), ("unexpected", unexpected), ("wrong shape", sorted(wrong)))
        what = "; ".join(f"{len(keys)} {kind} ({keys[0]}, ...)" for kind, keys in kinds if keys)
        raise InputError(f"{str(path)!r} does not match {type(network).__name__}: {what}")
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise InputError(f"{str(path)!r} holds NaN or infinity in {len(broken)} tensors ({broken[0]}, ...)")
    network.load_state_dict(dict(tensors), strict=True)
    network.eval()


def filled(path: Path, tensors: Mapping[str, Tensor], model: Model) -> Model:
    """The model, with these weights in float32 in its network."""
    floats = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    load_weights(model.network, floats, path)
    return model
