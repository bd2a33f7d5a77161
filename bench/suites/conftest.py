"""The device of the suites: pytest bench/suites --benchmark-only [--suite-device cuda].

pytest-benchmark runs a case to its end before the next begins: its numbers follow one machine over time. What two
ways take against each other, `fastdiff bench` measures in turns. With --benchmark-disable each case is checked and
runs once.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite-device", default="cpu", help="of bench/suites: cpu (one thread; the default) or cuda")
