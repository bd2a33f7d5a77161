"""Operators in torch's own list, as torch.ops.fastdiff.<name>: one node each for what records or compiles a network.

Where gradients are needed, such a recorder sees the reference's operations instead, whose gradients torch knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastdiff.kernels import dispatch

LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")


class Kernels(NamedTuple):
    """An operator's Triton kernels. Each function takes the schema's arguments, all of them, by position.

    Attributes:
        take: whether these kernels run, here and for these arguments.
        launch: the result, or None of an operator that writes to its arguments. Not differentiable.
        empty: an uninitialised tensor of the shape, dtype and strides of launch's result, or None likewise.
        differentiable: the result, differentiable: the `apply` of an autograd.Function; with None the reference runs
            where gradients are needed.
    """

    take: Callable[..., bool]
    launch: Callable[..., Any]
    empty: Callable[..., Any]
    differentiable: Callable[..., Any] | None = None


def register(schema: str, reference: Callable[..., Any], kernels: Kernels) -> Callable[..., Any]:
    """Register an operator that runs its Triton kernels or its reference.

    Args:
        schema: as torch.library has it, without keyword-only arguments; the first argument is a tensor.
        reference: the operator in plain torch, with the schema's arguments by position.
        kernels: the same by Triton.

    Returns:
        The operator as a function of the schema's arguments, all of them, by position. It calls the reference itself,
        not the registered operator,
        - in `using("reference")`;
        - in TorchScript's traces, which are read where nothing is registered;
        - under autocast, unless Triton kernels run: it casts the operations inside;
        - where nothing records the call, unless Triton kernels run: that saves the dispatcher's 7 µs.
    """
    name = LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    operator = getattr(torch.ops.fastdiff, name).default
    defaults = tuple(argument.default_value for argument in operator._schema.arguments)

    def choose(args: tuple[Any, ...], by_triton: Callable[..., Any]) -> Any:
        return (by_triton if kernels.take(*args) else reference)(*args)

    def run(*args: Any) -> Any:
        return choose(args, kernels.launch)

    def fake(*args: Any) -> Any:
        # On meta tensors a launch that is withheld is told; under a trace the operator only states a shape.
        told = dispatch.withheld() and not _traced(args[0])
        return choose(args, kernels.launch if told else kernels.empty)

    def with_gradient(*args: Any) -> Any:
        if not _needs_gradient(args):
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*args)
        return reference(*args) if _traced(args[0]) else choose(args, kernels.differentiable or reference)

    def whole(function: Callable[..., Any]) -> Callable[..., Any]:
        # torch's dispatcher leaves out arguments at the end that are equal to their defaults.
        return lambda *given: function(*given, *defaults[len(given) :])

    LIBRARY.impl(name, whole(run), "CompositeExplicitAutograd")
    LIBRARY.impl(name, whole(with_gradient), "Autograd")
    torch.library.register_fake(f"fastdiff::{name}", whole(fake), lib=LIBRARY)

    def call(*args: Any) -> Any:
        if _plain(args, kernels.take):
            return reference(*args)
        return operator(*args)

    return call


def _plain(args: tuple[Any, ...], take: Callable[..., bool]) -> bool:
    """Whether the reference is to be called instead of the registered operator; see `register`."""
    device = args[0].device.type
    cast = device != "meta" and torch.is_autocast_enabled(device)
    if torch.compiler.is_dynamo_compiling():  # it cannot trace the backend's choice, which the node makes when it runs
        return cast
    if dispatch.backend() == "reference" or torch.jit.is_tracing():
        return True
    if torch.compiler.is_compiling():
        return cast
    recorded = torch._C._len_torch_dispatch_stack() > 0 or _traced(args[0])
    return (cast or not recorded) and not take(*args)


def _needs_gradient(args: tuple[Any, ...]) -> bool:
    """In reverse or in forward mode."""
    return forward_ad._current_level >= 0 or torch.is_grad_enabled() and torch._C._any_requires_grad(*args)


def _traced(x: Tensor) -> bool:
    """Whether x stands for a tensor in a trace, and has no memory that a kernel could read."""
    return type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__
