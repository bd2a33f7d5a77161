"""fastdiff: fast, reproducible sampling for pixel-space diffusion models.

>>> import fastdiff
>>> model = fastdiff.load("fashion-mnist")
>>> images = fastdiff.sample(model, 64, steps=25, seed=0)  # (64, 1, 28, 28) in [-1, 1]
>>> fastdiff.save_picture(fastdiff.grid(images), "garments.png")
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from fastdiff._version import __version__

# Installed, kernels/, export/ and bench/ are in this folder; in a clone they lie beside it.
if not os.path.isdir(os.path.join(__path__[0], "kernels")):
    __path__.append(os.path.dirname(__path__[0]))

# Loaded when first used, so that neither `import fastdiff` nor `fastdiff --help` waits for torch.
_MODULES = {"export": "export", "losses": "training.losses"}
_NAMES = {
    "AnnotatedUnet": "networks.annotated",
    "ContextUnet": "networks.context",
    "Engine": "engine.engine",
    "InputError": "errors",
    "Interpolation": "engine.noise",
    "Model": "model",
    "NotFinite": "errors",
    "PhiloxNoise": "engine.noise",
    "Recipe": "training.recipe",
    "Schedule": "samplers.schedule",
    "StepTable": "samplers.table",
    "Trainer": "training.trainer",
    "animation": "images",
    "from_diffusers": "diffusers.convert",
    "from_edm": "edm",
    "grid": "images",
    "invert": "inversion",
    "load": "checkpoints.load",
    "load_data": "data.load",
    "make_schedule": "samplers.schedule",
    "make_table": "samplers.samplers",
    "read_picture": "images",
    "release": "engine.kept",
    "sample": "sampling",
    "save": "checkpoints.save",
    "save_gif": "images",
    "save_picture": "images",
}
__all__ = [*_MODULES, *_NAMES, "__version__"]

if TYPE_CHECKING:
    from fastdiff import export as export
    from fastdiff.checkpoints.load import load as load
    from fastdiff.checkpoints.save import save as save
    from fastdiff.data.load import load_data as load_data
    from fastdiff.diffusers.convert import from_diffusers as from_diffusers
    from fastdiff.edm import from_edm as from_edm
    from fastdiff.engine.engine import Engine as Engine
    from fastdiff.engine.kept import release as release
    from fastdiff.engine.noise import Interpolation as Interpolation
    from fastdiff.engine.noise import PhiloxNoise as PhiloxNoise
    from fastdiff.errors import InputError as InputError
    from fastdiff.errors import NotFinite as NotFinite
    from fastdiff.images import animation as animation
    from fastdiff.images import grid as grid
    from fastdiff.images import read_picture as read_picture
    from fastdiff.images import save_gif as save_gif
    from fastdiff.images import save_picture as save_picture
    from fastdiff.inversion import invert as invert
    from fastdiff.model import Model as Model
    from fastdiff.networks.annotated import AnnotatedUnet as AnnotatedUnet
    from fastdiff.networks.context import ContextUnet as ContextUnet
    from fastdiff.samplers.samplers import make_table as make_table
    from fastdiff.samplers.schedule import Schedule as Schedule
    from fastdiff.samplers.schedule import make_schedule as make_schedule
    from fastdiff.samplers.table import StepTable as StepTable
    from fastdiff.sampling import sample as sample
    from fastdiff.training import losses as losses
    from fastdiff.training.recipe import Recipe as Recipe
    from fastdiff.training.trainer import Trainer as Trainer


def __getattr__(name: str) -> object:
    if name in _MODULES:
        value: object = importlib.import_module(f"fastdiff.{_MODULES[name]}")
    elif name in _NAMES:
        value = getattr(importlib.import_module(f"fastdiff.{_NAMES[name]}"), name)
    else:
        raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
