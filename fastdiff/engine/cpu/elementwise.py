"""Elementwise operations: chains of them are one pass over memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fastdiff.capture.passes.comparisons import chosen, compared
from fastdiff.capture.passes.match import Node, activation, arguments, aten, only_user
from fastdiff.engine.cpu.lowering import Deferred, Lowering, Value, Way
from fastdiff.engine.cpu.views import order_of, same
from fastdiff.kernels.cpu.plan import View
from fastdiff.kernels.cpu.pointwise import INPUTS, STEPS, Step, broadcast, pointwise


@dataclass
class Expression(Deferred):
    """Operations on views, which a further operation may go on with.

    Attributes:
        node: whose result it is.
        inputs: of the result's shape.
        steps: as `pointwise` takes them, but the steps' values are numbered from INPUTS on.
    """

    node: Node
    inputs: list[View] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def view(self, low: Lowering) -> View:
        shape = self.node.meta["shape"]
        whole = next((view for view in self.inputs if 0 not in view.strides), None)
        out = low.result(self.node, None if whole is None or len(shape) < 2 else order_of(whole))
        steps = [_renumbered(step, lambda k: k if k < INPUTS else len(self.inputs) + k - INPUTS) for step in self.steps]
        low.call(pointwise(out, self.inputs, steps))
        return out

    def read(self, view: View) -> int:
        """The number of an input."""
        for number, known in enumerate(self.inputs):
            if same(known, view):
                return number
        self.inputs.append(view)
        return len(self.inputs) - 1

    def apply(self, name: str, *operands: int | float) -> int:
        """The number of a new step's value."""
        self.steps.append((name, *operands))
        return INPUTS + len(self.steps) - 1

    def joined(self, other: Expression) -> int:
        """The number of another expression's value, computed here."""
        inputs = [self.read(view) for view in other.inputs]
        before = len(self.steps)
        self.steps += [_renumbered(step, lambda k: inputs[k] if k < INPUTS else k + before) for step in other.steps]
        return INPUTS + len(self.steps) - 1


def _renumbered(step: Step, number: Callable[[int], int]) -> Step:
    name, *operands = step
    return (name, *(number(one) if isinstance(one, int) else one for one in operands))


Operand = int | float
Make = Callable[..., Operand]  # (expression, operands) → the number of the result


def _way(make: Make, *names: str) -> Way:
    """A way for an operation whose arguments `names` matter, in this order; the others have to be as usual."""

    def lower(low: Lowering, node: Node) -> Value | None:
        given = dict(zip((one.name for one in node.target._schema.arguments), arguments(node), strict=True))
        usual = {one.name: one.default_value for one in node.target._schema.arguments if one.name not in names}
        if any(given[name] != value for name, value in usual.items()):
            return None
        return _made(low, node, make, [given[name] for name in names])

    return lower


def _made(low: Lowering, node: Node, make: Make, given: list[Any]) -> Expression | None:
    """Of operands as the node has them: together with what computes them, unless that is too much for one pass."""
    for inline in (True, False):
        made = Expression(node)
        number = make(made, *(_operand(low, made, one, inline) for one in given))
        if len(made.inputs) <= INPUTS and len(made.steps) <= STEPS and number == INPUTS + len(made.steps) - 1:
            return made
    return None


def _operand(low: Lowering, made: Expression, value: Any, inline: bool) -> Operand | None:
    if isinstance(value, View):
        return made.read(broadcast(value, made.node.meta["shape"]))
    if not isinstance(value, fx.Node):
        return None if value is None else float(value)
    given = low.values[value]
    alike = value.meta["shape"] == made.node.meta["shape"]
    if inline and isinstance(given, Expression) and only_user(value) is made.node and alike:
        return made.joined(given)
    return made.read(broadcast(low.view(value), made.node.meta["shape"]))


def _times(made: Expression, x: Operand, factor: Operand) -> Operand:
    return x if factor == 1.0 and isinstance(factor, float) else made.apply("mul", x, factor)


def _add(made: Expression, a: Operand, b: Operand, alpha: float) -> int:
    return made.apply("add", a, _times(made, b, alpha))


def _sub(made: Expression, a: Operand, b: Operand, alpha: float) -> int:
    return made.apply("sub", a, _times(made, b, alpha))


def _addcmul(made: Expression, x: Operand, a: Operand, b: Operand, value: float) -> int:
    return _add(made, x, made.apply("mul", a, b), value)


def _clamp(made: Expression, x: Operand, low: Operand | None, high: Operand | None) -> Operand:
    x = x if low is None else made.apply("maximum", x, low)
    return x if high is None else made.apply("minimum", x, high)


def _lerp(made: Expression, x: Operand, end: Operand, weight: Operand) -> int:
    return made.apply("add", x, made.apply("mul", made.apply("sub", end, x), weight))


def _hardsigmoid(made: Expression, x: Operand) -> int:
    return made.apply("div", _clamp(made, made.apply("add", x, 3.0), 0.0, 6.0), 6.0)


def _compared(low: Lowering, node: Node) -> Value | None:
    how, a, b = node.args
    if how in ("lt", "le"):
        how, a, b = {"lt": "gt", "le": "ge"}[how], b, a
    if how == "ne":  # NaN too
        return _made(low, node, lambda made, a, b: made.apply("sub", 1.0, made.apply("eq", a, b)), [a, b])
    return _made(low, node, _one(how), [a, b])


def _affine(made: Expression, x: Operand, *numbers: Operand) -> Operand:
    for place, number in enumerate(numbers):
        x = made.apply("add" if place % 2 else "mul", x, number)
    return x


def affine(low: Lowering, node: Node, x: Node | View, *numbers: Node | View) -> Value | None:
    """A node's result as x a + b, or (x a + b) c + d, and so on, of numbers that broadcast to x's shape."""
    return _made(low, node, _affine, [x, *numbers])


def _one(name: str) -> Make:
    return lambda made, *operands: made.apply(name, *operands)


def _activation(low: Lowering, node: Node) -> Value | None:
    name = activation(node)
    return None if name is None else _made(low, node, _one(name), [node.args[0]])


_UNARY = ("neg", "abs", "exp", "log", "sin", "cos", "tanh", "sigmoid", "sqrt", "rsqrt", "reciprocal", "erf", "mish")
ELEMENTWISE: dict[Any, Way] = {
    **{getattr(aten, name).default: _way(_one(name), "self") for name in (*_UNARY, "hardswish")},
    **dict.fromkeys((aten.gelu.default, aten.silu.default, aten.relu.default), _activation),
    aten.softplus.default: _way(_one("softplus"), "self"),
    aten.leaky_relu.default: _way(_one("leaky_relu"), "self", "negative_slope"),
    aten.elu.default: _way(_one("elu"), "self", "alpha"),
    aten.add.Tensor: _way(_add, "self", "other", "alpha"),
    aten.add.Scalar: _way(_add, "self", "other", "alpha"),
    aten.sub.Tensor: _way(_sub, "self", "other", "alpha"),
    aten.sub.Scalar: _way(_sub, "self", "other", "alpha"),
    aten.rsub.Scalar: _way(lambda made, a, b, alpha: _sub(made, b, a, alpha), "self", "other", "alpha"),
    aten.mul.Tensor: _way(_one("mul"), "self", "other"),
    aten.mul.Scalar: _way(_one("mul"), "self", "other"),
    aten.div.Tensor: _way(_one("div"), "self", "other"),
    aten.div.Scalar: _way(_one("div"), "self", "other"),
    aten.maximum.default: _way(_one("maximum"), "self", "other"),
    aten.minimum.default: _way(_one("minimum"), "self", "other"),
    aten.pow.Tensor_Scalar: _way(_one("pow"), "self", "exponent"),
    aten.lerp.Scalar: _way(_lerp, "self", "end", "weight"),
    aten.lerp.Tensor: _way(_lerp, "self", "end", "weight"),
    aten.addcmul.default: _way(_addcmul, "self", "tensor1", "tensor2", "value"),
    compared: _compared,
    chosen: lambda low, node: _made(low, node, _one("where"), list(node.args)),
    aten.hardsigmoid.default: _way(_hardsigmoid, "self"),
    aten._prelu_kernel.default: _way(_one("leaky_relu"), "self", "weight"),
    aten.clamp.default: _way(_clamp, "self", "min", "max"),
    aten.clamp.Tensor: _way(_clamp, "self", "min", "max"),
    aten.hardtanh.default: _way(_clamp, "self", "min_val", "max_val"),
    aten.clamp_min.default: _way(lambda made, x, low: _clamp(made, x, low, None), "self", "min"),
    aten.clamp_max.default: _way(lambda made, x, high: _clamp(made, x, None, high), "self", "max"),
}
