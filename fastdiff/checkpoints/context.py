"""State dicts of ContextUnet, the network of the course How Diffusion Models Work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastdiff.checkpoints.tensors import ODD_SHAPES, assume, fill, mismatch
from fastdiff.errors import InputError, warn_caller
from fastdiff.model import Model
from fastdiff.networks.context import ContextUnet
from fastdiff.samplers.prediction import usual_clip
from fastdiff.samplers.schedule import Schedule, make_schedule


def context_model(
    path: Path,
    tensors: Mapping[str, Tensor],
    schedule: Schedule | None,
    image_size: int | tuple[int, int] | None,
) -> Model:
    """The Model of a state dict; by default with the course's schedule, T = 500."""
    try:
        n_feat, in_channels = tensors["init_conv.conv1.0.weight"].shape[:2]
        height = 4 * tensors["up0.0.weight"].shape[2]
        shortcut = "init_conv.shortcut.weight" in tensors
        network = ContextUnet(in_channels, n_feat, tensors["contextembed1.model.0.weight"].shape[1], height, shortcut)
    except InputError:
        raise
    except ODD_SHAPES as error:
        raise InputError(f"{str(path)!r} does not match ContextUnet: {mismatch(error)}") from error
    if image_size not in (None, height, (height, height)):
        raise InputError(f"image_size = {image_size}; the network in {str(path)!r} takes {height}")
    if not shortcut and in_channels != n_feat:
        warn_caller(
            f"{path.name}: the published network draws its first shortcut at random in every pass, so no checkpoint "
            "has it; it is taken as zero, its mean"
        )
    fill(network, tensors, path)
    assume(path, schedule=None if schedule else "course, 500 timesteps")
    schedule = schedule or make_schedule("course", 500)
    clip = usual_clip("epsilon", schedule.alphas_cumprod)
    return Model(network, schedule, image_shape=(in_channels, height, height), time="fraction", clip=clip)
