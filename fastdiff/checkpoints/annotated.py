"""State dicts of AnnotatedUnet, the network of The Annotated Diffusion Model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.checkpoints.tensors import ODD_SHAPES, assume, fill, mismatch
from fastdiff.errors import InputError
from fastdiff.model import Model
from fastdiff.networks.annotated import AnnotatedUnet
from fastdiff.networks.blocks import HEAD_DIM, HEADS
from fastdiff.samplers.prediction import usual_clip
from fastdiff.samplers.schedule import Schedule, make_schedule


def _refuse_other_editions(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if any(k.startswith("final_res_block.") for k in tensors) or tensors["init_conv.weight"].shape[-1] == 1:
        raise InputError(
            f"{str(path)!r} is of the tutorial's later PyTorch edition (weight-standardised ResNet blocks, 1x1 "
            "init_conv, final_res_block), which is not supported yet; accepted: mindspore, mindspore-torch, hf-2022"
        )
    if any(k.endswith(".norm.g") or k.endswith(".net.0.g") for k in tensors):
        raise InputError(
            f"{str(path)!r} is of the tutorial's first PyTorch edition (LayerNorm g and b everywhere), which is not "
            "supported yet; accepted: mindspore, mindspore-torch, hf-2022"
        )


def annotated_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """AnnotatedUnet's arguments, read off a state dict's keys and shapes."""
    shape = {name: tuple(value.shape) for name, value in tensors.items()}
    dim = shape["time_mlp.1.weight"][1]
    widths: list[int] = []
    while f"downs.{len(widths)}.2.fn.fn.to_qkv.weight" in shape:
        hidden, width = shape[f"downs.{len(widths)}.2.fn.fn.to_qkv.weight"][:2]
        if hidden != 3 * HEADS * HEAD_DIM:
            raise ValueError(f"attention of width {hidden // 3}, not {HEADS} heads of {HEAD_DIM}")
        widths.append(width)
    if not widths:
        raise KeyError("downs.0.2.fn.fn.to_qkv.weight")
    if any(width % dim for width in widths):
        raise ValueError(f"level widths {widths}, which are no multiples of dim = {dim}")
    resnet = "downs.0.0.block1.proj.weight" in shape
    first = "downs.0.0.block1.proj" if resnet else "downs.0.0.ds_conv"
    if "downs.0.2.fn.fn.to_out.1.weight" in shape:
        edition = "hf-2022"
    else:
        edition = "mindspore-torch" if f"{first}.bias" in shape else "mindspore"
    return {
        "dim": dim,
        "init_dim": shape["init_conv.weight"][0],
        "dim_mults": [width // dim for width in widths],
        "channels": shape["init_conv.weight"][1],
        "out_dim": shape["final_conv.1.weight"][0],
        "edition": edition,
        "block": "resnet" if resnet else "convnext",
        "convnext_mult": 2 if resnet else shape["downs.0.0.net.1.weight"][0] // shape["downs.0.0.net.4.weight"][0],
    }


def annotated_model(
    path: Path,
    tensors: Mapping[str, Tensor],
    schedule: Schedule | None,
    image_size: int | tuple[int, int] | None,
) -> Model:
    """The Model of a state dict; by default with the tutorial's schedule, T = 200, and 28x28 images."""
    _refuse_other_editions(path, tensors)
    try:
        network = AnnotatedUnet(**annotated_options(tensors))
    except InputError:
        raise
    except ODD_SHAPES as error:
        raise InputError(f"{str(path)!r} does not match AnnotatedUnet: {mismatch(error)}") from error
    height, width = (image_size or 28,) * 2 if not isinstance(image_size, tuple) else image_size
    fill(network, tensors, path)
    assume(
        path,
        image_size=None if image_size else "28x28 pixels",
        schedule=None if schedule else "linear, 200 timesteps",
    )
    schedule = schedule or make_schedule("linear", 200)
    clip = usual_clip("epsilon", schedule.alphas_cumprod)
    return Model(network, schedule, image_shape=(network.channels, height, width), clip=clip)
