"""depthwise_conv in Triton against float64: shapes, dtypes, layouts, gradients, bad input."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from fastdiff.kernels.cpu.compiled import build_error
from fastdiff.kernels.depthwise_conv import depthwise_conv, depthwise_conv_reference, fused_depthwise
from fastdiff.kernels.statistics import merged


@pytest.mark.parametrize(
    "b, c, h, w, size",
    [
        (1, 18, 14, 14, 7),  # network A's first width: seven rows a program
        (1, 112, 7, 7, 7),  # two blocks of channels
        (1, 5, 9, 17, 7),  # four rows a program, which do not divide 9; two blocks of columns
        (1, 70, 4, 6, 7),
        (2, 3, 1, 1, 7),  # a kernel larger than the picture
        (1, 6, 10, 3, 3),
        (1, 4, 5, 5, 1),
        (1, 2, 28, 28, 5),
    ],
)
def test_every_shape(triton_device, agrees, b, c, h, w, size):
    x = torch.randn(b, c, h, w, device=triton_device)
    weight, bias = torch.randn(c, 1, size, size, device=triton_device), torch.randn(c, device=triton_device)
    time_bias = torch.randn(b, c, 1, 1, device=triton_device)
    expected = depthwise_conv_reference(x.double(), weight.double(), bias.double(), time_bias.double())
    y = depthwise_conv(x, weight, bias, time_bias)
    agrees(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_every_layout(triton_device, agrees, layouts):
    x = torch.randn(2, 5, 6, 7, device=triton_device)
    weight = torch.randn(5, 1, 3, 3, device=triton_device)
    expected = depthwise_conv_reference(x.double(), weight.double())
    for given in layouts(x).values():
        agrees(depthwise_conv(given, weight), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients(triton_device, agrees, leaves, dtype, shared, bias):
    """The parameters in float32, as under autocast; the time bias of each sample, or one for all."""
    b, c, h, w = 3, 20, 4, 5
    given = [
        torch.randn(b, c, h, w, device=triton_device).to(dtype, memory_format=torch.channels_last),
        torch.randn(c, 1, 7, 7, device=triton_device),
        torch.randn(c, device=triton_device) if bias else None,
        torch.randn(1 if shared else b, c, device=triton_device),
    ]
    dy = torch.randn(b, c, h, w, device=triton_device).to(dtype)

    def run(function, inputs, dy):
        y = function(*inputs)
        return y, torch.autograd.grad(y, [i for i in inputs if i is not None], dy)

    y, gradients = run(depthwise_conv, leaves(given), dy)
    exact, exact_gradients = run(depthwise_conv_reference, leaves(given, torch.float64), dy.double())
    agrees(y, exact)
    for mine, theirs in zip(gradients, exact_gradients, strict=True):
        agrees(mine, theirs)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.zeros(1, 4, 3, 3, dtype=torch.uint8)), "x is torch.uint8"),
        (dict(x=torch.zeros(1, 5, 3, 3)), r"weight has shape \(4, 1, 7, 7\); accepted: \(5, 1, 7, 7\)"),
        (dict(weight=torch.zeros(4, 1, 6, 6)), "accepted: an odd kernel size"),
        (dict(weight=torch.zeros(4, 1, 5, 7)), r"accepted: \(4, 1, 7, 7\)"),
        (dict(bias=torch.zeros(3)), "bias has shape"),
        (dict(time_bias=torch.zeros(2, 4)), "time_bias has shape"),
        (dict(bias=torch.zeros(4, device="meta")), "bias is on meta"),
    ],
)
def test_what_it_cannot_take_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv(**{"x": torch.zeros(1, 4, 3, 3), "weight": torch.zeros(4, 1, 7, 7), **change})


@pytest.mark.parametrize("b, c, h, w, size", [(3, 20, 4, 5, 7), (2, 5, 9, 17, 3), (1, 40, 8, 8, 5)])
@pytest.mark.parametrize("shared, bias", [(False, True), (True, False)])
def test_gradients_on_a_cpu(rel, leaves, b, c, h, w, size, shared, bias):
    """The weight's is computed in C."""
    given = [torch.randn(b, c, h, w), torch.randn(c, 1, size, size), torch.randn(c) if bias else None]
    given, dy = [*given, torch.randn(1 if shared else b, c)], torch.randn(b, c, h, w)
    mine, theirs = leaves(given), leaves(given, torch.float64)
    y, exact = depthwise_conv(*mine), depthwise_conv_reference(*theirs)
    if build_error() is None:
        assert "OnCpu" in type(y.grad_fn).__name__
    inputs = [[one for one in some if one is not None] for some in (mine, theirs)]
    for found, expected in zip(
        torch.autograd.grad(y, inputs[0], dy), torch.autograd.grad(exact, inputs[1], dy.double()), strict=True
    ):
        assert found.dtype == torch.float32 and rel(found, expected) < 1e-5


def test_gradients_under_autocast_on_a_cpu(rel, leaves):
    """The network in bfloat16, its parameters in float32."""
    given = [torch.randn(4, 20, 9, 9), torch.randn(20, 1, 7, 7), torch.randn(20), torch.randn(4, 20)]
    mine, theirs, dy = leaves(given), leaves(given, torch.float64), torch.randn(4, 20, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv(*mine)
    exact = depthwise_conv_reference(*theirs)
    assert rel(y, exact) < 1e-2
    found, expected = torch.autograd.grad(y, mine, dy.to(y.dtype)), torch.autograd.grad(exact, theirs, dy.double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and rel(one, other) < 1e-2


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_gradients_of_gradients_and_forward_mode_on_a_cpu(rel, leaves, dtype):
    """Under autocast too."""
    given = leaves([torch.randn(2, 3, 6, 6), torch.randn(3, 1, 3, 3)])

    def penalty(function):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            y = function(*given).float()
        first = torch.autograd.grad((y**2).sum(), given, create_graph=True)
        return torch.autograd.grad(sum((one**2).sum() for one in first), given)

    for mine, theirs in zip(penalty(depthwise_conv), penalty(depthwise_conv_reference), strict=True):
        assert rel(mine, theirs) < (1e-5 if dtype is None else 2e-2)
    x, weight = (one.detach() for one in given)
    mine, theirs = (
        torch.func.jvp(lambda w: f(x, w), (weight,), (torch.ones_like(weight),))[1]  # noqa: B023
        for f in (depthwise_conv, depthwise_conv_reference)
    )
    assert rel(mine, theirs) < 1e-6


@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacobian", "make_fx"])
def test_transforms_and_traces_see_gradients_on_a_cpu(rel, transform):
    """torch.func's, jacobians of many rows at once, and traces: none of them may meet a pointer."""
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(3, 1, 3, 3)

    def derivative(function):
        def sums(w):
            return function(x, w).sum((1, 2, 3))

        def gradient(w):
            return torch.autograd.grad(sums(w).square().sum(), w)[0]

        if transform == "grad":
            return torch.func.grad(lambda w: sums(w).square().sum())(weight)
        if transform == "jacrev":
            return torch.func.jacrev(sums)(weight)
        if transform == "jacobian":
            return torch.autograd.functional.jacobian(sums, weight, vectorize=True)
        return make_fx(gradient)(torch.zeros_like(weight).requires_grad_())(weight.clone().requires_grad_())

    assert rel(derivative(depthwise_conv), derivative(depthwise_conv_reference)) < 1e-5


@pytest.mark.parametrize("emit, dims", [("whole", 1), ("channels", 2)])
@pytest.mark.parametrize(
    "c, second, h, w",
    [(28, 28, 14, 14), (112, 112, 7, 7), (5, 70, 5, 3), (20, 3, 1, 1), (18, 0, 14, 15), (70, 0, 4, 6)],
)
def test_two_inputs_and_the_statistics_of_the_result(triton_device, agrees, rel, emit, dims, c, second, h, w):
    x = torch.randn(2, c, h, w, device=triton_device)
    other = torch.randn(2, second, h, w, device=triton_device) if second else None
    both = c + second
    weight, bias = torch.randn(both, 1, 7, 7, device=triton_device), 20 + torch.randn(both, device=triton_device)
    time_bias = torch.randn(1, both, 1, 1, device=triton_device)
    whole = x if other is None else torch.cat((x, other), 1)
    expected = depthwise_conv_reference(whole.double(), weight.double(), bias.double(), time_bias.double())
    y, statistics = fused_depthwise(x, weight, bias, time_bias, other, emit)
    agrees(y, expected)
    agrees(fused_depthwise(x, weight, bias, time_bias, other), expected)
    of_result = y.double().flatten(dims)
    mean, variance = merged(statistics)
    assert rel(mean, of_result.mean(-1)) < 1e-6
    if variance.any():
        assert rel(variance, of_result.var(-1, correction=0)) < 1e-5
