"""Settings and helpers of all tests."""

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # the tensors are small; more threads only wait for each other
settings.register_profile("fastdiff", deadline=None, derandomize=True)
settings.load_profile("fastdiff")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


def relative_error(value, reference) -> float:
    """||value - reference|| / ||reference||, in float64."""
    value, reference = torch.as_tensor(value).double(), torch.as_tensor(reference).double()
    return float((value - reference).norm() / reference.norm())


def randomise(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights of the size that training leaves, norms and running statistics included, so that nothing is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(1 + 0.2 * noise.tanh())
            else:
                value.add_(0.1 * noise * (value.std() if value.ndim > 1 and value.std() > 0 else 1.0))
    return network


@pytest.fixture
def rel():
    return relative_error


@pytest.fixture
def randomised():
    return randomise
