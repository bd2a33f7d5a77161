"""State dicts of OpenAI's UNetModel, of improved-diffusion and guided-diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.checkpoints.said import Said
from fastdiff.checkpoints.tensors import made_for, read_off
from fastdiff.errors import InputError, warn_caller
from fastdiff.model import Model
from fastdiff.networks.openai import OpenaiUnet
from fastdiff.samplers.schedule import make_schedule

USUAL = Said(make_schedule("linear", 1000), prediction_type="epsilon")  # no image size is usual
HEAD_CHANNELS = 64  # of most of guided-diffusion's published networks; one has 4 heads, one the new order


def _blocks_of_a_level(shape: Mapping[str, tuple[int, ...]], stages: int) -> int:
    """num_res_blocks + 1, which is the number of output_blocks up to the first that ends with an upsampler."""
    for k in range(stages):
        names = [f"output_blocks.{k}.{layer}" for layer in (1, 2)]
        if any(f"{name}.conv.weight" in shape or f"{name}.in_layers.0.weight" in shape for name in names):
            return k + 1
        # Without any weights in upsamplers, downsamplers have none either, which leaves a gap.
        if k and not any(name.startswith(f"input_blocks.{k}.") for name in shape):
            return k
    return stages  # one level


def openai_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """OpenaiUnet's arguments, read off a state dict's keys and shapes: all but those of heads and of time.

    Raises:
        KeyError, ValueError: for missing tensors and sizes that make no network.
    """
    shape = {name: tuple(value.shape) for name, value in tensors.items()}
    model_channels = shape["time_embed.0.weight"][1]
    stages = 0
    while f"output_blocks.{stages}.0.in_layers.0.weight" in shape:
        stages += 1
    each = _blocks_of_a_level(shape, stages)
    if stages % each:
        raise ValueError(f"{stages} output blocks, which are no levels of {each}")
    firsts = [f"input_blocks.{1 + k}" for k in range(0, stages, each)]  # each level's first block
    widths = [shape[f"{first}.0.out_layers.3.weight"][0] for first in firsts]
    mults = [width / model_channels for width in widths]
    updown = f"input_blocks.{each}.0.in_layers.0.weight" in shape
    classes = shape.get("label_emb.weight")
    return {
        "in_channels": shape["input_blocks.0.0.weight"][1],
        "model_channels": model_channels,
        "out_channels": shape["out.2.weight"][0],
        "num_res_blocks": each - 1,
        "channel_mult": [int(mult) if mult.is_integer() else mult for mult in mults],
        "attention_levels": [level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shape],
        "num_classes": None if classes is None else classes[0],
        "use_scale_shift_norm": shape[f"{firsts[0]}.0.emb_layers.1.weight"][0] == 2 * widths[0],
        "resblock_updown": updown,
        "conv_resample": updown or len(widths) == 1 or f"input_blocks.{each}.0.op.weight" in shape,
    }


def _assumed(options: Mapping[str, Any], timesteps: int) -> dict[str, Any]:
    """The arguments that leave no trace in the weights, as most published networks have them.

    Those of guided-diffusion have resblock_updown, which improved-diffusion lacks; there t is 1000 t / T.
    """
    mults = [options["channel_mult"][level] for level in (*options["attention_levels"], -1)]
    guided = options["resblock_updown"]
    wide = guided and not any(round(options["model_channels"] * mult) % HEAD_CHANNELS for mult in mults)
    return {
        **({"num_head_channels": HEAD_CHANNELS} if wide else {"num_heads": 4}),
        "use_new_attention_order": False,
        "time_scale": 1.0 if guided else 1000 / timesteps,
    }


def _refuse_other_kinds(path: Path, tensors: Mapping[str, Tensor]) -> None:
    taken, made = tensors["input_blocks.0.0.weight"].shape[1], tensors["out.2.weight"].shape[0]
    if any(".transformer_blocks." in name for name in tensors):
        raise InputError(
            f"{str(path)!r} is of a network with cross-attention, as latent diffusion has it; accepted: networks of "
            "pixels, without a text"
        )
    if made not in (taken, 2 * taken) or taken == made == 6:
        raise InputError(
            f"{str(path)!r} is of a network that takes {taken} channels and predicts {made}, such as an upsampler; "
            "accepted: as many, or twice as many with a learned variance"
        )


def openai_model(path: Path, tensors: Mapping[str, Tensor], said: Said) -> Model:
    """The Model of a state dict, which clips to [-1, 1] as the published loops do; the image size must be said."""
    schedule = said.before(USUAL).schedule
    assert schedule is not None
    with read_off(path, "OpenaiUnet"):
        _refuse_other_kinds(path, tensors)
        options = openai_options(tensors)
        assumed = _assumed(options, schedule.num_timesteps)
        network = made_for(tensors, path, OpenaiUnet, **options, **assumed)
    said.before(USUAL).required(path)
    warn_caller(
        f"{path.name} does not say how its network divides attention and scales t; assumed: "
        f"{', '.join(f'{name} = {value}' for name, value in assumed.items())}; for others put its weights into an "
        "OpenaiUnet that has them, see docs/checkpoints.md"
    )
    return said.model(
        path,
        network,
        tensors,
        network.in_channels,
        USUAL,
        clip=1.0,
        num_classes=options["num_classes"],
        learned_variance=options["out_channels"] != options["in_channels"],
    )
