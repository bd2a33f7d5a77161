"""Views of views: an operation that only moves axes costs nothing, and torch itself says where they end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.capture.passes.match import aten
from fastdiff.capture.views import RESHAPES
from fastdiff.kernels.cpu.plan import View

NHWC = (0, 2, 3, 1)
# What may be a view of its argument; those of the first group are undone by a reshape.
MOVES = RESHAPES | {
    aten.reshape.default,
    aten.alias.default,
    aten.detach.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unsafe_split.Tensor,
    aten.unbind.int,
}
SAME = {aten.clone.default, aten.contiguous.default, aten.lift_fresh_copy.default}


def dense(memory: Any, shape: Sequence[int], order: Sequence[int] | None = None) -> View:
    """A whole memory's, its dimensions from the outermost to the innermost in that order, by default as they come."""
    strides, step = [0] * len(shape), 1
    for dim in reversed(range(len(shape)) if order is None else order):
        strides[dim], step = step, step * shape[dim]
    return View(memory, tuple(shape), tuple(strides))


def moved(view: View, operation: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
    """operation(x, *args) of what the view shows: a view, or a list of them; None where torch would copy."""
    if operation in (aten.view.default, aten._unsafe_view.default):
        operation = aten.reshape.default  # torch's own memory may be laid out otherwise
    x = torch.empty_strided(view.shape, view.strides, dtype=torch.float32, device="meta")
    result = operation(x, *args, **(kwargs or {}))
    parts = [result] if isinstance(result, Tensor) else list(result)
    if any(part.untyped_storage()._cdata != x.untyped_storage()._cdata for part in parts):
        return None
    made = [View(view.memory, tuple(one.shape), one.stride(), view.offset + int(one.storage_offset())) for one in parts]
    return made[0] if isinstance(result, Tensor) else made


def reshaped(view: View, shape: Sequence[int]) -> View | None:
    """In another shape, or None where that takes a copy."""
    found: View | None = moved(view, aten.reshape.default, (list(shape),))
    return found


def permuted(view: View, order: Sequence[int]) -> View:
    """The dimensions in that order."""
    return view._replace(shape=tuple(view.shape[k] for k in order), strides=tuple(view.strides[k] for k in order))


def undone(operation: Any, args: Sequence[Any], shape: Sequence[int], place: View) -> View | None:
    """Where an argument of that shape must lie so that the operation's result lies at a place; None for nowhere."""
    if operation in RESHAPES or operation is aten.reshape.default:
        return reshaped(place, shape)
    if operation is aten.transpose.int:
        order = list(range(len(shape)))
        a, b = (dim % len(shape) for dim in args)
        order[a], order[b] = b, a
        return permuted(place, order)
    if operation is aten.permute.default:
        order = [dim % len(shape) for dim in args[0]]
        return permuted(place, [order.index(k) for k in range(len(order))])
    return None


def same(one: View, other: View) -> bool:
    """Whether both show the same numbers in the same shape."""
    return one.memory is other.memory and one[1:] == other[1:]


def order_of(view: View) -> tuple[int, ...]:
    """Its dimensions from the outermost in memory to the innermost; broadcast ones as they come."""
    return tuple(sorted(range(len(view.shape)), key=lambda dim: -view.strides[dim] if view.strides[dim] else -math.inf))


def tensor(view: View, memory: Tensor) -> Tensor:
    """As a tensor, given its memory's first element's place: a tensor that begins there."""
    return memory.as_strided(view.shape, view.strides, memory.storage_offset() + view.offset)
