"""Translations of operations that compute each number by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastdiff.capture.passes.match import ACTIVATIONS, aten
from fastdiff.export.writer import Translation, Writer

# ONNX's names are the same, but for capitals.
_ONE = "abs neg exp log sqrt reciprocal sin cos tanh sigmoid relu erf floor ceil round sign mish".split()
_TWO = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}
_COMPARED = {"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}


def _of_one(operator: str) -> Translation:
    return lambda w, x: w(operator, w.of(x))


def _of_two(operator: str) -> Translation:
    """Also add and sub, which have a factor for the second."""

    def translation(w: Writer, a: Any, b: Any, alpha: Any = 1) -> str:
        return w(operator, w.of(a), w.of(b) if alpha == 1 else w("Mul", w.of(b), w.of(alpha)))

    return translation


def _logical(operator: str) -> Translation:
    def translation(w: Writer, *values: Any) -> str:
        if w.dtype != torch.bool:
            raise w.refusal(f"in {w.dtype}; accepted: torch.bool")
        return w(operator, *(w.of(value) for value in values))

    return translation


def _compared(operator: str) -> Translation:
    def like(value: Any) -> Any:  # what torch.result_type asks for: a number, or a tensor of the rank and dtype
        if not isinstance(value, fx.Node):
            return value
        return torch.empty([1] * len(value.meta["shape"]), dtype=value.meta["dtype"], device="meta")

    def translation(w: Writer, a: Any, b: Any) -> str:
        wide = torch.result_type(like(a), like(b))
        return w(operator, w.of(a, wide), w.of(b, wide))

    return translation


def _power(w: Writer, x: Any, exponent: Any) -> str:
    return w("Mul", w.of(x), w.of(x)) if exponent == 2 else w("Pow", w.of(x), w.of(exponent))


def _clamp(w: Writer, x: Any, low: Any = None, high: Any = None) -> str:
    return w("Clip", w.of(x), *(None if bound is None else w.of(bound) for bound in (low, high)))


def _lerp(w: Writer, start: Any, end: Any, weight: Any) -> str:
    return w("Add", start, w("Mul", w.of(weight), w("Sub", end, start)))


def _addcmul(w: Writer, x: Any, a: Any, b: Any, value: Any) -> str:
    return w("Add", w.of(x), w("Mul", w("Mul", w.of(a), w.of(b)), w.of(value)))


def _elu(w: Writer, x: Any, alpha: float, scale: float, input_scale: float) -> str:
    if input_scale != 1:
        raise w.refusal(f"with input_scale = {input_scale}")
    return w("Mul", w("Elu", x, alpha=float(alpha)), w.of(scale))


def activated(w: Writer, x: Any, name: str | None) -> Any:
    """A value through an activation, by its name in fastdiff.kernels."""
    if name is None:
        return x
    target, options = ACTIVATIONS[name]
    return TABLE[target](w, x, **options)


TABLE: dict[Any, Translation] = {
    **{getattr(aten, name).default: _of_one(name.capitalize()) for name in _ONE},
    **{getattr(aten, name).Tensor: _of_two(operator) for name, operator in _TWO.items()},
    **{
        getattr(getattr(aten, name), overload): _compared(operator)
        for name, operator in _COMPARED.items()
        for overload in ("Tensor", "Scalar")
    },
    aten.bitwise_and.Tensor: _logical("And"),
    aten.bitwise_or.Tensor: _logical("Or"),
    aten.bitwise_not.default: _logical("Not"),
    aten.ne.Tensor: lambda w, a, b: w("Not", _compared("Equal")(w, a, b)),
    aten.ne.Scalar: lambda w, a, b: w("Not", _compared("Equal")(w, a, b)),
    aten.maximum.default: _of_two("Max"),
    aten.minimum.default: _of_two("Min"),
    aten.rsub.Scalar: lambda w, a, b, alpha: _of_two("Sub")(w, b, a, alpha),
    aten.rsqrt.default: lambda w, x: w("Reciprocal", w("Sqrt", w.of(x))),
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Tensor_Tensor: _power,
    aten.pow.Scalar: _power,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: lambda w, x, high: _clamp(w, x, None, high),
    aten.hardtanh.default: _clamp,
    aten.addcmul.default: _addcmul,
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.where.self: lambda w, chosen, a, b: w("Where", chosen, w.of(a), w.of(b)),
    aten.masked_fill.Scalar: lambda w, x, mask, value: w("Where", mask, w.of(value), x),
    aten.gelu.default: lambda w, x, approximate="none": w("Gelu", x, approximate=approximate),
    aten.silu.default: lambda w, x: w("Mul", x, w("Sigmoid", x)),
    aten.hardswish.default: lambda w, x: w("HardSwish", x),
    aten.softplus.default: lambda w, x, beta, _: w("Div", w("Softplus", w("Mul", x, w.of(beta))), w.of(beta)),
    aten.elu.default: _elu,
    aten.leaky_relu.default: lambda w, x, slope: w("LeakyRelu", x, alpha=float(slope)),
    aten._prelu_kernel.default: lambda w, x, slope: w("PRelu", x, slope),
    aten._to_copy.default: lambda w, x, *_: w.of(x),
}
