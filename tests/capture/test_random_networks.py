"""Random networks: what is captured is the same function, at batches that were not recorded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

# The same operations on the same numbers; a convolution of torch's takes another path at another memory layout.
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}


def check(networks, randomised, data, dtype):
    network, example = data.draw(networks.random_networks(randomised))
    network.to(dtype)
    form = networks.captured(network, example, dtype=dtype)
    assert networks.largest_error(network, example, form, dtype=dtype) < BOUNDS[dtype]


@settings(max_examples=60)
@given(st.data())
def test_a_captured_network_is_the_same_function(networks, randomised, data):
    check(networks, randomised, data, torch.float32)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.slow
@settings(max_examples=200)
@given(st.data())
def test_many_captured_networks_are_the_same_functions(networks, randomised, dtype, data):
    check(networks, randomised, data, dtype)


@settings(max_examples=12)
@given(st.data())
def test_in_float64_it_is_the_same_to_float64(networks, randomised, data):
    check(networks, randomised, data, torch.float64)
