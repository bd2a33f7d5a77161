"""Which implementation of an operator runs: Triton kernels on CUDA devices; on a CPU C kernels, where an operator has
them; the plain torch reference elsewhere."""

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

from fastdiff.kernels.cpu import compiled

BACKENDS = ("auto", "library", "triton", "reference")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_backend: ContextVar[str | None] = ContextVar("backend", default=None)
# Receives each launch in place of the device, to compile or to count it (kernels.ahead, bench.static.codegen).
_recorder: ContextVar[Callable[..., None] | None] = ContextVar("recorder", default=None)


def backend() -> str:
    """The choice in force: the innermost `using`, else the environment variable FASTDIFF_KERNELS, else "auto"."""
    return _backend.get() or _checked(os.environ.get("FASTDIFF_KERNELS", "auto"))


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Choose the implementation of every operator that is called inside the `with` block.

    Args:
        backend: "auto": Triton for float32, bfloat16 and float16 on CUDA devices of compute capability 8.0 and newer,
            C kernels on a CPU that has a compiler, else the reference. "library": the same, but that a captured
            network's convolutions on CUDA stay the library's. "triton": always Triton, on CUDA or, with
            TRITON_INTERPRET=1, in Triton's interpreter. "reference": always plain torch.

    Raises:
        ValueError: for another name. An operator raises it when "triton" cannot run its input.
    """
    token = _backend.set(_checked(backend))
    try:
        yield
    finally:
        _backend.reset(token)


@contextmanager
def withholding(record: Callable[..., None]) -> Iterator[None]:
    """Inside the `with` block no kernel is launched; record(kernel, grid, arguments, options) is called instead."""
    token = _recorder.set(record)
    try:
        yield
    finally:
        _recorder.reset(token)


@contextmanager
def recording(record: Callable[..., None], backend: str = "triton") -> Iterator[None]:
    """As `withholding`, so that operators on meta tensors show what they would launch with "triton" or "library"."""
    with withholding(record), using(backend):
        yield


def use_triton(x: Tensor) -> bool:
    """Whether a function that is no registered operator runs Triton kernels on x.

    Never under torch.compile or in an export, which need the plain operations. A registered operator is one operation
    there, which asks `triton_for` when it runs.

    Raises:
        ValueError: if the backend is "triton" and x's device or dtype rules it out.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return triton_for(x.device, x.dtype)


def triton_for(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether operators on tensors of this device and dtype run their Triton kernels; raises as `use_triton`."""
    wanted = backend()
    if wanted == "reference":
        return False
    if wanted == "auto" or (wanted == "library" and not (device.type == "meta" and withheld())):
        return device.type == "cuda" and dtype in KERNEL_DTYPES and _capable(device)
    if dtype not in KERNEL_DTYPES:
        raise ValueError(f"a Triton kernel was asked for and the input is {dtype}; accepted: {_names(KERNEL_DTYPES)}")
    if not (device.type == "cuda" or _recorder.get() or interpreted()):
        raise ValueError(
            f"a Triton kernel was asked for on device {device}; accepted: CUDA, or any with TRITON_INTERPRET=1"
        )
    return True


def c_for(x: Tensor) -> bool:
    """Whether operators on x run their C kernels, if they have any for their arguments; compiles them at first.

    Not where the operations inside are to be seen: under autocast, and in torch.func's transforms.
    """
    return (
        x.device.type == "cpu"
        and on_a_cpu_in_c()
        and not has_no_memory(x)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.peek_interpreter_stack() is None
        and compiled.build_error() is None
    )


def on_a_cpu_in_c() -> bool:
    """Whether the choice in force has C kernels run on a CPU."""
    return backend() in ("auto", "library")


def has_no_memory(x: Tensor) -> bool:
    """Whether x stands for a tensor in a trace, and has no memory that a kernel could read."""
    return type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__


def withheld() -> bool:
    """Whether launches are withheld, by `withholding` or `recording`."""
    return _recorder.get() is not None


def interpreted() -> bool:
    """Whether Triton interprets kernels; the variable counts only if it is set before Triton is imported."""
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
    """Whether the device has compute capability 8.0 or newer, and Triton has all it needs to launch on it."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if importlib.util.find_spec("triton") is None:  # a dependency on Linux only
        return False
    missing = _missing_to_launch()
    if missing:
        warnings.warn(f"no {missing}, which Triton needs; the operators run in plain torch", stacklevel=2)
    return not missing


def _missing_to_launch() -> str | None:
    """What Triton lacks to compile the piece of C that launches a kernel, or None."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "C compiler"
    folders = [sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")]  # the latter on Debian
    for variable in ("CPATH", "C_INCLUDE_PATH"):
        folders += filter(None, os.environ.get(variable, "").split(os.pathsep))
    if any((Path(folder) / "Python.h").exists() for folder in folders):
        return None
    return f"Python.h in {folders[0]} (a package such as python3-dev has it)"


def _checked(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"kernel backend {backend!r}; accepted: {', '.join(BACKENDS)}")
    return backend


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)
