"""Operators in torch's own list, as torch.ops.fastdiff.<name>: one node each for what records or compiles a network.

Where gradients are needed, such a recorder sees the reference's operations instead, whose gradients torch knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from fastdiff.kernels import dispatch

LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")


class Kernels(NamedTuple):
    """An operator's kernels for one kind of device. Each function takes the schema's arguments, all, by position.

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


def register(schema: str, reference: Callable[..., Any], *kernels: Kernels) -> Callable[..., Any]:
    """Register an operator that runs kernels or its reference.

    Args:
        schema: as torch.library has it, without keyword-only arguments; the first argument is a tensor.
        reference: the operator in plain torch, with the schema's arguments by position.
        kernels: the same by Triton or in C; the first that take the arguments run.

    Returns:
        The operator as a function of the schema's arguments, all of them, by position. It calls the implementation
        itself, not the registered operator,
        - the reference in `using("reference")`;
        - the reference in TorchScript's traces, which are read where nothing is registered;
        - the reference under autocast, unless kernels run: it casts the operations inside;
        - the reference where nothing records the call, unless kernels run; and the kernels too where no gradient is
          needed: that saves the dispatcher's 7 µs.
    """
    name = LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    operator = getattr(torch.ops.fastdiff, name).default
    defaults = tuple(argument.default_value for argument in operator._schema.arguments)
    plain = Kernels(take=lambda *_: True, launch=reference, empty=reference, differentiable=reference)

    def chosen(args: tuple[Any, ...]) -> Kernels:
        return next((one for one in kernels if one.take(*args)), plain)

    def run(*args: Any) -> Any:
        return chosen(args).launch(*args)

    def fake(*args: Any) -> Any:
        # On meta tensors a launch that is withheld is told; under a trace the operator only states a shape.
        told = dispatch.withheld() and not dispatch.has_no_memory(args[0])
        one = chosen(args)
        return (one.launch if told else one.empty)(*args)

    def with_gradient(*args: Any) -> Any:
        if not _needs_gradient(args):
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*args)
        traced = dispatch.has_no_memory(args[0])
        return ((None if traced else chosen(args).differentiable) or reference)(*args)

    def whole(function: Callable[..., Any]) -> Callable[..., Any]:
        # torch's dispatcher leaves out arguments at the end that are equal to their defaults.
        return lambda *given: function(*given, *defaults[len(given) :])

    LIBRARY.impl(name, whole(run), "CompositeExplicitAutograd")
    LIBRARY.impl(name, whole(with_gradient), "Autograd")
    torch.library.register_fake(f"fastdiff::{name}", whole(fake), lib=LIBRARY)

    def call(*args: Any) -> Any:
        device = args[0].device.type
        cast = device != "meta" and torch.is_autocast_enabled(device)
        if torch.compiler.is_dynamo_compiling():  # it cannot trace the backend's choice, which the node makes later
            return (reference if cast else operator)(*args)
        if dispatch.backend() == "reference" or torch.jit.is_tracing():
            return reference(*args)
        if torch.compiler.is_compiling():
            return (reference if cast else operator)(*args)
        recorded = torch._C._len_torch_dispatch_stack() > 0 or dispatch.has_no_memory(args[0])
        if recorded and not cast:
            return operator(*args)
        one = chosen(args)
        if one is plain or not (recorded or cast or _needs_gradient(args)):
            return one.launch(*args)
        return operator(*args)

    return call


def _needs_gradient(args: tuple[Any, ...]) -> bool:
    """In reverse or in forward mode."""
    return forward_ad._current_level >= 0 or torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
