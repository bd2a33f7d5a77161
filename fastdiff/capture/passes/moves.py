"""What the moves of axes between two products amount to.

Networks move axes about: one einsum alone does it five times. Where they end is seen by moving those of a tensor
without memory, whose strides tell.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fastdiff.capture.graph import Batch, mapped
from fastdiff.capture.passes.match import Node, aten, only_user

MOVES = {aten.reshape.default, aten.permute.default, aten.transpose.int, aten.expand.default}


class Path(NamedTuple):
    """Moves of axes, changes of dtype and multiplications by numbers, of which nothing else uses a result.

    Attributes:
        start: the node before the first of them.
        end: the last of them, or the start.
        factor: the product of the numbers.
        moved: a tensor without memory, of the start's shape and contiguous, after the moves; None where one of them is
            a copy, which hides where the axes went.
    """

    start: Node
    end: Node
    factor: float
    moved: Tensor | None


def path_to(end: Node) -> Path:
    """The longest that ends in a node."""
    start, steps = end, []
    while _is_step(start) and isinstance(start.args[0], fx.Node) and only_user(start.args[0]) is start:
        steps.append(start)
        start = start.args[0]
    return _path(start, end, steps[::-1])


def path_from(start: Node) -> Path:
    """The longest that begins after a node."""
    end, steps, user = start, [], only_user(start)
    while user is not None and _is_step(user) and user.args[0] is end:
        steps.append(user)
        end, user = user, only_user(user)
    return _path(start, end, steps)


def moved_by(start: Node, steps: list[Node]) -> Tensor | None:
    """A tensor without memory, of the start's shape and contiguous, after these moves; None where one is a copy."""
    moved: Tensor | None = torch.empty(sized(start.meta["shape"]), device="meta")
    for step in steps:
        moved = _moved(moved, step)
    return moved


def sized(value: Any) -> Any:
    """A shape, or arguments, at some batch, if they are for any."""
    return mapped(value, lambda one: 5 * one.times if isinstance(one, Batch) else one)


def _is_step(node: Node) -> bool:
    return node.target in MOVES or _is_cast(node) or factor_of(node) is not None


def _is_cast(node: Node) -> bool:
    floating = node.target is aten._to_copy.default and set(node.kwargs) == {"dtype"}
    return floating and node.kwargs["dtype"].is_floating_point


def factor_of(node: Node) -> float | None:
    """The number by which a node multiplies, or one over that by which it divides."""
    if node.target not in (aten.mul.Tensor, aten.div.Tensor) or not isinstance(node.args[1], (int, float)):
        return None
    if node.target is aten.mul.Tensor:
        return float(node.args[1])
    return 1 / node.args[1] if node.args[1] else None


def _path(start: Node, end: Node, steps: list[Node]) -> Path:
    factor, moved = 1.0, torch.empty(sized(start.meta["shape"]), device="meta") if "shape" in start.meta else None
    for step in steps:
        if step.target in MOVES:
            moved = _moved(moved, step)
        else:
            number = factor_of(step)
            factor *= 1.0 if number is None else number  # a cast has none
    return Path(start, end, factor, moved)


def _moved(x: Tensor | None, step: Node) -> Tensor | None:
    """A view of x; None if it would be a copy."""
    if x is None:
        return None
    out = step.target(x, *sized(step.args[1:]))
    return out if out.untyped_storage()._cdata == x.untyped_storage()._cdata else None


def ended(moved: Tensor | None, matrix: tuple[int, int], turned: bool) -> bool:
    """Whether axes of N matrices (I, J) that were moved ended as (N, I, J), or, turned, as (N, J, I)."""
    rows, columns = matrix
    sizes, strides = ((columns, rows), (1, columns)) if turned else ((rows, columns), (columns, 1))
    return moved is not None and tuple(moved.shape[-2:]) == sizes and _in_order(moved, strides)


def _in_order(moved: Tensor, strides: tuple[int, int]) -> bool:
    """Whether the last two axes have these strides, and the others count the matrices in their order."""
    expected, wanted = moved.shape[-2] * moved.shape[-1], list(strides)
    for size in reversed(moved.shape[:-2]):
        wanted.insert(0, expected)
        expected *= size
    found = zip(moved.shape, moved.stride(), wanted, strict=True)
    return all(size == 1 or stride == right for size, stride, right in found)
