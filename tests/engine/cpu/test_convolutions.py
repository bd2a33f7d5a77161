"""Convolutions of every kind against torch in float64: each is computed by a kernel, and reads padding unwritten."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff import Engine, Model, make_schedule

C = nn.Conv2d
KINDS = {
    "1x1": lambda c: C(c, 2 * c, 1),
    "1x1, padded": lambda c: C(c, c, 1, padding=1),
    "1x1, strided": lambda c: C(c, 2 * c, 1, stride=2),
    "3x3": lambda c: C(c, 2 * c, 3, padding=1),
    "3x3, without a bias": lambda c: C(c, c, 3, padding=1, bias=False),
    "3x3, unpadded": lambda c: C(c, c, 3),
    "3x3, oblong padding": lambda c: C(c, c, 3, padding=(0, 2)),
    "3x3, strided": lambda c: C(c, c, 3, stride=2, padding=1),
    "4x4, strided": lambda c: C(c, c, 4, stride=2, padding=1),
    "oblong stride": lambda c: C(c, c, 3, stride=(1, 2), padding=1),
    "dilated": lambda c: C(c, c, 3, padding=2, dilation=2),
    "7x7": lambda c: C(c, c, 7, padding=3),
    "1x3": lambda c: C(c, c, (1, 3), padding=(0, 1)),
    "of one output": lambda c: C(c, 1, 3, padding=1),
    "depthwise": lambda c: C(c, c, 7, padding=3, groups=c),
    "depthwise, strided": lambda c: C(c, c, 3, stride=2, padding=1, groups=c),
    "depthwise, doubled": lambda c: C(c, 2 * c, 3, padding=1, groups=c),
    "depthwise, 1x1": lambda c: C(c, c, 1, groups=c),
    "grouped": lambda c: C(c, 2 * c, 3, padding=1, groups=4),
    "grouped, strided": lambda c: C(c, c, 3, stride=2, padding=1, groups=2),
    "grouped, 1x1": lambda c: C(c, c, 1, groups=2),
    "same": lambda c: C(c, c, 5, padding="same"),
    "reflected": lambda c: C(c, c, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda c: nn.ConvTranspose2d(c, c, 2, stride=2),
    "transposed, 4x4": lambda c: nn.ConvTranspose2d(c, 2 * c, 4, stride=2, padding=1),
    "transposed, output padding": lambda c: nn.ConvTranspose2d(c, c, 3, stride=2, padding=1, output_padding=1),
    "transposed, dilated": lambda c: nn.ConvTranspose2d(c, c, 3, stride=(1, 2), padding=1, dilation=2),
    "transposed, unstrided": lambda c: nn.ConvTranspose2d(c, c, 3, padding=1, bias=False),
    "transposed, depthwise": lambda c: nn.ConvTranspose2d(c, c, 3, stride=2, padding=1, groups=c),
    "transposed, grouped": lambda c: nn.ConvTranspose2d(c, 2 * c, 4, stride=2, padding=1, groups=2),
    "transposed, doubled": lambda c: nn.ConvTranspose2d(c, 2 * c, 2, stride=2, groups=c),
}


@pytest.mark.parametrize("channels", [4, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_convolutions(kind, channels, same_function):
    def forward(net, x, t):
        """The convolution on images, on a part of them, and on positions in another order; then x's shape again."""
        y = net.first(x)
        found = [net.conv(y), net.conv(net.wide(x)[:, 3 : 3 + channels]), net.conv(y.transpose(2, 3)).transpose(2, 3)]
        return sum(net.last(F.interpolate(z, size=x.shape[2:])) for z in found)

    conv = KINDS[kind](channels)
    plan = same_function(
        forward,
        (3, 8, 8),
        batch=2,
        first=C(3, channels, 1),
        wide=C(3, channels + 7, 3, padding=1),
        conv=conv,
        last=C(conv.out_channels, 3, 1),
    )
    left = {str(step.node.target) for step in plan.outside} - {
        "aten.upsample_nearest2d.vec",
        "aten.upsample_nearest2d.default",
    }
    assert bool(left) == (kind == "reflected"), left


@pytest.mark.parametrize("kind", [name for name in KINDS if "transposed" not in name and name != "reflected"])
@pytest.mark.parametrize("after", ["gelu", None])
def test_what_follows_a_convolution(kind, after, same_function):
    """A row of the time for each channel, an activation, a residual."""

    def forward(net, x, t):
        y = net.conv(net.first(x)) + net.time(t.to(net.time.weight.dtype)[:, None] / 20)[:, :, None, None]
        y = y if after is None else getattr(F, after)(y)
        y = y + F.interpolate(x[:, :1], size=y.shape[2:]).expand(y.shape)
        return net.last(F.interpolate(y, size=x.shape[2:]))

    conv = KINDS[kind](8)
    out = conv.out_channels
    same_function(
        forward,
        (3, 6, 6),
        batch=2,
        first=C(3, 8, 1),
        conv=conv,
        last=C(out, 3, 1),
        time=nn.Linear(1, out),
        threads=(1,),
    )


PADS = {
    "around": (1, 1, 1, 1),
    "right and below": (0, 1, 0, 1),
    "left": (2, 0),
    "above": (0, 0, 1, 0),
    "wide": (3, 2, 1, 4),
}


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize(
    "kind", ["1x1", "3x3", "3x3, unpadded", "3x3, strided", "depthwise", "grouped", "transposed", "7x7", "4x4, strided"]
)
def test_padding_before_a_convolution_is_not_written(kind, pad, same_function, names):
    def forward(net, x, t):
        y = net.conv(F.pad(net.first(x), PADS[pad]))
        return net.last(y).mean((2, 3), keepdim=True) * x

    conv = KINDS[kind](32)
    plan = same_function(forward, (3, 8, 8), batch=2, first=C(3, 32, 1), conv=conv, last=C(conv.out_channels, 3, 1))
    assert not plan.outside
    if kind != "transposed":
        assert names(plan).count("pointwise") == 1  # the product at the end


@pytest.mark.parametrize("how", ["zeros", "ones", "crop", "channels", "batch"])
def test_padding_that_is_written(how, same_function):
    def forward(net, x, t):
        y = net.conv(x)
        if how == "zeros":
            padded = F.pad(y, (1, 0, 2, 1))
            return (padded.cos() + padded)[:, :, 2:-1, 1:] + net.conv(padded)[:, :, 2:-1, 1:]
        if how == "ones":
            return net.conv(F.pad(y, (1, 1, 1, 1), value=1.0))[:, :, 1:-1, 1:-1]
        if how == "crop":
            return F.pad(F.pad(y, (-1, -1, 0, -2)), (1, 1, 0, 2))
        if how == "channels":
            return F.pad(y, (0, 0, 0, 0, 1, 2))[:, 1:-2] + y
        return torch.cat((F.pad(y, (1, 1, 1, 1)), F.pad(x, (1, 1, 1, 1))), 1)[:, 2:6, 1:-1, 1:-1]

    same_function(forward, (4, 6, 6), conv=C(4, 4, 3, padding=1))


LINES = {
    "3": lambda: nn.Conv1d(4, 8, 3, padding=1),
    "1": lambda: nn.Conv1d(4, 8, 1),
    "strided": lambda: nn.Conv1d(4, 8, 4, stride=2, padding=1),
    "dilated": lambda: nn.Conv1d(4, 8, 3, padding=2, dilation=2),
    "depthwise": lambda: nn.Conv1d(4, 4, 5, padding=2, groups=4),
    "grouped": lambda: nn.Conv1d(4, 8, 3, padding=1, groups=2),
    "transposed": lambda: nn.ConvTranspose1d(4, 8, 4, stride=2, padding=1),
    "transposed, grouped": lambda: nn.ConvTranspose1d(4, 8, 4, stride=2, padding=1, groups=2),
}


@pytest.mark.parametrize("kind", LINES)
def test_along_a_line(kind, same_function):
    def forward(net, x, t):
        line = x.flatten(2)
        y = net.conv(F.silu(net.norm(line)))
        z = net.conv(x.mean(3)) + net.conv(line[:, :, ::6])
        return x * (y.mean(2) + z.sin().mean(2)).mean(1)[:, None, None, None] + net.back(
            F.silu(net.out(line)) + line
        ).view(x.shape)

    modules = dict(
        conv=LINES[kind](), norm=nn.GroupNorm(2, 4), out=nn.Conv1d(4, 4, 3, padding=1), back=nn.Conv1d(4, 4, 1)
    )
    assert not same_function(forward, (4, 6, 6), **modules).outside


def test_a_step_with_a_grouped_transposed_convolution_needs_no_operation_of_torch(Net, rel):
    """It reads a norm as it is applied."""

    def forward(net, x, t):
        return net.last(net.up(net.norm(net.first(x))))

    up = nn.ConvTranspose2d(8, 16, 4, 2, 1, groups=2)
    net = Net(forward, first=C(3, 8, 2, stride=2), norm=nn.GroupNorm(2, 8), up=up, last=C(16, 3, 1))
    model = Model(net, make_schedule("linear", 20), image_shape=(3, 8, 8))
    by_kernels, by_torch = (
        Engine(model, model.table("ddim", 3), batch_size=2, device="cpu", form=form) for form in ("cpu", "eager")
    )
    assert rel(by_kernels.sample(3, seed=1), by_torch.sample(3, seed=1)) < 1e-5
    (said,) = by_kernels.holds()["steps"].values()
    assert "calls of C kernels" in said and "in torch" not in said


def test_weights_that_are_computed_are_left_to_torch(same_function):
    """A convolution whose weight depends on x, or on the time."""

    def forward(net, x, t):
        return F.conv2d(x, net.conv.weight * x.mean(), padding=1)

    assert same_function(forward, conv=C(4, 4, 3, padding=1)).outside


def test_one_weight_in_several_forms(same_function):
    """As a 1x1 kernel, as a matrix, transposed and grouped."""

    def forward(net, x, t):
        w = net.conv.weight
        y = F.conv2d(x, w) + F.conv_transpose2d(x, w) + F.conv2d(x[:, :2], w[:, :2].contiguous()) + net.conv(x)
        return y + F.linear(x.permute(0, 2, 3, 1), w[:, :, 0, 0]).permute(0, 3, 1, 2)

    assert not same_function(forward, conv=C(4, 4, 1)).outside
