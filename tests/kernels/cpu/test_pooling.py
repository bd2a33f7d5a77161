"""Max and average pooling."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.kernels.cpu.plan import View
from fastdiff.kernels.cpu.pooling import average_pool, max_pool
from fastdiff.kernels.cpu.window import Window

PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))
SIZES = st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 16, 19, 40]), st.integers(2, 12), st.integers(2, 12))


@settings(max_examples=100)
@given(SIZES, PAIRS, PAIRS, PAIRS, st.tuples(st.integers(0, 2), st.integers(0, 2)), st.booleans())
def test_as_torch(computed, sizes, kernel, stride, dilation, padding, included):
    torch.manual_seed(0)
    x, size = torch.randn(sizes), sizes[2:]
    kernel = tuple(min(pair) for pair in zip(kernel, size, strict=True))
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    dilation = tuple(d if (k - 1) * d < n else 1 for k, d, n in zip(kernel, dilation, size, strict=True))
    window = Window(kernel, stride, padding)
    mean = F.avg_pool2d(x.double(), kernel, stride, padding, count_include_pad=included)
    ours = computed(lambda out, x: average_pool(x, out, window, included), tuple(mean.shape), x)
    assert (ours - mean).abs().max() < 1e-6
    x[0, 0, 0, 1], x[0, -1, 1, 0], x[-1, 0, 1, 1] = torch.nan, -torch.inf, torch.inf
    largest = F.max_pool2d(x, kernel, stride, padding, dilation)
    ours = computed(lambda out, x: max_pool(x, out, replace(window, dilation=dilation)), tuple(largest.shape), x)
    assert torch.allclose(ours, largest, rtol=0, atol=0, equal_nan=True)


def test_side_by_side(computed):
    x = torch.randn(2, 20, 8, 8)
    assert computed(lambda out, x: max_pool(x, out, Window((2, 2), (2, 2))), (2, 20, 4, 4), x).equal(F.max_pool2d(x, 2))
    means = computed(lambda out, x: average_pool(x, out, Window((4, 2), (4, 2))), (2, 20, 2, 4), x)
    assert torch.allclose(means, F.avg_pool2d(x, (4, 2)), atol=1e-6)


def zeros(*shape):
    return View.of(torch.zeros(shape).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("pool", [max_pool, average_pool])
@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": View.of(torch.zeros(1, 2, 7, 7))}, "x has shape"),
        ({"x": View.of(torch.zeros(2, 7, 7))}, "x has shape"),
        ({"out": zeros(1, 3, 3, 3)}, "out has shape"),
        ({"out": zeros(1, 2, 4, 4)}, "not ceil_mode"),
        ({"out": zeros(1, 2, 3, 2)}, "whole windows only"),
        ({"window": Window((0, 2), (2, 2))}, "at least 1"),
        ({"window": Window((2, 2), (2, 2), (2, 0))}, "half of the kernel"),
        ({"window": Window((2, 2), (2, 2), (0, -1))}, "padding from 0"),
    ],
)
def test_bad_input_is_named(pool, change, words):
    arguments = {"x": zeros(1, 2, 7, 7), "out": zeros(1, 2, 3, 3), "window": Window((2, 2), (2, 2))}
    pool(**arguments)
    with pytest.raises(ValueError, match=words):
        pool(**{**arguments, **change})
