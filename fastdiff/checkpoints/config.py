"""A model as plain values: what a checkpoint holds beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import Ge, Le, Len
from torch import nn
from typing_extensions import TypedDict

from fastdiff.diffusers import package
from fastdiff.diffusers.scheduler import Scheduler
from fastdiff.edm import Denoiser, Preconditioned
from fastdiff.errors import InputError, first_line, shown
from fastdiff.model import Model
from fastdiff.networks.registry import NETWORKS, network_class
from fastdiff.samplers.schedule import from_config
from fastdiff.schema import Finite, First

FORMAT = 1
LEVELS = 100  # of numbers in one option of a network, which has one for each level
Count = Annotated[int, Ge(1), Le(2**31)]


class ModelConfig(TypedDict):
    """What model_config writes; `info` and `training` of files have readers of their own."""

    format: int
    network: dict[str, Any]
    schedule: dict[str, Any]
    prediction_type: str
    image_shape: Annotated[list[Count], Len(3, 3)]
    time: str
    class_names: NotRequired[Annotated[list[str], First()]]
    clip: NotRequired[Finite | list[str | Finite] | None]
    num_classes: NotRequired[Count | None]
    null_class: NotRequired[Annotated[int, Ge(0)] | None]
    learned_variance: NotRequired[bool]
    self_condition: NotRequired[bool]
    scheduler: NotRequired[dict[str, Any] | None]
    value_range: NotRequired[Annotated[list[Finite], Len(2, 2)] | None]


DIFFUSERS = "diffusers"  # in place of a network's name
EDM = "edm"  # another network with EDM's preconditioning


class Training(TypedDict):
    """What training.checkpoint writes besides, as the entry `training`."""

    recipe: dict[str, Any]
    steps_done: Annotated[int, Ge(0)]
    fingerprint: int
    data: NotRequired[dict[str, Any]]
    command: NotRequired[str]
    wishes: NotRequired[dict[str, Any]]
    accumulate: NotRequired[Count]


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
    _check_sizes(options)
    try:
        if name == EDM:
            inner = build_network(options["network"])
            whole = Preconditioned(inner, float(options["sigma_data"]), float(options["sign"]))
            return Denoiser(whole, float(options["sigma_min"]), float(options["sigma_max"]), None)
        if name == DIFFUSERS:
            return package.network_of(options.get("class")).from_config(dict(options["options"]))
        return network_class(name)(**options)
    except InputError:
        raise
    except Exception as error:  # of any constructor, for options of any kind
        raise InputError(f"network {shown(name)} cannot be made with {shown(options)}: {first_line(error)}") from error


def _check_sizes(options: Any) -> None:
    """Raises InputError for numbers and lists that no network has, before something is made so often."""
    if isinstance(options, int) and abs(options) > 2**31 or isinstance(options, (list, str)) and len(options) > LEVELS:
        raise InputError(f"a network with the option {shown(options)}; accepted: numbers to 2^31, lists of {LEVELS}")
    if isinstance(options, (list, dict)):
        for one in options.values() if isinstance(options, dict) else options:
            _check_sizes(one)


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
    """The inverse of model_config; the network has fresh weights unless one is given.

    Raises:
        InputError: for values that make no model.
    """
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
