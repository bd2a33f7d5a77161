"""Random networks: what is captured is the same function, at batches that were not recorded."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdiff.capture.passes.attention import fold_linear_attention
from fastdiff.capture.passes.batch_norm import fold_batch_norm
from fastdiff.capture.passes.convolutions import fuse_convolutions
from fastdiff.capture.passes.norms import fuse_norms
from fastdiff.capture.passes.simplify import simplify
from fastdiff.engine.evaluation import Given, Network, captured, evaluated
from fastdiff.kernels.dispatch import using

# The same operations on the same numbers; a convolution of torch's takes another path at another memory layout.
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}


PASSES = {
    "passes": (simplify, fold_batch_norm),
    "step_passes": (
        lambda graph: fold_linear_attention(graph, lambda *sizes: True),
        fuse_norms,
        fuse_convolutions,
    ),
}


def check(networks, randomised, data, dtype):
    network, example = data.draw(networks.random_networks(randomised))
    network.to(dtype)
    for passes in ({}, PASSES):
        form = networks.captured(network, example, dtype=dtype, **passes)
        assert networks.largest_error(network, example, form, dtype=dtype) < BOUNDS[dtype]


def check_form(networks, randomised, data, batches, device="cpu"):
    """As the engine runs it: the network's parts, made for that batch."""
    network, example = data.draw(networks.random_networks(randomised))
    network = Network(network, torch.device(device), torch.float32)
    for batch in batches:
        inputs = {name: value.to(device) for name, value in example.inputs(batch).items()}
        inputs["t"] = inputs["t"][:1].expand(batch)
        shape = inputs["x"].shape[1:]
        given = Given(batch, shape, example.context, example.times(5), torch.device(device), torch.float32)
        with torch.no_grad():
            ours = evaluated(captured(network, given), inputs)
            with using("reference"):
                expected = network(**inputs)
        assert float((ours - expected).norm()) < BOUNDS[torch.float32] * float(expected.norm())


@settings(max_examples=40)
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


@settings(max_examples=40)
@given(st.data())
def test_the_form_of_a_cpu_is_the_same_function(networks, randomised, data):
    check_form(networks, randomised, data, (1, 4))


@pytest.mark.slow
@settings(max_examples=200)
@given(st.data())
def test_the_form_of_a_cpu_is_the_same_function_of_many_networks(networks, randomised, data):
    check_form(networks, randomised, data, (1, 4, 5))


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_triton_kernels_are_the_same_function(networks, randomised, triton_device, data):
    check_form(networks, randomised, data, (2,), triton_device)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_triton_kernels_are_the_same_function_of_many_networks(networks, randomised, triton_device, data):
    check_form(networks, randomised, data, (2,), triton_device)
