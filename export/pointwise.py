"""Translations of operations that compute each number by itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fastdiff.capture.passes.match import ACTIVATIONS, aten
from fastdiff.export.writer import Translation, Writer

_ONE = {
    "abs": "Abs",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "sin": "Sin",
    "cos": "Cos",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "erf": "Erf",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "sign": "Sign",
    "hardswish": "HardSwish",
    "mish": "Mish",
    "logical_not": "Not",
    "bitwise_not": "Not",
}
_TWO = {
    "add.Tensor": "Add",
    "sub.Tensor": "Sub",
    "mul.Tensor": "Mul",
    "div.Tensor": "Div",
    "pow.Tensor_Tensor": "Pow",
    "pow.Scalar": "Pow",
    "maximum.default": "Max",
    "minimum.default": "Min",
    "logical_and.default": "And",
    "logical_or.default": "Or",
    "bitwise_and.Tensor": "And",
    "bitwise_or.Tensor": "Or",
}
_COMPARED = {"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}


def _of_one(operator: str) -> Translation:
    return lambda w, x, *_: w(operator, w.of(x))


def _of_two(operator: str) -> Translation:
    """Also add and sub, which have a factor for the second."""

    def translation(w: Writer, a: Any, b: Any, alpha: Any = 1) -> str:
        if w.dtype != torch.bool and operator in ("And", "Or"):
            raise w.refusal(f"on {w.dtype}; accepted: torch.bool")
        second = w.of(b) if alpha == 1 else w("Mul", w.of(b), w.of(alpha))
        return w(operator, w.of(a), second)

    return translation


def _compared(operator: str) -> Translation:
    def translation(w: Writer, a: Any, b: Any) -> str:
        wide = torch.result_type(*map(_like, (a, b)))
        return w(operator, w.of(a, wide), w.of(b, wide))

    return translation


def _like(value: Any) -> Any:
    """A number, or for a node a tensor of its rank and dtype, which are what torch.result_type asks for."""
    if not isinstance(value, fx.Node):
        return value
    return torch.empty([1] * len(value.meta["shape"]), dtype=value.meta["dtype"], device="meta")


def _not_equal(w: Writer, a: Any, b: Any) -> str:
    return w("Not", TABLE[aten.eq.Tensor](w, a, b))


def _power(w: Writer, x: Any, exponent: Any) -> str:
    if exponent == 2:
        return w("Mul", w.of(x), w.of(x))
    return w("Sqrt", w.of(x)) if exponent == 0.5 else w("Pow", w.of(x), w.of(exponent))


def _clamp(w: Writer, x: Any, low: Any = None, high: Any = None) -> str:
    return w("Clip", w.of(x), *(None if bound is None else w.of(bound) for bound in (low, high)))


def _gelu(w: Writer, x: Any, approximate: str) -> str:
    return w("Gelu", x, approximate=approximate)


def _silu(w: Writer, x: Any) -> str:
    return w("Mul", x, w("Sigmoid", x))


def _softplus(w: Writer, x: Any, beta: Any, threshold: Any) -> str:
    return w("Softplus", x) if beta == 1 else w("Div", w("Softplus", w("Mul", x, w.of(beta))), w.of(beta))


def _elu(w: Writer, x: Any, alpha: float, scale: float, input_scale: float) -> str:
    if input_scale != 1:
        raise w.refusal(f"with input_scale = {input_scale}; accepted: 1")
    return w("Mul", w("Elu", x, alpha=float(alpha)), w.of(scale))


def _divided(w: Writer, a: Any, b: Any, rounding_mode: str | None) -> str:
    """In float64, in which integers up to 2^53 are exact, if the result is one of integers."""
    wide = w.dtype if w.dtype.is_floating_point else torch.float64
    quotient = w("Div", w.of(a, wide), w.of(b, wide))
    if rounding_mode == "trunc":
        quotient = w("Mul", w("Sign", quotient), w("Floor", w("Abs", quotient)))
    elif rounding_mode == "floor":
        quotient = w("Floor", quotient)
    return quotient if wide == w.dtype else w.cast(quotient, w.dtype)


def _remainder(w: Writer, a: Any, b: Any) -> str:
    """With the divisor's sign."""
    a, b = w.of(a), w.of(b)
    if not w.dtype.is_floating_point:
        return w("Mod", a, b)
    return w("Sub", a, w("Mul", w("Floor", w("Div", a, b)), b))


def activated(w: Writer, x: Any, name: str | None) -> Any:
    """A value through an activation, by its name in fastdiff.kernels."""
    if name is None:
        return x
    target, options = ACTIVATIONS[name]
    return TABLE[target](w, x, *(["none"] if name == "gelu" else options.values()))


TABLE: dict[Any, Translation] = {
    **{getattr(aten, name).default: _of_one(operator) for name, operator in _ONE.items()},
    **{
        getattr(getattr(aten, name), overload): _of_two(operator)
        for (name, overload), operator in ((full.split("."), operator) for full, operator in _TWO.items())
    },
    **{
        getattr(getattr(aten, name), overload): _compared(operator)
        for name, operator in _COMPARED.items()
        for overload in ("Tensor", "Scalar")
    },
    aten.ne.Tensor: _not_equal,
    aten.ne.Scalar: _not_equal,
    aten.rsub.Tensor: lambda w, a, b, alpha: _of_two("Sub")(w, b, a, alpha),
    aten.rsub.Scalar: lambda w, a, b, alpha: _of_two("Sub")(w, b, a, alpha),
    aten.rsqrt.default: lambda w, x: w("Reciprocal", w("Sqrt", w.of(x))),
    aten.pow.Tensor_Scalar: _power,
    aten.div.Tensor_mode: _divided,
    aten.floor_divide.default: lambda w, a, b: _divided(w, a, b, "floor"),
    aten.remainder.Scalar: _remainder,
    aten.remainder.Tensor: _remainder,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: lambda w, x, high: _clamp(w, x, None, high),
    aten.hardtanh.default: _clamp,
    aten.where.self: lambda w, chosen, a, b: w("Where", chosen, w.of(a), w.of(b)),
    aten.masked_fill.Scalar: lambda w, x, mask, value: w("Where", mask, w.of(value), x),
    aten.masked_fill.Tensor: lambda w, x, mask, value: w("Where", mask, w.of(value), x),
    aten.addcmul.default: lambda w, x, a, b, value: w(
        "Add", w.of(x), w("Mul", w("Mul", w.of(a), w.of(b)), w.of(value))
    ),
    aten.lerp.Scalar: lambda w, a, b, weight: w("Add", a, w("Mul", w("Sub", b, a), w.of(weight))),
    aten.lerp.Tensor: lambda w, a, b, weight: w("Add", a, w("Mul", w("Sub", b, a), weight)),
    aten.gelu.default: _gelu,
    aten.silu.default: _silu,
    aten.softplus.default: _softplus,
    aten.elu.default: _elu,
    aten.leaky_relu.default: lambda w, x, slope: w("LeakyRelu", x, alpha=float(slope)),
    aten._prelu_kernel.default: lambda w, x, slope: w("PRelu", x, slope),
    aten.hardsigmoid.default: lambda w, x: w("HardSigmoid", x, alpha=1 / 6, beta=0.5),
    aten.isnan.default: lambda w, x: w("IsNaN", x),
    aten.log2.default: lambda w, x: w("Div", w("Log", w.of(x)), w.of(math.log(2))),
    aten._to_copy.default: lambda w, x, *_: w.of(x),
}
