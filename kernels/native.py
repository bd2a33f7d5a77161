"""The CPU kernels: C sources (kernels/c) that the system's compiler turns into a library for this very processor.

The library is compiled when it is first asked for, in about a second, and kept on disk under a key of sources,
compiler, flags and processor: in the folder FASTDIFF_CACHE, else in fastdiff's folder of the user's cache.
It takes NHWC float32 only. Threads are OpenMP's, from the very runtime that torch has loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fastdiff.kernels import checks

SOURCES = Path(__file__).parent / "c"
FILES = ("winograd.c", "norm.c", "attention.c")
ACTIVATIONS = {None: 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "relu": 4}
# No -ffast-math: NaN and infinity keep their meaning. Products and sums may be fused, which only rounds less.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared")


class Unavailable(RuntimeError):
    """Why there are no CPU kernels here."""


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    given = os.environ.get("FASTDIFF_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastdiff"


def missing() -> str | None:
    """Why the kernels cannot run here, or None; compiles them."""
    if os.environ.get("FASTDIFF_KERNELS") == "reference":
        return "FASTDIFF_KERNELS=reference asks for plain torch"
    problem = _load()
    return problem if isinstance(problem, str) else None


def library() -> ctypes.CDLL:
    """The compiled kernels. Raises Unavailable where there are none."""
    loaded = _load()
    if isinstance(loaded, str):
        raise Unavailable(loaded)
    return loaded


@functools.cache
def _load() -> ctypes.CDLL | str:
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        return "no C compiler (cc, gcc or clang) was found"
    words = shlex.split(compiler)
    machine = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    try:
        about = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True).stdout
        # What "native" means differs between the machines that share a home folder.
        native = subprocess.run(
            [*words, machine, "-dM", "-E", "-x", "c", os.devnull], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as problem:
        return f"the C compiler {compiler!r} does not run: {problem}"
    texts = [path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in (".c", ".h")]
    problem = ""
    for threads in (_openmp(), ()):
        command = [*words, *FLAGS, machine, *(str(SOURCES / name) for name in FILES), *threads]
        key = hashlib.sha256(b"\0".join([*texts, about.encode(), native.encode(), shlex.join(command).encode()]))
        try:
            path = cache_folder() / f"kernels-{key.hexdigest()[:32]}.so"
            if not path.exists():
                _compile(command, path)
            loaded = ctypes.CDLL(str(path))
        except OSError as error:
            problem = str(error)
            continue
        except subprocess.CalledProcessError as error:
            problem = (error.stderr.strip().splitlines() or ["no message"])[-1]
            continue
        loaded.winograd_space.restype = loaded.attention_space.restype = ctypes.c_long
        return loaded
    return f"the CPU kernels could not be compiled by {compiler!r}: {problem}"


def _openmp() -> tuple[str, ...]:
    """OpenMP by torch's own runtime: a second one would have threads of its own, which fight for the same cores."""
    runtimes = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return ("-fopenmp", *map(str, runtimes[:1]))


def _compile(command: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".so.part")
    os.close(handle)
    try:
        subprocess.run([*command, "-lm", "-o", name], capture_output=True, text=True, check=True)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@functools.cache
def vector_width() -> int:
    """Floats in a vector of the compiled kernels; channels must be at least as many."""
    return library().winograd_vector()


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if x is None else x.data_ptr())


def takes(x: Tensor) -> bool:
    """Whether images are ones that the kernels compute with."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def empty(x: Tensor, channels: int) -> Tensor:
    b, _, h, w = x.shape
    return torch.empty((b, channels, h, w), memory_format=torch.channels_last)


# G of Winograd's F(4x4, 3x3), Lavin and Gray (2016), section 4.3.
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
      [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip


def winograd_weight(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) → G w G^T as (36, C, O rounded up to vectors), float32, computed in float64."""
    o, c = weight.shape[:2]
    g = torch.tensor(_G, dtype=torch.float64)
    packed = torch.zeros(36, c, -(-o // vector_width()) * vector_width())
    packed[:, :, :o] = (g @ weight.detach().double() @ g.T).permute(2, 3, 1, 0).reshape(36, c, o)
    return packed


def winograd(
    x: Tensor, weight: Tensor, bias: Tensor | None, channels: int, activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """activation(conv2d(x, w, bias, padding=1)) + residual, w a 3x3 kernel, by Winograd's F(4x4, 3x3).

    x: (B, C, H, W) float32 on the CPU; weight: from winograd_weight; channels: O; residual: (B, O, H, W). C and O are
    at least vector_width(). Returns (B, O, H, W) in channels_last. Its rounding is some 3 times that of the direct
    form (1e-6 relative). Raises ValueError for anything else.
    """
    op = "winograd"
    checks.images(op, x)
    b, c, h, w = x.shape
    vl = vector_width()
    checks.shape(op, "weight", weight, (36, c, -(-channels // vl) * vl))
    checks.shape(op, "bias", bias, (channels,))
    checks.shape(op, "residual", residual, (b, channels, h, w))
    checks.activation(op, "activation", activation)
    check(op, x, c, channels, weight=weight, bias=bias, residual=residual)
    x, out, threads = nhwc(x), empty(x, channels), torch.get_num_threads()
    residual = None if residual is None else nhwc(residual)
    space = torch.empty(threads * library().winograd_space(c, channels))
    library().winograd(
        pointer(x), pointer(weight), pointer(bias), pointer(residual), pointer(out), b, h, w, c, channels,
        ACTIVATIONS[activation], threads, pointer(space),
    )  # fmt: skip
    return out


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, after: str | None = None
) -> Tensor:
    """after(norm(x) weight + bias) over a group's channels and positions, float32 on the CPU, in channels_last.

    x: (B, C, H, W), C at least vector_width() and a multiple of groups. Raises ValueError for anything else.
    """
    op = "group_norm"
    checks.images(op, x)
    b, c, h, w = x.shape
    if groups < 1 or c % groups:
        raise ValueError(f"{op}: groups = {groups} with {c} channels; accepted: a divisor of the channels")
    checks.shape(op, "weight", weight, (c,))
    checks.shape(op, "bias", bias, (c,))
    checks.activation(op, "after", after)
    check(op, x, c, weight=weight, bias=bias)
    x, out, threads = nhwc(x), empty(x, c), torch.get_num_threads()
    space = torch.empty(threads * 4 * c)
    library().group_norm(
        pointer(x), pointer(out), b, h * w, c, groups, pointer(weight), pointer(bias), ctypes.c_float(eps),
        ACTIVATIONS[after], threads, pointer(space),
    )  # fmt: skip
    return out


def check(op: str, x: Tensor, *channels: int, **others: Tensor | None) -> None:
    if min(channels) < vector_width():
        raise ValueError(f"{op}: {min(channels)} channels; accepted: at least {vector_width()} on this processor")
    for name, tensor in {"x": x, **others}.items():
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise ValueError(f"{op}: {name} is {tensor.dtype} on {tensor.device}; accepted: float32 on the CPU")
        if tensor is not None and name not in ("x", "residual") and not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} is not contiguous")
