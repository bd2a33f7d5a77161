"""fastdiff: fast, reproducible sampling for pixel-space diffusion models.

>>> import fastdiff
>>> model = fastdiff.load("fashion-mnist")
>>> images = fastdiff.sample(model, 64, steps=25, seed=0)  # (64, 1, 28, 28) in [-1, 1]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded when first used, so that `fastdiff --help` does not wait for torch.
_PUBLIC = {
    "AnnotatedUnet": "networks",
    "ContextUnet": "networks",
    "Engine": "engine",
    "InputError": "errors",
    "Model": "model",
    "PhiloxNoise": "noise",
    "Schedule": "schedule",
    "StepTable": "table",
    "load": "checkpoint",
    "make_schedule": "schedule",
    "make_table": "table",
    "sample": "sampling",
    "save": "checkpoint",
}
__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from fastdiff.checkpoint import load as load
    from fastdiff.checkpoint import save as save
    from fastdiff.engine import Engine as Engine
    from fastdiff.errors import InputError as InputError
    from fastdiff.model import Model as Model
    from fastdiff.networks import AnnotatedUnet as AnnotatedUnet
    from fastdiff.networks import ContextUnet as ContextUnet
    from fastdiff.noise import PhiloxNoise as PhiloxNoise
    from fastdiff.sampling import sample as sample
    from fastdiff.schedule import Schedule as Schedule
    from fastdiff.schedule import make_schedule as make_schedule
    from fastdiff.table import StepTable as StepTable
    from fastdiff.table import make_table as make_table


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastdiff.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
