"""The networks that are measured, by name: A28@28 and B@16 as shipped, the others with random weights."""

from __future__ import annotations

import re
from functools import cache

import torch
from torch import nn

import fastdiff
from fastdiff.bench.reference import AnnotatedReference, ContextReference
from fastdiff.errors import InputError

SHIPPED = {"A28@28": "fashion-mnist", "B@16": "sprites"}
NAMES = ("A28@28", "A28@32", "A28@64", "A64@28", "A64@32", "A64@64", "B@16")


@cache
def load(name: str) -> fastdiff.Model:
    """The model of that name; raises InputError for another.

    A28@32 is the Annotated U-Net of dim 28 on 32x32 pictures, with one channel at 28 pixels and three above; B is the
    course's ContextUnet. Those that do not ship have random weights from one seed: times do not depend on them, and a
    random network amplifies rounding less than a trained one.
    """
    if name in SHIPPED:
        return fastdiff.load(SHIPPED[name])
    parts = re.fullmatch(r"A(28|64)@(28|32|64)", name)
    if parts is None:
        raise InputError(f"network {name!r}; accepted: {', '.join(NAMES)}")
    dim, size = map(int, parts.groups())
    channels = 1 if size == 28 else 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = fastdiff.AnnotatedUnet(dim, channels=channels)
    return fastdiff.Model(network, fastdiff.make_schedule("linear", 200), image_shape=(channels, size, size))


def published(model: fastdiff.Model) -> nn.Module:
    """The published network with the model's weights."""
    options = model.network.options
    if isinstance(model.network, fastdiff.AnnotatedUnet):
        chosen = ("dim", "init_dim", "dim_mults", "channels", "edition")
        made: nn.Module = AnnotatedReference(**{k: options[k] for k in chosen})
    else:
        chosen = ("in_channels", "n_feat", "n_cfeat", "height")
        shortcut = "trained" if options["shortcut"] else "zero"
        made = ContextReference(**{k: options[k] for k in chosen}, shortcut=shortcut)
    made.load_state_dict(model.network.state_dict())
    return made.eval().requires_grad_(False)
