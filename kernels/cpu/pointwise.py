"""Chains of elementwise operations with broadcasting in C, in one pass over memory; copies of any layout."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastdiff.kernels.cpu.plan import Call, View

BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "pow", "gt", "ge", "eq", "leaky_relu", "elu")
UNARY = (
    *("neg", "abs", "exp", "log", "sin", "cos", "tanh", "sigmoid", "sqrt", "rsqrt", "reciprocal", "square", "erf"),
    *("gelu", "gelu_tanh", "silu", "relu", "softplus", "mish", "hardswish"),
)
OPERATIONS = (*BINARY, *UNARY, "where")  # in the order of OPERATIONS in pointwise.c
OPERANDS = {**dict.fromkeys(BINARY, 2), **dict.fromkeys(UNARY, 1), "where": 3}

# An operation and its operands: an int is a value, a float a constant. Values are numbered: the inputs, then the steps.
Step = tuple[str | int | float, ...]
_Operation = tuple[str, list[int | float]]  # likewise, of pointwise.c

INPUTS, STEPS, DIMS = 10, 32, 6  # the most of each; pointwise.c has room for them
TILE = 1024  # numbers in a register
COPIED = 4096  # numbers in a tile where no registers are needed
WHOLE = 16  # numbers: whole vectors on any processor
TRANSPOSED = 16  # rows of a tile of which an input is transposed: a cache line

# x ** y by what is faster, and what torch does.
_POWERS = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}


def broadcast(view: View, shape: Sequence[int]) -> View:
    """The view as torch.broadcast_to has it; raises ValueError where the shapes do not fit."""
    shape = tuple(shape)
    ahead = len(shape) - len(view.shape)
    if ahead < 0 or any(size not in (1, wanted) for size, wanted in zip(view.shape, shape[ahead:], strict=True)):
        raise ValueError(f"broadcast: shape {view.shape} to {shape}; accepted: equal sizes or 1, from the right")
    kept = zip(view.shape, shape[ahead:], view.strides, strict=True)
    strides = (*(0,) * ahead, *(stride if size == wanted else 0 for size, wanted, stride in kept))
    return View(view.memory, shape, strides, view.offset)


def pointwise(out: View, inputs: Sequence[View], steps: Sequence[Step] = ()) -> Call:
    """Elementwise operations, one after another; the last one's values are the result, without any it is the one input.

    Of two inputs `pointwise(out, (x, y), (("mul", 0, 0.5), ("add", 2, 1), ("silu", 3)))` is silu(x 0.5 + y).

    Operations are BINARY and UNARY, by torch's names, and ("where", x, y, z), which is z where x is 0, and else y.
    Comparisons are 1 or 0. `elu` takes alpha and `leaky_relu` the slope as second operand; gelu, gelu_tanh, silu and
    relu have the bits that they have as another kernel's activation. NaN stays NaN.

    Args:
        out: up to 6 dimensions. It may be one of the inputs, with the same strides, and overlap none else.
        inputs: up to 10, of out's shape; see `broadcast`.
        steps: up to 32 (an operation, its operands): an int is a value, input 0, 1, ..., and then step after step; a
            float is a constant.

    Raises:
        ValueError: for anything else.
    """
    op = "pointwise"
    if len(inputs) > INPUTS or len(steps) > STEPS:
        raise ValueError(f"{op}: {len(inputs)} inputs and {len(steps)} steps; accepted: {INPUTS} and {STEPS} at most")
    if not steps and len(inputs) != 1:
        raise ValueError(f"{op}: {len(inputs)} inputs without steps; accepted: one, which is copied")
    if len(out.shape) > DIMS:
        raise ValueError(f"{op}: out has shape {out.shape}; accepted: {DIMS} dimensions at most")
    for at, view in enumerate(inputs):
        if view.shape != out.shape:
            raise ValueError(f"{op}: input {at} has shape {view.shape}; accepted: out's, {out.shape}")
    if any(size > 1 and stride < 1 for size, stride in zip(out.shape, out.strides, strict=True)):
        raise ValueError(f"{op}: out has strides {out.strides}; accepted: positive ones")
    sizes, strides, tile = _layout(out.shape, [view.strides for view in (*inputs, out)], TILE if steps else COPIED)
    operations = [_operation(op, len(inputs) + at, step) for at, step in enumerate(steps)]
    constants, registers, code = _code(operations, len(inputs))
    counts = len(sizes), len(inputs), len(constants), registers, len(steps)
    numbers = *counts, *sizes, *tile, *(step for one in strides for step in one), *constants, *code
    return Call(op, tuple(inputs), (out,), numbers)


def _layout(
    shape: tuple[int, ...], strides: list[tuple[int, ...]], most: int
) -> tuple[list[int], list[list[int]], list[int]]:
    """Sizes, strides and the tile in as few dimensions as all operands allow, at least two.

    Args:
        shape: of all operands.
        strides: each operand's, the result's last.
        most: numbers in a tile.

    Returns:
        Sizes; strides of each operand; how much of each dimension a tile covers. The last two dimensions are the rows
        and the columns of tiles. The order is that of the result's memory, but for the rows.
    """
    dims = [(size, tuple(one[at] for one in strides)) for at, size in enumerate(shape) if size != 1]
    merged = [(1, (0,) * len(strides))] * 2
    for size, steps in sorted(dims, key=lambda dim: -dim[1][-1]):
        before, outer = merged[-1]
        if outer == tuple(size * step for step in steps):
            merged[-1] = before * size, steps
        else:
            merged.append((size, steps))
    *outside, (columns, across) = merged[min(2, len(merged) - 2) :]
    outside.append(outside.pop(_rows(outside, across, most // max(1, columns))))
    rows, down = outside[-1]
    transposed = any(0 < one < other for one, other in zip(down, across, strict=True))
    if transposed:
        most = TILE
    wide = max(1, min(columns, most // max(1, min(rows, TRANSPOSED if transposed else 1))))
    high, whole = min(rows, most // wide), WHOLE // math.gcd(WHOLE, wide)  # whole rows fill whole vectors
    high = max(1, high // whole * whole or high)
    sizes, steps_of = zip(*outside, (columns, across), strict=True)
    return list(sizes), [list(one) for one in zip(*steps_of, strict=True)], [*(1 for _ in outside[1:]), high, wide]


def _rows(outside: list[tuple[int, tuple[int, ...]]], across: tuple[int, ...], wanted: int) -> int:
    """The dimension of a tile's rows: where an input lies in order, if it does not across, else a long one."""
    for at, step in enumerate(across):
        if step > 1:
            nearest = min(range(len(outside)), key=lambda dim: outside[dim][1][at] or step)
            if 0 < outside[nearest][1][at] < step:
                return nearest
    return max(range(len(outside)), key=lambda dim: (min(outside[dim][0], wanted), dim))


def _operation(op: str, values: int, step: Step) -> _Operation:
    """A step as an operation of pointwise.c; raises ValueError for what it has not, or if it reads no earlier value."""
    name, *operands = step
    if OPERANDS.get(str(name)) != len(operands):
        raise ValueError(
            f"{op}: step {(name, *operands)}; accepted: {', '.join(OPERANDS)}, each with its number of operands"
        )
    if not all(isinstance(one, float) or (type(one) is int and 0 <= one < values) for one in operands):
        raise ValueError(f"{op}: step {(name, *operands)}; accepted: floats, and the numbers of earlier values")
    given = [one for one in operands if isinstance(one, (int, float))]
    if name == "pow" and isinstance(given[1], float) and given[1] in _POWERS:
        return _POWERS[given[1]], given[:1]
    return str(name), given


def _code(operations: list[_Operation], inputs: int) -> tuple[list[float], int, list[int]]:
    """The constants, how many registers are needed, and five numbers for each operation, as pointwise.c reads them."""
    constants = [one for _, given in operations for one in given if isinstance(one, float)]
    last_use = {one: at for at, (_, given) in enumerate(operations) for one in given if isinstance(one, int)}
    place = {at: at for at in range(inputs)}  # where a value is, by the numbers of pointwise.c
    first, used, read, code = inputs + len(constants), 0, 0, []
    free: list[int] = []
    for at, (name, given) in enumerate(operations):
        sources = []
        for one in given:
            if isinstance(one, float):
                sources.append(inputs + read)
                read += 1
            else:
                sources.append(place[one])
        free += {place[one] for one in given if isinstance(one, int) and one >= inputs and last_use[one] == at}
        if at == len(operations) - 1:
            register = -1
        elif free:
            register = free.pop() - first
        else:
            register = used
            used += 1
        place[inputs + at] = first + register
        code += [OPERATIONS.index(name), register, *sources, *sources[-1:] * (3 - len(sources))]
    return constants, used, code
