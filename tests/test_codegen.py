"""Every kernel compiles ahead of time for three architectures, without spills; and a spill would be seen."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is a dependency on Linux only")
KERNELS = Path(__file__).parent.parent / "kernels"


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


def test_every_kernel_compiles_clean_on_three_architectures():
    """One launch of each kernel; `make slow` compiles every one of networks A and B."""
    done = compiler("-m", "fastdiff.bench.codegen", "--size", "quick")
    assert done.returncode == 0, done.stdout + done.stderr
    cells = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    compiled = {(row[0].removeprefix("| "), row[1]) for row in cells}
    wanted = launched_kernels()
    assert len(wanted) >= 15
    assert {(k, arch) for k in wanted for arch in ("80", "90", "100")} <= compiled


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", ["main", "full"])
def test_every_launch_compiles_clean(size):
    done = compiler("-m", "fastdiff.bench.codegen", "--size", size)
    assert done.returncode == 0, done.stdout[:2000] + done.stderr[-2000:]


SPILLING = """
import dataclasses
from fastdiff.bench.codegen import compile_launch, suite
launch = next(one for one in suite("quick") if one.kernel.__name__ == "group_norm_backward")
assert compile_launch(launch, 90).clean
few = dataclasses.replace(launch, options={**launch.options, "maxnreg": 24})
spilled = compile_launch(few, 90)
print(spilled.clean, spilled.spills > 0, spilled.stack > 0)
"""


def test_a_spill_is_seen():
    done = compiler("-c", SPILLING)
    assert done.stdout.strip() == "False True True", done.stdout + done.stderr


def test_the_compiler_is_not_run_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "fastdiff.bench.codegen"],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "TRITON_INTERPRET=1 is set" in done.stderr
