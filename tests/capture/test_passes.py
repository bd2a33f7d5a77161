"""Each pass: what networks write in several ways becomes one operation, and computes the same."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastdiff.capture.batch import at_batch
from fastdiff.capture.passes.affine import join_affine
from fastdiff.capture.passes.linear_attention import fuse_linear_attention
from fastdiff.capture.passes.norms import fuse_norms
from fastdiff.capture.passes.position_norms import fuse_position_norms
from fastdiff.capture.passes.simplify import simplify
from fastdiff.capture.passes.softmax_attention import fuse_softmax_attention
from fastdiff.capture.passes.written_norms import fuse_group_norms
from fastdiff.capture.program import program
from fastdiff.capture.split import split
from fastdiff.capture.tidy import fold_constants
from fastdiff.kernels import channel_norm
from fastdiff.kernels.position_norm import position_norm

aten, ours = torch.ops.aten, torch.ops.fastdiff
BATCH = 2


class Case:
    """A network of x and the time, and its step after some passes."""

    def __init__(self, networks, call, shape, *passes):
        self.call, self.example = call, networks.Example(shape)
        graph = networks.graph_of(call, self.example)
        for change in (simplify, fuse_group_norms, join_affine, fold_constants):
            change(graph)
        parts = split(graph)
        self.time, self.step = at_batch(parts.time, 3), at_batch(parts.step, BATCH)
        for change in passes:
            change(self.step)

    def targets(self):
        return [node.target for node in self.step.nodes.nodes if node.op == "call_function"]

    @torch.no_grad()
    def error(self):
        times = self.example.times(3)
        inputs = self.example.inputs(BATCH, t=times[1].repeat(BATCH))
        rows = [one[1:2] for one in program(self.time)(times)]
        expected = self.call(*(one.double() if one.is_floating_point() else one for one in inputs.values()))
        return float((program(self.step)(inputs["x"], *rows)[0] - expected).norm() / expected.norm())


def row(t, channels, base=1.0):
    """(B, C, 1, 1) numbers that depend on the time."""
    return (t[:, None] / 1000 + base * torch.arange(1, channels + 1) / channels)[:, :, None, None]


def modulation(kind, norm):
    def call(x, t):
        affine = (None, None) if norm.weight is None else (norm.weight.to(x.dtype), norm.bias.to(x.dtype))
        y, scale, shift = (
            F.group_norm(x, 2, *affine),
            row(t, x.shape[1]).to(x.dtype),
            row(t, x.shape[1], -2.0).to(x.dtype),
        )
        if kind == "addcmul":
            return torch.addcmul(shift, y, scale + 1)
        return F.silu(y * (1 + scale) + shift) if kind == "multiplied" else F.silu(shift + scale * y)

    return call


@pytest.mark.parametrize("kind", ["multiplied", "addcmul", "the other way round"])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_takes_what_the_time_makes_of_it(networks, randomised, kind, affine):
    norm = randomised(nn.GroupNorm(2, 6, affine=affine))
    case = Case(networks, modulation(kind, norm), (6, 4, 5), fuse_norms)
    assert set(case.targets()) == {ours.group_norm.default, aten.reshape.default}
    assert case.error() < 1e-6


def test_a_norm_takes_what_differs_by_sample(networks, randomised):
    """As what the time and a context make of it together does."""
    norm, project = randomised(nn.GroupNorm(2, 6)), randomised(nn.Linear(3, 12))

    @torch.no_grad()
    def call(x, t, context):
        scale, shift = (project(context)[:, :, None, None] * row(t, 12)).chunk(2, dim=1)
        return F.silu(norm(x) * (1 + scale) + shift)

    example = networks.Example((6, 4, 5), context=3)
    form = networks.captured(call, example, (simplify, join_affine, fold_constants), (fuse_norms,))
    step = at_batch(form.parts.step, BATCH)
    fuse_norms(step)
    norms = step.nodes.find_nodes(op="call_function", target=ours.group_norm.default)
    assert [node.args[6].meta["shape"] for node in norms] == [(BATCH, 6)] and norms[0].args[-1] == "silu"
    assert networks.largest_error(call, example, form) < 1e-6


def test_a_convolutions_bias_leaves_the_loop_with_the_times(networks, randomised):
    weight, bias, scale = torch.rand(4, 3, 3, 3), torch.rand(4), torch.rand(1, 4, 1, 1)

    def call(x, t):
        y = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=1)
        return (y + row(t, 4).to(x.dtype)) * scale.to(x.dtype)

    case = Case(networks, call, (3, 4, 5))
    assert case.targets() == [aten.convolution.default, aten.add.Tensor, aten.mul.Tensor]
    assert case.step.nodes.find_nodes(op="call_function", target=aten.convolution.default)[0].args[2] is None
    assert case.error() < 1e-6


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["number", "constant", "time", "add", "add time", "divide"]), min_size=1, max_size=6))
def test_any_chain_of_numbers_is_one_multiplication_and_one_addition(networks, kinds):
    constant = torch.linspace(0.5, 1.5, 4)[:, None, None]

    def call(x, t):
        y = x.tanh()
        for kind in kinds:
            if kind == "number":
                y = y * 1.25
            elif kind == "divide":
                y = y / 3
            elif kind == "constant":
                y = constant.to(x.dtype) * y
            elif kind == "time":
                y = y * row(t, 4).to(x.dtype)
            else:
                y = y + (constant if kind == "add" else row(t, 4)).to(x.dtype)
        return y.sin()

    case = Case(networks, call, (4, 3, 2))
    found = [target for target in case.targets() if target not in (aten.tanh.default, aten.sin.default)]
    assert len(found) <= 2 and case.error() < 1e-6


def test_what_is_not_a_number_of_a_channel_stays(networks):
    picture = torch.rand(1, 1, 3, 2)
    case = Case(networks, lambda x, t: x.tanh() * picture.to(x.dtype) + x * 2 + x.mean(), (4, 3, 2))
    assert aten.tanh.default in case.targets() and case.error() < 1e-6


def scores(kind, q, k, v):
    """Attention of (B, H, D, N) q and k and (B, H, E, N) v, as networks write it → (B, H, E, N)."""
    b, h, d, n = q.shape
    if kind == "einsum":
        weights = torch.einsum("bhdi,bhdj->bhij", q * d**-0.25, k * d**-0.25).softmax(dim=-1)
        return torch.einsum("bhij,bhdj->bhdi", weights, v)
    if kind == "its maximum less":
        weights = torch.einsum("bhdi,bhdj->bhij", q, k) / d**0.5
        weights = (weights - weights.amax(dim=-1, keepdim=True).detach()).softmax(dim=-1)
        return torch.einsum("b h i j, b h d j -> b h d i", weights, v)
    q, k, v = (one.flatten(0, 1) for one in (q, k, v))
    if kind == "keys first":
        weights = torch.bmm(k.transpose(1, 2), q).transpose(1, 2).mul(d**-0.5).softmax(2)
    else:
        weights = torch.bmm(q.transpose(1, 2), k * d**-0.5).float().softmax(-1).to(q.dtype)
    if kind == "transposed":
        return torch.bmm(v, weights.transpose(1, 2)).view(b, h, -1, n)
    return torch.bmm(weights, v.transpose(1, 2)).transpose(1, 2).reshape(b, h, -1, n)


@pytest.mark.parametrize("kind", ["einsum", "its maximum less", "keys first", "transposed", "plain"])
@pytest.mark.parametrize("size", [(3, 5), (1, 2), (4, 4)])
def test_attention_in_two_products_is_one_operator(networks, kind, size):
    def call(x, t):
        q, k, v = torch.cat((x, x.sin(), x.cos()), dim=1).flatten(2).unflatten(1, (3, 2, 4)).unbind(1)
        return scores(kind, q, k, v).reshape(x.shape)

    case = Case(networks, call, (8, *size), fuse_softmax_attention)
    assert aten.scaled_dot_product_attention.default in case.targets()
    assert aten._softmax.default not in case.targets() and aten.bmm.default not in case.targets()
    assert case.error() < 1e-6


NOT_ATTENTION = {
    "a scale below 0": lambda s, v: torch.bmm((s * -1.0).softmax(-1), v),
    "over the queries": lambda s, v: torch.bmm(s.softmax(1), v),
    "the weights used twice": lambda s, v: torch.bmm(s.softmax(-1), v) + s.softmax(-1).sum(),
    "the scores used twice": lambda s, v: torch.bmm(s.softmax(-1), v) + s.mean(),
    "the weights transposed": lambda s, v: torch.bmm(s.softmax(-1).transpose(1, 2), v),
    "rounded scores": lambda s, v: torch.bmm(s.long().to(s.dtype).softmax(-1), v),
    "other axes": lambda s, v: torch.bmm(s.reshape(2 * len(s), -1, 6).softmax(-1).reshape(s.shape), v),
}


@pytest.mark.parametrize("kind", NOT_ATTENTION)
def test_what_only_looks_like_attention_stays(networks, kind):
    def call(x, t):
        q = x.flatten(2)  # (B, 6, 6)
        return NOT_ATTENTION[kind](torch.bmm(q.transpose(1, 2), q.sin()), q.cos()).reshape(x.shape)

    case = Case(networks, call, (6, 2, 3), fuse_softmax_attention)
    assert aten.scaled_dot_product_attention.default not in case.targets() and case.error() < 1e-6


def linear(q, k, v, kind):
    """Linear attention of (B, H, D, N), as networks write it → (B, H, D, N)."""
    d, n = q.shape[-2:]
    if kind == "the context scaled":
        context = (k.softmax(dim=-1) @ v.transpose(-1, -2)) * d**-0.5
        return context.transpose(-1, -2) @ q.softmax(dim=-2)
    q, k = q.softmax(dim=-2) * d**-0.5, k.softmax(dim=-1)
    v = v / n if kind == "divided" else v
    if kind == "values first":
        return torch.einsum("bhen,bhdn->bhed", v, k) @ q
    return torch.einsum("bhde,bhdn->bhen", torch.einsum("bhdn,bhen->bhde", k, v), q)


def thirds(function):
    """A network of a picture of 24 channels, q, k and v of two heads → (B, 8, H, W)."""

    def call(x, t):
        q, k, v = (one.reshape(len(x), 2, 4, -1) for one in torch.cat((x, x.sin(), x * 2), dim=1).chunk(3, dim=1))
        return function(q, k, v).reshape(x.shape)

    return call


@pytest.mark.parametrize("kind", ["plain", "divided", "the context scaled", "values first"])
def test_linear_attention_in_two_products_is_one_operator(networks, kind):
    case = Case(networks, thirds(lambda *qkv: linear(*qkv, kind)), (8, 3, 5), fuse_linear_attention)
    assert ours.linear_attention.default in case.targets() and aten.bmm.default not in case.targets()
    assert case.error() < 1e-6


NOT_LINEAR = {
    "another scale": lambda q, k, v: linear(q, k, v * 1.5, "plain"),
    "keys over channels": lambda q, k, v: (k.softmax(-2) @ v.mT).mT @ q.softmax(-2) / 2,
    "the context not transposed": lambda q, k, v: (k.softmax(-1) @ v.mT) @ q.softmax(-2) / 2,
    "values as keys": lambda q, k, v: (v.softmax(-1) @ k.mT).mT @ q.softmax(-2) / 2,
    "the queries twice": lambda q, k, v: linear(q, k, v, "plain") + q,
    "heads exchanged": lambda q, k, v: linear(q, k, v, "plain").flip(1),
}


@pytest.mark.parametrize("kind", NOT_LINEAR)
def test_what_only_looks_like_linear_attention_stays(networks, kind):
    case = Case(networks, thirds(NOT_LINEAR[kind]), (8, 3, 5), fuse_linear_attention)
    assert ours.linear_attention.default not in case.targets() and case.error() < 1e-6


def variance(x):
    return x.var(dim=1, unbiased=False, keepdim=True)


NORMS = {
    "normalize": lambda x: F.normalize(x, dim=1) * 8**0.5,
    "normalize, eps": lambda x: F.normalize(x, dim=1, eps=1e-3),
    "rsqrt": lambda x: (x - x.mean(dim=1, keepdim=True)) * (variance(x) + 1e-5).rsqrt(),
    "rsqrt first": lambda x: torch.rsqrt(variance(x) + 1e-5) * (x - x.mean(1, keepdim=True)),
    "sqrt": lambda x: (x - x.mean(dim=1, keepdim=True)) / (variance(x) + 1e-4).sqrt(),
    "mean of squares": lambda x: (
        (x - x.mean(1, keepdim=True)) / (((x - x.mean(1, True)) ** 2).mean(1, True) + 1e-5).sqrt()
    ),
    "mean of products": lambda x: (x - x.mean(1, True)) / ((x - x.mean(1, True)).square().mean(1, True) + 1e-5).sqrt(),
    "var_mean": lambda x: (x - torch.var_mean(x, 1, correction=0, keepdim=True)[1]) / torch.sqrt(variance(x) + 1e-5),
    "of ours": lambda x: channel_norm.channel_norm(x, torch.ones(1, x.shape[1], 1, 1, dtype=x.dtype)),
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("modulated", [True, False])
def test_a_norm_over_channels_that_is_written_out_is_one_operator(networks, kind, modulated):
    gain = torch.linspace(-1, 2, 8)[None, :, None, None]

    def call(x, t):
        y = NORMS[kind](x) * gain.to(x.dtype)
        y = y * row(t, 8).to(x.dtype) + row(t, 8, 3.0).to(x.dtype) if modulated else y
        return F.silu(y) + x if modulated else y

    case = Case(networks, call, (8, 3, 4), lambda graph: fuse_position_norms(graph, any_norm=True))
    assert case.error() < 2e-6
    if kind != "of ours":
        one = ours.channel_norm.default if "normalize" not in kind and not modulated else position_norm
        assert case.targets() == [one]
    without = Case(networks, call, (8, 3, 4), lambda graph: fuse_position_norms(graph, any_norm=False))
    assert position_norm not in without.targets() and without.error() < 2e-6


def grouped(norm, groups=2, last=False):
    """A norm over groups of channels, as (B, G, C / G, H, W) or (B, G, N)."""

    def call(x):
        y = x.reshape(len(x), groups, -1) if last else x.view(len(x), groups, -1, *x.shape[2:])
        return norm(y, tuple(range(2, y.ndim))).reshape(x.shape)

    return call


def by_squares(y, dims):
    distance = y - y.mean(dims, keepdim=True)
    return distance / (distance.pow(2).mean(dims, keepdim=True) + 1e-5).sqrt()


def by_pair(y, dims):
    var, mean = torch.var_mean(y, dims, correction=0, keepdim=True)
    return (y - mean) * (var + 1e-6).rsqrt()


WRITTEN = {
    "by var": grouped(lambda y, dims: (y - y.mean(dims, True)) / (y.var(dims, False, True) + 1e-5).sqrt()),
    "by squares": grouped(by_squares, groups=4),
    "by var_mean": grouped(by_pair),
    "in a row": grouped(lambda y, dims: (y - y.mean(-1, True)) / (y.var(-1, False, True) + 1e-5).sqrt(), last=True),
    "one group": grouped(by_pair, groups=1, last=True),
}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("modulated", [True, False])
def test_a_norm_over_groups_that_is_written_out_is_one_operator(networks, kind, modulated):
    weight, bias = torch.linspace(-1, 2, 8)[:, None, None], torch.linspace(0, 1, 8)[None, :, None, None]

    def call(x, t):
        y = WRITTEN[kind](x) * weight.to(x.dtype) + bias.to(x.dtype)
        return F.silu(y * row(t, 8).to(x.dtype) + row(t, 8, 3.0).to(x.dtype)) if modulated else y

    case = Case(networks, call, (8, 3, 4), fuse_norms)
    assert case.targets().count(ours.group_norm.default) == 1 and case.error() < 2e-6
    assert set(case.targets()) <= {ours.group_norm.default, aten.reshape.default, aten.mul.Tensor, aten.add.Tensor}


NOT_GROUPED = {
    "other dims": grouped(lambda y, dims: by_pair(y, dims[1:])),
    "unbiased": grouped(lambda y, dims: (y - y.mean(dims, True)) / (y.var(dims, True, True) + 1e-5).sqrt()),
    "positions in groups": lambda x: by_pair(x.transpose(1, 3).reshape(len(x), 2, -1), (2,)).reshape(x.shape),
    "read before": lambda x: (lambda y: y.reshape(x.shape) + y.mean())(by_pair(x.view(len(x), 2, 4, 3, 4), (2, 3, 4))),
}


@pytest.mark.parametrize("kind", NOT_GROUPED)
def test_what_only_looks_like_a_norm_over_groups_stays(networks, kind):
    case = Case(networks, lambda x, t: NOT_GROUPED[kind](x), (8, 3, 4), fuse_norms)
    assert ours.group_norm.default not in case.targets() and case.error() < 2e-6


NOT_NORMS = {
    "over positions": lambda x: F.normalize(x, dim=2),
    "unbiased": lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt(),
    "another's mean": lambda x: (x - x.sin().mean(1, keepdim=True)) / (variance(x) + 1e-5).sqrt(),
    "another's length": lambda x: x / x.sin().norm(dim=1, keepdim=True).clamp_min(1e-5),
    "a mean as variance": lambda x: (x - x.mean(1, True)) / (x.mean(1, True) + 9).sqrt(),
    "another's squares": lambda x: (
        (x - x.mean(1, True)) / ((x.sin() - x.mean(1, True)).square().mean(1, True) + 1).sqrt()
    ),
    "another norm": lambda x: F.normalize(x, p=1, dim=1),
}


@pytest.mark.parametrize("kind", NOT_NORMS)
def test_what_only_looks_like_a_norm_over_channels_stays(networks, kind):
    case = Case(networks, lambda x, t: NOT_NORMS[kind](x), (8, 3, 4), lambda g: fuse_position_norms(g, any_norm=True))
    assert not {position_norm, ours.channel_norm.default} & set(case.targets()) and case.error() < 1e-6
