"""State dicts of ContextUnet, of the course How Diffusion Models Work and of the MNIST script before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from fastdiff.checkpoints.said import Said
from fastdiff.checkpoints.tensors import made_for, read_off
from fastdiff.errors import InputError, warn_caller
from fastdiff.model import Model
from fastdiff.networks.context import ContextUnet
from fastdiff.samplers.schedule import make_schedule


def context_model(path: Path, tensors: Mapping[str, Tensor], said: Said) -> Model:
    """The Model of a state dict; by default with the course's schedule, T = 500, or T = 400 for the MNIST script's.

    That script's own files, of its DDPM, say what theirs is.
    """
    with read_off(path, "ContextUnet"):
        n_feat, in_channels = tensors["init_conv.conv1.0.weight"].shape[:2]
        height = 4 * tensors["up0.0.weight"].shape[2]
        shortcut = "init_conv.shortcut.weight" in tensors
        mnist = "down1.model.1.conv1.0.weight" not in tensors
        classes = tensors["contextembed1.model.0.weight"].shape[1]
        network = made_for(
            tensors,
            path,
            ContextUnet,
            in_channels=in_channels,
            n_feat=n_feat,
            n_cfeat=classes,
            height=height,
            shortcut=shortcut,
            edition="mnist" if mnist else "course",
        )
    if said.image_size not in (None, height, (height, height)):
        raise InputError(f"image_size = {said.image_size}; the network in {str(path)!r} takes {height}")
    if not (shortcut or mnist) and in_channels != n_feat:
        warn_caller(
            f"{path.name}: the published network draws its first shortcut at random in every pass, so no checkpoint "
            "has it; it is taken as zero, its mean"
        )
    usual = Said(make_schedule("course", 400 if mnist else 500), height, "epsilon")
    return replace(said, image_size=height).model(path, network, tensors, in_channels, usual, time="fraction")
