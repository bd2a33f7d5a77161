"""small_attention in Triton against float64, and against torch's operators one after another."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff.kernels.conv_weight import Window, pack
from fastdiff.kernels.picture_attention import Heads, picture_attention
from fastdiff.kernels.small_attention import fits, small_attention, small_attention_reference
from fastdiff.kernels.statistics import merged

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Channels, heads, their width, groups, results, the picture: network A's middle; diffusers', whose heads are narrow.
CASES = [(112, 4, 32, 1, 112, 7, 7), (32, 4, 8, 8, 32, 8, 8), (5, 1, 3, 0, 7, 1, 3), (24, 2, 20, 3, 6, 1, 1)]


def matrix(weight):
    return pack(weight[:, :, None, None], Window((1, 1)))[0, 0, 0]


def made(device, dtype, c, count, width, groups, o, h, w, interleaved=False):
    """The arguments by name, and the block in float64."""
    inner = count * width
    x, residual = (
        torch.randn(2, one, h, w, device=device).to(dtype, memory_format=torch.channels_last) for one in (c, o)
    )
    w_qkv = (torch.randn(3 * inner, c, device=device) * (2 / c) ** 0.5).to(dtype)
    w_out = (torch.randn(o, inner, device=device) / inner**0.5).to(dtype)
    b_qkv, b_out = (torch.randn(n, device=device).to(dtype) for n in (3 * inner, o))
    heads = Heads(count, width, 3 * width, 0, width, 2 * width)  # each head's one after another, as guided-diffusion's
    if not interleaved:
        heads = Heads(count, width, width, 0, inner, 2 * inner)
    given = dict(x=x, w_qkv=matrix(w_qkv), b_qkv=b_qkv, heads=heads, scale=width**-0.5, w_out=matrix(w_out))
    given |= dict(b_out=b_out, outputs=o, groups=groups, residual=residual, factor=0.7)
    xh = x.double().flatten(2)
    xh = F.group_norm(xh, groups) if groups else xh
    projected = w_qkv.double() @ xh + b_qkv.double()[:, None]
    shape = (2, count, 3, width, h * w) if interleaved else (2, 3, count, width, h * w)
    q, k, v = projected.view(shape).movedim(2 if interleaved else 1, 0)
    out = (v @ ((q * width**-0.5).transpose(2, 3) @ k).softmax(-1).transpose(2, 3)).flatten(1, 2)
    y = w_out.double() @ out + b_out.double()[:, None] + residual.double().flatten(2)
    return given, 0.7 * y.view(2, o, h, w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_the_whole_block(triton_device, agrees, dtype, case, interleaved):
    given, exact = made(triton_device, dtype, *case, interleaved)
    y = small_attention(**given)
    agrees(y, exact, times=1 if dtype == torch.float32 else 2)  # queries, keys, values and weights are rounded too
    assert y.is_contiguous(memory_format=torch.channels_last)
    wide = {k: v.double() if torch.is_tensor(v) else v for k, v in given.items()}
    agrees(small_attention_reference(**wide).float(), exact)


def test_bare(triton_device, agrees):
    """Without biases and a residual."""
    given, _ = made(triton_device, torch.float32, 6, 2, 4, 2, 5, 3, 3)
    given |= dict(b_qkv=None, b_out=None, residual=None, factor=1.0)
    wide = {k: v.double() if torch.is_tensor(v) else v for k, v in given.items()}
    agrees(small_attention(**given), small_attention_reference(**wide))


@pytest.mark.parametrize("emit, dims", [("whole", 1), ("channels", 2)])
def test_the_statistics_of_a_result(triton_device, rel, emit, dims):
    given, _ = made(triton_device, torch.float32, *CASES[1])
    y, statistics = small_attention(**given, emit=emit)
    of_result = y.double().flatten(dims)
    for found, expected in zip(merged(statistics), (of_result.mean(-1), of_result.var(-1, correction=0)), strict=True):
        assert rel(found, expected) < 1e-5


def test_a_samples_bits_depend_on_no_other(triton_device):
    given, _ = made(triton_device, torch.float32, *CASES[1])
    whole = small_attention(**given)
    given |= {name: given[name][1:] for name in ("x", "residual")}
    assert torch.equal(small_attention(**given)[0], whole[1])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_attention_of_a_pictures_channels(layout):
    x = torch.randn(2, 20, 3, 5, dtype=torch.float64).contiguous(memory_format=layout)
    heads = Heads(2, 3, 9, 1, 4, 7)
    flat = x.flatten(2)
    parts = [torch.stack([flat[:, a + 9 * h : a + 9 * h + 3] for h in range(2)], 1) for a in (1, 4, 7)]
    q, k, v = (one.transpose(2, 3) for one in parts)
    expected = (q @ k.transpose(2, 3) * 0.3).softmax(-1) @ v
    out = picture_attention(x, heads, 0.3)
    torch.testing.assert_close(out.flatten(2), expected.transpose(2, 3).flatten(1, 2), rtol=1e-12, atol=1e-12)


def test_what_fits():
    assert fits(torch.bfloat16, 64, 128, 128, 4, 64)
    assert not fits(torch.float32, 64, 128, 128, 4, 64)
    assert not any(fits(torch.bfloat16, *sizes) for sizes in ((65, 8, 8, 1, 8), (4, 129, 8, 1, 8), (4, 8, 129, 1, 8)))
    assert not fits(torch.float16, 4, 8, 8, 1, 65) and not fits(torch.float16, 4, 8, 8, 33, 8)
