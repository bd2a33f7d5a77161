"""Translations of convolutions, products of matrices, norms, pooling and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastdiff.capture.passes.folded_attention import NORM_EPS
from fastdiff.capture.passes.match import aten, ours
from fastdiff.export.pointwise import activated
from fastdiff.export.writer import Translation, Writer, rank
from fastdiff.kernels.attention_block import attention_of
from fastdiff.kernels.linear_attention import output_scale


def _convolution(w: Writer, x: Any, weight: Any, bias: Any, *options: Any) -> str:
    stride, padding, dilation, transposed, output_padding, groups = options
    more = {"output_padding": output_padding} if transposed else {}
    pads = [*padding, *padding]
    operator = "ConvTranspose" if transposed else "Conv"
    return w(operator, x, weight, bias, strides=stride, pads=pads, dilations=dilation, group=groups, **more)


def _linear(w: Writer, x: Any, weight: Any, bias: Any) -> str:
    if rank(x) == 2:
        return w("Gemm", x, weight, bias, transB=1)
    product = w("MatMul", x, w.transpose(weight, 2))
    return product if bias is None else w("Add", product, bias)


def _product(w: Writer, a: Any, b: Any) -> str:
    return w("MatMul", a, b)


def _added_product(w: Writer, added: Any, a: Any, b: Any, beta: float, alpha: float) -> str:
    return w("Add", w("Mul", added, w.of(beta)), w("Mul", _product(w, a, b), w.of(alpha)))


def _attention(w: Writer, q: Any, k: Any, v: Any, mask: Any, *options: Any) -> str:
    _, causal, scale, grouped = options
    if grouped:
        raise w.refusal("with enable_gqa")
    length, width = q.meta["shape"][-2:]
    scale = width**-0.5 if scale is None else scale
    weights = _product(w, w("Mul", q, w.of(scale)), w.transpose(k, rank(k)))
    if causal:
        weights = w("Add", weights, w.of(np.triu(np.full((length, k.meta["shape"][-2]), -np.inf), 1)))
    if mask is not None:
        added = w.of(mask) if mask.meta["dtype"] != torch.bool else w("Where", mask, w.of(0.0), w.of(-math.inf))
        weights = w("Add", weights, added)
    return _product(w, w("Softmax", weights, axis=-1), v)


def normed(w: Writer, x: Any, shape: Sequence[Any], eps: float) -> str:
    """(x - mean) / sqrt(var + eps) over the last dimension of x (B, G, n), its shape; biased variance.

    onnxruntime-web's InstanceNormalization and ReduceMean add thousands of float32 numbers with one accumulator; a
    network's output is then off by 2e-6 to 6e-6, in native runtimes by 4e-7. Means of rows, and then the mean of these,
    are as exact there as in native runtimes: `Writer.steady`.
    """
    batch, groups, n = shape
    if not w.steady:
        one, zero = (w.of([number] * groups) for number in (1.0, 0.0))
        return w("InstanceNormalization", x, one, zero, epsilon=eps)
    rows = next(k for k in range(math.isqrt(n), 0, -1) if n % k == 0)
    last, before = w.g.constant([3]), w.g.constant([2])
    parts = w.reshape(x, (batch, groups, rows, n // rows))
    centred = w("Sub", parts, w("ReduceMean", w("ReduceMean", parts, last), before))
    variance = w("ReduceMean", w("ReduceMean", w("Mul", centred, centred), last), before)
    return w.reshape(w("Div", centred, w("Sqrt", w("Add", variance, w.of(eps)))), shape)


def _group_norm(w: Writer, x: Any, groups: int, weight: Any, bias: Any, eps: float, *_: Any) -> str:
    batch, channels, *sizes = w.shape
    shape = (batch, groups, channels // groups * math.prod(sizes))
    y = w.reshape(normed(w, w.reshape(x, shape), shape, eps), w.shape)
    for operator, factor in (("Mul", weight), ("Add", bias)):
        if factor is not None:
            y = w(operator, y, w.reshape(factor, (channels, *[1] * len(sizes))))
    return y


def _fused_group_norm(w: Writer, x: Any, groups: int, weight: Any, bias: Any, eps: float, *fused: Any) -> str:
    """See kernels.group_norm, whose activations alone are fused in a captured graph."""
    *others, before, after = fused
    if any(one is not None for one in others):
        raise w.refusal("with an input_bias, a scale or a shift")
    return activated(w, _group_norm(w, activated(w, x, before), groups, weight, bias, eps), after)


def _channel_norm(w: Writer, x: Any, gain: Any, residual: Any, eps: float) -> str:
    """See kernels.channel_norm."""
    channels = w.g.constant([1])
    centred = w("Sub", x, w("ReduceMean", x, channels))
    variance = w("ReduceMean", w("Mul", centred, centred), channels)
    y = w("Mul", w("Div", centred, w("Sqrt", w("Add", variance, w.of(eps)))), w.of(gain))
    return y if residual is None else w("Add", y, residual)


def _layer_norm(w: Writer, x: Any, over: list[int], weight: Any, bias: Any, eps: float, _: Any) -> str:
    scale = w.of(np.ones(over)) if weight is None else weight
    return w("LayerNormalization", x, scale, bias, axis=-len(over), epsilon=eps)


def _rms_norm(w: Writer, x: Any, over: list[int], weight: Any, eps: float | None) -> str:
    axes = w.g.constant(list(range(-len(over), 0)))
    eps = torch.finfo(w.dtype).eps if eps is None else eps
    y = w("Div", x, w("Sqrt", w("Add", w("ReduceMean", w("Mul", x, x), axes), w.of(eps))))
    return y if weight is None else w("Mul", y, weight)


def _batch_norm(w: Writer, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *options: Any) -> str:
    training, _, eps, _ = options
    if training:
        raise w.refusal("over the statistics of the batch")
    scale, shift = (w.of([number] * w.shape[1]) if one is None else one for number, one in ((1.0, weight), (0.0, bias)))
    return w("BatchNormalization", x, scale, shift, mean, variance, epsilon=eps)


def _pooled(w: Writer, operator: str, x: Any, kernel: Any, stride: Any, padding: Any, **more: Any) -> str:
    kernel, stride, padding = (one * 2 if len(one) == 1 else one for one in (kernel, stride or kernel, padding))
    return w(operator, x, kernel_shape=kernel, strides=stride, pads=[*padding, *padding], **more)


def _max_pool(w: Writer, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> list[str]:
    """Without the indices, which count otherwise in ONNX."""
    dilations = dilation * 2 if len(dilation) == 1 else dilation
    return [_pooled(w, "MaxPool", x, kernel, stride, padding, dilations=dilations, ceil_mode=int(ceil))]


def _average_pool(w: Writer, x: Any, kernel: Any, stride: Any, padding: Any, *options: Any) -> str:
    ceil, counted, divisor = options
    if divisor is not None:
        raise w.refusal(f"with divisor_override = {divisor}")
    # ONNX Runtime 1.20 would count what is beyond the edge as padding.
    counted = counted and any(padding)
    return _pooled(w, "AveragePool", x, kernel, stride, padding, ceil_mode=int(ceil), count_include_pad=int(counted))


def _adaptive_pool(w: Writer, x: Any, size: list[int]) -> str:
    before = x.meta["shape"][-2:]
    if any(one % other for one, other in zip(before, size, strict=True)):
        raise w.refusal(f"from {list(before)} to {list(size)}, which do not divide")
    return _pooled(w, "AveragePool", x, [one // other for one, other in zip(before, size, strict=True)], None, [0])


def _upsampled(mode: str, transformation: str, nearest: str = "floor") -> Translation:
    def translation(w: Writer, x: Any, size: list[int], *more: Any) -> str:
        *corners, high, wide = more  # align_corners, which not all of them have, and the scales
        how: dict[str, Any] = dict(axes=[2, 3], mode=mode, nearest_mode=nearest, cubic_coeff_a=-0.75)
        how["coordinate_transformation_mode"] = "align_corners" if any(corners) else transformation
        if high is None or wide is None or any(corners):
            return w("Resize", x, None, None, w.g.constant(size), **how)
        return w("Resize", x, None, w.g.constant([high, wide], np.float32), **how)

    return translation


def _linear_attention(w: Writer, qkv: Any, heads: int, divide_by_n: bool) -> str:
    """See kernels.linear_attention."""
    batch, channels, *size = qkv.meta["shape"]
    d, n = channels // (3 * heads), math.prod(size)
    parts = w.reshape(qkv, (batch, 3, heads, d, n))
    q, k, v = w.g.several("Split", 3, parts, axis=1, num_outputs=3)  # (B, 1, heads, d, n)
    context = w("MatMul", v, w.transpose(w("Softmax", k, axis=-1), 5))
    context = w("Mul", context, w.of(output_scale(d, n, divide_by_n)))
    return w.reshape(w("MatMul", context, w("Softmax", q, axis=-2)), w.shape)


def _attention_block(w: Writer, x: Any, w_q: Any, w_k: Any, q_bias: Any, values: Sequence[Any], *rest: Any) -> str:
    """See kernels.attention_block."""
    bias, shift, gain, heads, divide_by_n, eps = rest
    batch, c, *size = w.shape
    n, width = math.prod(size), w_q.meta["shape"][0]
    d = width // heads
    whole = (batch, 1, c * n)
    xh = w.reshape(normed(w, w.reshape(x, whole), whole, eps), (batch, c, n))
    k = w("Softmax", w("MatMul", w_k, xh), axis=-1)
    q = w("Add", w("MatMul", w_q, xh), w.reshape(w.of(q_bias), (-1, 1)))
    q = w.reshape(w("Softmax", w.reshape(q, (batch, heads, d, n)), axis=-2), (batch, width, n))
    mixed = w.reshape(w("MatMul", xh, w.transpose(k, 3)), (batch, c, heads, d))
    mixed = w("Transpose", mixed, perm=[0, 2, 1, 3])  # (B, heads, C, d)
    for matrix in reversed(values):
        mixed = w("MatMul", matrix, mixed)
    # The sum over the heads is one product, (C, heads d) by (heads d, n).
    scale = w.of(output_scale(d, n, divide_by_n))
    mixed = w.reshape(w("Transpose", w("Mul", mixed, scale), perm=[0, 2, 1, 3]), (batch, c, width))
    constant = w("Add", w.of(bias), w("Mul", w.of(shift), scale))
    out = w.reshape(w("Add", w("MatMul", mixed, q), w.reshape(constant, (-1, 1))), w.shape)
    return out if gain is None else _channel_norm(w, out, gain, x, NORM_EPS)


TABLE: dict[Any, Translation] = {
    aten.convolution.default: _convolution,
    aten.linear.default: _linear,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _added_product,
    aten.baddbmm.default: _added_product,
    aten._softmax.default: lambda w, x, dim, _: w("Softmax", w.of(x), axis=dim),
    aten.scaled_dot_product_attention.default: _attention,
    aten.group_norm.default: _group_norm,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.batch_norm.default: _batch_norm,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _average_pool,
    aten._adaptive_avg_pool2d.default: _adaptive_pool,
    aten.upsample_nearest2d.default: _upsampled("nearest", "asymmetric"),
    aten._upsample_nearest_exact2d.default: _upsampled("nearest", "half_pixel", "round_prefer_ceil"),
    aten.upsample_bilinear2d.default: _upsampled("linear", "half_pixel"),
    aten.upsample_bicubic2d.default: _upsampled("cubic", "half_pixel"),
    ours.group_norm.default: _fused_group_norm,
    ours.channel_norm.default: _channel_norm,
    ours.linear_attention.default: _linear_attention,
    attention_of: _attention_block,
}
