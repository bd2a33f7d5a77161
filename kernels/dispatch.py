"""Which form of an operator runs: its Triton kernel on a CUDA device, its plain torch reference elsewhere."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMS = ("auto", "triton", "reference")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_form: ContextVar[str | None] = ContextVar("form", default=None)
# Set where launches are compiled or counted (kernels.ahead, bench.codegen): it takes each in place of the device.
_recorder: ContextVar[Callable[..., None] | None] = ContextVar("recorder", default=None)


def form() -> str:
    """The form in force: that of the innermost `using`, else the variable FASTDIFF_KERNELS, else "auto"."""
    return _form.get() or _checked(os.environ.get("FASTDIFF_KERNELS", "auto"))


@contextmanager
def using(form: str) -> Iterator[None]:
    """Within it every operator runs in one form.

    "auto": Triton on CUDA devices of compute capability 8.0 and newer, else the reference. "triton": Triton, on CUDA
    or, with TRITON_INTERPRET=1, in Triton's interpreter; ValueError elsewhere. "reference": plain torch everywhere.
    """
    token = _form.set(_checked(form))
    try:
        yield
    finally:
        _form.reset(token)


@contextmanager
def withholding(record: Callable[..., None]) -> Iterator[None]:
    """Within it each launch is handed to `record` and not made: record(kernel, grid, arguments, options)."""
    token = _recorder.set(record)
    try:
        yield
    finally:
        _recorder.reset(token)


@contextmanager
def recording(record: Callable[..., None]) -> Iterator[None]:
    """Within it operators run in their Triton form on meta tensors, and each launch is handed to `record`."""
    with withholding(record), using("triton"):
        yield


def use_triton(x: Tensor) -> bool:
    """Whether the operator that was given x runs its Triton kernel.

    Under torch.compile and in an export it never does: there the plain operations are what is wanted.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return triton_for(x.device, x.dtype)


def triton_for(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether operators run their Triton kernels for tensors of that dtype on that device."""
    wanted = form()
    if wanted == "reference":
        return False
    if wanted == "auto":
        return device.type == "cuda" and dtype in KERNEL_DTYPES and _capable(device)
    if dtype not in KERNEL_DTYPES:
        raise ValueError(f"a Triton kernel was asked for and the input is {dtype}; accepted: {_names(KERNEL_DTYPES)}")
    if not (device.type == "cuda" or _recorder.get() or interpreted()):
        raise ValueError(
            f"a Triton kernel was asked for on device {device}; accepted: CUDA, or any with TRITON_INTERPRET=1"
        )
    return True


def interpreted() -> bool:
    """Whether Triton was told to interpret kernels, which it must be before it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **options: Any) -> None:
    """kernel[grid](*args, **options) on the tensors' own device, which need not be the current one."""
    record = _recorder.get()
    if record is not None:
        record(kernel, grid, args, options)
    elif device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        with torch.cuda.device(device):
            kernel[grid](*args, **options)
    else:
        kernel[grid](*args, **options)


@cache
def _capable(device: torch.device) -> bool:
    """CUDA of compute capability 8.0 or newer, and all that Triton needs to launch."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if importlib.util.find_spec("triton") is None:  # a dependency on Linux only
        return False
    missing = _missing_to_launch()
    if missing:
        warnings.warn(f"no {missing}, which Triton needs; the operators run in plain torch", stacklevel=2)
    return not missing


def _missing_to_launch() -> str | None:
    """What Triton lacks here: it compiles a piece of C for each kernel that it launches."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "C compiler"
    folders = [sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")]  # the latter on Debian
    for variable in ("CPATH", "C_INCLUDE_PATH"):
        folders += filter(None, os.environ.get(variable, "").split(os.pathsep))
    if any((Path(folder) / "Python.h").exists() for folder in folders):
        return None
    return f"Python.h in {folders[0]} (a package such as python3-dev has it)"


def _checked(form: str) -> str:
    if form not in FORMS:
        raise ValueError(f"kernel form {form!r}; accepted: {', '.join(FORMS)}")
    return form


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)
