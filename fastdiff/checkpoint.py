"""Checkpoints: fastdiff's own format, and what people already have. No code from a file is ever run.

The own format is one safetensors file; its metadata entry "fastdiff" is JSON with everything that makes the Model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fastdiff.errors import InputError, unknown
from fastdiff.files import write_atomically
from fastdiff.model import Model
from fastdiff.networks import AnnotatedUnet, ContextUnet
from fastdiff.schedule import Schedule, from_config

FORMAT = 1
NETWORKS: dict[str, type[nn.Module]] = {"annotated": AnnotatedUnet, "context": ContextUnet}
SHIPPED = Path(__file__).parent / "models"


def shipped_models() -> dict[str, Path]:
    """Name → checkpoint of the models that come with the package."""
    return {path.parent.name: path for path in sorted(SHIPPED.glob("*/model.safetensors"))}


def network_config(network: nn.Module) -> dict[str, Any]:
    """Plain values from which `build_network` makes the network again."""
    for name, kind in NETWORKS.items():
        if type(network) is kind:
            return {"name": name, **network.options}  # type: ignore[dict-item]
    raise InputError(f"a network of class {type(network).__name__} cannot be saved; accepted: {', '.join(NETWORKS)}")


def build_network(config: Mapping[str, Any]) -> nn.Module:
    options = dict(config)
    name = options.pop("name", None)
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    try:
        return NETWORKS[name](**options)
    except (TypeError, RuntimeError, MemoryError) as error:  # wrong options, or more memory than there is
        raise InputError(f"network {name!r} cannot be made with {options}: {error}") from error


def model_config(model: Model) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "network": network_config(model.network),
        "schedule": model.schedule.config(),
        "prediction_type": model.prediction_type,
        "image_shape": list(model.image_shape),
        "time": model.time,
        "class_names": list(model.class_names),
        "clip": model.clip,
    }


def model_from_config(config: Mapping[str, Any], network: nn.Module | None = None) -> Model:
    """The inverse of model_config; the network has fresh weights unless one is given."""
    clip = config.get("clip")
    return Model(
        network=build_network(config["network"]) if network is None else network,
        schedule=from_config(config["schedule"]),
        prediction_type=config["prediction_type"],
        image_shape=tuple(config["image_shape"]),
        time=config["time"],
        class_names=config.get("class_names", ()),
        clip=tuple(clip) if isinstance(clip, list) else clip,
    )


def save(
    model: Model, path: str | Path, dtype: torch.dtype | None = None, info: Mapping[str, Any] | None = None
) -> None:
    """Write a model as one safetensors file, atomically.

    dtype: of the stored weights (float16 halves the file); None keeps them. Integers stay as they are.
    info: plain values kept in the metadata, shown by `fastdiff info`.
    """
    tensors = {
        name: value.detach().to("cpu", dtype if dtype and value.is_floating_point() else value.dtype).contiguous()
        for name, value in model.network.state_dict().items()
    }
    write_tensors(path, tensors, {**model_config(model), "info": dict(info or {})})


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
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
    from fastdiff.foreign import load_foreign

    path = _locate(name_or_path)
    tensors, config = None, None
    if looks_like_safetensors(path):
        tensors, config = read_tensors(path)
        if config is not None:
            return _own(path, tensors, config, schedule, image_size)
    return load_foreign(path, tensors, schedule, image_size)


def stored_info(name_or_path: str | Path) -> dict[str, Any]:
    """What was kept with a model about its making: save()'s info, or how far a training run is."""
    path = _locate(name_or_path)
    config = read_tensors(path)[1] if looks_like_safetensors(path) else None
    if config is None:
        return {"file": "foreign state dict"}
    if "training" in config:
        return {"file": f"training checkpoint, {config['training']['steps_done']} steps done"}
    info = config.get("info")
    return dict(info) if isinstance(info, dict) else {}


def looks_like_safetensors(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    return path.suffix == ".safetensors" or (len(head) == 9 and head[8:9] == b"{")


def _locate(name_or_path: str | Path) -> Path:
    shipped = shipped_models()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    path = Path(name_or_path)
    try:
        if path.is_dir() and (path / "model.safetensors").is_file():
            return path / "model.safetensors"  # the folder of a training run
        found = path.is_file()
    except OSError:  # a name too long
        found = False
    if not found:
        raise unknown("model (neither a file nor a shipped model)", str(name_or_path), shipped)
    return path


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


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """load_state_dict(strict=True), worded as one sentence; leaves the network in eval mode."""
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    if missing or unexpected or wrong:
        kinds = (("missing", missing), ("unexpected", unexpected), ("wrong shape", sorted(wrong)))
        what = "; ".join(f"{len(keys)} {kind} ({keys[0]}, ...)" for kind, keys in kinds if keys)
        raise InputError(f"{str(path)!r} does not fit {type(network).__name__}: {what}")
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise InputError(f"{str(path)!r} holds NaN or infinity in {len(broken)} tensors ({broken[0]}, ...)")
    network.load_state_dict(dict(tensors), strict=True)
    network.eval()
