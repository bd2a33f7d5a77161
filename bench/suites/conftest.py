"""Options and fixtures of the suites: pytest bench/suites --benchmark-only [--suite-device cuda].

pytest-benchmark runs a case to its end before the next begins, and on the same inputs, which may stay in the cache: its
numbers follow one machine over time. What two ways take against each other, the reports of bench/ measure in turns.
With --benchmark-disable each case is checked and runs once.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.engine.numerics import fixed_numerics
from fastdiff.engine.placement import choose_device
from fastdiff.errors import InputError


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite-device", default="cpu", help="of bench/suites: cpu (one thread; the default) or cuda")


def pytest_configure(config: pytest.Config) -> None:
    try:
        choose_device(config.getoption("--suite-device"))
    except InputError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(
                    pytest.mark.skip(reason="the suites need pytest-benchmark: pip install pytest-benchmark")
                )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--suite-device"))


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with torch.no_grad(), fixed_numerics():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def measure(benchmark: Any, device: torch.device) -> Callable[..., None]:
    """(call, group, facts): times a call that has been made before, to the end of what it starts on the device."""

    def run(call: Callable[[], Any], group: str, **facts: Any) -> None:
        def to_its_end() -> None:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        benchmark.group = group
        benchmark.extra_info.update(facts, device=str(device))
        benchmark(to_its_end)

    return run
