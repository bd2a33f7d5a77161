"""Random networks: what is captured is the same function, at batches that were not recorded."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdiff.capture.passes.affine import join_affine
from fastdiff.capture.passes.batch_norm import fold_batch_norm
from fastdiff.capture.passes.convolutions import fuse_convolutions
from fastdiff.capture.passes.folded_attention import fold_linear_attention
from fastdiff.capture.passes.linear_attention import fuse_linear_attention
from fastdiff.capture.passes.norms import fuse_norms
from fastdiff.capture.passes.position_norms import fuse_position_norms
from fastdiff.capture.passes.simplify import simplify
from fastdiff.capture.passes.softmax_attention import fuse_softmax_attention
from fastdiff.capture.passes.written_norms import fuse_group_norms
from fastdiff.capture.tidy import fold_constants
from fastdiff.engine.context import ContextKind
from fastdiff.engine.cuda import attention, choice
from fastdiff.engine.evaluation import Given, Network, captured, evaluated
from fastdiff.engine.prediction import Prediction
from fastdiff.engine.step import State
from fastdiff.kernels.dispatch import using
from fastdiff.kernels.last_conv import LastConv

# The same operations on the same numbers; a convolution of torch's takes another path at another memory layout.
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}


PASSES = {
    "passes": (simplify, fold_batch_norm, fuse_group_norms, join_affine, fold_constants),
    "step_passes": (
        fuse_linear_attention,
        lambda graph: fold_linear_attention(graph, lambda *sizes: True),
        lambda graph: fuse_position_norms(graph, any_norm=True),
        fuse_softmax_attention,
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
        context = example.context and ContextKind((example.context,))
        given = Given(batch, shape, context, example.times(5), torch.device(device), torch.float32)
        with torch.no_grad():
            ours = evaluated(captured(network, given), inputs)
            with using("reference"):
                expected = network(**inputs)
        assert float((ours - expected).norm()) < BOUNDS[torch.float32] * float(expected.norm())
        if example.context is not None:
            check_guidance(network, example, given)


def check_guidance(network, example, given):
    """As a guided step runs it: both halves in one batch, the zero contexts first; any row of the table."""
    n = given.batch
    inputs = {name: value.to(given.device) for name, value in example.inputs(n).items()}
    with torch.no_grad():
        parts = captured(network, replace(given, batch=2 * n))
        prediction = Prediction(parts, given.device, given.dtype, example.integer, guided=True)
        prediction.load_table(SimpleNamespace(time=given.times.tolist()), 5)
        prediction.load_context(inputs["context"])
        index, current, rows = (torch.tensor(value, device=given.device) for value in (3, 0, []))
        ours = prediction(State(inputs["x"].float(), rows, index, current))
        if isinstance(ours, LastConv):
            ours = ours.prediction()
        contexts = torch.cat((torch.zeros_like(inputs["context"]), inputs["context"]))
        with using("reference"):
            expected = network(inputs["x"].repeat(2, 1, 1, 1), given.times[3].to(given.device).expand(2 * n), contexts)
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


@pytest.fixture(params=[False, True], ids=["library", "fused"])
def fused(request, monkeypatch):
    """Convolutions as they are in float32, or as in 16 bits."""
    if request.param:
        fits = attention.fits
        monkeypatch.setattr(attention, "fits", lambda dtype, *sizes: fits(torch.float16, *sizes))
        monkeypatch.setattr(choice, "is_fused", lambda *sizes: True)


@pytest.mark.usefixtures("fused")
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_triton_kernels_are_the_same_function(networks, randomised, triton_device, data):
    check_form(networks, randomised, data, (2,), triton_device)


@pytest.mark.usefixtures("fused")
@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_triton_kernels_are_the_same_function_of_many_networks(networks, randomised, triton_device, data):
    check_form(networks, randomised, data, (2,), triton_device)
