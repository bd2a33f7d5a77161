"""How fused_conv's work is cut into tiles: by estimate, or as `tune` measured on this device.

What was measured is kept on disk, under the names of the device and its driver, and read once in a process. It holds
for one version of the kernel and of Triton. The tiles of a convolution depend on its sizes and not on the batch, so
that a sample's bits do not either; with other tiles they differ, by rounding, and `identity` says which are in use.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastdiff.kernels.ahead import compile_ahead
from fastdiff.kernels.conv_weight import tile
from fastdiff.kernels.cpu.compiled import cache_folder


@dataclass(frozen=True)
class Tiling:
    """How a convolution is computed.

    Attributes:
        rows, columns: positions and output channels of a program.
        warps, stages: of a program; stages of its pipeline of loads.
    """

    rows: int
    columns: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Measured:
    """A shape's best tiling, and its milliseconds next to those of the estimated one."""

    tiling: Tiling
    milliseconds: float
    estimated: float


CHOICES = {"rows": (16, 32, 64, 128), "columns": (16, 32, 64, 128), "warps": (4, 8), "stages": (2, 3, 4)}

WORTH = 0.97  # times the estimate's time; what gains less may as well be noise

_forced: ContextVar[Tiling | None] = ContextVar("forced", default=None)
_seen: ContextVar[dict[str, tuple[Tiling, Callable[[], object]]] | None] = ContextVar("seen", default=None)


def estimated(positions: int, channels: int) -> Tiling:
    """Without a measurement: for a phase's positions and the output channels."""
    rows, columns = tile(positions, channels)
    return Tiling(rows, columns, 8 if rows * columns >= 8192 else 4, 3)


def candidates(first: Tiling) -> list[Tiling]:
    """What may be faster than an estimate: it first, then half its tile along either axis, other warps and stages."""
    found = [first]
    for rows in (first.rows, max(64, first.rows // 2)):
        for columns in (first.columns, max(32, first.columns // 2)):
            if rows <= first.rows and columns <= first.columns:
                found += [
                    Tiling(rows, columns, *rest) for rest in itertools.product(CHOICES["warps"], CHOICES["stages"])
                ]
    return list(dict.fromkeys(found))


def tiling(device: torch.device, shape: str, first: Tiling, again: Callable[[], object]) -> Tiling:
    """The tiling for a convolution.

    Args:
        device: where it runs.
        shape: all that its speed depends on, but for the batch, in words.
        first: the estimate.
        again: computes it once more, for `tune`.
    """
    forced, seen = _forced.get(), _seen.get()
    if forced is not None:
        return forced
    if seen is not None and shape not in seen:
        seen[shape] = first, again
    found = _table(device).get(shape)
    return first if found is None else found.tiling


@contextmanager
def _using(one: Tiling) -> Iterator[None]:
    token = _forced.set(one)
    try:
        yield
    finally:
        _forced.reset(token)


def tune(
    run: Callable[[], object], device: torch.device, progress: Callable[[int, int], object] = lambda done, total: None
) -> dict[str, Measured]:
    """Measure every tiling of all convolutions that run() computes, and keep the best of each on disk.

    Args:
        run: calls the operators, on the device, at the batch that matters most.
        device: a CUDA device.
        progress: progress(done, total) is called after each convolution.

    Returns:
        What was measured, by shape.

    Raises:
        RuntimeError: during a capture of a CUDA graph.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("tuning: a CUDA graph is being captured; accepted: before or after")
    token = _seen.set({})
    try:
        run()
        seen = _seen.get() or {}
    finally:
        _seen.reset(token)

    def everything() -> None:
        for first, again in seen.values():
            for one in candidates(first):
                with _using(one):
                    again()

    if device.type == "cuda":
        compile_ahead(everything, device)
    made: dict[str, Measured] = {}
    for done, (shape, (first, again)) in enumerate(seen.items(), start=1):
        times = {one: _time(one, again) for one in candidates(first)}
        best = min(times, key=times.__getitem__)
        if times[best] > WORTH * times[first]:
            best = first
        made[shape] = Measured(best, times[best], times[first])
        progress(done, len(seen))
    save(device, made)
    return made


def _time(one: Tiling, again: Callable[[], object]) -> float:
    """Milliseconds of a launch; infinity where a program would need more than a multiprocessor has."""
    from triton.runtime.errors import OutOfResources

    with _using(one):
        try:
            return milliseconds(again)
        except OutOfResources:
            return float("inf")


def milliseconds(call: Callable[[], object]) -> float:
    """The median of 50 ms of calls on the device, each with an empty cache."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=10, rep=50, return_mode="median"))


def save(device: torch.device, measured: dict[str, Measured]) -> None:
    """Add to what is kept for a device; shapes that were measured before are replaced."""
    place = path(device)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    entries = {shape: asdict(one) for shape, one in {**_table(device), **measured}.items()}
    whole = place.with_name(f"{place.name}.{os.getpid()}")  # a reader meets the old file or the new one
    whole.write_text(json.dumps({**(_names(device) or {}), "measured": entries}, indent=1))
    os.replace(whole, place)
    _table.cache_clear()


def path(device: torch.device) -> Path:
    """Where a device's tilings are kept: in the folder FASTDIFF_CACHE, else in fastdiff's of the user's cache."""
    names = _names(device)
    assert names is not None, device
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{names['device']} driver {names['driver']}")
    return cache_folder() / f"tiles-{words}.json"


def identity(device: torch.device) -> str | None:
    """Names the measured tilings that are in use, which a result's last bits depend on; None without any."""
    table = _table(device)
    text = json.dumps({shape: asdict(one.tiling) for shape, one in sorted(table.items())})
    return f"tiles {hashlib.sha256(text.encode()).hexdigest()[:12]}" if table else None


def _names(device: torch.device) -> dict[str, str] | None:
    """What a measurement holds for; None where nothing is measured."""
    if device.type != "cuda":
        return None
    import triton

    source = Path(__file__).with_name("fused_conv_triton.py").read_bytes()
    return {
        "device": torch.cuda.get_device_name(device),
        "driver": _driver(),
        "triton": triton.__version__,
        "kernel": hashlib.sha256(source).hexdigest()[:12],
    }


def _driver() -> str:
    """The driver's version."""
    try:
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    # Elsewhere, as under Windows' Linux, the newest CUDA that it serves.
    return found[1] if found else f"cuda-{torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]


@functools.cache
def _table(device: torch.device) -> dict[str, Measured]:
    """What is kept for a device; nothing where the file is damaged, or is of another kernel or Triton."""
    names = _names(device)
    if names is None:
        return {}
    try:
        kept = json.loads(path(device).read_text())
        if any(kept[name] != value for name, value in names.items()):
            return {}
        return {shape: _measured(entry) for shape, entry in kept["measured"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _measured(entry: dict[str, Any]) -> Measured:
    made = Tiling(**entry["tiling"])
    for name, accepted in CHOICES.items():
        if getattr(made, name) not in accepted:
            raise ValueError(name)
    return Measured(made, float(entry["milliseconds"]), float(entry["estimated"]))
