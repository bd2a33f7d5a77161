"""What the compiler makes of every Triton kernel, for each architecture, without a GPU.

The networks and the sampler's step run on meta tensors, so that each operator's own code decides what is launched and
how; every launch is compiled for each architecture in place of being run. Printed for each: registers, shared memory,
stack and spills, the width of the accesses to global memory, the instructions for tensor cores, and the number of all;
before them, how many kernels a captured step launches. Exits with 1 where anything spills, uses a stack, or wants more
shared memory than the chip has. Compiled kernels stay in Triton's cache.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import triton
from torch import Tensor
from tqdm.auto import tqdm

from fastdiff.bench.networks import COUNTED, OTHERS
from fastdiff.bench.static.shapes import captured_step, evaluate, on_meta, sampler_steps
from fastdiff.bench.static.traffic import launches_table
from fastdiff.errors import InputError, unknown_name
from fastdiff.files import save_text
from fastdiff.kernels.dispatch import interpreted, recording
from fastdiff.markdown import table
from fastdiff.provenance import source_version
from fastdiff.terminal import show

# The most shared memory that one program may have, bytes (CUDA C++ programming guide, compute capabilities).
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
SIZES = {
    "quick": "the first launch of each kernel",
    "main": "the fashion-mnist and the sprites' networks in bfloat16 and float32, inference and training, and "
    "diffusers' UNet2DModel in bfloat16 (default)",
    "full": "also float16, and the other networks",
}


@dataclass(frozen=True)
class Launch:
    """One kernel as an operator launched it, with the arguments that decide its code."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def key(self) -> tuple:
        """What Triton specialises on: types, alignment, ones, and every constexpr."""
        kinds = [a if p.is_constexpr else _kind(a) for p, a in zip(self.kernel.params, self.args, strict=False)]
        return (self.kernel.__name__, *kinds, *sorted(self.options.items()))

    @property
    def variant(self) -> str:
        dtypes = [str(a.dtype).removeprefix("torch.") for a in self.args if isinstance(a, Tensor)]
        return f"{dtypes[0]}, {', '.join(f'{k}={v}' for k, v in self.options.items())}"


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return str(value.dtype)
    if isinstance(value, int) and not isinstance(value, bool):
        return 1 if value == 1 else ("int", value % 16 == 0, value >= 2**31)
    return "float" if isinstance(value, float) else value


def recorded(run: Callable[[], None]) -> list[Launch]:
    """Every distinct launch of operators on meta tensors within `run`."""
    found: dict[tuple, Launch] = {}

    def record(*launched: Any) -> None:
        launch = Launch(*launched)
        found.setdefault(launch.key, launch)

    with recording(record):
        run()
    return list(found.values())


def suite(size: str) -> list[Launch]:
    """The distinct launches of the sampler's steps and the networks; size: see SIZES."""
    main = (torch.bfloat16, False), (torch.float32, False), (torch.bfloat16, True), (torch.float32, True)
    quick = size == "quick"

    def run() -> None:
        sampler_steps()
        for network in COUNTED.values():
            # Those of one other network are all that the shipped ones do not launch.
            foreign = OTHERS[1:2] if quick else OTHERS
            others = main[:2] if size == "full" else main[: network in foreign]
            kinds = main if network.ships_as else others
            for dtype, train in (*kinds, *([(torch.float16, False)] if size == "full" else [])):
                module = on_meta(network, dtype)
                for batch in network.batches[:1] if quick else network.batches:
                    if train:
                        evaluate(module, network.image_shape, batch, dtype, train)
                    else:
                        captured_step(network, dtype, batch)[1]()

    found = recorded(run)
    return list({launch.kernel: launch for launch in reversed(found)}.values()) if quick else found


class _Target:
    """Stands in for a CUDA driver: Triton compiles for the architecture that it names, and nothing is launched."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.arch, self.target = arch, GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.arch  # compiled kernels are kept by device, so each architecture is one

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def compile_launch(launch: Launch, arch: int) -> dict[str, Any]:
    """The columns of the table; spills are instructions that load from or store to local memory."""
    from triton.runtime import driver

    driver.set_active(_Target(arch))
    built = launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
    sass = _tool("cuobjdump", "-sass", cubin=built.asm["cubin"])
    usage = _tool("cuobjdump", "--dump-resource-usage", cubin=built.asm["cubin"])
    numbers = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    operations = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)", sass, re.MULTILINE)
    if not operations or "REG" not in numbers:
        raise RuntimeError(f"no disassembly of {launch.kernel.__name__} for sm_{arch}")
    return {
        "kernel": launch.kernel.__name__,
        "sm": arch,
        "registers": numbers["REG"],
        "shared": built.metadata.shared,
        "stack": numbers["STACK"],
        "spills": numbers["LOCAL"] + sum(o.startswith(("LDL", "STL")) for o in operations),
        "loads (n x bits)": _widths(operations, ("LDG", "LDGSTS")),
        "stores": _widths(operations, ("STG",)),
        "tensor cores": _tensor(operations),
        "instructions": sum(not o.startswith("NOP") for o in operations),
        "variant": launch.variant,
    }


def clean(row: dict[str, Any]) -> bool:
    return not row["stack"] and not row["spills"] and row["shared"] <= SHARED[row["sm"]]


def noise_cost(rows: list[dict[str, Any]]) -> str:
    """How many instructions a thread spends on an element's noise: those of the step with it less those without."""
    steps = [row for row in rows if row["kernel"] == "denoise_step_forward"]
    count: dict[tuple[int, str], int] = {}
    for row in steps:  # of launches that differ in alignment alone, the longest
        key = row["sm"], row["variant"]
        count[key] = max(count.get(key, 0), row["instructions"])
    costs: dict[int, list[float]] = {}
    for (arch, variant), n in sorted(count.items()):
        without = count.get((arch, variant.replace("NOISE=philox", "NOISE=off")))
        if "NOISE=philox" in variant and without is not None:
            costs.setdefault(arch, []).append((n - without) / 8)  # 1,024 elements, 128 threads
    text = ", ".join(f"sm_{arch} {min(each):.0f} to {max(each):.0f}" for arch, each in costs.items())
    return f" Instructions for an element's Philox noise in denoise_step: {text}." if text else ""


def _widths(operations: list[str], names: tuple[str, ...]) -> str:
    """How many global accesses of each width, in bits: "8x128 2x32"."""
    counts: Counter[int] = Counter()
    for operation in operations:
        first, *rest = operation.split(".")
        if first in names:
            width = next((int(r) for r in rest if r in ("128", "64")), 32)
            counts[16 if {"U16", "S16"} & set(rest) else 8 if {"U8", "S8"} & set(rest) else width] += 1
    return " ".join(f"{n}x{width}" for width, n in sorted(counts.items(), reverse=True))


def _tensor(operations: list[str]) -> str:
    """How many instructions of each kind multiply matrices on tensor cores: "9xHGMMA"."""
    kinds = Counter(name for operation in operations if (name := operation.split(".")[0]).endswith("MMA"))
    return " ".join(f"{n}x{kind}" for kind, n in sorted(kinds.items()))


def _tool(name: str, option: str, cubin: bytes) -> str:
    """The output of one of the CUDA tools that Triton's wheel carries."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(program), option, file.name], check=True, capture_output=True, text=True).stdout


def compile_suite(size: str, archs: tuple[int, ...], workers: int) -> list[dict[str, Any]]:
    launches, rows = suite(size), []
    for arch in archs:  # Triton's target is the whole process's
        with ThreadPoolExecutor(workers) as pool:
            jobs = pool.map(lambda launch: compile_launch(launch, arch), launches)  # noqa: B023  ended within
            rows += tqdm(jobs, f"sm_{arch}", len(launches), unit="kernel", leave=False, mininterval=1)
    return rows


@click.command(help=__doc__)
@click.option("--arch", type=int, multiple=True, help="80, 90 or 100; repeatable.  [default: all]")
@click.option("--size", default="main", help="; ".join(f"{name}: {text}" for name, text in SIZES.items()))
@click.option("--workers", type=click.IntRange(1), help="Threads.  [default: one a core]")
@click.option(
    "-o", "--output", type=Path, metavar="FILE", help="A Markdown file for the table, which is printed anyway."
)
def command(arch: tuple[int, ...], size: str, workers: int | None, output: Path | None) -> None:
    if interpreted():
        raise InputError("TRITON_INTERPRET=1 is set; the compiler is wanted here, so unset it")
    if size not in SIZES:
        raise unknown_name("size", size, SIZES)
    for one in arch:
        if one not in SHARED:
            raise unknown_name("architecture", str(one), map(str, SHARED))
    rows = compile_suite(size, arch or tuple(SHARED), workers or os.cpu_count() or 1)
    dirty = [row for row in rows if not clean(row)]
    lines = sorted({tuple(row.values()) for row in rows}, key=lambda line: (line[0], line[-1], line))
    text = (
        f"Triton {triton.__version__}; fastdiff {source_version()}; no GPU. {len(rows)} compiled, "
        f"{len(dirty)} with spills, a stack, or too much shared memory.{noise_cost(rows)}\n\n{launches_table()}\n\n"
    )
    text += "\n".join(table(list(rows[0]), lines)) + "\n"
    show(text, newline=False)
    if output is not None:
        save_text(text, output)
    if dirty:
        raise SystemExit(1)
