"""State dicts of denoising-diffusion-pytorch's Unet, alone or in its GaussianDiffusion, and its trainer's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.checkpoints.resnet_unet import check_usual_heads, unet_options
from fastdiff.checkpoints.said import Said
from fastdiff.checkpoints.tensors import made_for, read_off
from fastdiff.errors import InputError, warn_caller
from fastdiff.model import Model
from fastdiff.networks.blocks import HEAD_DIM, HEADS
from fastdiff.networks.lucidrains import LucidrainsClassUnet, LucidrainsLayerNormUnet, LucidrainsUnet
from fastdiff.networks.resnet_unet import ResnetUnet

GROUPS = 8  # of the blocks' GroupNorms, unless its user chose another number, which no file says


def lucidrains_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """LucidrainsUnet's arguments, read off a state dict's keys and shapes."""
    options = unet_options(tensors)
    full, heads, head_dims, memories = [], [], [], 0
    for level in range(len(options["dim_mults"])):
        attention = f"downs.{level}.2"
        full.append(f"{attention}.to_out.weight" in tensors)
        if _without_memories(tensors):
            check_usual_heads(len(tensors[f"{attention}.to_qkv.weight"]))
            count, head_dim = HEADS, HEAD_DIM
        else:
            _, count, *sizes = tensors[f"{attention}.mem_kv"].shape
            memories, head_dim = sizes if full[-1] else reversed(sizes)
        heads.append(count)
        head_dims.append(head_dim)
    return {
        **options,
        "heads": heads,
        "head_dim": head_dims,
        "full_attention": full,
        "memories": memories,
        "learned_sinusoids": _learned(tensors),
        "groups": GROUPS if "mid_block1.block1.norm.weight" in tensors else 0,
    }


def _without_memories(tensors: Mapping[str, Tensor]) -> bool:
    return not any(name.endswith("mem_kv") for name in tensors)


def _learned(tensors: Mapping[str, Tensor]) -> int:
    frequencies = tensors.get("time_mlp.0.weights")
    return 0 if frequencies is None else len(frequencies)


def _refuse_other_kinds(path: Path, tensors: Mapping[str, Tensor]) -> None:
    first = tensors["init_conv.weight"]
    taken, made = first.shape[1], tensors["final_conv.weight"].shape[0]
    if first.ndim == 3:
        raise InputError(f"{str(path)!r} is of denoising-diffusion-pytorch's Unet1D; accepted: networks of pictures")
    if made not in (taken, 2 * taken, taken / 2):
        raise InputError(
            f"{str(path)!r} is of a network that takes {taken} channels and predicts {made}; accepted: as many; twice "
            "as many, with a learned variance; or half as many, with self-conditioning"
        )


def lucidrains_model(path: Path, tensors: Mapping[str, Tensor], said: Said) -> Model:
    """The Model of a state dict, which clips to [-1, 1] as the library does; all but the weights must be said."""
    with read_off(path, "LucidrainsUnet"):
        _refuse_other_kinds(path, tensors)
        network = made_for(tensors, path, LucidrainsUnet, **lucidrains_options(tensors))
    return _clipped(path, network, tensors, said)


def class_model(path: Path, tensors: Mapping[str, Tensor], said: Said) -> Model:
    """The same of the classifier-free edition, whose attention has other names for the same."""
    bare = {name.replace(".fn.norm.", ".norm.").replace(".fn.fn.", "."): value for name, value in tensors.items()}
    if "mid_block1.block1.norm.weight" in bare:
        raise InputError(
            f"{str(path)!r} is of the classifier-free edition of denoising-diffusion-pytorch before 2.0, which is not "
            "supported; make the network with its own code, load these weights, and sample fastdiff.Model(...)"
        )
    with read_off(path, "LucidrainsClassUnet"):
        _refuse_other_kinds(path, bare)
        options = unet_options(bare)
        if options.pop("self_condition"):
            raise ValueError("twice as many channels as it predicts")
        check_usual_heads(len(bare["mid_attn.to_qkv.weight"]))
        classes = len(bare["classes_emb.weight"])
        options |= {"num_classes": classes + 1, "learned_sinusoids": _learned(bare)}
        network = made_for(bare, path, LucidrainsClassUnet, **options)
    return _clipped(path, network, bare, said, num_classes=classes + 1, null_class=classes)


def layernorm_model(path: Path, tensors: Mapping[str, Tensor], said: Said) -> Model:
    """The same of versions 0.32 to 1.6; version 1.7 has the same names, and other norms and convolutions."""
    down = tensors.get("downs.0.3.weight")
    if down is not None and down.shape[-1] == 4:
        raise InputError(
            f"{str(path)!r} is of denoising-diffusion-pytorch before 0.32, whose attention changed under the same "
            "names; accepted: 0.32 to 1.6, and from 1.8 on"
        )
    if said.version is None:
        warn_caller(
            f"{path.name} does not say by which version of denoising-diffusion-pytorch it was made; assumed: 0.32 to "
            "1.6, not 1.7, whose tensors have the same names"
        )
    elif said.version.startswith("1.7."):
        raise InputError(
            f"{str(path)!r} is of denoising-diffusion-pytorch {said.version}, whose network changed from release to "
            "release; accepted: 0.32 to 1.6, and from 1.8 on"
        )
    with read_off(path, "LucidrainsLayerNormUnet"):
        _refuse_other_kinds(path, tensors)
        options = unet_options(tensors)
        check_usual_heads(len(tensors["mid_attn.fn.fn.to_qkv.weight"]))
        options |= {"groups": GROUPS, "learned_sinusoids": _learned(tensors)}
        network = made_for(tensors, path, LucidrainsLayerNormUnet, **options)
    return _clipped(path, network, tensors, said)


def _clipped(path: Path, network: ResnetUnet, tensors: Mapping[str, Tensor], said: Said, **more: Any) -> Model:
    said.required(path)
    learned = network.options["out_dim"] == 2 * network.channels
    more |= {"clip": 1.0, "learned_variance": learned}
    return said.model(path, network, tensors, network.channels, said, **more)
