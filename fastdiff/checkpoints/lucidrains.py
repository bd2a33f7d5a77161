"""State dicts of denoising-diffusion-pytorch's Unet, alone or in its GaussianDiffusion, and its trainer's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.checkpoints.resnet_unet import unet_options
from fastdiff.checkpoints.said import Said
from fastdiff.checkpoints.tensors import read_off
from fastdiff.errors import InputError
from fastdiff.model import Model
from fastdiff.networks.lucidrains import LucidrainsUnet


def lucidrains_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """LucidrainsUnet's arguments, read off a state dict's keys and shapes."""
    options = unet_options(tensors)
    full, heads, head_dims, memories = [], [], [], 0
    for level in range(len(options["dim_mults"])):
        attention = f"downs.{level}.2"
        full.append(f"{attention}.to_out.weight" in tensors)
        _, count, *sizes = tensors[f"{attention}.mem_kv"].shape
        memories, head_dim = sizes if full[-1] else reversed(sizes)
        heads.append(count)
        head_dims.append(head_dim)
    learned = tensors.get("time_mlp.0.weights")
    return {
        **options,
        "heads": heads,
        "head_dim": head_dims,
        "full_attention": full,
        "memories": memories,
        "learned_sinusoids": 0 if learned is None else len(learned),
    }


def _refuse_other_kinds(path: Path, tensors: Mapping[str, Tensor]) -> None:
    taken, made = tensors["init_conv.weight"].shape[1], tensors["final_conv.weight"].shape[0]
    if "mid_block1.block1.norm.weight" in tensors:
        raise InputError(
            f"{str(path)!r} is of denoising-diffusion-pytorch with GroupNorm in its blocks, an early version that is "
            "not supported yet; accepted: those with RMSNorm"
        )
    if taken == 2 * made:
        raise InputError(
            f"{str(path)!r} is of a network with self-conditioning (it takes {taken} channels and predicts {made}), "
            "which is not supported yet"
        )
    if made != taken:
        raise InputError(
            f"{str(path)!r} is of a network that takes {taken} channels and predicts {made}; accepted: as many, for a "
            "learned variance is not supported yet"
        )


def lucidrains_model(path: Path, tensors: Mapping[str, Tensor], said: Said) -> Model:
    """The Model of a state dict, which clips to [-1, 1] as the library does; all but the weights must be said."""
    with read_off(path, "LucidrainsUnet"):
        _refuse_other_kinds(path, tensors)
        network = LucidrainsUnet(**lucidrains_options(tensors))
    said.required(path)
    return said.model(path, network, tensors, network.channels, said, clip=1.0)
