"""Every kernel compiles ahead of time, without spills; and a spill would be seen."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastdiff.cli.main import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is a dependency on Linux only")
KERNELS = Path(__file__).parent.parent.parent / "kernels"


def compiler(*arguments: str) -> subprocess.CompletedProcess:
    """In a process of its own: here Triton is told to interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def launched_kernels() -> set[str]:
    """The first argument of every launch() in kernels/."""
    names = set()
    for path in KERNELS.glob("*_triton.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "launch":
                names.add(node.args[0].id)
    return names


def test_every_kernel_compiles_clean():
    """One launch of each kernel; `make slow` compiles every one of every network, for each architecture."""
    done = compiler("-m", "fastdiff", "bench", "kernels", "--size", "quick", "--arch", "90", "--workers", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    wanted = launched_kernels()
    assert len(wanted) >= 15 and wanted <= {row[0].removeprefix("| ") for row in rows if row[1] == "90"}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_launch_compiles_clean_on_three_architectures():
    done = compiler("-m", "fastdiff", "bench", "kernels", "--size", "full")
    assert done.returncode == 0, done.stdout[:2000] + done.stderr[-2000:]
    assert {line.split(" | ")[1] for line in done.stdout.splitlines() if line.startswith("| ")} >= {"80", "90", "100"}


IMPORTS = """
import torch
from fastdiff.bench.static.codegen import clean, compile_launch, recorded
from fastdiff.kernels import philox
from fastdiff.kernels.attention_block import attention_block
from fastdiff.kernels.folded_attention import fold
from fastdiff.kernels.bias_add import bias_add
from fastdiff.kernels.channel_norm import channel_norm
from fastdiff.kernels.denoise_step import denoise_step
from fastdiff.kernels.depthwise_conv import depthwise_conv
from fastdiff.kernels.group_norm import group_norm
from fastdiff.kernels.linear_attention import linear_attention
"""


ONES = """
def one(*shape, **options):
    return torch.ones(shape, device="meta", **options)

def run():
    x = one(1, 1, 1, 1).requires_grad_()
    v = one(1).requires_grad_()
    for y in (
        group_norm(x, 1, v, v, input_bias=v, scale=v[None], shift=v[None]), channel_norm(x, one(1, 1, 1, 1), x),
        bias_add(x, x, v, v), depthwise_conv(x, one(1, 1, 7, 7).requires_grad_(), v, v[None]),
        linear_attention(one(1, 3, 1, 1).requires_grad_(), 1, True),
    ):
        y.sum().backward()
    half = lambda *shape: one(*shape, dtype=torch.bfloat16)
    folded = fold(half(1), half(1), half(3, 1), half(1, 1), half(1), half(1, 1, 1, 1), 1, True)
    attention_block(half(1, 1, 1, 1), folded)
    out = half(2, 1, 1, 1)
    denoise_step(x.detach(), out, one(1, 12), one(dtype=torch.int64), x.detach()[None], key=one(2, dtype=torch.int64),
                 guidance_scale=one(), clip=one(1), variance=x.detach())
    philox.normals(one(2, dtype=torch.int64), 1, (1, 1))

found = recorded(run)
for launch in found:
    assert clean(compile_launch(launch, 90))
print(len({launch.kernel.__name__ for launch in found}))
"""


SPILLING = """
import dataclasses

def run():
    x = torch.empty(64, 28, 28, 28, dtype=torch.bfloat16, device="meta").to(memory_format=torch.channels_last)
    w, o = torch.empty(2, 28, dtype=torch.bfloat16, device="meta", requires_grad=True)
    group_norm(x.requires_grad_(), 1, w, o).sum().backward()

launch = next(one for one in recorded(run) if one.kernel.__name__ == "group_norm_backward")
assert clean(compile_launch(launch, 90))
few = dataclasses.replace(launch, options={**launch.options, "maxnreg": 24})
spilled = compile_launch(few, 90)
print(clean(spilled), spilled["spills"] > 0, spilled["stack"] > 0)
"""


AHEAD = """
import threading
from concurrent.futures import ThreadPoolExecutor
from fastdiff.bench.static.codegen import _Target
from fastdiff.kernels import ahead
from fastdiff.kernels.dispatch import using
from triton import knobs
from triton.runtime import driver

driver.set_active(_Target(90))
meta, threads, compiled = torch.device("meta"), set(), []
knobs.runtime.jit_post_compile_hook = lambda **told: compiled.append(told["fn"].name)

class Pool(ThreadPoolExecutor):
    def submit(self, call):
        def run():
            threads.add(threading.get_ident())
            return call()
        return super().submit(run)

ahead.ThreadPoolExecutor = Pool

def run():
    x = torch.empty(2, 8, 4, 4, device=meta)
    for _ in range(2):  # the second time they are known
        bias_add(x, x, x[0, :, 0, 0])
        channel_norm(x, torch.empty(1, 8, 1, 1, device=meta))
        channel_norm(x, torch.empty(1, 8, 1, 1, device=meta), x)

with using("triton"):
    print(ahead.compile_ahead(run, meta, 2), len(compiled), threading.get_ident() in threads, 1 <= len(threads) <= 2)
    print(ahead.compile_ahead(run, meta), len(compiled))
"""


def told(code: str) -> list[str]:
    """The lines that it prints."""
    done = compiler("-c", IMPORTS + code)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_sizes_of_one_compile():
    """Triton makes arguments equal to 1 constants, which the interpreter does not: code may then no longer compile."""
    assert int(told(ONES)[0]) >= 14


@pytest.mark.slow
def test_a_spill_is_seen():
    assert told(SPILLING) == ["False True True"]


def test_kernels_are_compiled_ahead_in_threads_and_once():
    assert told(AHEAD) == ["3 3 False True", "0 3"]


def test_the_compiler_is_not_run_in_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    result = CliRunner().invoke(main, ["bench", "kernels"])
    assert result.exit_code == 2 and "TRITON_INTERPRET=1 is set" in result.stderr
