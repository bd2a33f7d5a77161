"""group_norm, channel_norm and bias_add in Triton against float64: shapes, layouts, gradients, stability, bad input."""

import pytest
import torch

from fastdiff.kernels.bias_add import bias_add, bias_add_reference
from fastdiff.kernels.channel_norm import channel_norm, channel_norm_reference
from fastdiff.kernels.conv import conv_add, conv_norm
from fastdiff.kernels.depthwise_conv import depthwise_conv, depthwise_conv_reference
from fastdiff.kernels.dispatch import using
from fastdiff.kernels.group_norm import group_norm, group_norm_reference, group_norm_rows
from fastdiff.kernels.position_norm import position_norm
from fastdiff.kernels.statistics import statistics_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = [None, "gelu", "gelu_tanh", "silu", "relu"]


def images(device, dtype, b, c, h, w):
    return (torch.randn(b, c, h, w, device=device) * 2 + 0.5).to(dtype)


@pytest.mark.parametrize(
    "b, c, h, w, groups",
    [
        (2, 18, 9, 7, 1),  # the first width of network A, at odd sizes
        (2, 28, 14, 14, 1),  # its levels' widths
        (1, 112, 7, 7, 1),
        (1, 56, 28, 28, 1),  # split over programs
        (2, 64, 8, 8, 8),  # groups of eight: nothing is padded
        (3, 12, 5, 3, 4),  # groups of three channels are padded to four
        (1, 15, 3, 11, 3),  # three groups of five: both are padded
        (2, 1, 1, 1, 1),  # one element
        (1, 200, 2, 3, 8),  # more channels than positions
    ],
)
def test_group_norm_of_every_shape(triton_device, agrees, layouts, b, c, h, w, groups):
    weight, bias = torch.randn(2, c, device=triton_device)
    x = images(triton_device, torch.float32, b, c, h, w)
    expected = group_norm_reference(x.double(), groups, weight.double(), bias.double())
    for name, given in layouts(x).items():
        y = group_norm(given, groups, weight, bias)
        if c * h * w > 1:  # one element is its own mean, and the result only the bias
            agrees(y, expected)
        torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-4)
        if name == "channels_last" and c > 1:
            assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def with_everything(triton_device, agrees, leaves):
    """Checks group_norm and its gradients; scale and shift a sample, parameters in float32, as under autocast."""

    def check(b, c, h, w, groups, dtype, before, after) -> None:
        x = images(triton_device, dtype, b, c, h, w).to(memory_format=torch.channels_last)
        parameters = torch.randn(3, c, device=triton_device).unbind()
        modulation = (0.5 * torch.randn(2, b, c, 1, 1, device=triton_device)).unbind()
        dy = torch.randn(b, c, h, w, device=triton_device).to(dtype)

        def run(function, inputs, dy):
            x, weight, bias, added, scale, shift = inputs
            options = dict(input_bias=added, scale=scale, shift=shift, before=before, after=after)
            y = function(x, groups, weight, bias, **options)
            return y, torch.autograd.grad(y, inputs, dy)

        given = [x, *parameters, *modulation]
        y, gradients = run(group_norm, leaves(given), dy)
        exact, exact_gradients = run(group_norm_reference, leaves(given, torch.float64), dy.double())
        agrees(y, exact)
        for mine, theirs in zip(gradients, exact_gradients, strict=True):
            agrees(mine, theirs, times=3)  # a few more roundings: sums over the batch, and a difference of three terms

    return check


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("before, after", [(b, None) for b in ACTIVATIONS] + [(None, a) for a in ACTIVATIONS[1:]])
def test_group_norm_with_everything_and_its_gradients(with_everything, dtype, before, after):
    with_everything(2, 12, 5, 7, 2, dtype, before, after)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("before, after", [("gelu", None), (None, "silu")])
def test_group_norm_split_and_its_gradients(with_everything, launched, dtype, before, after):
    """A sample of five tiles, in parts of 128, 128 and 33 positions."""
    x = torch.empty(2, 48, 17, 17, device="meta")
    assert launched(lambda: group_norm(x, 6)) == ["group_norm_part", "group_norm_apply"]
    with_everything(2, 48, 17, 17, 6, dtype, before, after)


# 256 programs fill the device, a part has at least two tiles, and up to four tiles are not split. A tile has 128
# positions of 28 channels, 64 of 56, 32 of 112.
@pytest.mark.parametrize(
    "b, c, size, parts",
    [
        (1, 56, 28, 7),
        (64, 56, 28, 4),
        (128, 56, 28, 2),
        (129, 56, 28, 1),
        (1024, 56, 28, 1),
        (1, 28, 28, 4),
        (1, 112, 14, 4),
        (1, 56, 14, 1),
        (1, 112, 7, 1),
    ],
)
def test_group_norm_is_split_where_samples_are_few_and_large(launched, b, c, size, parts):
    x = torch.empty(b, c, size, size, device="meta", dtype=torch.bfloat16)
    seen = launched(lambda: group_norm(x, 1), grids=True)
    if parts == 1:
        assert seen == [("group_norm_forward", (b,))]
    else:
        assert seen == [("group_norm_part", (b, parts)), ("group_norm_apply", (b, parts))]


def test_split_group_norm_does_not_depend_on_the_batch_around_it(triton_device):
    """Two samples and five are split alike, and so each has the same bits."""
    x = images(triton_device, torch.float32, 5, 64, 18, 18)
    whole = group_norm(x, 4, after="silu")
    assert torch.equal(group_norm(x[3:], 4, after="silu"), whole[3:])


def test_split_group_norm_keeps_its_digits_far_from_zero(triton_device, rel):
    x = 1000 + torch.randn(1, 64, 20, 20, device=triton_device)
    x[..., 10:] += 5  # parts whose means differ
    exact = group_norm_reference(x.double(), 1)
    assert rel(group_norm(x, 1).cpu(), exact.cpu()) < 1.2e-4  # as in test_group_norm_keeps_its_digits_far_from_zero


@pytest.mark.parametrize("affine", [False, True])
def test_group_norm_shared_modulation_and_no_affine(triton_device, agrees, leaves, affine):
    x = images(triton_device, torch.float32, 3, 10, 4, 4)
    modulation = torch.randn(2, 1, 10, device=triton_device).unbind()
    weights = torch.randn(2, 10, device=triton_device).unbind() if affine else (None, None)

    def run(function, inputs):
        x, scale, shift, weight, bias = inputs
        y = function(x, 5, weight, bias, scale=scale, shift=shift)
        return y, torch.autograd.grad(y.square().sum(), [i for i in inputs if i is not None])

    y, gradients = run(group_norm, leaves([x, *modulation, *weights]))
    exact, exact_gradients = run(group_norm_reference, leaves([x, *modulation, *weights], torch.float64))
    agrees(y, exact)
    for mine, theirs in zip(gradients, exact_gradients, strict=True):
        agrees(mine, theirs, times=3)


def test_group_norm_keeps_its_digits_far_from_zero(triton_device, rel):
    """A mean of 1,000 with a deviation of 1: E[x^2] - E[x]^2 in float32 would leave one digit."""
    x = 1000 + torch.randn(1, 28, 14, 14, device=triton_device)
    exact = group_norm_reference(x.double(), 1)
    # The mean is a float32, whose unit in the last place is 6e-5 at 1,000; it is off by two of them at most.
    assert rel(group_norm(x, 1).cpu(), exact.cpu()) < 1.2e-4


def test_group_norm_passes_a_nan_on(triton_device):
    x = torch.zeros(2, 4, 2, 2, device=triton_device)
    x[0, 0, 0, 0] = float("nan")
    y = group_norm(x, 1, after="relu")
    assert y[0].isnan().all() and not y[1].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
# Network A's widths, at sizes of which only 4x4 is a power of two, and a single channel.
@pytest.mark.parametrize("b, c, h, w", [(2, 28, 9, 7), (1, 112, 7, 7), (3, 18, 4, 4), (1, 56, 14, 14), (2, 1, 3, 3)])
@pytest.mark.parametrize("residual", [False, True])
def test_channel_norm_and_its_gradients(triton_device, agrees, layouts, leaves, dtype, b, c, h, w, residual):
    x = images(triton_device, dtype, b, c, h, w)
    gain = torch.randn(1, c, 1, 1, device=triton_device)
    other = images(triton_device, dtype, b, c, h, w) if residual else None
    dy = torch.randn(b, c, h, w, device=triton_device).to(dtype)

    def run(function, inputs, dy):
        y = function(*inputs)
        return y, torch.autograd.grad(y, [i for i in inputs if i is not None], dy)

    exact, exact_gradients = run(channel_norm_reference, leaves([x, gain, other], torch.float64), dy.double())
    given_as = layouts(x)
    if dtype != torch.float32 and (b, c) != (2, 28):  # the kernel treats strides and dtypes separately
        given_as = {"channels_last": given_as["channels_last"]}
    for given in given_as.values():
        y, gradients = run(channel_norm, [given.detach().requires_grad_(), *leaves([gain, other])], dy)
        if c == 1:  # the norm of one channel is 0, and so are its gradients, up to rounding
            torch.testing.assert_close(y.double(), exact, atol=1e-6, rtol=2**-7)
            continue
        agrees(y, exact)
        for mine, theirs in zip(gradients, exact_gradients, strict=True):
            agrees(mine, theirs, times=3)


@pytest.mark.parametrize("first, second, groups", [(12, 0, 3), (10, 5, 5), (1, 0, 1), (130, 62, 32)])
@pytest.mark.parametrize("affine, rows", [(False, 0), (True, 1), (True, 2)])
def test_group_norm_as_rows(triton_device, agrees, first, second, groups, affine, rows):
    device, c = triton_device, first + second
    x = torch.randn(2, c, 4, 5, device=device) * 3 + 7
    parts = [one.split((2, 3), dim=3) for one in x.split((first, second) if second else (c,), dim=1)]
    statistics = [torch.cat([statistics_of(one, "channels") for one in both], 1) for both in parts]
    weight, bias = torch.randn(2, c, device=device) if affine else (None, None)
    scale, shift = torch.randn(2, rows, c, device=device) if rows else (None, None)
    more = {"second_statistics": statistics[1]} if second else {}
    wide = [None if one is None else one.double() for one in (x, weight, bias, scale, shift)]
    exact = group_norm_reference(wide[0], groups, *wide[1:3], 1e-5, None, *wide[3:])
    for backend in ("triton", "reference"):
        with using(backend):
            gain, offset = group_norm_rows(statistics[0], 20, groups, weight, bias, 1e-5, scale, shift, **more)
        assert gain.dtype == offset.dtype == torch.float32
        agrees(x * gain[..., None, None] + offset[..., None, None], exact, times=3)  # for the mean is large


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b, c, h, w", [(2, 28, 3, 7), (1, 300, 2, 2), (2, 1, 3, 3)])
@pytest.mark.parametrize("centred, affine, after, residual", [(False, True, "silu", False), (True, False, None, True)])
def test_position_norm(triton_device, agrees, layouts, dtype, b, c, h, w, centred, affine, after, residual):
    x = images(triton_device, dtype, b, c, h, w)
    x[0, :, 1, 1] = 0.0  # of no length
    weight, bias = torch.randn(2, 1, c, 1, 1, device=triton_device).to(dtype) if affine else (None, None)
    other = images(triton_device, dtype, b, c, h, w) if residual else None
    wide = [None if one is None else one.double() for one in (x, weight, bias, other)]
    with using("reference"):
        exact = position_norm(*wide[:3], 1e-5, centred, after, wide[3])
    for given in layouts(x).values():
        agrees(position_norm(given, weight, bias, 1e-5, centred, after, other), exact)


@pytest.mark.parametrize("dtype", DTYPES)
# Padded channels and positions, two blocks of channels, and a single channel.
@pytest.mark.parametrize("b, c, h, w", [(2, 28, 3, 7), (1, 300, 2, 5), (2, 1, 2, 2)])
@pytest.mark.parametrize("biases", [(False, False), (True, False), (True, True)])
def test_bias_add_and_its_gradients(triton_device, agrees, layouts, leaves, dtype, b, c, h, w, biases):
    x, residual = (images(triton_device, dtype, b, c, h, w) for _ in range(2))
    given = [torch.randn(c, device=triton_device) if present else None for present in biases]
    dy = torch.randn(b, c, h, w, device=triton_device).to(dtype)

    def run(function, inputs, dy):
        y = function(*inputs)
        return y, torch.autograd.grad(y, [i for i in inputs if i is not None], dy)

    exact, exact_gradients = run(bias_add_reference, leaves([x, residual, *given], torch.float64), dy.double())
    for one in layouts(x).values():
        y, gradients = run(bias_add, [one.detach().requires_grad_(), *leaves([residual, *given])], dy)
        agrees(y, exact)
        for mine, theirs in zip(gradients, exact_gradients, strict=True):
            agrees(mine, theirs)


def test_parameters_need_not_be_contiguous(triton_device, agrees):
    """Columns of a matrix, and one number expanded to all channels."""
    x = images(triton_device, torch.float32, 2, 6, 3, 4)
    columns = torch.randn(6, 5, device=triton_device)
    w, o, added = columns[:, 0], columns[:, 2], torch.randn(1, device=triton_device).expand(6)
    exact = group_norm_reference(x.double(), 2, w.double(), o.double(), input_bias=added.double())
    agrees(group_norm(x, 2, w, o, input_bias=added), exact)
    agrees(bias_add(x, x, w, added), bias_add_reference(x.double(), x.double(), w.double(), added.double()))
    taps = torch.randn(6, 1, 3, 3, device=triton_device)
    exact = depthwise_conv_reference(x.double(), taps.double(), w.double(), o[None].double())
    agrees(depthwise_conv(x, taps, w, o[None]), exact)


def test_mixed_dtypes_give_what_torch_promotes_to(triton_device):
    x = images(triton_device, torch.bfloat16, 1, 4, 2, 2)
    wide, gain = torch.randn(1, 4, 2, 2, device=triton_device), torch.ones(1, 4, 1, 1, device=triton_device)
    assert bias_add(x, wide).dtype == channel_norm(x, gain).dtype == torch.float32
    assert bias_add(x, x).dtype == channel_norm(x, gain.bfloat16(), x).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
def test_convolutions_and_what_follows(triton_device, agrees, leaves, dtype):
    """The convolution rounds its result before the kernel reads it: two roundings forward, five backward."""
    b, c, o, h, w = 2, 3, 6, 5, 4
    shapes = (b, c, h, w), (o, c, 3, 3), (o,), (2, o), (b, 2, h, w), (o, 2, 1, 1)
    x, k, bias, norm, r, rk = (torch.randn(shape, device=triton_device).to(dtype) for shape in shapes)
    norms = [x, k, bias, *norm.unbind()]
    adds = [x, k, bias, r, rk, bias.clone()]
    for call, given in ((lambda x, k, b, w, o: conv_norm(x, k, b, 2, w, o, before="gelu"), norms), (conv_add, adds)):
        dy = torch.randn(b, o, h, w, device=triton_device).to(dtype)
        mine = leaves(given)
        y = call(*mine)
        with using("reference"):
            theirs = leaves(given, torch.float64)
            exact = call(*theirs)
        agrees(y, exact, times=2)
        gradients = torch.autograd.grad(y, mine, dy), torch.autograd.grad(exact, theirs, dy.double())
        for one, other in zip(*gradients, strict=True):
            agrees(one, other, times=5)


def test_using_the_reference_gives_torchs_own_result(triton_device):
    x = images(triton_device, torch.float32, 1, 8, 3, 3)
    with using("reference"):
        assert torch.equal(group_norm(x, 2, after="silu"), group_norm_reference(x, 2, after="silu"))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.zeros(2, 8, 3, 3, dtype=torch.int32)), "x is torch.int32"),
        (dict(x=torch.zeros(2, 8, 9)), r"x has shape \(2, 8, 9\)"),
        (dict(x=torch.zeros(2, 8, 0, 3)), "none of them 0"),
        (dict(groups=3), "groups = 3 with 8 channels"),
        (dict(groups=0), "groups = 0"),
        (dict(weight=torch.ones(7), bias=torch.ones(7)), r"weight has shape \(7,\); accepted: \(8,\)"),
        (dict(weight=torch.ones(8)), "weight and bias come together"),
        (dict(input_bias=torch.ones(4)), "input_bias has shape"),
        (dict(scale=torch.ones(3, 8), shift=torch.ones(3, 8)), "scale has shape"),
        (dict(before="swish"), "before = 'swish'; accepted: None, gelu"),
        (dict(weight=torch.ones(8, device="meta"), bias=torch.ones(8)), "weight is on meta"),
    ],
)
def test_group_norm_names_what_it_cannot_take(change, message):
    with pytest.raises(ValueError, match=message):
        group_norm(**{"x": torch.zeros(2, 8, 3, 3), "groups": 2, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.zeros(2, 8, 3, 3, dtype=torch.int64)), "x is torch.int64"),
        (dict(gain=torch.ones(8)), r"gain has shape \(8,\); accepted: \(1, 8, 1, 1\)"),
        (dict(residual=torch.zeros(2, 8, 3, 2)), "residual has shape"),
        (dict(residual=torch.zeros(2, 8, 3, 3, device="meta")), "residual is on meta"),
    ],
)
def test_channel_norm_names_what_it_cannot_take(change, message):
    with pytest.raises(ValueError, match=message):
        channel_norm(**{"x": torch.zeros(2, 8, 3, 3), "gain": torch.ones(1, 8, 1, 1), **change})


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.zeros(2, 8, 3, 3, dtype=torch.int64)), "x is torch.int64"),
        (dict(residual=torch.zeros(2, 8, 3, 2)), "residual has shape"),
        (dict(bias=torch.zeros(7)), "bias has shape"),
        (dict(residual_bias=torch.zeros(8, device="meta")), "residual_bias is on meta"),
    ],
)
def test_bias_add_names_what_it_cannot_take(change, message):
    with pytest.raises(ValueError, match=message):
        bias_add(**{"x": torch.zeros(2, 8, 3, 3), "residual": torch.zeros(2, 8, 3, 3), **change})


@pytest.mark.parametrize("operator", [conv_norm, conv_add])
@pytest.mark.parametrize(
    "change, message",
    [
        (dict(weight=torch.zeros(4, 2, 4, 4)), "an odd kernel size"),
        (dict(weight=torch.zeros(4, 2, 5, 3)), r"accepted: \(4, 2, 3, 3\)"),
        (dict(weight=torch.zeros(4, 3, 3, 3)), r"accepted: \(4, 2, 3, 3\)"),
        (dict(bias=torch.zeros(2)), "bias has shape"),
        (dict(bias=torch.zeros(4, device="meta")), "bias is on meta"),
        (dict(x=torch.zeros(1, 2, 3, 3, dtype=torch.int32)), "x is torch.int32"),
    ],
)
def test_convolutions_name_what_they_cannot_take(operator, change, message):
    given = {"x": torch.zeros(1, 2, 3, 3), "weight": torch.zeros(4, 2, 3, 3), "bias": torch.zeros(4), **change}
    with pytest.raises(ValueError, match=message):
        operator(*given.values(), 2 if operator is conv_norm else torch.zeros(1, 4, 3, 3))
