"""fastdiff: fast, reproducible sampling for pixel-space diffusion models.

>>> import fastdiff
>>> model = fastdiff.load("fashion-mnist")
>>> images = fastdiff.sample(model, 64, steps=25, seed=0)  # (64, 1, 28, 28) in [-1, 1]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastdiff._version import __version__

# Loaded when first used, so that `fastdiff --help` does not wait for torch.
_PUBLIC = {
    "AnnotatedUnet": "networks.annotated",
    "ContextUnet": "networks.context",
    "Engine": "engine.engine",
    "InputError": "errors",
    "Model": "model",
    "PhiloxNoise": "engine.noise",
    "Schedule": "samplers.schedule",
    "StepTable": "samplers.table",
    "load": "checkpoints.load",
    "make_schedule": "samplers.schedule",
    "make_table": "samplers.samplers",
    "sample": "sampling",
    "save": "checkpoints.save",
}
__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from fastdiff.checkpoints.load import load as load
    from fastdiff.checkpoints.save import save as save
    from fastdiff.engine.engine import Engine as Engine
    from fastdiff.engine.noise import PhiloxNoise as PhiloxNoise
    from fastdiff.errors import InputError as InputError
    from fastdiff.model import Model as Model
    from fastdiff.networks.annotated import AnnotatedUnet as AnnotatedUnet
    from fastdiff.networks.context import ContextUnet as ContextUnet
    from fastdiff.samplers.samplers import make_table as make_table
    from fastdiff.samplers.schedule import Schedule as Schedule
    from fastdiff.samplers.schedule import make_schedule as make_schedule
    from fastdiff.samplers.table import StepTable as StepTable
    from fastdiff.sampling import sample as sample


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastdiff.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
