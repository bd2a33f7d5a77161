"""The module networks.py, for tests that cannot import a neighbour by its name."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def networks():
    spec = importlib.util.spec_from_file_location("capture_networks", Path(__file__).with_name("networks.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
