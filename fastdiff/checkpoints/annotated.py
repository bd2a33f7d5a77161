"""State dicts of AnnotatedUnet, the network of The Annotated Diffusion Model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.checkpoints.resnet_unet import check_usual_heads, multiples, unet_options
from fastdiff.checkpoints.said import Said
from fastdiff.checkpoints.tensors import made_for, read_off
from fastdiff.model import Model
from fastdiff.networks.annotated import AnnotatedUnet
from fastdiff.networks.resnet_unet import AnnotatedResnetUnet
from fastdiff.samplers.schedule import make_schedule

USUAL = Said(make_schedule("linear", 200), 28, "epsilon")


def annotated_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """AnnotatedUnet's arguments, read off a state dict's keys and shapes."""
    shape = {name: tuple(value.shape) for name, value in tensors.items()}
    dim = shape["time_mlp.1.weight"][1]
    widths: list[int] = []
    while f"downs.{len(widths)}.2.fn.fn.to_qkv.weight" in shape:
        hidden, width = shape[f"downs.{len(widths)}.2.fn.fn.to_qkv.weight"][:2]
        check_usual_heads(hidden)
        widths.append(width)
    if not widths:
        raise KeyError("downs.0.2.fn.fn.to_qkv.weight")
    dim_mults = multiples(widths, dim)
    resnet = "downs.0.0.block1.proj.weight" in shape
    first = "downs.0.0.block1.proj" if resnet else "downs.0.0.ds_conv"
    if "downs.0.2.fn.fn.to_out.1.weight" in shape:
        edition = "hf-2022"
    else:
        edition = "mindspore-torch" if f"{first}.bias" in shape else "mindspore"
    return {
        "dim": dim,
        "init_dim": shape["init_conv.weight"][0],
        "dim_mults": dim_mults,
        "channels": shape["init_conv.weight"][1],
        "out_dim": shape["final_conv.1.weight"][0],
        "edition": edition,
        "block": "resnet" if resnet else "convnext",
        "convnext_mult": 2 if resnet else shape["downs.0.0.net.1.weight"][0] // shape["downs.0.0.net.4.weight"][0],
    }


def annotated_model(path: Path, tensors: Mapping[str, Tensor], said: Said) -> Model:
    """The Model of a state dict; by default with the tutorial's schedule, T = 200, and 28x28 images."""
    with read_off(path, "AnnotatedUnet"):
        network = made_for(tensors, path, AnnotatedUnet, **annotated_options(tensors))
    return said.model(path, network, tensors, network.channels, USUAL)


def annotated_resnet_model(path: Path, tensors: Mapping[str, Tensor], said: Said) -> Model:
    """The Model of a state dict of AnnotatedResnetUnet; by default with its text's T = 300, and 28x28 images."""
    with read_off(path, "AnnotatedResnetUnet"):
        network = made_for(tensors, path, AnnotatedResnetUnet, **unet_options(tensors))
    return said.model(path, network, tensors, network.channels, replace(USUAL, schedule=make_schedule("linear", 300)))
