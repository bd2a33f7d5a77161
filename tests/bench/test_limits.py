"""Operations, bytes and launches counted from shapes: against torch's own counter and against hand counts."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastdiff.bench.networks import COUNTED, Network
from fastdiff.bench.static.shapes import evaluate, on_meta
from fastdiff.bench.static.traffic import (
    Traffic,
    count_flop,
    launches_table,
    network_flop,
    network_traffic,
    operators,
    report,
    step_launches,
)

ROOT = Path(__file__).parent.parent.parent
META, CPU = torch.device("meta"), torch.device("cpu")


def torchs_count(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", COUNTED)
def test_every_network_has_the_operations_that_torch_counts(name):
    """Equal, not only within 0.1%: both count products with a padding's zeros, and nothing but products."""
    network = COUNTED[name]
    with operators(fused=False):
        module = on_meta(network, torch.float32)
        theirs = torchs_count(lambda: evaluate(module, network.image_shape, 64, torch.float32))
    assert theirs > 1e8 and network_flop(network, 64) == theirs
    # The time's embedding, once for the batch, is all that does not grow with it.
    assert network_flop(network, 128) == pytest.approx(2 * theirs, rel=1e-3)


def test_bytes_and_operations_are_of_the_same_evaluation():
    network = COUNTED["A, dim 28, 28x28"]
    plain, fused = (network_traffic(network, torch.bfloat16, fused, 3) for fused in (False, True))
    assert isinstance(plain, Traffic) and sum(plain.flop.values()) == network_flop(network, 3)
    products = {"convolution", "addmm", "bmm", "_scaled_dot_product_flash_attention"}
    assert plain.flop.keys() == products and products <= plain.calls.keys()
    assert sum(fused.flop.values()) < sum(plain.flop.values())  # what the kernels do is not the library's


def zeros(*shape):
    return torch.zeros(shape)


def attention(**options):
    """6 queries and 5 keys of width 4, values of width 3, 2 heads, 3 samples."""
    return F.scaled_dot_product_attention(zeros(3, 2, 6, 4), zeros(3, 2, 5, 4), zeros(3, 2, 5, 3), **options)


@pytest.mark.parametrize("device", [CPU, META])
@pytest.mark.parametrize(
    ("call", "by_hand"),
    [
        # pictures x outputs' positions x outputs' channels x inputs of a filter x taps, two for each
        (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1)(zeros(5, 6, 9, 7)), 2 * 5 * (5 * 4) * 8 * 6 * 9),
        (lambda: nn.Conv2d(6, 6, 7, padding=3, groups=6)(zeros(2, 6, 9, 7)), 2 * 2 * (9 * 7) * 6 * 1 * 49),
        (lambda: nn.Conv2d(6, 9, 3, groups=3, bias=False)(zeros(2, 6, 9, 7)), 2 * 2 * (7 * 5) * 9 * 2 * 9),
        (lambda: nn.Conv2d(6, 8, 3, padding="same")(zeros(6, 9, 7)), 2 * (9 * 7) * 8 * 6 * 9),
        # transposed: pictures x inputs' positions x inputs' channels x outputs that a filter meets x taps
        (lambda: nn.ConvTranspose2d(6, 8, 4, 2, 1)(zeros(5, 6, 9, 7)), 2 * 5 * (9 * 7) * 6 * 8 * 16),
        (lambda: nn.ConvTranspose2d(6, 8, 4, 4, groups=2)(zeros(5, 6, 9, 7)), 2 * 5 * (9 * 7) * 6 * 4 * 16),
        (lambda: nn.Linear(10, 7)(zeros(3, 4, 10)), 2 * 3 * 4 * 10 * 7),
        (lambda: nn.Linear(10, 7, bias=False)(zeros(10)), 2 * 10 * 7),
        (lambda: zeros(3, 4) @ zeros(4, 5), 2 * 3 * 4 * 5),
        (lambda: zeros(3, 4) @ zeros(4), 2 * 3 * 4),
        (lambda: zeros(4) @ zeros(4), 2 * 4),
        (lambda: zeros(7, 3, 4) @ zeros(7, 4, 5), 2 * 7 * 3 * 4 * 5),
        (lambda: torch.addmm(zeros(5), zeros(3, 4), zeros(4, 5)), 2 * 3 * 4 * 5),
        (lambda: zeros(3, 5).addmm_(zeros(3, 4), zeros(4, 5)), 2 * 3 * 4 * 5),
        (lambda: torch.baddbmm(zeros(7, 3, 5), zeros(7, 3, 4), zeros(7, 4, 5)), 2 * 7 * 3 * 4 * 5),
        (lambda: torch.einsum("bhdn,bhen->bhde", zeros(2, 3, 4, 9), zeros(2, 3, 5, 9)), 2 * 6 * 4 * 9 * 5),
        (attention, 2 * 3 * 2 * 6 * 5 * (4 + 3)),
        (lambda: attention(attn_mask=zeros(6, 5)), 2 * 3 * 2 * 6 * 5 * (4 + 3)),
        (lambda: zeros(3, 4).exp().softmax(-1).sum() + 1, 0),  # products alone are counted
    ],
)
def test_products_by_hand(call, by_hand, device):
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode(), torch.device(device):
            assert count_flop(call) == by_hand


def test_another_librarys_network():
    """diffusers' UNet2DModel: the same count on real tensors and on meta ones, where torch's counter agrees.

    On real ones the CPU has an attention of its own that torch's counter does not know; ours must.
    """
    diffusers = pytest.importorskip("diffusers")
    options = dict(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    counts = {}
    for device in (CPU, META):
        with torch.device(device), torch.no_grad():
            network = diffusers.UNet2DModel(**options).eval()
            x, t = torch.zeros(2, 1, 8, 8), torch.zeros(2)
            counts[device] = count_flop(lambda: network(x, t)), torchs_count(lambda: network(x, t))  # noqa: B023
    (ours, without_attention), (ours_on_meta, theirs) = counts.values()
    assert ours == ours_on_meta == theirs
    # 4 products of attention of 16 positions (down, the middle, two up), 16 features in all, 2 pictures
    assert ours - without_attention == 4 * 2 * 2 * 16 * 16 * (16 + 16)


def test_multi_head_attention_is_counted_and_what_cannot_be_is_refused():
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.zeros(3, 5, 8)
    with torch.no_grad():  # where torch would run it as one operation
        count = count_flop(lambda: layer(x, x, x, need_weights=False))
    assert count == 2 * 3 * 5 * 8 * (3 * 8 + 8) + 2 * 3 * 5 * 5 * (8 + 8)
    assert torch.backends.mha.get_fastpath_enabled()
    layer = nn.LSTM(4, 4)
    with torch.no_grad(), pytest.raises(NotImplementedError, match="rnn_layer holds products that are not counted"):
        count_flop(lambda: layer(torch.zeros(3, 2, 4)))


# --- bytes and launches ---


def test_bytes_are_counted_as_by_hand(one_convolution):
    moved = network_traffic(Network(one_convolution, (2, 4, 4)), torch.bfloat16, fused=False, batch=5).moved
    x, w, y = 5 * 2 * 16 * 2, 3 * 2 * 9 * 2, 5 * 3 * 16 * 2
    assert moved["convolution"] == x + w + 3 * 2 + y
    assert moved["convolution's bias"] == 2 * y + 3 * 2
    assert moved["gelu"] == 2 * y
    assert sum(moved.values()) == moved["convolution"] + moved["convolution's bias"] + moved["gelu"]


def test_launches_of_a_step_are_counted_as_by_hand(one_convolution):
    """x in the network's dtype, the row's time, convolution, its bias, GELU, the update, the row's number."""

    class Flat(one_convolution):
        def denoise(self, x, time, context):
            return super().denoise(x, time, context)[:, :2]

    counted = step_launches(Network(Flat, (2, 4, 4)), torch.bfloat16, 5)
    network = ("convolution", "convolution's bias", "gelu")
    assert counted == dict.fromkeys(("_to_copy", "index_select", *network, "denoise_step_forward", "add_"), 1)


def test_the_committed_count_is_what_the_code_counts():
    assert (ROOT / "bench/results/traffic.md").read_text() == report(torch.bfloat16)


def test_the_committed_code_generation_is_clean_and_whole():
    text = (ROOT / "bench/results/kernels.md").read_text()
    assert " 0 with spills, a stack, or too much shared memory" in text
    assert launches_table() in text
    for kernel in ("denoise_step_forward", "linear_attention_whole", "attention_block_out", "group_norm_backward"):
        for arch in (80, 90, 100):
            assert f"| {kernel} | {arch} |" in text
