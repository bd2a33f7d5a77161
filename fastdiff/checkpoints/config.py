"""A model as plain values: what a checkpoint holds beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fastdiff.diffusers import package
from fastdiff.diffusers.scheduler import Scheduler
from fastdiff.edm import Denoiser, Preconditioned
from fastdiff.errors import InputError
from fastdiff.model import Model
from fastdiff.networks.registry import NETWORKS, network_class
from fastdiff.samplers.schedule import from_config

FORMAT = 1
DIFFUSERS = "diffusers"  # in place of a network's name
EDM = "edm"  # another network with EDM's preconditioning


def network_config(network: nn.Module) -> dict[str, Any]:
    """Plain values from which `build_network` makes the network again; raises InputError for other classes."""
    for name in NETWORKS:
        if type(network) is network_class(name):
            return {"name": name, **network.options}  # type: ignore[dict-item]
    if type(network).__module__.startswith("diffusers.") and type(network).__name__ in package.NETWORKS:
        config: Any = network.config
        return {"name": DIFFUSERS, "class": type(network).__name__, "options": package.plain(config)}
    if isinstance(network, Denoiser):
        inner = network.network
        if not isinstance(inner, Preconditioned):
            raise InputError("a network of EDM cannot be saved, for its code is in no library; keep its pickle")
        return {
            "name": EDM,
            "sigma_min": network.sigma_min,
            "sigma_max": network.sigma_max,
            "sigma_data": inner.sigma_data,
            "sign": inner.sign,
            "network": network_config(inner.network),
        }
    raise InputError(
        f"a network of class {type(network).__name__} cannot be saved; accepted: {', '.join(NETWORKS)}, and of "
        f"diffusers {', '.join(package.NETWORKS)}"
    )


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """The inverse of network_config, with fresh weights; raises InputError if the values make no network."""
    options = dict(config)
    name = options.pop("name", None)
    if name == EDM:
        inner = Preconditioned(build_network(options["network"]), float(options["sigma_data"]), float(options["sign"]))
        return Denoiser(inner, float(options["sigma_min"]), float(options["sigma_max"]), None)
    if name == DIFFUSERS:
        made, options = package.network_of(options.get("class")).from_config, {"config": dict(options["options"])}
    else:
        made = network_class(name)
    try:
        return made(**options)
    except (TypeError, RuntimeError, MemoryError) as error:  # wrong options, or more memory than there is
        raise InputError(f"network {name!r} cannot be made with {options}: {error}") from error


def check_network(config: Mapping[str, Any]) -> None:
    """Raises InputError if the values make no network; takes no memory, and what is left out has its default."""
    with torch.device("meta"):
        build_network(config)


def model_config(model: Model) -> dict[str, Any]:
    """All of a model but its weights, as plain values (JSON)."""
    return {
        "format": FORMAT,
        "network": network_config(model.network),
        "schedule": model.schedule.config(),
        "prediction_type": model.prediction_type,
        "image_shape": list(model.image_shape),
        "time": model.time,
        "class_names": list(model.class_names),
        "clip": model.clip,
        **{name: value for name, value in _rare(model).items() if value is not None and value is not False},
    }


def _rare(model: Model) -> dict[str, Any]:
    """What few models have; a file says it where they do."""
    return {
        "num_classes": model.num_classes,
        "null_class": model.null_class,
        "learned_variance": model.learned_variance,
        "self_condition": model.self_condition,
        "scheduler": None if model.scheduler is None else model.scheduler.config(),
        "value_range": None if model.value_range is None else list(model.value_range),
    }


def model_from_config(config: Mapping[str, Any], network: nn.Module | None = None) -> Model:
    """The inverse of model_config; the network has fresh weights unless one is given."""
    clip, scheduler = config.get("clip"), config.get("scheduler")
    return Model(
        network=build_network(config["network"]) if network is None else network,
        schedule=from_config(config["schedule"]),
        prediction_type=config["prediction_type"],
        image_shape=tuple(config["image_shape"]),
        time=config["time"],
        class_names=config.get("class_names", ()),
        clip=tuple(clip) if isinstance(clip, list) else clip,
        num_classes=config.get("num_classes"),
        null_class=config.get("null_class"),
        learned_variance=config.get("learned_variance", False),
        self_condition=config.get("self_condition", False),
        scheduler=None if scheduler is None else Scheduler.from_config(scheduler),
        value_range=config.get("value_range"),
    )
