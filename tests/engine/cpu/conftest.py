"""How plans are tested: small networks in memory that is NaN before it is written, against torch in float64."""

from contextlib import contextmanager

import pytest
import torch

from fastdiff.engine.context import ContextKind
from fastdiff.engine.cpu.lowering import Outside
from fastdiff.engine.evaluation import Given, Network, captured, evaluated
from fastdiff.kernels.cpu.compiled import build_error

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def needs_compiler():
    if build_error() is not None:
        pytest.skip(str(build_error()))


@pytest.fixture
def poisoned():
    """Uninitialised memory is NaN, so that what was read before it was written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def with_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Net(torch.nn.Module):
    """A function of modules: forward(modules by name, x, t, context)."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x, t, *context):
        return self.function(self, x, t, *context)


def names(plan):
    """What a plan calls, in order."""
    return [str(step.node.target) if isinstance(step, Outside) else step.kernel for step in plan.steps]


def same_function(rel, forward, shape=(4, 6, 6), *, batch=3, width=None, halves=1, threads=(1, 3), **modules):
    """Compare a network's plan with the network in float64; returns the plan. Bits depend on no number of threads."""
    network, times = Net(forward, **modules).eval(), torch.arange(1, 20)
    given = Given(batch, shape, width and ContextKind((width,)), times, CPU, torch.float32, halves)
    inputs, results = given.example(batch, seed=2), []
    with torch.no_grad():
        for count in threads:
            with with_threads(count):
                parts = captured(Network(network, CPU, torch.float32), given)
                results.append(evaluated(parts, inputs))
        exact = network.double()(*(one.double() if one.is_floating_point() else one for one in inputs.values()))[
            :, : shape[0]
        ]
    assert results[0].shape == exact.shape and rel(results[0], exact) < 1e-5
    if not parts.step.plan.outside:
        assert all(torch.equal(one, results[0]) for one in results)
    assert all(rel(one, exact) < 1e-5 for one in results)
    return parts.step.plan


@pytest.fixture(name="same_function")
def _same_function(rel, poisoned):
    return lambda *given, **options: same_function(rel, *given, **options)


@pytest.fixture(name="with_threads")
def _with_threads():
    return with_threads


@pytest.fixture(name="names")
def _names():
    return names


@pytest.fixture(name="Net")
def _net():
    return Net
