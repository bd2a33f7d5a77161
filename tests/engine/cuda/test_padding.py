"""Channels that are padded for the library's convolutions: the same function, and no norm of what was padded."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff.engine.cuda import choice, lowering, padding
from fastdiff.engine.evaluation import Given, Network, captured, evaluated
from fastdiff.kernels.bias_add import conv_ending
from fastdiff.kernels.conv import convolution
from fastdiff.kernels.dispatch import using
from fastdiff.kernels.group_norm import can_widen, group_norm_reference, group_norm_wide


class Narrow(nn.Module):
    """Widths of 12, 28 and 44: after norms of one group and of two, after sums, and after each other."""

    def __init__(self):
        super().__init__()
        self.first, self.one = nn.Conv2d(2, 28, 3, padding=1), nn.GroupNorm(1, 28)
        self.expand, self.two = nn.Conv2d(28, 44, 3, padding=1), nn.GroupNorm(1, 44)
        self.contract, self.skip = nn.Conv2d(44, 28, 1), nn.Conv2d(28, 28, 1)
        self.several, self.narrow = nn.GroupNorm(2, 28), nn.Conv2d(28, 12, 1, bias=False)
        self.again, self.last = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 2, 3, padding=1)

    def forward(self, x, t):
        x = self.first(x)
        h = self.contract(self.two(F.gelu(self.expand(self.one(x)) + t.to(x.dtype)[:, None, None, None] / 50)))
        x = F.silu(self.skip(h)) + x
        x = self.narrow(F.silu(self.several(x)))
        return self.last(self.again(x) + x)


@pytest.fixture
def graphs(monkeypatch):
    """Nothing is fused, any dtype is padded; the graphs that were."""
    monkeypatch.setattr(choice, "is_fused", lambda *sizes: False)
    padded = choice.padded_channels
    monkeypatch.setattr(choice, "padded_channels", lambda n, dtype: padded(n, torch.float16))
    seen = []
    monkeypatch.setattr(lowering, "pad_channels", lambda graph: (padding.pad_channels(graph), seen.append(graph)))
    return seen


def test_the_padded_network_is_the_same_function(triton_device, graphs, randomised, rel):
    network = randomised(Narrow()).eval().to(triton_device)
    x, t = torch.randn(2, 2, 6, 5, device=triton_device), torch.full((2,), 7, device=triton_device)
    given = Given(2, (2, 6, 5), None, torch.tensor([3, 7]), x.device, x.dtype)
    with torch.no_grad():
        parts = captured(Network(network, x.device, x.dtype), given)
        out = evaluated(parts, {"x": x, "t": t})
        with using("reference"):
            plain = evaluated(parts, {"x": x, "t": t})
            expected = network.double()(x.double(), t)
    assert rel(out.cpu(), expected.cpu()) < 1e-6 and rel(plain.cpu(), expected.cpu()) < 1e-6
    shapes = [
        tuple(graph.constants[str(node.args[1].target)].shape[:2])
        for graph in graphs
        for node in graph.nodes.nodes
        if node.target is convolution
    ]
    # The last one's input is a sum, which is written wider; the norm of two groups writes no more than its channels.
    assert shapes == [(32, 2), (64, 32), (32, 64), (32, 32), (32, 28), (32, 32), (2, 32)]


def test_a_norm_reads_no_padding(triton_device, graphs, randomised):
    given = Given(2, (2, 6, 5), None, torch.tensor([3, 7]), triton_device, torch.float32)
    captured(Network(randomised(Narrow()).eval(), triton_device, torch.float32), given)
    norms = [
        node.args[1:] if node.target is group_norm_wide else node.args
        for graph in graphs
        for node in graph.nodes.nodes
        if "group_norm" in str(node.target)
    ]
    assert len(norms) == 3
    for x, _, weight, *_ in norms:
        assert x.meta["shape"][1] == weight.meta["shape"][0]


@pytest.mark.parametrize("channels, expected", [(28, 32), (18, 32), (12, 32), (56, 56), (36, 64), (3, 3), (7, 7)])
def test_how_far_channels_are_padded(channels, expected):
    assert choice.padded_channels(channels, torch.bfloat16) == expected
    assert choice.padded_channels(channels, torch.float32) == channels


@pytest.mark.parametrize("c, h, w", [(28, 5, 7), (18, 40, 40)])  # in one program, and in several
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_write_zeros_after_their_channels(triton_device, agrees, dtype, c, h, w):
    x, residual = (torch.randn(2, c, h, w, device=triton_device).to(dtype) for _ in range(2))
    weight, bias = torch.randn(2, c, device=triton_device).to(dtype)
    wide = [one.double() for one in (x, weight, bias, residual)]
    made = {
        "norm": group_norm_wide(32, x, 1, weight, bias, after="silu"),
        "ending": conv_ending(x, bias, None, "gelu", residual, None, 32),
    }
    exact = {
        "norm": group_norm_reference(wide[0], 1, wide[1], wide[2], after="silu"),
        "ending": F.gelu(wide[0] + wide[2][:, None, None]) + wide[3],
    }
    for name, y in made.items():
        agrees(y[:, :c], exact[name])
        assert y.shape[1] == 32 and not y[:, c:].any()


def test_which_norms_can_be_widened():
    assert can_widen(28, 1, 32) and can_widen(44, 1, 64)
    assert not can_widen(28, 2, 32)  # groups
    assert not can_widen(12, 1, 32)  # more than a tile has
