"""GroupNorm against float64, on odd shapes."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff.kernels.cpu.norm import norm_statistics, scale_shift
from fastdiff.kernels.cpu.plan import View, run

NORMS = [
    # batch, channels, groups, height, width: channels below a vector, whole vectors, four of them, tails of each
    (2, 1, 1, 9, 5),
    (2, 3, 3, 4, 4),
    (2, 10, 5, 3, 7),
    (1, 16, 1, 1, 2),
    (2, 24, 8, 5, 3),
    (3, 28, 1, 28, 28),
    (2, 18, 3, 2, 9),
    (2, 64, 4, 3, 3),
    (2, 76, 1, 5, 5),
]


def normed(computed, x, groups, after=None, **numbers):
    """(norm(x) weight + bias) (1 + gain) + offset, with what is (B, C) of each picture, among NaN."""
    each = {name: value for name, value in numbers.items() if value.ndim == 2 and len(value) == len(x)}
    common = {name: View.of(value) for name, value in numbers.items() if name not in each}

    def calls(out, x, *views):
        about = torch.full((out.shape[0] + 2, 2, out.shape[1]), torch.nan)
        statistics = View.of(about[1:-1])
        given = {**common, **dict(zip(each, views, strict=True))}
        return [norm_statistics(x, statistics, groups, eps=1e-4, **given), scale_shift(x, statistics, out, after)]

    return computed(calls, tuple(x.shape), x, *each.values())


@pytest.mark.parametrize("b, c, groups, h, w", NORMS)
@pytest.mark.parametrize("after", [None, "gelu", "gelu_tanh", "silu", "relu"])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_norm(b, c, groups, h, w, after, mean, computed, activations, rel):
    x, weight, bias = mean + torch.randn(b, c, h, w), torch.randn(c), torch.randn(c)
    expected = activations[after](F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-4))
    assert rel(normed(computed, x, groups, after, weight=weight, bias=bias), expected) < (2e-6 if mean == 0 else 1e-4)


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("gain",), ("offset",), ("gain", "offset"), ()])
@pytest.mark.parametrize("batch", [3, 1, None])
@pytest.mark.parametrize("c", [5, 20])
def test_what_is_left_out_and_what_each_picture_has_of_its_own(names, batch, c, computed, rel):
    x = torch.randn(3, c, 5, 7)
    numbers = {name: torch.randn(c) if batch is None else torch.randn(batch, c) for name in names}
    whole = {name: value.double().view(-1, c, 1, 1) for name, value in numbers.items()}
    expected = F.group_norm(x.double(), 5, eps=1e-4) * whole.get("weight", 1) + whole.get("bias", 0)
    expected = expected * (1 + whole.get("gain", torch.zeros(()))) + whole.get("offset", 0)
    assert rel(normed(computed, x, 5, **numbers), expected) < 2e-6


def test_modulation_by_halves_of_one_embedding(computed, rel):
    """Each picture's gain and offset lie side by side, as a linear layer of the time leaves them."""
    x, weight, bias, embedding = torch.randn(3, 28, 4, 4), torch.randn(28), torch.randn(28), torch.randn(3, 56)
    gain, offset = embedding.chunk(2, dim=1)
    ours = normed(computed, x, 4, "silu", weight=weight, bias=bias, gain=gain, offset=offset)
    expected = F.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-4)
    assert rel(ours, F.silu(expected * (1 + gain[..., None, None]) + offset[..., None, None])) < 2e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_picture(value):
    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    x[1, 3, 2, 2] = value
    statistics, out = View.of(torch.empty(2, 2, 16)), torch.empty_like(x)
    run([norm_statistics(View.of(x), statistics, 1), scale_shift(View.of(x), statistics, View.of(out))])
    assert torch.isfinite(out[0]).all() and not torch.isfinite(out[1]).any()


def test_the_statistics_are_written_where_they_belong():
    x = torch.randn(2, 7, 3, 3).contiguous(memory_format=torch.channels_last)
    memory = torch.full((4, 2, 7), torch.nan)
    run([norm_statistics(View.of(x), View.of(memory[1:-1]), 7)], 3)
    assert memory[[0, 3]].isnan().all() and torch.isfinite(memory[1:-1]).all()


X, NUMBERS = View.of(torch.zeros(2, 4, 4, 16).permute(0, 3, 1, 2)), View.of(torch.zeros(2, 2, 16))
ONES = View.of(torch.ones(16))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: norm_statistics(X, NUMBERS, 3, ONES, ONES), "groups = 3"),
        (lambda: norm_statistics(X, NUMBERS, 0), "groups = 0"),
        (lambda: norm_statistics(X, View.of(torch.zeros(1, 2, 16)), 1), "out has shape"),
        (lambda: norm_statistics(X, View.of(torch.zeros(2, 16, 2).transpose(1, 2)), 1), "out has strides"),
        (lambda: norm_statistics(X, NUMBERS, 1, View.of(torch.ones(32)[::2]), ONES), "side by side"),
        (lambda: norm_statistics(X, NUMBERS, 1, ONES, View.of(torch.ones(2, 16))), "accepted: one shape"),
        (lambda: norm_statistics(X, NUMBERS, 1, gain=View.of(torch.ones(3, 16))), "gain has shape"),
        (lambda: norm_statistics(X, NUMBERS, 1, offset=View.of(torch.ones(17))), "offset has shape"),
        (lambda: norm_statistics(View.of(torch.zeros(2, 16, 4, 4)), NUMBERS, 1), "x has shape .* evenly spaced"),
        (lambda: scale_shift(X, NUMBERS, X, "tanh"), "'tanh'"),
        (lambda: scale_shift(X, View.of(torch.zeros(2, 16)), X), "numbers has shape"),
        (lambda: scale_shift(X, NUMBERS, View.of(torch.zeros(2, 16, 4, 5))), "out has shape"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
