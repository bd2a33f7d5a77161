"""Philox's normals in C: the bits of kernels.philox.normals_reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.kernels.cpu.plan import Call, View, dense


def key_view(key: Tensor) -> View:
    """The view of a key, which is read when the call runs.

    Args:
        key: (2,) int64 on the CPU, contiguous, see kernels.philox.key_of.

    Raises:
        ValueError: for anything else.
    """
    if key.dtype != torch.int64 or key.device.type != "cpu" or key.shape != (2,) or not key.is_contiguous():
        raise ValueError(
            f"a key of {key.dtype} on {key.device}, shape {tuple(key.shape)}, strides {key.stride()}; "
            "accepted: int64 on the CPU, (2,), contiguous"
        )
    return View(key, (2,), (1,))


def normals(key: View, out: View, draw: int, ahead: int = 0) -> Call:
    """Standard normals; row r is a function of (seed, draw, first + ahead + r) alone.

    Args:
        key: (2,) from `key_view`: the seed and the first sample.
        out: (samples, ...), contiguous; elements are counted in that order.
        draw: 0 <= draw < 2^32.
        ahead: how many samples after the key's first one `out` begins.

    Raises:
        ValueError: for anything else.
    """
    op = "normals"
    dense(op, "key", key, 2)
    dense(op, "out", out, *out.shape)
    check_draw(op, draw, ahead)
    samples, *size = out.shape
    return Call(op, (key,), (out,), (samples, math.prod(size), draw, ahead))


def check_draw(op: str, draw: int, ahead: int) -> None:
    """Raise ValueError unless the numbers of a draw and of samples are in their range."""
    if not 0 <= draw < 2**32:
        raise ValueError(f"{op}: draw = {draw}; accepted: 0 to 2^32 - 1")
    if not 0 <= ahead < 2**63:
        raise ValueError(f"{op}: ahead = {ahead}; accepted: 0 or more")
