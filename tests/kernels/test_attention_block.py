"""attention_block against the modules that it replaces: the folded reference in float64, and the Triton kernels."""

import pytest
import torch

from fastdiff.kernels import attention_block_triton
from fastdiff.kernels.attention_block import attention_block, attention_block_reference
from fastdiff.kernels.folded_attention import fold
from fastdiff.networks.blocks import EDITIONS, ChannelNorm, LinearAttention, PreNorm, Residual


def block(channels: int, edition: str, randomise) -> Residual:
    return randomise(Residual(PreNorm(channels, LinearAttention(channels, edition=EDITIONS[edition])))).double()


def folded_weights(module: Residual, dtype=torch.float64, device="cpu"):
    norm, attention = module.fn.norm, module.fn.fn
    project, last = attention.to_out
    gain = last.g if isinstance(last, ChannelNorm) else None
    given = [norm.weight, norm.bias, attention.to_qkv.weight, project.weight, project.bias, gain]
    return fold(*(None if t is None else t.to(device, dtype) for t in given), 4, attention.divide_by_n, norm.eps)


# Network A's widths and odd ones; from 65 channels on the values are not folded, and 64 is the last that is.
@pytest.mark.parametrize("c, h, w", [(28, 9, 7), (56, 14, 14), (112, 7, 7), (10, 3, 5), (200, 2, 3), (64, 1, 1)])
@pytest.mark.parametrize("edition", EDITIONS)
def test_the_folded_reference_is_the_module(randomised, rel, c, h, w, edition):
    module = block(c, edition, randomised)
    x = torch.randn(2, c, h, w, dtype=torch.float64) * 2 + 1
    with torch.no_grad():
        expected = module(x)
        out = attention_block_reference(x, folded_weights(module))
        if not EDITIONS[edition].channel_norm:
            out = module.fn.fn.to_out[1](out) + x
    assert rel(out, expected) < 1e-13


# As above; 210 positions are four chunks, 784 many, and 200 channels are padded to 256.
MANY = pytest.param(18, 28, 28, marks=() if torch.cuda.is_available() else pytest.mark.slow)


@pytest.mark.parametrize("c, h, w", [(28, 9, 7), (56, 14, 14), (112, 7, 7), (18, 14, 15), MANY, (200, 3, 5)])
@pytest.mark.parametrize("edition", ["mindspore-torch", "hf-2022"])
def test_the_kernels_in_every_layout(triton_device, randomised, agrees, layouts, c, h, w, edition):
    module = block(c, edition, randomised)
    x = torch.randn(2, c, h, w, device=triton_device) + 0.5
    expected = attention_block_reference(x.cpu().double(), folded_weights(module))
    folded = folded_weights(module, torch.float32, triton_device)
    for given in layouts(x).values():
        agrees(attention_block_triton.forward(given, folded), expected, times=2)


def test_many_samples_share_a_program_for_all_heads(triton_device, randomised, agrees):
    module = block(10, "mindspore", randomised)
    x = torch.randn(130, 10, 2, 3, device=triton_device)
    expected = attention_block_reference(x.cpu().double(), folded_weights(module))
    folded = folded_weights(module, torch.float32, triton_device)
    agrees(attention_block_triton.forward(x, folded), expected, times=2)


def test_float32_runs_the_reference(triton_device, randomised):
    """The Triton kernels would spill; see MAX_CHANNELS."""
    module = block(28, "mindspore", randomised)
    folded = folded_weights(module, torch.float32, triton_device)
    x = torch.randn(2, 28, 4, 4, device=triton_device)
    assert torch.equal(attention_block(x, folded), attention_block_reference(x, folded))


# The normed input, the exponentials, the sums, the mixed values and the result are rounded to 16 bits.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("c, h, w", [(28, 14, 14), (112, 7, 7)])
def test_reduced_precision(triton_device, randomised, agrees, dtype, c, h, w):
    module = block(c, "mindspore-torch", randomised).to(dtype)
    x = torch.randn(2, c, h, w, device=triton_device).to(dtype)
    folded = folded_weights(module, dtype, triton_device)
    expected = attention_block_reference(x.cpu().double(), folded_weights(module.double()))
    agrees(attention_block(x, folded), expected, times=3)


def test_what_it_cannot_take_is_named(randomised):
    module = block(28, "mindspore-torch", randomised)
    folded = folded_weights(module, torch.float32)
    for x, message in [
        (torch.zeros(1, 27, 3, 3), "x has 27 channels and the weights 28"),
        (torch.zeros(1, 28, 3), r"x has shape \(1, 28, 3\)"),
        (torch.zeros(1, 28, 3, 3, dtype=torch.int32), "x is torch.int32"),
        (torch.zeros(1, 28, 3, 3, device="meta"), "values is on cpu and the others on meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            attention_block(x, folded)
    weights = torch.ones(28), torch.ones(28), torch.zeros(384, 28), torch.zeros(28, 128), torch.zeros(28), None
    with pytest.raises(ValueError, match="heads = 5; accepted"):
        fold(*weights, 5, True)
    with pytest.raises(ValueError, match="norm_bias has shape"):
        fold(weights[0], torch.ones(1), *weights[2:], 4, True)
    with pytest.raises(ValueError, match=r"gain has shape \(1, 1, 1, 1\); accepted: \(1, 28, 1, 1\)"):
        fold(*weights[:5], torch.ones(1, 1, 1, 1), 4, True)
    with pytest.raises(ValueError, match="w_out has shape"):
        fold(*weights[:3], torch.zeros(28, 64), *weights[4:], 4, True)
