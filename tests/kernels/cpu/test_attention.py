"""The linear-attention block in C against float64."""

import pytest
import torch

from fastdiff.kernels.attention_block import attention_block_reference
from fastdiff.kernels.cpu.attention import attention_block, pack
from fastdiff.kernels.cpu.plan import View, run
from fastdiff.kernels.folded_attention import fold

NHWC = 0, 2, 3, 1


def block_weights(c, heads=4, d=32, gain=True):
    return dict(
        norm_weight=torch.randn(c),
        norm_bias=torch.randn(c),
        w_qkv=torch.randn(3 * heads * d, c) / c**0.5,
        w_out=torch.randn(c, heads * d) / 10,
        b_out=torch.randn(c),
        gain=torch.randn(1, c, 1, 1) if gain else None,
    )


def block(x, packed, out):
    shapes = packed.numbers_shape(x.shape[0]), packed.context_shape(x.shape[0])
    return attention_block(x, packed, out, *(View.of(torch.empty(shape)) for shape in shapes))


@pytest.mark.parametrize("c", [1, 3, 16, 28, 40, 112])
@pytest.mark.parametrize("h, w", [(1, 1), (3, 5), (7, 7), (13, 9)])
@pytest.mark.parametrize("gain, divide", [(True, True), (False, False)])
def test_against_torch(c, h, w, gain, divide, in_nan, all_parts, rel):
    heads, d = {1: (3, 5), 3: (2, 48), 40: (2, 17)}.get(c, (4, 32))
    weights, x = block_weights(c, heads, d, gain), torch.randn(2, c, h, w)
    packed, view = pack(fold(**weights, heads=heads, divide_by_n=divide)), View.of(in_nan(x, *NHWC))
    ours = all_parts(lambda out: block(view, packed, out), x.shape, *NHWC)
    exact = {k: None if v is None else v.double() for k, v in weights.items()}
    expected = attention_block_reference(x.double(), fold(**exact, heads=heads, divide_by_n=divide))
    # of one number the pre-norm leaves nothing but what the rounding of x scale + shift leaves
    assert rel(ours, expected) < (5e-6 if c * h * w > 1 else 1e-4)


def test_logits_of_hundreds_do_not_overflow(all_parts, rel):
    weights, x = block_weights(16), torch.randn(2, 16, 4, 4)
    weights["w_qkv"] *= 240
    packed = pack(fold(**weights, heads=4, divide_by_n=True))
    ours = all_parts(
        lambda out: block(View.of(x.contiguous(memory_format=torch.channels_last)), packed, out), x.shape, *NHWC
    )
    exact = fold(**{k: v.double() for k, v in weights.items()}, heads=4, divide_by_n=True)
    assert rel(ours, attention_block_reference(x.double(), exact)) < 1e-4


def test_a_picture_alone_has_the_bits_that_it_has_in_a_batch(all_parts):
    packed = pack(fold(**block_weights(24), heads=4, divide_by_n=True))
    x = torch.randn(7, 24, 7, 7).contiguous(memory_format=torch.channels_last)

    def outputs(x):
        return all_parts(lambda out: block(View.of(x), packed, out), x.shape, *NHWC)

    whole = outputs(x)
    for pictures in (slice(3, 4), slice(2, 6)):
        assert torch.equal(outputs(x[pictures]), whole[pictures])


def test_what_is_not_finite_stays_visible():
    packed = pack(fold(**block_weights(16), heads=4, divide_by_n=True))
    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    x[1, 3, 2, 2] = float("nan")
    out = torch.empty_like(x)
    run(block(View.of(x), packed, View.of(out)))
    assert torch.isfinite(out[0]).all() and out[1].isnan().all()


def test_bad_input_is_named():
    packed = pack(fold(**block_weights(16), heads=4, divide_by_n=True))
    x = View.of(torch.zeros(2, 16, 4, 4).contiguous(memory_format=torch.channels_last))
    numbers, context = (View.of(torch.empty(shape)) for shape in (packed.numbers_shape(2), packed.context_shape(2)))
    other = View.of(torch.zeros(2, 17, 4, 4))
    for given, words in (
        ((other, packed, x, numbers, context), "x has shape"),
        ((x, packed, other, numbers, context), "out has shape"),
        ((View.of(torch.zeros(2, 16, 4, 4)), packed, x, numbers, context), "x has shape .* and strides"),
        ((x, packed, x, context, context), "out has shape"),
        ((x, packed, x, numbers, numbers), "context has shape"),
    ):
        with pytest.raises(ValueError, match=words):
            attention_block(*given)
