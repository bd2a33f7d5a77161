"""Operations, bytes and launches counted from shapes, against hand counts."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff.bench.networks import FOREIGN, NETWORKS, Network
from fastdiff.bench.peers import others
from fastdiff.bench.peers.guided import UNetModel
from fastdiff.bench.static.shapes import on_meta
from fastdiff.bench.static.traffic import (
    count_flop,
    launches_table,
    network_flop,
    network_traffic,
    report,
    step_launches,
)

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_attention_is_counted_on_every_device(mode, device):
    """6 queries and 5 keys of width 4, values of width 3, 2 heads, 3 samples; a CPU has an attention of its own."""
    with mode(), torch.device(device):
        q, k, v = torch.zeros(3, 2, 6, 4), torch.zeros(3, 2, 5, 4), torch.zeros(3, 2, 5, 3)
        for options in ({}, {"attn_mask": torch.zeros(6, 5)}):
            assert count_flop(lambda: F.scaled_dot_product_attention(q, k, v, **options)) == 2 * 3 * 2 * 6 * 5 * (4 + 3)  # noqa: B023


@pytest.mark.parametrize(
    ("call", "by_hand"),
    [
        (lambda: torch.zeros(3, 4) @ torch.zeros(4), 2 * 3 * 4),
        (lambda: torch.zeros(4) @ torch.zeros(4), 2 * 4),
        (lambda: torch.addmv(torch.zeros(3), torch.zeros(3, 4), torch.zeros(4)), 2 * 3 * 4),
        (lambda: torch.zeros(3, 5).addmm_(torch.zeros(3, 4), torch.zeros(4, 5)), 2 * 3 * 4 * 5),
        (lambda: torch.zeros(7, 3, 5).baddbmm_(torch.zeros(7, 3, 4), torch.zeros(7, 4, 5)), 2 * 7 * 3 * 4 * 5),
        (lambda: torch.addbmm(torch.zeros(3, 5), torch.zeros(7, 3, 4), torch.zeros(7, 4, 5)), 2 * 7 * 3 * 4 * 5),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_products_that_torchs_counter_lacks_are_counted(call, by_hand, device, mode):
    with mode(), torch.device(device):
        assert count_flop(call) == by_hand


def test_multi_head_attention_is_counted_and_what_cannot_be_is_refused():
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.zeros(3, 5, 8)
    with torch.no_grad():  # where torch would run it as one operation
        count = count_flop(lambda: layer(x, x, x, need_weights=False))
    assert count == 2 * 3 * 5 * 8 * (3 * 8 + 8) + 2 * 3 * 2 * 5 * 5 * (4 + 4)
    assert torch.backends.mha.get_fastpath_enabled()
    layer = nn.LSTM(4, 4)
    with torch.no_grad(), pytest.raises(NotImplementedError, match="rnn_layer holds products that are not counted"):
        count_flop(lambda: layer(torch.zeros(3, 2, 4)))
    assert torch.backends.mha.get_fastpath_enabled()


def test_operations_are_those_of_the_specification():
    """measuring.md: 0.560 GFLOP an image for network A at dim 28, 3.45 at dim 64 and 32x32."""
    assert network_flop(NETWORKS["A28@28"]) / 1024 == pytest.approx(0.560e9, rel=2e-3)
    assert network_flop(NETWORKS["A64@32"]) / 1024 == pytest.approx(3.45e9, rel=2e-3)


def test_bytes_are_counted_as_by_hand(one_convolution):
    moved = network_traffic(Network(one_convolution, (2, 4, 4)), torch.bfloat16, "reference", batch=5).moved
    x, w, y = 5 * 2 * 16 * 2, 3 * 2 * 9 * 2, 5 * 3 * 16 * 2
    assert moved["convolution"] == x + w + 3 * 2 + y
    assert moved["convolution's bias"] == 2 * y + 3 * 2
    assert moved["gelu"] == 2 * y
    assert sum(moved.values()) == moved["convolution"] + moved["convolution's bias"] + moved["gelu"]


def launches(network: type[nn.Module], kernels: str = "library") -> dict[str, int]:
    """Of a step in bfloat16, without the first one: x in the network's dtype, and the time's row."""
    counted = step_launches(Network(network, (2, 4, 4)), torch.bfloat16, 5, kernels)
    assert counted.pop("begin_step_forward") == 1
    return dict(counted)


def test_launches_of_a_step_are_counted_as_by_hand(one_convolution):
    class Timed(one_convolution):
        def forward(self, x, t):
            return F.gelu(self.conv(x) + t[:, None, None, None].to(x.dtype))[:, :2]

    library = {"convolution": 1, "conv_ending_forward": 1, "denoise_step_forward": 1}
    triton = {"fused_conv_forward": 1, "denoise_step_forward": 1}  # the activation is no part of the last convolution
    for network in (one_convolution, Timed):  # the bias is in the row of the time
        assert launches(network) == library
        assert launches(network, "triton") == triton


class Fused(nn.Module):
    """In plain torch: depthwise convolution with a time bias, convolution, norm and SiLU, convolution and shortcut."""

    options: dict = {}

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.wide, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.narrow, self.shortcut = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(2, 2, 1)

    def forward(self, x, t):
        h = self.deep(x) + torch.stack((t, t), 1)[:, :, None, None].to(x.dtype)
        return self.narrow(F.silu(self.norm(self.wide(h)))) + self.shortcut(x)


def test_no_bias_of_a_convolution_is_a_launch_where_a_kernel_reads_its_result():
    """Nor is the layout of the depthwise weight."""
    kernels = ("depthwise_conv_forward", "group_norm_forward", "conv_ending_forward", "denoise_step_forward")
    assert launches(Fused) == {"convolution": 3} | dict.fromkeys(kernels, 1)
    kernels = ("depthwise_conv_forward", "group_norm_apply", "denoise_step_forward")
    assert launches(Fused, "triton") == {"fused_conv_forward": 2} | dict.fromkeys(kernels, 1)  # shortcut and all


def test_the_committed_counts_are_those_of_the_code():
    assert (ROOT / "bench/results/traffic.md").read_text() == report(torch.bfloat16)


def test_the_committed_code_generation_is_clean_and_whole():
    text = (ROOT / "bench/results/kernels.md").read_text()
    assert " 0 with spills, a stack, or too much shared memory" in text
    assert launches_table() in text
    convolutions = [line for line in text.splitlines() if line.startswith("| fused_conv_forward |") and "=" in line]
    assert len(convolutions) >= 3 * 30 and all("MMA |" in line for line in convolutions)  # on tensor cores
    for kernel in (
        "fused_conv_forward",
        "denoise_step_forward",
        "linear_attention_whole",
        "attention_block_out",
        "group_norm_backward",
    ):
        for arch in (80, 90, 100):
            assert f"| {kernel} | {arch} |" in text


def test_the_committed_cost_of_noise_follows_from_the_committed_table():
    pytest.importorskip("triton")
    from fastdiff.bench.static.codegen import noise_cost

    text = (ROOT / "bench/results/kernels.md").read_text()
    lines = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| denoise_step_forward")]
    rows = [
        {"kernel": line[0], "sm": int(line[1]), "instructions": int(line[9]), "variant": line[10]}
        for line in lines
        if len(line) == 11
    ]
    assert rows and f"too much shared memory.{noise_cost(rows)}\n" in text
    assert "noise in denoise_step: sm_80 49 to 54" in noise_cost(rows)


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_networks_are_counted_on_meta_tensors(name):
    """More than a last convolution 3x3 from 64 channels to a picture's, less than every weight on every pixel."""
    network = FOREIGN[name]
    for package in network.needs:  # which may not be importable as it is
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")
    parameters = others.count(on_meta(network, torch.float32))
    channels, height, width = network.image_shape
    pixels = height * width
    assert 2 * 9 * 64 * channels * pixels < network_flop(network, batch=2) / 2 < 2 * parameters * pixels
    assert 4_000_000 < parameters < 12_000_000 or (name, parameters) == ("ddpm-cifar10@32", 35_746_307)  # as published


def test_a_network_with_convolutions_over_sequences_is_recorded_on_meta_tensors():
    network = Network(lambda: UNetModel(3, 8, 1, (2,), (1, 2), num_head_channels=4), (3, 16, 16))
    plain, fused = (network_traffic(network, torch.bfloat16, kind, batch=2) for kind in ("reference", "triton"))
    assert 0 < fused.total < plain.total
