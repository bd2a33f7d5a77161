"""The forms in which a network can run, by name. A form is chosen for a device and a dtype; all compute the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fastdiff.engine.ahead import compile_kernels
from fastdiff.engine.evaluation import Given, Network, NotCapturedError, Parts, captured, check, eager, evaluated
from fastdiff.engine.kept import KEPT
from fastdiff.errors import InputError, unknown_name, warn_caller
from fastdiff.kernels import tuning
from fastdiff.kernels.cpu import compiled
from fastdiff.kernels.dispatch import triton_for

Reason = str | None


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        name: as users give it.
        network: (the user's module, device, dtype) → the network that the parts are made of.
        parts: (network, what it is evaluated on) → the parts that run.
        build_error: (device, dtype) → why the form cannot run there, or None.
        captured: whether a step becomes a CUDA graph.
        kernels: device → the version of the form's own kernels, which its bits depend on, or None.
    """

    name: str
    network: Callable[[nn.Module, torch.device, torch.dtype], Network]
    parts: Callable[[Network, Given], Parts]
    build_error: Callable[[torch.device, torch.dtype], Reason]
    captured: bool = False
    kernels: Callable[[torch.device], str | None] = lambda device: None


def _anywhere(device: torch.device, dtype: torch.dtype) -> Reason:
    return None


def _on_cuda(device: torch.device, dtype: torch.dtype) -> Reason:
    return None if device.type == "cuda" else f"CUDA graphs need a CUDA device, this is {device}"


def _on_cpu(device: torch.device, dtype: torch.dtype) -> Reason:
    if device.type != "cpu" or dtype != torch.float32:
        return f"it is float32 on the CPU, this is {dtype} on {device}"
    return compiled.build_error()


def _rewritten(network: Network, given: Given) -> Parts:
    """The network's graph, rewritten; or the network as it is where it has no graph, with a warning the first time."""
    shared = KEPT.shared(network)
    first = not shared.refused
    try:
        parts = shared.prepared(given, _checked)
    except NotCapturedError as problem:
        if first:
            warn_caller(f"the network runs as it is, which is slower: it cannot be captured ({problem})")
        return eager(KEPT.own(shared), given)
    KEPT.keep(shared)
    return parts


def _checked(network: Network, given: Given) -> Parts:
    parts = captured(network, given)
    if triton_for(given.device, given.dtype):
        compile_kernels(lambda: evaluated(parts, given.example(given.batch)), given.device)
    check(network, parts, given)
    return parts


# In the order of preference.
FORMS = {
    form.name: form
    for form in (
        Form("cuda", KEPT.network, _rewritten, _on_cuda, captured=True, kernels=tuning.identity),
        Form("cpu", KEPT.network, _rewritten, _on_cpu, kernels=lambda device: compiled.identity()),
        Form("eager", Network, eager, _anywhere),
    )
}


def choose_form(name: str | None, device: torch.device, dtype: torch.dtype) -> Form:
    """The form of that name, or the first that can run there.

    Warns where a CPU has no kernels, since the network is then half as fast.

    Raises:
        InputError: for an unknown form, or one that cannot run there.
    """
    if name is None:
        expected = device.type == "cpu" and dtype == torch.float32 and not compiled.switched_off()
        reason = FORMS["cpu"].build_error(device, dtype) if expected else None
        if reason:
            warn_caller(f"the network runs in plain torch, at about half the speed: {reason}")
        return next(form for form in FORMS.values() if form.build_error(device, dtype) is None)
    if not isinstance(name, str) or name not in FORMS:
        raise unknown_name("form", name, FORMS)
    reason = FORMS[name].build_error(device, dtype)
    if reason:
        raise InputError(f"form = {name!r} cannot be used here: {reason}")
    return FORMS[name]
