"""The runner's cases of operators and of single evaluations, in the form that users get, each first checked."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import FASTDIFF, Role, Status
from fastdiff.bench.plans import plan
from fastdiff.bench.runner import Prepared
from fastdiff.engine.placement import choose_device

pytest.importorskip("pytest_benchmark", reason="the suites need pytest-benchmark: pip install pytest-benchmark")
DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}
EVALUATIONS = (1, 16, 64)  # batches


def cases(device: str) -> Iterator[Case]:
    """One thread, as in the standard plan."""
    chosen = plan("standard", device, dtypes=DTYPES[device], only=("operator", "evaluation"))
    yield from (case for case in chosen if case.kind == Kind.OPERATOR)
    evaluations = {
        replace(case, batch=batch) for case in chosen if case.kind == Kind.EVALUATION for batch in EVALUATIONS
    }
    yield from sorted(evaluations, key=lambda case: case.key)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = list(cases(choose_device(metafunc.config.getoption("--suite-device")).type))
    metafunc.parametrize("case", given, ids=[case.label for case in given])


def test_case(case: Case, benchmark: Any) -> None:
    threads = torch.get_num_threads()
    try:
        with torch.no_grad():
            prepared = Prepared(case, cold=False, among=lambda one: one.role == Role.REFERENCE or one.name == FASTDIFF)
            row = prepared.rows[FASTDIFF]
            assert row.get("status", Status.MEASURED) == Status.MEASURED, row["reason"]
            ready = prepared.turns.ready[FASTDIFF]

            def to_its_end() -> None:
                ready.run()
                ready.end()

            benchmark.group = case.kind
            benchmark.extra_info.update(row, **ready.facts, calls=ready.calls)
            benchmark(to_its_end)
    finally:
        torch.set_num_threads(threads)
