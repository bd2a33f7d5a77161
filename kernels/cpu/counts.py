"""What calls of a plan do: their multiply-adds, and the bytes that they have to move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from fastdiff.kernels.cpu.plan import Call, View
from fastdiff.kernels.cpu.winograd import POINTS, TILE


def work(calls: Iterable[Call]) -> tuple[int, int]:
    """(operations, two for each multiply-add; bytes), of all calls."""
    each = [(2 * multiply_adds(call), moved(call)) for call in calls]
    return sum(operations for operations, _ in each), sum(size for _, size in each)


def multiply_adds(call: Call) -> int:
    """Those of its products, done as the kernel does them, in all the batch; 0 for kernels that have none.

    A tap of a convolution counts where it sees padding too. What is elementwise, sums and Winograd's transforms are not
    counted.
    """
    return 0 if call.kernel in WITHOUT else PRODUCTS[call.kernel](call)


def moved(call: Call) -> int:
    """Bytes of what it reads and of what it writes, weights included, each number once."""
    reads = {_place(view): view for view in call.reads if view is not None}
    return 4 * sum(_numbers(view) for view in (*reads.values(), *call.writes))


def _place(view: View) -> tuple[object, ...]:
    return id(view.memory), *view[1:]


def _numbers(view: View) -> int:
    """How many there are; what is broadcast lies in memory once."""
    return math.prod(size for size, stride in zip(view.shape, view.strides, strict=True) if stride)


def _sizes(call: Call, count: int) -> list[int]:
    return [int(one) for one in call.numbers[:count]]


def _winograd(call: Call) -> int:
    n, h, w, c, o = _sizes(call, 5)
    return n * -(-h // TILE) * -(-w // TILE) * POINTS * c * o


def _taps(call: Call) -> int:
    """Of one channel that is read, for all that is written."""
    numbers = _sizes(call, 15)
    return math.prod(call.writes[0].shape) * numbers[5] * numbers[11]


def _attention_context(call: Call) -> int:
    """Keys, the product with x, and one or two with the values' matrices."""
    n, p, c, heads, d = _sizes(call, 5)
    matrices = 2 * d * d * c if call.reads[4] is not None else d * c * c
    return n * heads * (2 * p * c * d + matrices)


def _attention_output(call: Call) -> int:
    """Queries, and the product with the context."""
    n, p, c, heads, d = _sizes(call, 5)
    return n * p * 2 * c * heads * d


def _softmax_attention(call: Call) -> int:
    b, heads, queries, keys, d, e = _sizes(call, 6)
    return b * heads * queries * keys * (d + e)


PRODUCTS: dict[str, Callable[[Call], int]] = {
    "attention_context": _attention_context,
    "attention_output": _attention_output,
    "convolution": lambda call: _taps(call) * call.reads[0].shape[1],  # type: ignore[union-attr]
    "depthwise": _taps,
    "depthwise_gradient": lambda call: math.prod(call.writes[0].shape[1:3]) * math.prod(call.reads[1].shape),  # type: ignore[union-attr]
    "linear": lambda call: math.prod(_sizes(call, 3)),
    "matmul": lambda call: math.prod(call.writes[0].shape) * call.reads[0].shape[-1],  # type: ignore[union-attr]
    "softmax_attention": _softmax_attention,
    "winograd": _winograd,
}
WITHOUT = {
    "average_pool",
    "denoise_step",
    "max_pool",
    "norm_statistics",
    "normals",
    "pointwise",
    "position_norm",
    "reduce",
    "scale_shift",
    "softmax",
}
