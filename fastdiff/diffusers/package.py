"""The package diffusers itself, an extra, and what is taken of it by name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from fastdiff.errors import InputError, unknown_name

NETWORKS = ("UNet2DModel", "UNet2DConditionModel")


def diffusers(what: str) -> ModuleType:
    """The package; raises InputError, which says what needs it, where it is not installed."""
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise InputError(f"{what} is of diffusers, which is not installed: pip install 'diffusers>=0.35'") from error


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of diffusers as plain values (JSON).

    Without its private entries: one of them lists options given by position as if they had not been given.
    """
    public = {name: value for name, value in config.items() if not name.startswith("_")}
    made: dict[str, Any] = json.loads(json.dumps(public, default=lambda value: np.asarray(value).tolist()))
    return made


def network_of(name: object) -> Any:
    """The class of a network; raises InputError for another name."""
    if name not in NETWORKS:
        raise unknown_name("network of diffusers", str(name), NETWORKS)
    return getattr(diffusers(str(name)), str(name))


def scheduler_of(name: object) -> Any:
    """The class of a scheduler; raises InputError for another name."""
    package = diffusers(str(name))
    found = getattr(package, str(name), None)
    if not (isinstance(found, type) and issubclass(found, package.SchedulerMixin)):
        raise InputError(f"scheduler {name!r}; accepted: the name of one of diffusers, such as DDIMScheduler")
    return found
