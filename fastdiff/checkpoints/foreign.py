"""Files that are not fastdiff's own; the network of a state dict is recognised by its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fastdiff.checkpoints.annotated import annotated_model, annotated_resnet_model
from fastdiff.checkpoints.context import context_model
from fastdiff.checkpoints.lucidrains import class_model, layernorm_model, lucidrains_model
from fastdiff.checkpoints.mindspore import is_mindspore, read_mindspore
from fastdiff.checkpoints.openai import openai_model
from fastdiff.checkpoints.others import refuse_other
from fastdiff.checkpoints.said import Said, said_in
from fastdiff.checkpoints.torch_file import read_torch
from fastdiff.checkpoints.wrappings import state_dict, unprefixed
from fastdiff.errors import InputError
from fastdiff.model import Model


class Family(NamedTuple):
    """Networks of one kind.

    Attributes:
        name: for messages.
        keys: which only their state dicts have.
        model: (file, state dict, what is known besides) → the Model.
    """

    name: str
    keys: tuple[str, ...]
    model: Callable[[Path, Mapping[str, Tensor], Said], Model]

    def has(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether it is one's state dict, or a part of one."""
        return all(key in tensors for key in self.keys)


_RESNET = ("init_conv.weight", "final_res_block.block1.proj.weight")
# The first whose keys are there is taken.
FAMILIES = (
    Family("ContextUnet", ("init_conv.conv1.0.weight", "contextembed1.model.0.weight"), context_model),
    Family("denoising-diffusion-pytorch's Unet", (*_RESNET, "classes_mlp.0.weight"), class_model),
    Family("denoising-diffusion-pytorch's Unet", (*_RESNET, "mid_attn.to_qkv.weight"), lucidrains_model),
    Family("denoising-diffusion-pytorch's Unet", (*_RESNET, "mid_attn.fn.norm.g"), layernorm_model),
    Family("the Annotated Diffusion U-Net", (*_RESNET, "mid_attn.fn.fn.to_qkv.weight"), annotated_resnet_model),
    Family("the Annotated Diffusion U-Net", ("init_conv.weight", "time_mlp.1.weight"), annotated_model),
    Family("OpenAI's UNetModel", ("time_embed.0.weight", "output_blocks.0.0.in_layers.0.weight"), openai_model),
)


def load_foreign(path: Path, tensors: Mapping[str, Tensor] | None, said: Said) -> Model:
    """A Model from a file that is not fastdiff's own.

    Args:
        path: the file.
        tensors: its tensors, if they have been read already (bare safetensors).
        said: what the user says; it comes before what the file does.

    Raises:
        InputError: for a damaged file, or one of an unknown network.
    """
    if tensors is None and is_mindspore(path):
        tensors = read_mindspore(path)
        try:
            return recognise(path, tensors, said)
        except InputError as error:
            if not any(key in tensors for family in FAMILIES for key in family.keys) and len(tensors) < 50:
                raise
            raise InputError(
                f"{error}; the file holds {len(tensors)} tensors: one saved without the tutorial's loop that renames "
                "every parameter holds 114 of the network's 166, for parameters of one name overwrite each other; save "
                "it again with that loop"
            ) from error
    if tensors is None:
        content = read_torch(path)
        tensors, said = state_dict(content, path), said.before(Said(version=_version(content)))
    return recognise(path, tensors, said)


def _version(content: Any) -> str | None:
    """Of the library that saved it, as denoising-diffusion-pytorch's trainer writes it."""
    version = content.get("version") if isinstance(content, Mapping) else None
    return version if isinstance(version, str) else None


def recognise(path: Path, tensors: Mapping[str, Tensor], said: Said) -> Model:
    """A Model from a state dict; raises InputError if its network or its edition is unknown, or known as another."""
    refuse_other(path, tensors)
    bare = unprefixed(tensors, lambda inner: any(family.has(inner) for family in FAMILIES), path)
    if bare is None:
        some = ", ".join(sorted(tensors)[:3])
        raise InputError(
            f"{str(path)!r} is not a network that fastdiff knows (its keys begin {some}); accepted: "
            f"{', '.join(dict.fromkeys(family.name for family in FAMILIES))}; or wrap your own network: "
            "fastdiff.Model(network, schedule, image_shape=...)"
        )
    family = next(family for family in FAMILIES if family.has(bare))
    return family.model(path, bare, said.before(said_in(tensors, path, said.schedule)))
