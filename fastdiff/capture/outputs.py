"""What a network returns, in the forms in which other libraries' networks return their prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastdiff.errors import InputError


def first_output(out: Any, channels: int, learned_variance: bool = False) -> Tensor:
    """The prediction (B, C, H, W) among what a network returned, or (B, 2C, H, W), it and a variance.

    Args:
        out: a tensor, an object with `.sample`, a tuple or a list whose first part is the prediction, or a dict with it
            under "sample" or as its first tensor. Of 2C channels (a mean and a variance) the first C are taken.
        channels: C, of the images.
        learned_variance: whether the variance is wanted too; then there must be 2C channels, and all are returned.

    Raises:
        InputError: for anything else.
    """
    found = out
    if isinstance(found, Mapping):  # before .sample: diffusers' outputs are both
        found = found.get("sample", next((one for one in found.values() if isinstance(one, Tensor)), None))
    elif isinstance(found, (tuple, list)):
        found = found[0] if found else None
    elif not isinstance(found, Tensor):
        found = getattr(found, "sample", None)
    if not isinstance(found, Tensor):
        raise InputError(
            f"the network returns {_described(out)}; accepted: a tensor, or an object with .sample, a tuple, a list or "
            "a dict that holds one"
        )
    if learned_variance:
        if found.ndim != 4 or found.shape[1] != 2 * channels:
            raise InputError(
                f"the network returns a tensor of shape {tuple(found.shape)}; accepted with learned_variance: "
                f"(batch, {2 * channels}, height, width), {channels} channels of the prediction and {channels} of the "
                "variance"
            )
        return found
    if found.ndim != 4 or found.shape[1] not in (channels, 2 * channels):
        raise InputError(
            f"the network returns a tensor of shape {tuple(found.shape)}; accepted: (batch, {channels}, height, width) "
            f"or {2 * channels} channels, of which the first {channels} are the prediction"
        )
    return found if found.shape[1] == channels else found[:, :channels]


def _described(out: Any) -> str:
    """A value of the wrong kind, in words."""
    if isinstance(out, Mapping):
        return f"a dict without a tensor under 'sample' (its keys: {', '.join(map(repr, out)) or 'none'})"
    if isinstance(out, (tuple, list)):
        kind = type(out).__name__
        return f"a {kind} that begins with a value of type {type(out[0]).__name__}" if out else f"an empty {kind}"
    return "None" if out is None else f"a value of type {type(out).__name__}"
