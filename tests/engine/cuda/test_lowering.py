"""The CUDA form's rewriting on small networks: the same function as in float64, by the kernels that are expected."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff.bench.networks import Network as Counted
from fastdiff.bench.static.traffic import step_launches
from fastdiff.engine.cuda import attention, choice
from fastdiff.engine.evaluation import Given, Network, captured, evaluated
from fastdiff.kernels.bias_add import bias_add
from fastdiff.kernels.conv import conv_add
from fastdiff.kernels.dispatch import using


class Small(nn.Module):
    """Of two channels, at 6x10."""

    options: dict = {}
    shape = (2, 6, 10)


def row(t, channels):
    return (t.float()[:, None] / 100 + torch.arange(channels) / 10)[:, :, None, None]


class ConvNext(Small):
    """Two halves concatenated, whose shortcut reads both; a norm on either side of the expansion."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, padding=1)
        self.deep = nn.Conv2d(7, 7, 7, padding=3, groups=7)
        self.one, self.expand = nn.GroupNorm(1, 7), nn.Conv2d(7, 9, 3, padding=1)
        self.two, self.contract = nn.GroupNorm(1, 9, affine=False), nn.Conv2d(9, 4, 3, padding=1)
        self.shortcut, self.last = nn.Conv2d(7, 4, 1), nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x, t):
        both = torch.cat((self.first(x), x), 1)
        h = self.expand(self.one(self.deep(both) + row(t, 7).to(x.dtype)))
        return self.last(self.contract(self.two(F.gelu(h))) + self.shortcut(both))


class UpAndDown(Small):
    """Strided, transposed and upsampled ones, and a norm whose result two convolutions read."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 6, 4, 2, 1), nn.ConvTranspose2d(6, 4, 4, 2, 1)
        self.tiles, self.near = nn.ConvTranspose2d(6, 3, 2, 2), nn.Conv2d(6, 3, 3, padding=1)
        self.norm, self.one, self.three = nn.GroupNorm(1, 4), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 3, padding=1)
        self.last = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x, t):
        low = F.silu(self.down(x) + row(t, 6).to(x.dtype))
        high = self.norm(F.relu(self.up(low)))
        near = self.near(F.interpolate(low, scale_factor=2))
        return self.last(self.one(high) * self.three(high) + self.tiles(low) + F.gelu(near, approximate="tanh"))


class Residual(Small):
    """Norms of several groups, before activations and after what is concatenated or differs by time."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.one = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.GroupNorm(4, 8),
            nn.Conv2d(8, 6, 3, padding=1),
        )
        self.second, self.two = nn.GroupNorm(2, 6), nn.Conv2d(6, 8, 3, padding=1)
        self.both, self.three = nn.GroupNorm(7, 14), nn.Conv2d(14, 4, 3, padding=1)
        self.single, self.last = nn.GroupNorm(1, 4), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x, t):
        x = self.first(x)
        inner = self.one(F.silu(self.norm(x)))
        h = self.two(F.silu(self.second(inner) * (1 + row(t, 6).to(x.dtype)) + row(t, 6).to(x.dtype))) + x
        return self.last(F.silu(self.single(self.three(F.silu(self.both(torch.cat((h, inner), 1)))))))


class Others(Small):
    """What fused_conv does not take: groups of channels, dilation, other transposed ones; norms of several groups."""

    def __init__(self):
        super().__init__()
        self.grouped, self.norm = nn.Conv2d(2, 8, 3, padding=1, groups=2), nn.GroupNorm(4, 8)
        self.wide = nn.Conv2d(8, 4, 3, padding=2, dilation=2)
        self.odd, self.skip = nn.ConvTranspose2d(4, 2, 3, padding=1, groups=2), nn.Conv2d(8, 4, 1, groups=2)

    def forward(self, x, t):
        h = F.silu(self.norm(F.gelu(self.grouped(x))) + row(t, 8).to(x.dtype))
        return self.odd(F.silu(self.wide(h) + row(t, 4).to(x.dtype)) + self.skip(h))


class Tokens(Small):
    """Attention of tokens, as in diffusers: norm, three linear layers, heads, a linear layer, the residual."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.q, self.k, self.v = nn.Linear(12, 8), nn.Linear(12, 8, bias=False), nn.Linear(12, 8)
        self.out, self.last = nn.Linear(8, 12), nn.Conv2d(12, 2, 3, padding=1)

    def forward(self, x, t):
        x = self.first(x)
        tokens = self.norm(x.flatten(2)).transpose(1, 2)
        q, k, v = (one(tokens).unflatten(2, (2, 4)).transpose(1, 2) for one in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last(self.out(out).transpose(1, 2).reshape(x.shape) + x)


class ManyTokens(Tokens):
    """More than one program holds."""

    shape = (2, 8, 10)


class Signal(Small):
    """Attention of a signal, as in guided-diffusion: a norm in float32, queries, keys and values of one convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.qkv, self.out = nn.Conv1d(12, 36, 1), nn.Conv1d(12, 12, 1)
        self.last = nn.Conv2d(12, 2, 3, padding=1)

    def forward(self, x, t):
        x = self.first(x)
        flat = x.reshape(len(x), 12, -1)
        wide = torch.float32 if x.dtype.itemsize < 4 else x.dtype
        h = F.group_norm(flat.to(wide), 3, self.norm.weight.to(wide), self.norm.bias.to(wide)).to(x.dtype)
        q, k, v = self.qkv(h).reshape(2 * len(x), 18, -1).split(6, 1)
        scores = torch.einsum("bct,bcs->bts", q * 6**-0.25, k * 6**-0.25).softmax(-1)
        out = self.out(torch.einsum("bts,bcs->bct", scores, v).reshape(flat.shape))
        return self.last((flat + out).reshape(x.shape))


class Lengths(Small):
    """Norms by the length over channels, as in lucidrains' networks, with a scale and a shift by time."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.gain, self.last = nn.Parameter(torch.ones(1, 6, 1, 1)), nn.Conv2d(6, 2, 1)

    def forward(self, x, t):
        x = self.first(x)
        h = F.normalize(x, dim=1) * self.gain * 6**0.5
        h = F.silu(h * (row(t, 6).to(x.dtype) + 1) + row(t, 6).to(x.dtype))
        h = F.normalize(self.second(h), dim=1) * self.gain * 6**0.5
        return self.last(F.silu(h) + x)


class Modulated(Small):
    """A norm with a weight before a scale and a shift by time, as in guided-diffusion; the sum by a factor."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(3, 6)
        self.second, self.last = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x, t):
        x = self.first(x)
        h = F.silu(self.norm(x) * (1 + row(t, 6).to(x.dtype)) + row(t, 6).to(x.dtype))
        return self.last((self.second(h) + x) / 2**0.5)


class OneTap(Small):
    """A norm of what is concatenated, an activation, and a 1x1 convolution, which does both as it reads."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.norm, self.one, self.last = nn.GroupNorm(5, 10), nn.Conv2d(10, 6, 1), nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x, t):
        h = self.norm(torch.cat((self.first(x), self.second(x)), 1))
        return self.last(self.one(F.silu(h * (1 + row(t, 10).to(x.dtype)) + row(t, 10).to(x.dtype))))


class Depthwise(Small):
    """Activations and residuals after depthwise convolutions; a transposed one with a time bias."""

    def __init__(self):
        super().__init__()
        self.down, self.deep = nn.Conv2d(2, 6, 2, 2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.deeper = nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False)
        self.up, self.last = nn.ConvTranspose2d(6, 6, 2, 2), nn.Conv2d(6, 2, 1)

    def forward(self, x, t):
        low = self.down(x)
        h = self.norm(F.gelu(self.deep(low)))
        h = F.silu(self.deeper(h)) + low
        return self.last(F.relu(self.up(h) + row(t, 6).to(x.dtype)))


class SharedTokens(Small):
    """Queries, scaled, that are the keys as well, and values of no projection of their own."""

    def __init__(self):
        super().__init__()
        self.first, self.both = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(8, 8)
        self.last = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x, t):
        x = self.first(x)
        tokens = x.flatten(2).transpose(1, 2)
        qk = self.both(tokens)[:, None] * 3
        out = F.scaled_dot_product_attention(qk, qk, qk) + F.scaled_dot_product_attention(qk, qk, tokens[:, None])
        return self.last(out[:, 0].transpose(1, 2).reshape(x.shape))


class Branches(Small):
    """1x1 convolutions of one picture that are no attention's: a bottleneck and its shortcut."""

    def __init__(self):
        super().__init__()
        self.first, self.narrow, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.GroupNorm(1, 4)
        self.wide, self.shortcut, self.last = nn.Conv2d(4, 6, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x, t):
        x = self.first(x)
        return self.last(self.wide(self.norm(self.narrow(x))) + self.shortcut(x))


KERNELS = {
    Branches: {"fused_conv_forward": 3, "last_conv_forward": 1},
    Lengths: {"fused_conv_forward": 2, "position_norm_forward": 2, "last_conv_forward": 1},
    Modulated: {"fused_conv_forward": 2, "group_norm_apply": 1, "last_conv_forward": 1},
    ConvNext: {"fused_conv_forward": 3, "depthwise_conv_forward": 1, "last_conv_forward": 1},
    UpAndDown: {"fused_conv_forward": 6, "mul": 1, "last_conv_forward": 1},
    Residual: {"fused_conv_forward": 4, "group_norm_apply": 4, "last_conv_forward": 1},
    Tokens: {"fused_conv_forward": 1, "small_attention_forward": 1, "last_conv_forward": 1},
    Signal: {"fused_conv_forward": 1, "small_attention_forward": 1, "last_conv_forward": 1},
    ManyTokens: {
        "fused_conv_forward": 3, "group_norm_rows_forward": 1, "_scaled_dot_product_flash_attention": 1,
        "last_conv_forward": 1,
    },
    OneTap: {"fused_conv_forward": 3, "group_norm_rows_forward": 1, "last_conv_forward": 1},
    Depthwise: {
        "fused_conv_forward": 2, "depthwise_conv_forward": 2, "group_norm_forward": 1, "conv_ending_forward": 1,
        "last_conv_forward": 1,
    },
    Others: {
        "convolution": 4, "convolution's bias": 1, "conv_ending_forward": 1, "group_norm_forward": 1, "add": 1,
        "silu": 1, "denoise_step_forward": 1,
    },
}  # fmt: skip


def run(network, x, t):
    given = Given(len(x), network.shape, None, torch.tensor([3, 7]), x.device, x.dtype)
    return evaluated(captured(Network(network, x.device, x.dtype), given), {"x": x, "t": t})


@pytest.mark.parametrize("made", KERNELS)
@pytest.mark.parametrize("fused", [True, False])
def test_small_networks_are_the_same_functions(triton_device, randomised, rel, monkeypatch, made, fused):
    """In float32, where a fault of the rewriting cannot hide behind rounding."""
    monkeypatch.setattr(choice, "is_fused", lambda taps, inputs, outputs, dtype: fused)
    fits = attention.fits
    monkeypatch.setattr(attention, "fits", lambda dtype, *sizes: fits(torch.float16, *sizes))
    network = randomised(made()).eval().to(triton_device)
    x, t = torch.randn(2, *network.shape, device=triton_device) + 0.5, torch.full((2,), 7, device=triton_device)
    with torch.no_grad():
        out = run(network, x, t)
        with using("reference"):
            expected = network.double()(x.double(), t)
    assert rel(out.cpu(), expected.cpu()) < 2e-6


@pytest.mark.parametrize("fused", [True, False])
def test_attention_of_one_node_as_several(triton_device, randomised, rel, monkeypatch, fused):
    test_small_networks_are_the_same_functions(triton_device, randomised, rel, monkeypatch, SharedTokens, fused)


@pytest.mark.parametrize("time", [False, True])
def test_small_gates_keep_their_digits_in_16_bits(triton_device, randomised, rel, time):
    """A norm's scale is what is added to 1, and a gate of 0.01 is -0.99 there."""

    class Gated(Small):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(3, 6)
            self.gate, self.last = nn.Parameter(torch.zeros(1, 6, 1, 1)), nn.Conv2d(6, 2, 1, bias=False)

        def forward(self, x, t):
            gate = 0.0123 + row(t, 6).to(x.dtype) / 1000 if time else self.gate + 0.0123
            return self.last(F.silu(self.norm(self.first(x)) * gate + gate / 10))

    network = randomised(Gated()).eval().to(triton_device)
    with torch.no_grad():
        network.gate.zero_()
    x, t = torch.randn(2, *network.shape, device=triton_device), torch.full((2,), 7, device=triton_device)
    with torch.no_grad():
        with using("reference"):
            expected = network(x.half().float(), t)
        out = run(network.half(), x.half(), t)
    assert rel(out.cpu(), expected.cpu()) < 6e-3


class Twice(Small):
    """A convolution with one bias called twice by our operators, and one that is both operands; upsampling by 3.2."""

    def __init__(self):
        super().__init__()
        self.conv, self.bare = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1, bias=False)

    def forward(self, x, t):
        for _ in range(2):
            x = conv_add(x, self.conv.weight, self.conv.bias, x)
        y = self.bare(x)
        y = bias_add(y, y, self.conv.bias)
        low = F.interpolate(y[:, :, :4, :4], scale_factor=3.2)
        return self.conv(low)[:, :, :6, :10]


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_read_twice(triton_device, randomised, rel, monkeypatch, fused):
    test_small_networks_are_the_same_functions(triton_device, randomised, rel, monkeypatch, Twice, fused)


@pytest.mark.parametrize("made", KERNELS)
def test_what_is_launched(made):
    launched = step_launches(Counted(made, made.shape), torch.bfloat16, 3)
    assert launched == Counter(KERNELS[made]) + Counter(["begin_step_forward"])


def test_wide_convolutions_and_float32_are_the_librarys():
    class Wide(Small):
        def __init__(self):
            super().__init__()
            self.first, self.within = nn.Conv2d(2, 192, 3, padding=1), nn.Conv2d(192, 192, 3, padding=1)
            self.beyond, self.last = nn.Conv2d(192, 200, 3, padding=1), nn.Conv2d(200, 2, 3, padding=1)

        def forward(self, x, t):
            return self.last(self.beyond(self.within(self.first(x))))

    launched = step_launches(Counted(Wide, Wide.shape), torch.bfloat16, 3)
    assert (launched["convolution"], launched["fused_conv_forward"], launched["last_conv_forward"]) == (1, 2, 1)
    assert step_launches(Counted(ConvNext, ConvNext.shape), torch.float32, 3)["fused_conv_forward"] == 0


def test_linear_layers_that_are_not_fused_stay_what_they_are():
    """The library's linear layers add their bias at once, and its 1x1 convolutions do not."""

    class Wide(Tokens):
        def __init__(self):
            super().__init__()
            self.out = nn.Sequential(nn.Linear(8, 50000), nn.Linear(50000, 12))

    assert step_launches(Counted(Wide, Wide.shape), torch.bfloat16, 3)["addmm"] == 2
    launched = step_launches(Counted(Tokens, Tokens.shape), torch.bfloat16, 3, "library")
    assert launched["addmm"] + launched["mm"] == 4


def test_norms_of_large_pictures_have_passes_of_their_own():
    """Each program would have to merge the statistics of all tiles."""

    class Large(Residual):
        shape = (2, 128, 136)

    launched = step_launches(Counted(Large, Large.shape), torch.bfloat16, 3)
    assert launched["group_norm_part"] == launched["group_norm_apply"] == 4


def test_a_network_of_diffusers_is_the_same_function(triton_device, request, rel, monkeypatch):
    """Its attention, its nearest upsampling and the concatenations of its skips among it."""
    pytest.importorskip("diffusers")
    monkeypatch.setattr(choice, "is_fused", lambda taps, inputs, outputs, dtype: True)
    network = request.getfixturevalue("unet")().to(triton_device)
    network.shape = (3, 8, 8)
    x, t = torch.randn(2, 3, 8, 8, device=triton_device), torch.full((2,), 7, device=triton_device)
    with torch.no_grad():
        out = run(network, x, t)
        with using("reference"):
            expected = network.double()(x.double(), t).sample
    assert rel(out.cpu(), expected.cpu()) < 5e-6
