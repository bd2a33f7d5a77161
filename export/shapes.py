"""Translations of operations that move, join, choose or make numbers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from fastdiff.capture.graph import Batch
from fastdiff.capture.passes.match import aten
from fastdiff.export.writer import END, Translation, Writer, places, rank


def _item(w: Writer, of: fx.Node, place: int) -> str:
    parts = w.names[of]
    if place >= len(parts):
        raise w.refusal(f"result {place} of {of.target}, which has no translation to ONNX")
    return parts[place]


def _expand(w: Writer, x: Any, before: Sequence[Any], shape: Sequence[Any]) -> str:
    """A value of one shape in another. A size that is there need not be named, so that few depend on the batch."""
    padded = [*[1] * (len(shape) - len(before)), *before]
    named = [1 if one == size else size for one, size in zip(padded, shape, strict=True)]
    return w("Expand", x, w.sizes(named))


def _expanded(w: Writer, x: Any, *_: Any) -> str:
    return _expand(w, x, x.meta["shape"], w.shape)


def _copied(w: Writer, x: Any, source: Any, *_: Any) -> str:
    return _expand(w, w.of(source), source.meta["shape"], w.shape)


def _transposed(w: Writer, x: Any, one: int, two: int) -> str:
    perm = list(range(rank(x)))
    perm[one], perm[two] = perm[two], perm[one]
    return w("Transpose", x, perm=perm)


def _unsqueezed(w: Writer, x: Any, dim: int) -> str:
    return w("Unsqueeze", x, w.g.constant([dim]))


def _sliced(w: Writer, x: Any, dim: int, start: Any, end: Any, step: Any = 1) -> str:
    start, end = 0 if start is None else start, END if end is None else end
    return w("Slice", x, w.sizes([start]), w.sizes([end]), w.g.constant([dim]), w.sizes([step]))


def _split(w: Writer, x: Any, size: Any, dim: int) -> list[str]:
    whole, part = x.meta["shape"][dim], size
    if isinstance(whole, Batch) and isinstance(size, Batch):
        counts = [Batch(min(size.times, whole.times - at)) for at in range(0, whole.times, size.times)]
    elif isinstance(whole, Batch) or isinstance(size, Batch):
        raise w.refusal(f"of a dimension of {whole} in parts of {part}, which has no translation to ONNX")
    else:
        counts = [min(size, whole - at) for at in range(0, whole, size)]
    return _split_with_sizes(w, x, counts, dim)


def _split_with_sizes(w: Writer, x: Any, counts: list, dim: int) -> list[str]:
    if len(counts) == 1:
        return [w.name(x)]
    return w.g.several("Split", len(counts), w.name(x), w.sizes(counts), axis=dim)


def _unbind(w: Writer, x: Any, dim: int) -> list[str]:
    count = x.meta["shape"][dim]
    if isinstance(count, Batch):
        raise w.refusal("of the batch, which has no translation to ONNX")
    return [w("Gather", x, w.g.constant(place), axis=dim) for place in range(count)]


def _repeat(w: Writer, x: Any, repeats: Sequence[Any]) -> str:
    missing = len(repeats) - rank(x)
    if missing:
        x = w("Unsqueeze", x, w.g.constant(list(range(missing))))
    return w("Tile", x, w.sizes(repeats))


def _flip(w: Writer, x: Any, dims: list[int]) -> str:
    backwards = w.g.constant([-1] * len(dims))
    return w("Slice", x, backwards, w.g.constant([-END] * len(dims)), w.g.constant(dims), backwards)


def _unshuffled(w: Writer, x: Any, factor: int) -> str:
    batch, channels, height, width = x.meta["shape"]
    parts = w.reshape(x, (batch, channels, height // factor, factor, width // factor, factor))
    return w.reshape(w("Transpose", parts, perm=[0, 1, 3, 5, 2, 4]), w.shape)


def _roll(w: Writer, x: Any, shifts: list[int], dims: list[int]) -> str:
    if not dims:
        raise w.refusal("without dims, which has no translation to ONNX")
    for shift, dim in zip(shifts, dims, strict=True):
        sizes = w.shape[dim]
        if isinstance(sizes, Batch):
            raise w.refusal("along the batch, which has no translation to ONNX")
        at = -shift % sizes
        x = w("Concat", _sliced(w, x, dim, at, None), _sliced(w, x, dim, 0, at), axis=dim)
    return x


def _pad(mode: str) -> Translation:
    def translation(w: Writer, x: Any, pad: list[int], value: Any = None) -> str:
        pairs = [*zip(pad[::2], pad[1::2], strict=True)]
        pairs = [*[(0, 0)] * (rank(x) - len(pairs)), *reversed(pairs)]
        sizes = w.g.constant([before for before, _ in pairs] + [after for _, after in pairs])
        return w("Pad", x, sizes, *([] if value is None else [w.of(value)]), mode=mode)

    return translation


def _slice_scatter(w: Writer, x: Any, source: Any, dim: int, start: Any, end: Any, step: Any) -> str:
    """What is before the slice, the source, and what is after."""
    if step != 1:
        raise w.refusal(f"with step = {step}; accepted: 1")
    parts = [source]
    if start not in (None, 0):
        parts.insert(0, _sliced(w, x, dim, 0, start))
    if end is not None and end != w.shape[dim] and (isinstance(end, Batch) or end < END):
        parts.append(_sliced(w, x, dim, end, None))
    return w("Concat", *parts, axis=dim)


def _select_scatter(w: Writer, x: Any, source: Any, dim: int, index: Any) -> str:
    size = w.shape[dim]
    if isinstance(index, Batch) or (index < 0 and isinstance(size, Batch)):
        raise w.refusal("at a place that depends on the batch, which has no translation to ONNX")
    at = index if index >= 0 else index + size
    return _slice_scatter(w, x, _unsqueezed(w, source, dim), dim, at, at + 1, 1)


def _indexed(w: Writer, x: Any, indices: Sequence[Any]) -> str:
    given = [(place, one) for place, one in enumerate(indices) if one is not None]
    if len(given) != 1:
        raise w.refusal(f"by {len(given)} tensors at once; accepted: one")
    ((dim, index),) = given
    return w("Gather", x, index, axis=dim)


def _full(w: Writer, value: Any, shape: Sequence[Any] | None = None) -> str:
    return w("Expand", w.of(value), w.sizes(w.shape))


def _arange(w: Writer, start: Any, end: Any, step: Any, *_: Any) -> str:
    return w("Range", *map(w.of, (start, end, step)))


def _one_hot(w: Writer, x: Any, classes: int) -> str:
    return w("OneHot", x, w.g.constant(classes), w.g.constant([0, 1], np.int64), axis=-1)


def _max_dim(kind: str) -> Translation:
    def translation(w: Writer, x: Any, dim: int, keepdim: bool) -> list[str]:
        return [
            w(f"Reduce{kind}", x, w.g.constant([dim]), keepdims=int(keepdim)),
            w(f"Arg{kind}", x, axis=dim, keepdims=int(keepdim)),
        ]

    return translation


def _reduced(operator: str) -> Translation:
    def translation(w: Writer, x: Any, dims: Any = None, keepdim: bool = False, *_: Any) -> str:
        axes = places(dims, rank(x))
        return w(operator, w.of(x), w.g.constant(axes), keepdims=int(keepdim)) if axes else w.of(x)

    return translation


def _variance(w: Writer, x: Any, dims: Any, correction: Any, keepdim: bool) -> tuple[str, str]:
    """And the mean."""
    axes, shape = places(dims, rank(x)), x.meta["shape"]
    count: Any = 1
    for axis in axes:
        if isinstance(shape[axis], Batch):
            raise w.refusal("over the batch, which has no translation to ONNX")
        count *= shape[axis]
    over = w.g.constant(axes)
    mean = w("ReduceMean", x, over)
    centred = w("Sub", x, mean)
    total = w("ReduceSum", w("Mul", centred, centred), over, keepdims=int(keepdim))
    divisor = count - (1 if correction is None else correction)
    variance = w("Div", total, w.of(float(divisor), x.meta["dtype"]))
    return variance, mean if keepdim else w("Squeeze", mean, over)


def _norm(w: Writer, x: Any, order: Any, dims: Any, keepdim: bool, *_: Any) -> str:
    if order not in (1, 2):
        raise w.refusal(f"with ord = {order}; accepted: 1 or 2")
    return _reduced(f"ReduceL{int(order)}")(w, x, dims, keepdim)


TABLE: dict[Any, Translation] = {
    operator.getitem: _item,
    aten.reshape.default: lambda w, x, shape: w.reshape(x, w.shape),
    aten.pixel_shuffle.default: lambda w, x, factor: w("DepthToSpace", x, blocksize=factor, mode="CRD"),
    aten.pixel_unshuffle.default: _unshuffled,
    aten.expand.default: _expanded,
    aten.copy.default: _copied,
    aten.permute.default: lambda w, x, dims: w("Transpose", x, perm=[dim % len(dims) for dim in dims]),
    aten.transpose.int: _transposed,
    aten.t.default: lambda w, x: w.transpose(x, 2) if rank(x) == 2 else w.name(x),
    aten.cat.default: lambda w, parts, dim: w("Concat", *map(w.of, parts), axis=dim),
    aten.stack.default: lambda w, parts, dim: w(
        "Concat", *(_unsqueezed(w, one, dim) for one in map(w.of, parts)), axis=dim
    ),
    aten.slice.Tensor: _sliced,
    aten.select.int: lambda w, x, dim, index: w("Gather", x, w.integer(index), axis=dim),
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_with_sizes,
    aten.unbind.int: _unbind,
    aten.repeat.default: _repeat,
    aten.flip.default: _flip,
    aten.roll.default: _roll,
    aten.constant_pad_nd.default: _pad("constant"),
    aten.reflection_pad2d.default: _pad("reflect"),
    aten.replication_pad2d.default: _pad("edge"),
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.index.Tensor: _indexed,
    aten.index_select.default: lambda w, x, dim, index: w("Gather", x, index, axis=dim),
    aten.gather.default: lambda w, x, dim, index, _: w("GatherElements", x, index, axis=dim),
    aten.embedding.default: lambda w, weight, index, *_: w("Gather", weight, index, axis=0),
    aten.one_hot.default: _one_hot,
    aten.full.default: lambda w, shape, value, *_: _full(w, value),
    aten.full_like.default: lambda w, x, value, *_: _full(w, value),
    aten.new_full.default: lambda w, x, shape, value, *_: _full(w, value),
    aten.fill.Scalar: lambda w, x, value: _full(w, value),
    aten.fill.Tensor: lambda w, x, value: _full(w, value),
    **{one: lambda w, *_: _full(w, 1) for one in (aten.ones.default, aten.ones_like.default, aten.new_ones.default)},
    **{
        one: lambda w, *_: _full(w, 0)
        for one in (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.zero.default)
    },
    aten.arange.start_step: _arange,
    aten.arange.start: lambda w, start, end, *_: _arange(w, start, end, 1),
    aten.arange.default: lambda w, end, *_: _arange(w, 0, end, 1),
    aten.sum.default: lambda w, x, *_: _reduced("ReduceSum")(w, x),
    aten.mean.default: lambda w, x, *_: _reduced("ReduceMean")(w, x),
    aten.sum.dim_IntList: _reduced("ReduceSum"),
    aten.mean.dim: _reduced("ReduceMean"),
    aten.amax.default: _reduced("ReduceMax"),
    aten.amin.default: _reduced("ReduceMin"),
    aten.max.dim: _max_dim("Max"),
    aten.min.dim: _max_dim("Min"),
    aten.cumsum.default: lambda w, x, dim, *_: w("CumSum", w.of(x), w.g.constant(dim)),
    aten.var.correction: lambda w, *given: _variance(w, *given)[0],
    aten.var_mean.correction: lambda w, *given: list(_variance(w, *given)),
    aten.std.correction: lambda w, *given: w("Sqrt", _variance(w, *given)[0]),
    aten.linalg_vector_norm.default: _norm,
}
