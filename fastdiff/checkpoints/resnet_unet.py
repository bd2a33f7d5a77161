"""What a state dict of ResnetUnet, of whatever edition, says of the network's sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fastdiff.networks.blocks import HEAD_DIM, HEADS


def multiples(widths: Sequence[int], dim: int) -> list[int]:
    """The levels' widths over dim; raises ValueError where one is no multiple."""
    if any(width % dim for width in widths):
        raise ValueError(f"level widths {list(widths)}, which are no multiples of dim = {dim}")
    return [width // dim for width in widths]


def check_usual_heads(hidden: int) -> None:
    """Raises ValueError unless queries, keys and values of that width together are those of 4 heads of 32."""
    if hidden != 3 * HEADS * HEAD_DIM:
        raise ValueError(f"attention of width {hidden // 3}, not {HEADS} heads of {HEAD_DIM}")


def unet_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the editions: dim, init_dim, dim_mults, channels, out_dim and self_condition.

    Raises:
        KeyError, ValueError: for missing tensors and sizes that make no network.
    """
    shape = {name: tuple(value.shape) for name, value in tensors.items()}
    dim = shape["time_mlp.3.weight"][0] // 4
    widths: list[int] = []
    while f"downs.{len(widths)}.0.block1.proj.weight" in shape:
        down = f"downs.{len(widths)}.3"
        widths.append(shape[f"{down}.1.weight" if f"{down}.1.weight" in shape else f"{down}.weight"][0])
    if not widths:
        raise KeyError("downs.0.0.block1.proj.weight")
    taken, made = shape["init_conv.weight"][1], shape["final_conv.weight"][0]
    return {
        "dim": dim,
        "init_dim": shape["init_conv.weight"][0],
        "dim_mults": multiples(widths, dim),
        "channels": made if taken == 2 * made else taken,
        "out_dim": made,
        "self_condition": taken == 2 * made,
    }
