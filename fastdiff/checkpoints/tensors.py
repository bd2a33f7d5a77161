"""Named tensors in safetensors files, and into networks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fastdiff.errors import InputError, first_line
from fastdiff.files import write_atomically


@contextmanager
def read_off(path: Path, network: str) -> Iterator[None]:
    """What keys that are missing and shapes that are odd raise, while a network is made of them, as an InputError."""
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{str(path)!r} does not match {network}: it has no {error.args[0]}") from error
    except (IndexError, ValueError, ZeroDivisionError, RuntimeError, MemoryError) as error:
        raise InputError(f"{str(path)!r} does not match {network}: its tensors have odd shapes ({error})") from error


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a safetensors file, whole or not at all, with config as JSON in the metadata entry "fastdiff"."""
    metadata = {"fastdiff": json.dumps(config)}

    def write(made: Path) -> None:
        try:
            save_file(dict(tensors), made, metadata=metadata)
        except SafetensorError as error:  # what the system refused, as on a full disk
            raise InputError(f"cannot write {str(path)!r}: {first_line(error)}") from error

    write_atomically(path, write)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """A safetensors file's tensors, and its fastdiff configuration or None; raises InputError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a whole safetensors file ({error})") from error
    return tensors, read_config(path)


def read_config(path: Path) -> dict[str, Any] | None:
    """The fastdiff configuration of a safetensors file alone, or None; raises InputError if its header is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("fastdiff")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a whole safetensors file ({error})") from error
    try:
        config = json.loads(metadata) if metadata else None
        if config is not None and not isinstance(config, dict):
            raise ValueError(f"it is {metadata!r}")
    except ValueError as error:
        raise InputError(f"{str(path)!r} has a damaged configuration ({error})") from error
    return config


def looks_like_safetensors(path: Path) -> bool:
    """Whether the file's name, or its ninth byte, where the JSON header begins, is a safetensors file's."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    return path.suffix == ".safetensors" or (len(head) == 9 and head[8:9] == b"{")


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy tensors into the network and put it in eval mode.

    Args:
        network: of any class.
        tensors: a tensor for each key of its state dict.
        path: the tensors' file, for errors.

    Raises:
        InputError: for keys or shapes that do not match, which it names, or values that are not finite.
    """
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    if missing or unexpected or wrong:
        faults = (("missing", missing), ("unexpected", unexpected), ("wrong shape", sorted(wrong)))
        what = "; ".join(f"{len(keys)} {fault} ({keys[0]}, ...)" for fault, keys in faults if keys)
        raise InputError(f"{str(path)!r} does not match {type(network).__name__}: {what}")
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise InputError(f"{str(path)!r} holds NaN or infinity in {len(broken)} tensors ({broken[0]}, ...)")
    network.load_state_dict(dict(tensors), strict=True)
    network.eval()


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """load_weights, in float32."""
    load_weights(network, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, path)
