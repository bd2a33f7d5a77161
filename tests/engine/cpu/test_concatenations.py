"""Concatenations: their parts are computed in their places, so that they cost no copy; and they are right."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff import AnnotatedUnet, ContextUnet
from fastdiff.engine.context import ContextKind
from fastdiff.engine.evaluation import Given, Network, captured


def conv(c=4, out=4, kernel=3):
    return nn.Conv2d(c, out, kernel, padding=kernel // 2)


def copies(plan):
    """Pointwise calls without steps, as (shape, strides) of what they write."""
    made = [step for step in plan.steps if step.kernel == "pointwise" and step.numbers[4] == 0]
    return [step.writes[0] for step in made]


def _cat(*parts):
    return torch.cat(parts, 1)


def _twice(x):
    return F.interpolate(x, scale_factor=2)


JOINED = {
    "two": lambda net, x: net.end(_cat(net.a(x), net.b(x))),
    "nested": lambda net, x: net.end(torch.cat((_cat(net.a(x), net.b(x))[:, :4], net.a(x)), 1)),
    "nested, whole": lambda net, x: net.wide(torch.cat((_cat(net.a(x), net.b(x)), net.c(x)), 1)),
    "nested twice": lambda net, x: net.wide(torch.cat((net.c(x), torch.cat((_cat(net.a(x)), net.b(x)), 1)), 1)),
    "the same twice": lambda net, x: net.end(torch.cat((net.a(x),) * 2, 1)),
    "one in two": lambda net, x: (lambda a: net.end(_cat(a, net.b(x))) + net.end(_cat(net.c(x), a)))(net.a(x)),
    "the input": lambda net, x: net.end(_cat(x, x)),
    "the input and a result": lambda net, x: net.end(_cat(x, net.a(x))),
    "a constant": lambda net, x: net.end(_cat(net.a(x), net.a.weight[:, :, 0, 0].mean().expand(x.shape))),
    "views": lambda net, x: net.end(_cat(net.a(x).transpose(2, 3), net.b(x).flip(1))),
    "a chunk's parts": lambda net, x: net.end(torch.cat(net.both(x).chunk(2, 1)[::-1], 1)),
    "a chunk's parts in order": lambda net, x: net.end(torch.cat(net.both(x).chunk(2, 1), 1)),
    "parts of parts": lambda net, x: net.end(_cat(net.both(x)[:, :3], net.a(x)[:, 1:], x[:, :2])),
    "elementwise": lambda net, x: net.end(_cat(net.a(x).sin() * 2, F.silu(net.b(x) + x))),
    "elementwise, read again": lambda net, x: (lambda y: net.end(_cat(y, x)) + y)(net.a(x).sin()),
    "norms": lambda net, x: net.end(_cat(net.norm(net.a(x)), F.silu(net.norm(x)))),
    "pooled": lambda net, x: F.interpolate(net.end(_cat(F.max_pool2d(x, 2), F.avg_pool2d(x, 2))), scale_factor=2),
    "enlarged": lambda net, x: net.end(
        torch.cat((F.interpolate(F.max_pool2d(net.a(x), 2), scale_factor=2), net.b(x)), 1)
    ),
    "padded": lambda net, x: net.end(_cat(F.pad(net.a(x)[:, :, 1:], (0, 0, 1, 0)), x)),
    "softmax": lambda net, x: net.end(_cat(net.a(x).softmax(1), x.softmax(2))),
    "reshaped": lambda net, x: net.end(_cat(net.line(x.flatten(2)).view(x.shape), net.a(x))),
    "permuted": lambda net, x: net.end(_cat(net.cross(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), x)),
    "attended": lambda net, x: net.end(_cat(_attended(x), x)),
    "after torch": lambda net, x: net.end(_cat(net.a(x).cumsum(1), x.cumsum(2))),
    "with integers": lambda net, x: net.end(_cat(net.a(x), (x > 0))),
    "with float64": lambda net, x: net.end(_cat(net.a(x), x.double()).to(x.dtype)),
    "nothing": lambda net, x: net.end(_cat(net.a(x), x[:, :0], net.b(x))),
    "torch's nothing": lambda net, x: net.end(_cat(torch.zeros(0), net.a(x), net.b(x))),
    "lines": lambda net, x: torch.cat((net.a(x)[:, :, :2], net.b(x)[:, :, 2:]), 2),
    "lines, whole": lambda net, x: F.max_pool2d(torch.cat((net.a(x), net.b(x)), 2), (2, 1)),
    "columns": lambda net, x: F.avg_pool2d(torch.cat((net.a(x), net.b(x)), -1), (1, 2)),
    "pictures": lambda net, x: torch.cat((net.a(x), net.b(x)), 0).view(2, *x.shape).mean(0),
    "matrices": lambda net, x: torch.cat((x.flatten(2), net.a(x).flatten(2)), 2).view(-1, 4, 2, 6, 6).sum(2),
    "rows of the time": lambda net, x: net.end(_cat(net.a(x), net.a(x).mean((2, 3), keepdim=True).expand(x.shape))),
    "the result": lambda net, x: _cat(net.a(x)[:, :2], net.b(x)[:, :2]),
    "the result, whole": lambda net, x: _cat(net.few(x), net.few(x.sin())),
    "a single one": lambda net, x: _cat(net.a(x)),
    "many": lambda net, x: torch.cat([net.few(x * k) for k in range(12)], 1)[:, 3:7],
    "deeper": lambda net, x: _deeper(net, x, 4),
}
# What torch computes in these.
LEFT = {"views", "after torch", "with integers", "with float64"}


def _attended(x):
    q = x.flatten(2).transpose(1, 2).unsqueeze(1)
    return F.scaled_dot_product_attention(q, q, q).squeeze(1).transpose(1, 2).reshape(x.shape)


def _deeper(net, x, levels):
    """A U-Net: its way down is read on its way back up."""
    y = net.a(x)
    inner = y.cos() if levels == 0 else _deeper(net, F.silu(net.b(y)), levels - 1)
    return net.end(_cat(inner, y))


@pytest.mark.parametrize("batch, halves", [(3, 1), (4, 2), (1, 1)])
@pytest.mark.parametrize("name", JOINED)
def test_concatenations(name, batch, halves, same_function):
    modules = dict(a=conv(), b=conv(), c=conv(), end=conv(8, 4), both=conv(4, 8), wide=conv(12, 4), few=conv(4, 2))
    modules |= dict(norm=nn.GroupNorm(2, 4), line=nn.Linear(36, 36), cross=nn.Linear(4, 4))
    plan = same_function(lambda net, x, t: JOINED[name](net, x), batch=batch, halves=halves, threads=(1, 3), **modules)
    assert bool(plan.outside) == (name in LEFT)


FREE = ["two", "nested, whole", "nested twice", "elementwise", "elementwise, read again", "norms", "pooled", "softmax",
        "permuted", "attended", "reshaped", "the result, whole", "a single one", "many", "deeper"]  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_a_part_is_computed_in_its_place(name, same_function):
    modules = dict(a=conv(), b=conv(), c=conv(), end=conv(8, 4), both=conv(4, 8), wide=conv(12, 4), few=conv(4, 2))
    modules |= dict(norm=nn.GroupNorm(2, 4), line=nn.Linear(36, 36), cross=nn.Linear(4, 4))
    plan = same_function(lambda net, x, t: JOINED[name](net, x), threads=(1,), **modules)
    # What is not computed in the part: x, where it is a part; what is written in lines; an upsampling's own copy.
    allowed = {"permuted": 1, "attended": 1, "reshaped": 2, "pooled": 1, "elementwise, read again": 1}
    assert len(copies(plan)) <= allowed.get(name, 0), copies(plan)


def unet2d():
    if find_spec("diffusers") is None:
        pytest.skip("needs diffusers")
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    )


@pytest.mark.parametrize(
    "make, shape, upsampled",
    [
        (lambda: AnnotatedUnet(28), (1, 28, 28), 0),  # transposed convolutions
        (lambda: ContextUnet(3, 64, 5, 16), (3, 16, 16), 0),
        (unet2d, (3, 16, 16), 2),
    ],
)
def test_networks_copy_nothing_but_what_they_upsample(make, shape, upsampled):
    network = make().eval()
    integer = not isinstance(network, ContextUnet)
    times = torch.arange(1, 20) if integer else torch.rand(20)
    given = Given(2, shape, None if integer else ContextKind((5,)), times, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        plan = captured(Network(network, given.device, given.dtype), given).step.plan
    assert not plan.outside
    made = copies(plan)
    assert len(made) == upsampled and all(len(view.shape) == 6 for view in made)
