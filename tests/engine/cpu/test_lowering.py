"""Every operation that has a kernel, and every move, in a small network against torch in float64."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff import Engine, Model, make_schedule, sample
from fastdiff.engine.cpu import step
from fastdiff.kernels.cpu import winograd
from fastdiff.kernels.cpu.pointwise import STEPS


def conv(c=4, out=4, kernel=3, **options):
    return nn.Conv2d(c, out, kernel, padding=options.pop("padding", kernel // 2), **options)


ELEMENTWISE = {
    "neg": lambda x: -x,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": lambda x: torch.log(x.abs() + 0.1),
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.1),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 0.5),
    "erf": torch.erf,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "relu6": lambda x: F.relu6(4 * x),
    "softplus": lambda x: F.softplus(9 * x),
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.7),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.25),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp from below": lambda x: x.clamp(min=-0.5),
    "clamp from above": lambda x: x.clamp(max=0.5),
    "clamp_min": lambda x: torch.clamp_min(x, 0.1),
    "clamp_max": lambda x: torch.clamp_max(x, 0.1),
    "clamp between tensors": lambda x: x.clamp(x.sin() - 0.1, x.cos()) + x.clamp(max=x.sin()) + x.clamp(min=x.cos()),
    "lerp": lambda x: torch.lerp(x, x.sin(), 0.3) + torch.lerp(x, x.cos(), x.sigmoid()),
    "a product added": lambda x: torch.addcmul(x, x.sin(), x.cos(), value=0.5),
    "hardsigmoid": lambda x: F.hardsigmoid(3 * x),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, -0.3, 0.4], dtype=x.dtype)),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x) + torch.where(x < 0.5, 0.0, x) + torch.where(x > x.cos(), 1, x),
    "where, by a channel": lambda x: torch.where(x[:, :1] >= 0.3, x, -x),
    "where there is NaN": lambda x: torch.where(x > 0.2, torch.log(x), 2.0) + torch.where(x.sqrt() != x.sqrt(), 1.0, x),
    "compared with numbers": lambda x: x * (x > 0.2) + (x <= 0.1).to(x.dtype) + (x >= 0.4) * 2.0 - x * (x < -1),
    "compared": lambda x: (x == x.relu()) * x + (x != x.relu()).to(x.dtype) / 3 + x * (x.sin() <= x.cos()),
    "masked": lambda x: x.masked_fill(x.abs() > 1, 0.5).masked_fill(x < -0.5, torch.tensor(0.25, dtype=x.dtype)),
    "one comparison, read by three": lambda x: (
        lambda mask: torch.where(mask, x.sin(), x) + x.cos() * mask + mask.to(x.dtype)
    )(x > 0),
    "square": torch.square,
    "a cube": lambda x: x**3,
    "a power": lambda x: x.abs() ** 1.7,
    "roots": lambda x: x.abs() ** 0.5 + (x.abs() + 1) ** -0.5 + (x.abs() + 1) ** -1 + x**1 + x**0,
    "numbers": lambda x: 2 - (3 * x + 1) / 2 - 1.5,
    "alpha": lambda x: torch.add(x, x.sin(), alpha=0.3) - torch.sub(x.cos(), x, alpha=2),
    "alpha of a number": lambda x: torch.add(x, 2, alpha=3) + torch.sub(x, 1, alpha=0.5) + torch.rsub(x, 2, alpha=3),
    "a number by x": lambda x: 1 / (x.abs() + 1),
    "maximum": lambda x: torch.maximum(x, x.sin()) - torch.minimum(x.cos(), x),
    "itself": lambda x: x * x + x / (x * x + 1),
    "many uses": lambda x: sum((x * k).sin() for k in range(14)),
    "a long chain": lambda x: F.silu(_times(STEPS + 7, torch.sin, x)),
    "a chain that just fits": lambda x: F.silu(_times(STEPS - 1, torch.sin, x)),
    "a chain that just does not": lambda x: F.silu(_times(STEPS, torch.sin, x)) * 2,
    "squares of squares": lambda x: _times(7, lambda y: y.tanh() * y.tanh() + y, x),
    "clones": lambda x: x.clone().contiguous().detach().sin(),
}


def _times(count, function, x):
    for _ in range(count):
        x = function(x)
    return x


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name, same_function, names):
    plan = same_function(lambda net, x, t: ELEMENTWISE[name](x))
    assert set(names(plan)) == {"pointwise"}
    same_function(lambda net, x, t: net.last(ELEMENTWISE[name](net.first(x))), first=conv(), last=conv(), batch=1)


def test_a_chain_is_one_pass(same_function, names):
    plan = same_function(lambda net, x, t: ((x * 2 + 1).sin() * x.cos()).clamp(-0.5, 0.5) - x.transpose(2, 3))
    assert names(plan) == ["pointwise"]
    plan = same_function(lambda net, x, t: torch.lerp(x, torch.where(x.sin() > x.cos(), x.exp(), 0.5), 0.3) * (x <= 1))
    assert names(plan) == ["pointwise"]


class Squeezed(nn.Module):
    """BatchNorm and an activation before a convolution; then squeeze and excitation (Hu et al. 2018)."""

    def __init__(self, c):
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(c), nn.PReLU(c), conv(c, c), nn.InstanceNorm2d(c, affine=True))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(c, 2, 1), nn.ReLU(), conv(2, c, 1), nn.Hardsigmoid())

    def forward(self, x):
        y = self.before(x)
        return torch.where(y > 0, y, 0.1 * y) * self.gate(y) + x


@pytest.mark.parametrize("batch", [1, 3])
def test_blocks_of_other_networks_hold_no_torch(batch, Net, randomised, rel, poisoned):
    """By the engine, whose images are channels_last."""
    net = Net(lambda net, x, t: net.last(net.block(net.first(x))), first=conv(4, 8), block=Squeezed(8), last=conv(8, 4))
    model = Model(randomised(net), make_schedule("linear", 20), image_shape=(4, 6, 6))
    ours = Engine(model, model.table("ddim", 3), batch_size=batch, device="cpu", clip=2.0)
    own = Engine(model, ours.table, batch_size=batch, device="cpu", clip=2.0, form="eager")
    assert rel(ours.sample(batch), own.sample(batch)) < 1e-5
    (said,) = ours.holds()["steps"].values()
    assert "C kernels" in said and "torch" not in said


UNUSUAL = {
    "selu": F.selu,  # with a scale
    "a steeper softplus": lambda x: F.softplus(x, beta=2.0),
    "celu": lambda x: F.celu(x, 0.5),
    "a quotient that is rounded": lambda x: x + torch.div(x * 5, 2, rounding_mode="floor"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_arguments_are_left_to_torch(name, same_function):
    plan = same_function(lambda net, x, t: net.last(UNUSUAL[name](net.first(x))), first=conv(), last=conv())
    assert plan.outside


BROADCAST = {
    "a row": lambda net, x: x + net.row[0, 0] * net.row.view(4, 1, 1),
    "a channel's": lambda net, x: x * net.row[:, :, None, None] - net.row.view(4, 1, 1),
    "a position's": lambda net, x: x + x.mean(1, keepdim=True) * x[:, 1:2],
    "a picture's": lambda net, x: x / (1 + x.abs().sum((1, 2, 3), keepdim=True)),
    "a line and a column": lambda net, x: x[:, :, :1] * x[:, :, :, :1] + x,
    "a number": lambda net, x: x * net.row.mean() + net.row.sum(),
    "more dimensions": lambda net, x: (x[:, None] * net.row.view(1, 4, 1, 1, 1)).mean(1),
    "one sided": lambda net, x: net.row.view(1, 4, 1, 1) - x[:, 2:3].exp(),
    "of a chain": lambda net, x: (x[:, :1].sin() * 2 + 1) * x,
}


@pytest.mark.parametrize("name", BROADCAST)
def test_broadcasting(name, same_function):
    row = nn.Parameter(torch.randn(1, 4))
    same_function(lambda net, x, t: BROADCAST[name](net, x), row=row)
    same_function(lambda net, x, t: BROADCAST[name](net, net.conv(x)), row=row, conv=conv(), halves=2, batch=4)


PRODUCTS = {
    **{f"softmax over {dim}": lambda net, x, dim=dim: net.conv(x).softmax(dim) for dim in (0, 1, 2, 3, -1)},
    **{
        f"softmax over {dim} of three": lambda net, x, dim=dim: net.conv(x).flatten(2).softmax(dim).view(x.shape)
        for dim in (0, 1, 2)
    },
    "softmax of five": lambda net, x: x.view(-1, 2, 2, 6, 6).softmax(1).reshape(x.shape),
    "softmax of a part": lambda net, x: torch.cat((x[:, :2].softmax(1), x[:, 1:3].softmax(3)), 1),
    "softmax of a matrix": lambda net, x: x.flatten(1).softmax(1).view(x.shape),
    "softmax of a vector": lambda net, x: x * x.mean((0, 2, 3)).softmax(0).view(1, -1, 1, 1),
    "softmax of a number": lambda net, x: x * x.mean().softmax(0),
    "softmax of one": lambda net, x: x + x[:, :1].softmax(1),
    "bmm": lambda net, x: torch.bmm(*_matrices(net, x)).view(x.shape),
    "bmm, transposed": lambda net, x: torch.bmm(_matrices(net, x)[1].mT, x.flatten(2).mT).mT.reshape(x.shape),
    "bmm of one matrix for all": lambda net, x: (x.flatten(2) @ net.line.weight).view(x.shape),
    "matmul": lambda net, x: x @ net.conv(x),
    "matmul of a vector": lambda net, x: (x @ net.line.weight[0, :6])[..., None] + x,
    "mm": lambda net, x: (x.flatten(1)[:, :36] @ net.line.weight).repeat(1, 4).view(x.shape),
    "einsum": lambda net, x: torch.einsum("bchw,bdhw,bdhv->bchv", x, net.conv(x), x) * 0.1,
    "linear of the width": lambda net, x: F.linear(x, net.line.weight[:6, :6]),
    "linear of positions": lambda net, x: net.line(x.flatten(2)).view(x.shape),
    "linear of channels": lambda net, x: net.cross(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "linear of channels, three": lambda net, x: net.cross(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape),
    "linear of rows": lambda net, x: net.cross(x.mean((2, 3)))[:, :, None, None] * x,
    "linear of one row": lambda net, x: net.cross(x.mean((0, 2, 3)))[:, None, None] * x,
    "linear without a bias": lambda net, x: F.linear(x.flatten(2), net.line.weight).view(x.shape),
    **{
        f"{how} over {dims}, {keep}": lambda net, x, how=how, dims=dims, keep=keep: _reduced(
            net.conv(x), how, dims, keep
        )
        for how in ("mean", "sum")
        for dims in ((0,), (1,), (2,), (-1,), (2, 3), (1, 2, 3), (0, 2, 3), (0, 1, 2, 3), (-1, -3))
        for keep in (True, False)
    },
    "recurrent": lambda net, x: net.gru(x.flatten(2).mT)[0].mT.reshape(x.shape),
    "mean of all": lambda net, x: x + net.conv(x).mean() + x.sum() / 9,
    "sum of five": lambda net, x: x + x.view(-1, 2, 2, 6, 6).sum((1, 4))[:, :, :, None].repeat(1, 2, 1, 1),
    "mean of three": lambda net, x: x * net.conv(x).flatten(2).mean(2)[:, :, None, None],
    "variance": lambda net, x: x + net.conv(x).var((2, 3), keepdim=True) + x.var(1, unbiased=False)[:, None],
    "nine dimensions": lambda net, x: (
        x.reshape(-1, 2, 2, 2, 3, 2, 3, 1, 1).permute(0, 2, 1, 4, 3, 6, 5, 8, 7).reshape(x.shape)
    ),
    "sum of seven": lambda net, x: (
        x + x.reshape(-1, 2, 2, 2, 3, 2, 3).sum((1, 3, 5, 6))[:, :, 0].mean(1).view(-1, 1, 1, 1)
    ),
}


def _nine(x):
    return x.reshape(-1, 2, 2, 2, 3, 2, 3, 1, 1)


def _matrices(net, x):
    return x.flatten(2)[:, :, :36], net.conv(x).flatten(2).transpose(1, 2) @ net.wide.weight.mT / 9


def _reduced(x, how, dims, keep):
    y = getattr(x, how)(dims, keepdim=keep)
    if not keep:
        shape = [1 if k in [dim % 4 for dim in dims] else size for k, size in enumerate(x.shape)]
        y = y.reshape(shape)
    return x + y


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_sums(name, same_function):
    modules = dict(conv=conv(), line=nn.Linear(36, 36), cross=nn.Linear(4, 4), wide=nn.Linear(4, 36))
    modules["gru"] = nn.GRU(4, 4, batch_first=True)
    plan = same_function(lambda net, x, t: PRODUCTS[name](net, x), **modules)
    left = {str(step.node.target) for step in plan.outside}
    assert left <= LEFT.get(name, set()), left


# What torch computes in these.
LEFT = {
    "softmax of five": {"aten._softmax.default"},
    "softmax of a number": {"aten._softmax.default", "aten.mean.default"},
    "mean of all": {"aten.mean.default", "aten.sum.default"},
    "variance": {"aten.var.correction"},
    "matmul of a vector": {"aten.mv.default"},
    "linear of channels": set(),
    "mm": {"aten.repeat.default"},
    "sum of five": {"aten.repeat.default"},
    "nine dimensions": {"aten.reshape.default", "aten.permute.default"},
    "sum of seven": {"aten.reshape.default", "aten.select.int", "aten.sum.dim_IntList"},
}


def test_what_a_reshape_cannot_show_is_copied(same_function, names):
    plan = same_function(
        lambda net, x, t: net.conv(x).permute(0, 3, 1, 2).reshape(x.shape).transpose(2, 3).reshape(x.shape), conv=conv()
    )
    assert not plan.outside and "pointwise" in names(plan)


POOLED = {
    "max": lambda x: F.max_pool2d(x, 2),
    "max, overlapping": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max, dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "max, oblong": lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 0)),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average, padded": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average, without the padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average, oblong": lambda x: F.avg_pool2d(x, (1, 3), (2, 1), (0, 1)),
    "average, to one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "average, of a line to one": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 1)[..., None],
    "average, to a size": lambda x: F.adaptive_avg_pool2d(x, (7, 2)) * F.adaptive_avg_pool2d(x, (1, None))[..., ::4],
    "max, to a size": lambda x: F.adaptive_max_pool2d(x, (1, 4)) + F.adaptive_max_pool2d(x, 1),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest, by size": lambda x: F.interpolate(x, size=(21, 16)),
    "nearest, oblong": lambda x: F.interpolate(x, scale_factor=(1.0, 3.0)),
    "a part": lambda x: F.max_pool2d(x[:, 1:3], 2),
    "a line": lambda x: F.max_pool1d(x.flatten(2), 2)[..., None],
    "strided": lambda x: x[:, :, ::2, 1::3],
    "shuffled": lambda x: x.view(-1, 2, 2, 1, 7, 8).permute(0, 3, 4, 1, 5, 2).reshape(-1, 1, 14, 16),
}
LEFT_TO_TORCH = {
    "max, ceil": lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    "average, ceil": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "average, to a size that does not divide": lambda x: F.adaptive_avg_pool2d(x, 3),
    "average by a divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "nearest, at another size": lambda x: F.interpolate(x, size=(9, 10)),
    "nearest, smaller": lambda x: F.interpolate(x, scale_factor=0.5),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "places of the maxima": lambda x: _maxima(*F.max_pool2d(x, 2, return_indices=True)),
    "reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
}


def _maxima(values, indices):
    return values + indices / 99


@pytest.mark.parametrize("name", [*POOLED, *LEFT_TO_TORCH])
def test_sizes(name, same_function):
    resized = (POOLED | LEFT_TO_TORCH)[name]

    def forward(net, x, t):
        """Its means by channel and by line, so that the result has x's shape."""
        y = resized(net.conv(x))
        return x * y.sin().mean((1, 2, 3), keepdim=True) + net.conv(x) * y.mean((2, 3), keepdim=True).mean(
            1, keepdim=True
        )

    for batch in (1, 3):
        plan = same_function(forward, (4, 7, 8), batch=batch, conv=conv())
        assert bool(plan.outside) == (name in LEFT_TO_TORCH)


def test_pooled_and_enlarged_again_where_the_result_is_seen(same_function):
    def forward(net, x, t):
        y = net.conv(F.max_pool2d(x, 2)) + F.avg_pool2d(x, 2)
        return net.conv(F.interpolate(y, scale_factor=2)) + F.interpolate(F.max_pool2d(y, (3, 4)), size=(6, 8))

    assert not same_function(forward, (4, 6, 8), conv=conv()).outside


NORMS = {
    "group norm": lambda net, x, emb: net.norm(x),
    "group norm, read by a convolution": lambda net, x, emb: net.conv(net.norm(x)),
    "read by two": lambda net, x, emb: net.conv(net.norm(x)) + net.one(net.norm(x)),
    "read by a convolution and by another": lambda net, x, emb: (lambda y: net.conv(y) + y)(net.norm(x)),
    "silu after it": lambda net, x, emb: net.conv(F.silu(net.norm(x))),
    "modulated": lambda net, x, emb: net.conv(F.silu(net.norm(x) * (1 + emb[:, :8]) + emb[:, 8:])),
    "modulated without weights": lambda net, x, emb: net.bare(x) * (1 + emb[:, :8]) + emb[:, 8:],
    "padded": lambda net, x, emb: net.conv(F.pad(net.norm(x), (1, 1, 1, 1)))[:, :, 1:-1, 1:-1],
    "by a depthwise convolution": lambda net, x, emb: net.each(net.norm(x)),
    "by a strided one": lambda net, x, emb: F.interpolate(net.strided(net.norm(x)), scale_factor=2),
    "by a transposed one": lambda net, x, emb: F.max_pool2d(net.transposed(net.norm(x)), 2),
    "by a grouped one": lambda net, x, emb: net.grouped(net.norm(x)),
    "instance norm": lambda net, x, emb: F.instance_norm(x),
    "of a line": lambda net, x, emb: net.norm(x.flatten(2)).view(x.shape),
    "instance norm with weights": lambda net, x, emb: net.conv(F.silu(net.each_image(x))) + net.conv(net.each_image(x)),
    "instance norm of a line": lambda net, x, emb: F.instance_norm(x.flatten(2)).view(x.shape),
    "instance norm with statistics": lambda net, x, emb: net.tracked(x),
    "batch norm": lambda net, x, emb: net.folded(net.conv(x)),
    "batch norm before a convolution": lambda net, x, emb: net.conv(F.relu(net.folded(x))) + net.conv(net.folded(x)),
    "batch norm of rows": lambda net, x, emb: x * net.rows(x.mean((2, 3)))[:, :, None, None],
    "layer norm": lambda net, x, emb: net.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "layer norm, written out": lambda net, x, emb: _written(net, x),
    "layer norm of tokens": lambda net, x, emb: (
        net.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    ),
    "layer norm of the image": lambda net, x, emb: net.conv(F.layer_norm(x, x.shape[1:])),
    "layer norm of the image, with weights": lambda net, x, emb: F.gelu(net.whole(x)) + net.unbiased(x),
    "layer norm of a plane": lambda net, x, emb: F.layer_norm(x, x.shape[2:]),
    "batch norm over the batch": lambda net, x, emb: F.batch_norm(x, None, None, training=True),
    "rms": lambda net, x, emb: F.normalize(x, dim=1) * net.layer.weight.view(-1, 1, 1) * math.sqrt(8),
}


NORMS_OF_TORCH = ("layer norm of a plane", "batch norm over the batch")


def _written(net, x):
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * net.layer.weight.view(1, -1, 1, 1) + net.layer.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize("name", NORMS)
def test_norms(name, same_function, randomised):
    modules = nn.ModuleDict(
        dict(
            start=conv(4, 8),
            end=conv(8, 4, 1),
            norm=nn.GroupNorm(2, 8),
            bare=nn.GroupNorm(4, 8, affine=False),
            conv=conv(8, 8),
            one=conv(8, 8, 1),
            each=conv(8, 8, groups=8),
            grouped=conv(8, 8, groups=2),
            strided=conv(8, 8, stride=2),
            transposed=nn.ConvTranspose2d(8, 8, 2, stride=2),
            layer=nn.LayerNorm(8),
            whole=nn.LayerNorm([8, 6, 6]),
            unbiased=nn.LayerNorm([8, 6, 6], bias=False),
            each_image=nn.InstanceNorm2d(8, affine=True),
            tracked=nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
            rows=nn.BatchNorm1d(8),
            folded=nn.BatchNorm2d(8),
            time=nn.Linear(1, 16),
        )
    )

    def forward(net, x, t):
        emb = net.time(t.to(net.time.weight.dtype)[:, None] / 20)[:, :, None, None]
        return net.end(NORMS[name](net, net.start(x) + 0.3, emb))

    modules = randomised(modules)
    for batch in (1, 3):
        plan = same_function(forward, batch=batch, **modules)
        assert bool(plan.outside) == (name in NORMS_OF_TORCH)


ATTENTION = {
    "heads": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "a scale": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "fewer keys": lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :, :7], v[:, :, :7]),
    "written out": lambda q, k, v: (q @ k.mT * 0.5).softmax(-1) @ v,
    "over channels": lambda q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v),
    "in turn": lambda q, k, v: F.scaled_dot_product_attention(F.scaled_dot_product_attention(q, k, v), k, v),
}
LEFT_ATTENTION = {
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "a mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.eye(36, dtype=torch.bool)),
    "one head's keys": lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1]),
}


@pytest.mark.parametrize("name", [*ATTENTION, *LEFT_ATTENTION])
def test_attention(name, same_function):
    attend = (ATTENTION | LEFT_ATTENTION)[name]

    def images(net, x, t):
        q, k, v = (one.reshape(-1, 2, 4, 36).transpose(2, 3) for one in net.qkv(x).chunk(3, dim=1))
        return net.out(attend(q, k, v).transpose(2, 3).reshape(-1, 8, 6, 6)) + x

    def tokens(net, x, t):
        y = x.flatten(2).transpose(1, 2)
        q, k, v = (line(y).view(-1, 36, 2, 4).transpose(1, 2) for line in (net.q, net.k, net.v))
        return net.last(attend(q, k, v).transpose(1, 2).flatten(2)).transpose(1, 2).view(x.shape)

    lines = {name: nn.Linear(4, 8) for name in "qkv"}
    one = same_function(images, qkv=conv(4, 24, 1), out=conv(8, 4, 1))
    other = same_function(tokens, last=nn.Linear(8, 4), **lines)
    assert bool(one.outside) == bool(other.outside) == (name in LEFT_ATTENTION)


def test_attention_over_the_width_itself(same_function):
    plan = same_function(lambda net, x, t: torch.cat([F.scaled_dot_product_attention(x, x, x), x], -1)[..., ::2])
    assert not plan.outside


MOVED = {
    "chunk": lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
    "split": lambda y: torch.cat(y.split([1, 2, 1], 1)[::-1], 1),
    "split, uneven": lambda y: torch.cat(y.split(3, 2)[::-1], 2) + y,
    "unbind": lambda y: sum(y.unbind(1))[:, None] * y,
    "stack": lambda y: torch.stack((y, y.sin()), 1).sum(1),
    "select": lambda y: y[:, 1][:, None] + y * y[:, :, 2, 3][:, :, None, None],
    "expand": lambda y: y.mean(1, keepdim=True).expand(-1, 4, -1, -1) + y,
    "expand, then reshape": lambda y: (
        y.mean(1)[:, None].expand(-1, 4, -1, -1).reshape(-1, 36, 4).mT.reshape(y.shape) + y
    ),
    "slice": lambda y: y[:, :, ::2, 1:].mean(3, keepdim=True).repeat_interleave(2, 2) + y,
    "permute": lambda y: y.permute(0, 1, 3, 2) + y,
    "reshape of a permuted": lambda y: y.permute(0, 3, 2, 1).reshape(y.shape) + y,
    "patches": lambda y: y.view(-1, 4, 3, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 9, 16).sin().view(y.shape),
    "flip": lambda y: y.flip(3) + y,
    "roll": lambda y: y.roll(2, 3) - y,
    "movedim": lambda y: y.movedim(1, 3).contiguous().movedim(3, 1) * 2,
    "squeeze": lambda y: y[:, :1].squeeze(1).unsqueeze(1) + y,
    "unsafe split": lambda y: torch.cat(torch.unsafe_split(y, 2, 1)[::-1], 1),
    "t": lambda y: y.flatten(1).t().sin().t().view(y.shape),
    "a transposed batch": lambda y: y.transpose(0, 1).sin().transpose(0, 1),
    "unflatten": lambda y: y.unflatten(1, (2, 2)).flatten(1, 2).sin(),
}


@pytest.mark.parametrize("name", MOVED)
def test_moves(name, same_function):
    same_function(lambda net, x, t: MOVED[name](x), threads=(1,))
    same_function(lambda net, x, t: net.last(MOVED[name](net.first(x))), first=conv(), last=conv())
    same_function(lambda net, x, t: MOVED[name](net.first(x).relu()), first=conv(), batch=4, halves=2)
    same_function(lambda net, x, t: MOVED[name](x) + net.first(x), first=conv(), batch=1, threads=(1,))


RESULTS = {
    "x itself": lambda net, x: x,
    "x doubled in width, every other channel": lambda net, x: torch.cat((x, x), 1)[:, ::2],
    "transposed": lambda net, x: x.transpose(2, 3),
    "in the order of its dimensions": lambda net, x: net.line(x.flatten(2)).view(x.shape),
    "broadcast": lambda net, x: net.conv(x).mean((2, 3), keepdim=True).expand(x.shape),
    "a constant": lambda net, x: net.conv.weight[:1, :1].mean().expand(x.shape),
    "zeros": lambda net, x: torch.zeros_like(x) + 1e-3,
    "twice the channels": lambda net, x: net.wide(x),
    "twice the channels, of a view": lambda net, x: torch.cat((x, x.transpose(2, 3)), 1),
}


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("name", RESULTS)
def test_results(name, halves, same_function):
    modules = dict(conv=conv(), line=nn.Linear(36, 36), wide=conv(4, 8))
    same_function(lambda net, x, t: RESULTS[name](net, x), batch=4, halves=halves, **modules)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("name", RESULTS)
def test_a_sampler_takes_any_result(name, sampler, Net, rel, poisoned):
    net = Net(lambda net, x, t: RESULTS[name](net, x), conv=conv(), line=nn.Linear(36, 36), wide=conv(4, 8))
    model = Model(net, make_schedule("linear", 20), image_shape=(4, 6, 6))
    ours, own = (sample(model, 3, sampler, steps=3, device="cpu", clip=2.0, form=form) for form in ("cpu", "eager"))
    assert rel(ours, own) < 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 1), (3, 1, 1), (1, 1, 7)])
def test_sizes_of_one(shape, same_function):
    c = shape[0]

    def forward(net, x, t):
        y = net.first(x)
        y = F.silu(net.norm(y)) + y.mean((2, 3), keepdim=True) + y.softmax(1)
        return net.last(torch.cat((y, y[:, :1]), 1)) + net.each(x) * F.interpolate(x, scale_factor=1)

    for batch in (1, 2):
        modules = dict(first=conv(c, 4), norm=nn.GroupNorm(2, 4), last=conv(5, c, 1), each=conv(c, c, groups=c))
        assert not same_function(forward, shape, batch=batch, **modules).outside


def test_x_is_read_many_times(same_function, names):
    def forward(net, x, t):
        return net.conv(x) + net.one(x) * x + torch.cat((x, x.sin(), x), 1)[:, 3:7] + x.mean() + x[:, :1]

    same_function(forward, conv=conv(), one=conv(4, 4, 1))
    plan = same_function(lambda net, x, t: net.conv(x) + x, conv=conv())
    assert Counter(names(plan)) == {"convolution": 1}  # with its residual


def test_weights_are_packed_once_for_all_batches(same_function, monkeypatch):
    """Pieces of a batch differ in size, and share what was made of the weights."""
    made = []
    pack = winograd.winograd_weight
    monkeypatch.setattr(winograd, "winograd_weight", lambda weight: made.append(1) or pack(weight))
    monkeypatch.setattr(step, "PIECE_BYTES", 20000)
    plan = same_function(
        lambda net, x, t: net.last(net.conv(net.first(x))),
        (4, 8, 8),
        batch=7,
        threads=(1,),
        first=conv(4, 32),
        conv=conv(32, 32),
        last=conv(32, 4),
    )
    assert len(made) == 1 and plan.steps
