"""Options and fixtures of the suites: pytest bench/suites --benchmark-only [--suite-device cuda].

pytest-benchmark runs a case to its end before the next begins: its numbers follow one machine over time. What two
ways take against each other, `fastdiff bench` measures in turns. With --benchmark-disable each case is checked and
runs once.
"""

from pathlib import Path

import pytest

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
