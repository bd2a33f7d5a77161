"""How Diffusion Models Work: ContextUnet, by its state dict."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastdiff.checkpoints.tensors import ODD_SHAPES, filled
from fastdiff.errors import InputError
from fastdiff.model import Model
from fastdiff.networks.context import ContextUnet
from fastdiff.samplers.schedule import make_schedule


def context(path: Path, tensors: Mapping[str, Tensor], schedule, image_size) -> Model:
    try:
        n_feat, in_channels = tensors["init_conv.conv1.0.weight"].shape[:2]
        height = 4 * tensors["up0.0.weight"].shape[2]
        shortcut = "init_conv.shortcut.weight" in tensors
        network = ContextUnet(in_channels, n_feat, tensors["contextembed1.model.0.weight"].shape[1], height, shortcut)
    except InputError:
        raise
    except ODD_SHAPES as error:
        raise InputError(f"{str(path)!r} is no whole ContextUnet: it lacks {error}") from error
    if image_size not in (None, height, (height, height)):
        raise InputError(f"image_size = {image_size}; the network in {str(path)!r} takes {height}")
    if not shortcut and in_channels != n_feat:
        warnings.warn(
            f"{path.name}: the published network draws its first shortcut at random in every pass, so no checkpoint "
            "has it; it is taken as zero, its mean",
            stacklevel=4,
        )
    return filled(
        path,
        tensors,
        Model(
            network,
            schedule or make_schedule("course", 500),
            image_shape=(in_channels, height, height),
            time="fraction",
        ),
    )
