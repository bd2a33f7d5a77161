"""Translations of operations that move, join, choose, make or add up numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from fastdiff.capture.graph import Batch
from fastdiff.capture.passes.match import aten, places
from fastdiff.export.writer import END, Translation, Writer, rank


def _item(w: Writer, of: fx.Node, place: int) -> str:
    if place >= len(w.names[of]):
        raise w.refusal(f"result {place} of {of.target}")
    return w.names[of][place]


def _expanded(w: Writer, x: Any, before: Sequence[Any]) -> str:
    """A value of one shape in the result's. A size that is there is not named, so that few depend on the batch."""
    padded = [*[1] * (len(w.shape) - len(before)), *before]
    return w("Expand", x, w.sizes([1 if one == size else size for one, size in zip(padded, w.shape, strict=True)]))


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
    whole: Any = x.meta["shape"][dim]
    make: Callable[[int], Any] = int
    if isinstance(whole, Batch) and isinstance(size, Batch):
        whole, size, make = whole.times, size.times, Batch
    elif isinstance(whole, Batch) or isinstance(size, Batch):
        raise w.refusal("in parts whose number depends on the batch")
    return _split_with_sizes(w, x, [make(min(size, whole - at)) for at in range(0, whole, size)], dim)


def _split_with_sizes(w: Writer, x: Any, counts: list, dim: int) -> list[str]:
    if len(counts) == 1:
        return [w.name(x)]
    return w.g.several("Split", len(counts), w.name(x), w.sizes(counts), axis=dim)


def _unbind(w: Writer, x: Any, dim: int) -> list[str]:
    count = x.meta["shape"][dim]
    if isinstance(count, Batch):
        raise w.refusal("of the batch")
    return [w("Gather", x, w.g.constant(place), axis=dim) for place in range(count)]


def _repeat(w: Writer, x: Any, repeats: Sequence[Any]) -> str:
    missing = list(range(len(repeats) - rank(x)))
    return w("Tile", w("Unsqueeze", x, w.g.constant(missing)) if missing else x, w.sizes(repeats))


def _flip(w: Writer, x: Any, dims: list[int]) -> str:
    backwards = w.g.constant([-1] * len(dims))
    return w("Slice", x, backwards, w.g.constant([-END] * len(dims)), w.g.constant(dims), backwards)


def _pad(mode: str) -> Translation:
    def translation(w: Writer, x: Any, pad: list[int], value: Any = None) -> str:
        pairs = [(0, 0)] * (rank(x) - len(pad) // 2) + list(zip(pad[-2::-2], pad[::-2], strict=True))
        sizes = w.g.constant([before for before, _ in pairs] + [after for _, after in pairs])
        return w("Pad", x, sizes, None if value is None else w.of(value), mode=mode)

    return translation


def _slice_scatter(w: Writer, x: Any, source: Any, dim: int, start: Any, end: Any, step: Any = 1) -> str:
    """What is before the slice, the source, and what is after."""
    if step != 1:
        raise w.refusal(f"with step = {step}")
    parts = [source]
    if start not in (None, 0):
        parts.insert(0, _sliced(w, x, dim, 0, start))
    if end not in (None, END, w.shape[dim]):
        parts.append(_sliced(w, x, dim, end, None))
    return w("Concat", *parts, axis=dim)


def _select_scatter(w: Writer, x: Any, source: Any, dim: int, index: Any) -> str:
    if isinstance(index, Batch) or isinstance(w.shape[dim], Batch):
        raise w.refusal("along the batch")
    at = index % w.shape[dim]
    return _slice_scatter(w, x, _unsqueezed(w, source, dim), dim, at, at + 1)


def _indexed(w: Writer, x: Any, indices: Sequence[Any]) -> str:
    given = [(place, one) for place, one in enumerate(indices) if one is not None]
    if len(given) != 1:
        raise w.refusal("by several tensors")
    ((dim, index),) = given
    return w("Gather", x, index, axis=dim)


def _full(w: Writer, value: Any) -> str:
    return w("Expand", w.of(value), w.sizes(w.shape))


def _reduced(operator: str) -> Translation:
    def translation(w: Writer, x: Any, dims: Any = None, keepdim: bool = False, *_: Any) -> str:
        return w(operator, w.of(x), w.g.constant(places(dims, rank(x))), keepdims=int(keepdim))

    return translation


def _variance(w: Writer, x: Any, dims: Any, correction: Any, keepdim: bool) -> list[str]:
    """And the mean."""
    over, count = w.g.constant(places(dims, rank(x))), 1
    for place in places(dims, rank(x)):
        if isinstance(x.meta["shape"][place], Batch):
            raise w.refusal("over the batch")
        count *= x.meta["shape"][place]
    mean = w("ReduceMean", x, over)
    centred = w("Sub", x, mean)
    total = w("ReduceSum", w("Mul", centred, centred), over, keepdims=int(keepdim))
    variance = w("Div", total, w.of(float(count - (1 if correction is None else correction)), x.meta["dtype"]))
    return [variance, mean if keepdim else w("Squeeze", mean, over)]


def _length(w: Writer, x: Any, order: Any, dims: Any, keepdim: bool, *_: Any) -> str:
    if order != 2:
        raise w.refusal(f"with ord = {order}")
    return _reduced("ReduceL2")(w, x, dims, keepdim)


TABLE: dict[Any, Translation] = {
    operator.getitem: _item,
    aten.reshape.default: lambda w, x, _: w.reshape(x, w.shape),
    aten.pixel_shuffle.default: lambda w, x, factor: w("DepthToSpace", x, blocksize=factor, mode="CRD"),
    aten.expand.default: lambda w, x, *_: _expanded(w, x, x.meta["shape"]),
    aten.copy.default: lambda w, _, source, *__: _expanded(w, w.of(source), source.meta["shape"]),
    aten.permute.default: lambda w, x, dims: w("Transpose", x, perm=[dim % len(dims) for dim in dims]),
    aten.transpose.int: _transposed,
    aten.t.default: lambda w, x: _transposed(w, x, 0, -1),
    aten.cat.default: lambda w, parts, dim: w("Concat", *map(w.of, parts), axis=dim),
    aten.stack.default: lambda w, parts, dim: w("Concat", *(_unsqueezed(w, w.of(x), dim) for x in parts), axis=dim),
    aten.slice.Tensor: _sliced,
    aten.select.int: lambda w, x, dim, index: w("Gather", x, w.integer(index), axis=dim),
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_with_sizes,
    aten.unbind.int: _unbind,
    aten.repeat.default: _repeat,
    aten.flip.default: _flip,
    aten.constant_pad_nd.default: _pad("constant"),
    aten.reflection_pad2d.default: _pad("reflect"),
    aten.replication_pad2d.default: _pad("edge"),
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.index.Tensor: _indexed,
    aten.index_select.default: lambda w, x, dim, index: w("Gather", x, index, axis=dim),
    aten.embedding.default: lambda w, weight, index, *_: w("Gather", weight, index, axis=0),
    **dict.fromkeys(
        (aten.full.default, aten.full_like.default, aten.fill.Scalar, aten.fill.Tensor),
        lambda w, _, value, *__: _full(w, value),
    ),
    aten.new_full.default: lambda w, _, __, value, *___: _full(w, value),
    **dict.fromkeys((aten.ones.default, aten.ones_like.default, aten.new_ones.default), lambda w, *_: _full(w, 1)),
    **dict.fromkeys((aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default), lambda w, *_: _full(w, 0)),
    aten.zero.default: lambda w, _: _full(w, 0),
    aten.sum.default: lambda w, x, *_: _reduced("ReduceSum")(w, x),
    aten.mean.default: lambda w, x, *_: _reduced("ReduceMean")(w, x),
    aten.sum.dim_IntList: _reduced("ReduceSum"),
    aten.mean.dim: _reduced("ReduceMean"),
    aten.amax.default: _reduced("ReduceMax"),
    aten.amin.default: _reduced("ReduceMin"),
    aten.var.correction: lambda w, *given: _variance(w, *given)[0],
    aten.var_mean.correction: _variance,
    aten.linalg_vector_norm.default: _length,
}
