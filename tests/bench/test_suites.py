"""bench/suites: each case is checked and runs; a device that is not here is told of; nothing is imported twice."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# The suites in a process of their own, then the modules that were imported by the names of their folders.
RUN = """
import sys
import pytest
plain = ["bench/suites", "--benchmark-disable", "-p", "no:cacheprovider"]
chosen = "denoise_step and 1x28x28 and history or winograd and 224 and added or evaluation and not A28 and 1]"
print(pytest.main([*plain, "-k", chosen]))
print(pytest.main([*plain, "--suite-device", "cuda:9"]))
print(sorted(name for name in sys.modules if name.split(".")[0] in ("bench", "kernels", "export")))
"""


@pytest.mark.slow  # imports everything in a process of its own
def test_the_suites_run():
    pytest.importorskip("pytest_benchmark", reason="the suites need pytest-benchmark")
    done = subprocess.run([sys.executable, "-c", RUN], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.isdigit()] == ["0", "2"], done.stdout + done.stderr
    assert any(re.match("[2-3] passed, ", line) for line in lines), done.stdout  # without a C compiler 2
    assert "device = 'cuda:9' cannot be used here" in done.stdout
    tests = {f"bench.suites.{name}" for name in ("conftest", "test_cases")}
    assert set(ast.literal_eval(lines[-1])) <= {"bench", "bench.suites", *tests}
