"""Each operation's translation against torch, by ONNX Runtime."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from fastdiff.capture.passes.folded_attention import fold_linear_attention
from fastdiff.capture.passes.simplify import simplify
from fastdiff.errors import InputError
from fastdiff.export import verify
from fastdiff.export.graph import Graph, finish_model, value
from fastdiff.export.network import TRANSLATIONS, write
from fastdiff.export.writer import ELEMENTS
from fastdiff.kernels.attention_block import attention_of
from fastdiff.kernels.channel_norm import channel_norm
from fastdiff.kernels.group_norm import group_norm
from fastdiff.kernels.linear_attention import linear_attention

torch.manual_seed(0)
C = 4  # x is (B, C, 6, 8)
VECTOR, LONGER, SQUARE, TABLE = torch.randn(C), torch.randn(8), torch.randn(8, 8), torch.randn(7, 8)
KERNEL, UP, POSITIVE = torch.randn(6, 2, 3, 3), torch.randn(C, 3, 2, 2), torch.rand(C) + 0.5
GAIN = torch.randn(1, C, 1, 1)

ONE_BY_ONE = [torch.abs, torch.neg, torch.exp, torch.sin, torch.cos, torch.tanh, torch.sigmoid, torch.erf, torch.sign]
ONE_BY_ONE += [torch.floor, torch.ceil, torch.round, F.relu, F.gelu, F.silu, F.mish, F.elu, F.selu, F.relu6]
ONE_BY_ONE += [F.leaky_relu, F.softplus, F.hardswish]
OF_POSITIVE = [torch.log, torch.sqrt, torch.rsqrt, torch.reciprocal]


def whole(x):
    """As integers."""
    return (x * 3).round().to(torch.int64)


def written(x):
    y = x.clone()
    y[:, 1:3] = x[:, :2] * 2
    y[:, -1] = 0.5
    y[..., 2:] += 1
    y[:, :, 0].fill_(torch.tensor(3.0))
    y[:1] = y[:1] * 2
    y[:, :, 1].fill_(2).mul_(y[:, :, 2])
    y[:, 3, :, 0].zero_()
    return y


def made(x):
    n = len(x)
    y = torch.full_like(x, 2) + x.new_full((n, C, 1, 1), 3) + torch.full((n, 1, 1, 1), 4) + x.new_ones(n, 1, 1, 8)
    y = y + torch.ones(n, 1, 1, 1) + torch.ones_like(x) + torch.zeros(n, 1, 1, 1) + torch.zeros_like(x)
    return x + y + x.new_zeros(n, C, 1, 1)


def attention(**options):
    return lambda x: F.scaled_dot_product_attention(x, x * 0.5, x + 1, **options)


# name → x, or x and t, (B,) int64 → a tensor
CASES = {
    **{one.__name__: lambda x, one=one: one(x) for one in ONE_BY_ONE},
    **{one.__name__: lambda x, one=one: one(x.abs() + 1) for one in OF_POSITIVE},
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "steeper softplus": lambda x: F.softplus(x, beta=2.0),
    "powers": lambda x: 2**x + (x.abs() + 1) ** x + x**3 + x**2 + x.abs() ** 0.5,
    "between": lambda x: torch.lerp(x, x.exp(), 0.3) + torch.lerp(x, x.exp(), x.sigmoid()),
    "product added": lambda x: torch.addcmul(x, x, x + 1, value=0.5),
    "slopes": lambda x: F.prelu(x, VECTOR),
    "extrema": lambda x: torch.maximum(x, x * 2 + 1) + torch.minimum(x, 1 - x),
    "sums": lambda x: torch.add(x, x, alpha=3) - 0.5 * x + x.flip(0, 2),
    "differences": lambda x: (1 - x) * torch.sub(x, 2, alpha=0.5),
    "quotients": lambda x: x / x.exp() + x / 3 + 1 / (x.abs() + 1),
    "bounds": lambda x: x.clamp(-0.5, 0.5) + x.clamp_min(0) + x.clamp_max(0.25) + x.clamp(max=0.1),
    "compared with numbers": lambda x: (x > 0) & (x <= 1) | (x < -1) | ~(x >= -0.5) | (x == 0) & (x != 1),
    "compared": lambda x: (x == x.round()) | (x != x.abs()) & (x >= x.flip(1)) | (x < x.flip(2)) | (x <= x * x),
    "compared with integers": lambda x, t: x[:, 0] > t[:, None, None] / 500 - 1,
    "chosen": lambda x: torch.where(x > 0, x, 0.5) + x.masked_fill(x > 1, -2),
    "wider dtypes": lambda x, t: t.to(x.dtype).view(-1, 1, 1, 1) * x.to(torch.float64) + whole(x) * 0.5,
    "reshaped": lambda x: x.reshape(len(x), -1).t().reshape(C, 48, len(x)).permute(2, 0, 1).transpose(0, -1),
    "batch in two sizes": lambda x: x[:, None].expand(-1, 3, -1, -1, -1).reshape(-1, C, 6, 8) * len(x),
    "batch twice": lambda x: x[:, None, :, :1, :1].expand(len(x), len(x), C, 1, 1),
    "joined": lambda x: torch.cat((x, torch.stack((x[:, 0], x[:, -1]), dim=1), torch.cat((x, x))[: len(x)]), dim=1),
    "parted": lambda x: sum(x.split(2, dim=1)) + x.split([1, 3], dim=1)[1][:, :2] + x.unbind(1)[2][:, None],
    "batch parted": lambda x: sum(one * k for k, one in enumerate(torch.cat((x, x + 1, x * 2)).chunk(3))),
    "sliced": lambda x: x[:, 1::2, -3:, ::3] + x[:, :2, :3, 2:5] + x[:, [2, 0]][:, :, :3, :3],
    "repeated": lambda x: x.repeat(2, 1, 1, 1, 2) + x.flip(1, 2).repeat(1, 1, 1, 2) + x.repeat_interleave(2, dim=3),
    "padded": lambda x: F.pad(x, (1, 2, 0, 1), value=2.0) + F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "padded by the edge": lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"),
    "shuffled": lambda x: F.pixel_shuffle(x, 2),
    "written to": written,
    "copied": lambda x: x.clone().copy_(x[:1, :1]),
    "looked up": lambda x, t: F.embedding(t.clamp(0, 6), TABLE) + TABLE.index_select(0, t.clamp(1, 5)),
    "made": made,
    "summed": lambda x: x.sum() + x.sum((1, 3))[:, :4, None, None] + (x > 0).sum(1, keepdim=True),
    "mean": lambda x: x.mean() + x.mean(dim=(2, 3), keepdim=True),
    "variance": lambda x: x.var(1, keepdim=True) + x.var((2, 3), unbiased=False, keepdim=True) + x.var(1)[:, None],
    "extremes": lambda x: x.amax((1, 2), keepdim=True) + x.amin(3, keepdim=True),
    "variance and mean": lambda x: sum(torch.var_mean(x, dim=3)),
    "lengths": lambda x: F.normalize(x, dim=1),
    "linear": lambda x: F.linear(x, SQUARE, LONGER),
    "linear of rows": lambda x: F.linear(x[:, 0, 0], SQUARE, LONGER) + F.linear(x[:, 1, 0], SQUARE),
    "products": lambda x: x @ x.transpose(2, 3),
    "products of rows": lambda x: x[:, 0, 0] @ SQUARE,
    "sum and product": lambda x: torch.addmm(LONGER, x[:, 0, 0], SQUARE, beta=2, alpha=0.5),
    "sum and products": lambda x: torch.baddbmm(x[:, 0, :, :6], x[:, 1], x[:, 2].mT, beta=0.5),
    "softmax": lambda x: x.softmax(1),
    "attention": attention(),
    "causal attention": attention(is_causal=True, scale=0.3),
    "masked attention": attention(attn_mask=torch.eye(6) > 0),
    "attention with a bias": attention(attn_mask=torch.eye(6)),
    "linear attention": lambda x: linear_attention(x.repeat(1, 6, 1, 1), 2, True),
    "convolution": lambda x: F.conv2d(x, KERNEL, stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
    "transposed convolution": lambda x: F.conv_transpose2d(x, UP, stride=2, padding=1, output_padding=1),
    "convolution of rows": lambda x: F.conv1d(x[:, :2, 0], KERNEL[..., 0], KERNEL[:, 0, 0, 0], padding=1),
    "group norm": lambda x: F.group_norm(x + 2, 2, VECTOR, VECTOR) + F.group_norm(x, 4),
    "layer norm": lambda x: F.layer_norm(x + 2, (8,), LONGER, LONGER) + F.layer_norm(x, (6, 8)),
    "rms norm": lambda x: F.rms_norm(x, (8,), LONGER) + F.rms_norm(x, (6, 8), eps=1e-3),
    "batch norm": lambda x: F.batch_norm(x, VECTOR, POSITIVE, VECTOR, VECTOR) + F.batch_norm(x, VECTOR, POSITIVE),
    "our group norm": lambda x: group_norm(x, 2, VECTOR, POSITIVE, before="gelu_tanh", after="relu"),
    "our group norm, fused": lambda x: group_norm(x, 1, before="silu", after="gelu"),
    "our channel norm": lambda x: channel_norm(x, GAIN, x * 2) + channel_norm(x, GAIN),
    "largest of a window": lambda x: F.max_pool2d(x, 2) + F.max_pool2d(x, 2, padding=1, dilation=2, stride=2),
    "largest of a window at the edge": lambda x: F.max_pool2d(x[..., :7], 2, ceil_mode=True),
    "mean of a window": lambda x: F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, (3, 4)) + F.avg_pool2d(x, 3, 2, 1),
    "mean of a window at the edge": lambda x: F.avg_pool2d(x[..., :7], 2, ceil_mode=True),
    "mean of a window without the edge": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    **{mode: lambda x, mode=mode: F.interpolate(x, scale_factor=2, mode=mode) for mode in ("nearest", "nearest-exact")},
    **{mode: lambda x, mode=mode: F.interpolate(x, scale_factor=1.5, mode=mode) for mode in ("bilinear", "bicubic")},
    "resized": lambda x: F.interpolate(x, (9, 5)) + F.interpolate(x, (9, 5), mode="bilinear"),
    "resized by corners": lambda x: F.interpolate(x, (9, 5), mode="bilinear", align_corners=True),
}


def by_onnxruntime(graph, given, steady=False):
    g = Graph()
    (out,) = write(g, graph, list(given), steady)
    (result,) = graph.results
    inputs = [value(name, ELEMENTS[one.dtype], ["n", *one.shape[1:]]) for name, one in given.items()]
    output = value(g.named(out, "out"), ELEMENTS[result.meta["dtype"]], [None] * len(result.meta["shape"]))
    session = verify.onnxruntime().InferenceSession(
        finish_model(g.finish("f", inputs, [output]), {}).SerializeToString()
    )
    return session.run(None, {one.name: given[one.name].numpy() for one in session.get_inputs()})[0]


def takes_time(function):
    return "t" in inspect.signature(function).parameters


@pytest.fixture
def graph_of(networks):
    def make(function):
        example = networks.Example((C, 6, 8))
        return networks.graph_of(function if takes_time(function) else lambda x, t: function(x), example), example

    return make


def folded(graph):
    """Linear attention between a norm and a projection, in one."""
    simplify(graph)
    fold_linear_attention(graph, lambda *sizes: True)
    return graph


@pytest.mark.parametrize("steady", [False, True])
@pytest.mark.parametrize("channels", [4, 12])  # fewer and more than two heads are wide, which fold otherwise
@pytest.mark.parametrize("residual", [False, True])
def test_folded_linear_attention(networks, rel, steady, channels, residual):
    c = channels
    shapes = (c,), (c,), (24, c, 1, 1), (c, 8, 1, 1), (c,), (1, c, 1, 1)
    block = [torch.randn(shape) for shape in shapes]

    def function(x, t):
        x = x.repeat(1, channels // C, 1, 1)
        y = F.conv2d(F.group_norm(x, 1, *block[:2]), block[2])
        y = F.conv2d(linear_attention(y, 2, True), block[3], block[4])
        return channel_norm(y, block[5], x) if residual else y

    example = networks.Example((C, 6, 8))
    graph = folded(networks.graph_of(function, example))
    assert attention_of in {node.target for node in graph.nodes.nodes}
    inputs = example.inputs(5)
    assert rel(by_onnxruntime(graph, inputs, steady), function(*inputs.values())) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_torchs(name, graph_of, rel):
    function = CASES[name]
    graph, example = graph_of(function)
    inputs = example.inputs(5)
    expected = function(**inputs) if takes_time(function) else function(inputs["x"])
    out = by_onnxruntime(graph, inputs)
    assert out.shape == tuple(expected.shape) and out.dtype == expected.numpy().dtype
    assert rel(out, expected) < 1e-6


@pytest.mark.parametrize("operation", [torch.bitwise_and, torch.bitwise_or, lambda a, b: ~a], ids=["and", "or", "not"])
def test_bits_of_integers_are_refused(operation, graph_of):
    """ONNX's And, Or and Not are of booleans."""
    graph, example = graph_of(lambda x: operation(whole(x), whole(x + 1)))
    with pytest.raises(InputError, match=r"no translation to ONNX for aten.bitwise_.* in torch.int64; accepted: torch"):
        by_onnxruntime(graph, example.inputs(5))


def test_every_translation_is_tested_above(graph_of):
    seen = {node.target for function in CASES.values() for node in graph_of(function)[0].nodes.nodes}
    rest = {str(target) for target in TRANSLATIONS if target not in seen | {attention_of}}
    assert not rest, " ".join(sorted(rest))
