"""The forms in which a network can run, by name. A form is chosen for a device and a dtype; all compute the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fastdiff.engine import native
from fastdiff.engine.prepared import prepare_network
from fastdiff.errors import InputError, unknown_name, warn_caller
from fastdiff.kernels.cpu import compiled

Reason = str | None


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        name: as users give it.
        prepare: (network, device, dtype) → the copy that runs.
        build_error: (device, dtype) → why the form cannot run there, or None.
        captured: whether a step becomes a CUDA graph.
        kernels: the version of the form's own kernels, which its bits depend on, or None.
    """

    name: str
    prepare: Callable[[nn.Module, torch.device, torch.dtype], nn.Module]
    build_error: Callable[[torch.device, torch.dtype], Reason]
    captured: bool = False
    kernels: Callable[[], str | None] = lambda: None


def _anywhere(device: torch.device, dtype: torch.dtype) -> Reason:
    return None


def _on_cuda(device: torch.device, dtype: torch.dtype) -> Reason:
    return None if device.type == "cuda" else f"CUDA graphs need a CUDA device, this is {device}"


def _native(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return native.make_native(prepare_network(network, device, dtype))


# In the order of preference.
FORMS = {
    form.name: form
    for form in (
        Form("graph", prepare_network, _on_cuda, captured=True),
        Form("native", _native, native.build_error, kernels=compiled.identity),
        Form("eager", prepare_network, _anywhere),
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
        reason = FORMS["native"].build_error(device, dtype) if expected else None
        if reason:
            warn_caller(f"the network runs in plain torch, at about half the speed: {reason}")
        return next(form for form in FORMS.values() if form.build_error(device, dtype) is None)
    if name not in FORMS:
        raise unknown_name("form", name, FORMS)
    reason = FORMS[name].build_error(device, dtype)
    if reason:
        raise InputError(f"form = {name!r} cannot be used here: {reason}")
    return FORMS[name]
