"""Chains of elementwise operations against float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.kernels.cpu.norm import scale_shift
from fastdiff.kernels.cpu.plan import View, run
from fastdiff.kernels.cpu.pointwise import BINARY, UNARY, broadcast, pointwise

# By name: torch's own, of x or of x and y, and constants y that it is tried with.
TORCH = {
    **{name: getattr(torch, name) for name in ("add", "sub", "mul", "div", "maximum", "minimum", "pow")},
    **{name: getattr(torch, name) for name in ("neg", "abs", "exp", "log", "sin", "cos", "tanh", "sigmoid", "sqrt")},
    **{name: getattr(torch, name) for name in ("rsqrt", "reciprocal", "square", "erf")},
    **{name: getattr(F, name) for name in ("gelu", "silu", "relu", "softplus", "mish", "hardswish")},
    **{name: lambda x, y, name=name: getattr(torch, name)(x, y).to(x.dtype) for name in ("gt", "ge", "eq")},
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x, y: torch.where(x < 0, x * y, x),
    "elu": lambda x, y: torch.where(x < 0, y * torch.expm1(x), x),
}
POSITIVE = ("log", "sqrt", "rsqrt", "pow")
# Right to an absolute error of some 1e-7 only: the activations are those of the other kernels.
ABSOLUTE = ("gelu", "gelu_tanh")
EXTREMES = torch.tensor(
    [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40, 88.5, -88.5, 103.0, -103.0, 1e30, -1e30]
)


def computed(steps, *inputs, out=None, threads=1):
    """The result of steps on tensors, which are broadcast."""
    shape = torch.broadcast_shapes(*(x.shape for x in inputs))
    out = torch.full(shape, math.nan) if out is None else out
    run([pointwise(View.of(out), [broadcast(View.of(x), shape) for x in inputs], steps)], threads)
    return out


def largest_relative_error(value, reference):
    """Of any element; two infinities or NaN are equal."""
    error = (value.double() - reference).abs() / reference.abs().clamp(min=2.0**-126)
    same = (value.double() == reference) | (value.isnan() & reference.isnan())
    return float(error.masked_fill(same, 0.0).max())


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one(name):
    x = torch.cat((torch.linspace(-20, 20, 2001), torch.linspace(-1e-3, 1e-3, 101), torch.linspace(-80, 80, 333)))
    x = x.abs() + 1e-3 if name in POSITIVE else x
    ours, expected = computed([(name, 0)], x), TORCH[name](x.double())
    if name in ABSOLUTE:
        assert ((ours - expected).abs() / x.abs().clamp(min=1e-2)).max() < 5e-7
    else:
        theirs = largest_relative_error(TORCH[name](x), expected)
        assert largest_relative_error(ours, expected) < max(1e-6, 1.5 * theirs)


@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two(name, rel):
    x, y = 3 * torch.randn(7, 45), torch.randn(7, 45)
    x = x.abs() if name in POSITIVE else x
    assert largest_relative_error(computed([(name, 0, 1)], x, y), TORCH[name](x.double(), y.double())) < 1e-6
    for constant in (-0.75, -0.5, -1.0, 0.5, 2.0, 3.0):
        expected = TORCH[name](x.double(), torch.tensor(constant).double())
        assert largest_relative_error(computed([(name, 0, constant)], x), expected) < 1e-6
    if name != "pow":
        expected = TORCH[name](torch.tensor(0.3).double(), x.double())
        assert largest_relative_error(computed([(name, 0.3, 0)], x), expected) < 1e-6


@pytest.mark.parametrize("name", [name for name in UNARY if name not in ("gelu", "gelu_tanh", "silu")])
def test_the_ends_of_the_range(name):
    """Where torch has NaN, infinity or 0, so have we; subnormal numbers may lose all digits."""
    ours, expected = computed([(name, 0)], EXTREMES), TORCH[name](EXTREMES.double()).float()
    assert torch.equal(ours.isnan(), expected.isnan())
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-37, equal_nan=True)
    if name in ("neg", "abs", "sqrt", "reciprocal"):
        assert torch.equal(ours.signbit() | ours.isnan(), TORCH[name](EXTREMES).signbit() | ours.isnan())


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_nan_wins(name):
    x, y = EXTREMES.repeat(len(EXTREMES)), EXTREMES.repeat_interleave(len(EXTREMES))
    expected = TORCH[name](x, y)
    assert torch.equal(computed([(name, 0, 1)], x, y).nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("name", ["gt", "ge", "eq"])
def test_comparisons_at_the_ends_of_the_range(name):
    """None holds of NaN, and 0 equals -0."""
    x, y = EXTREMES.repeat(len(EXTREMES)), EXTREMES.repeat_interleave(len(EXTREMES))
    assert torch.equal(computed([(name, 0, 1)], x, y), getattr(torch, name)(x, y).float())


def test_what_is_not_chosen_does_not_matter():
    """NaN and infinity on the other side are no part of the result, whose bits are those of what is chosen."""
    x, y = EXTREMES.repeat(len(EXTREMES)), EXTREMES.repeat_interleave(len(EXTREMES))
    for mask in (torch.arange(len(x)) % 2.0, torch.zeros(len(x)), torch.full((len(x),), -0.5)):
        expected = torch.where(mask != 0, x, y)
        assert torch.equal(computed([("where", 0, 1, 2)], mask, x, y).view(torch.int32), expected.view(torch.int32))
        assert torch.equal(computed([("where", 0, 3.0, -0.0)], mask), torch.where(mask != 0, 3.0, -0.0))
        kept = computed([("where", 0, 1, -2.0), ("neg", 2)], mask, torch.ones(()))
        assert torch.equal(kept, torch.where(mask != 0, -1.0, 2.0))


def test_activations_have_the_bits_of_other_kernels():
    x = torch.randn(2, 19, 3, 5).contiguous(memory_format=torch.channels_last)
    plain = torch.stack((torch.ones(2, 19), torch.zeros(2, 19)), dim=1)
    for name in ("gelu", "gelu_tanh", "silu", "relu"):
        out = torch.empty_like(x)
        run([scale_shift(View.of(x), View.of(plain), View.of(out), name)])
        assert torch.equal(out, computed([(name, 0)], x))


SIZES = st.lists(st.integers(1, 5) | st.sampled_from([16, 17, 33, 64, 300]), min_size=0, max_size=6).filter(
    lambda sizes: math.prod(sizes) <= 20_000
)


@st.composite
def strided(draw, shape):
    """A tensor of random numbers, permuted, and a slice of a larger one whose other numbers are NaN."""
    order = draw(st.permutations(range(len(shape))))
    margins = [draw(st.sampled_from([(0, 0), (0, 0), (1, 2)])) for _ in shape]
    whole = torch.full([shape[dim] + sum(margins[dim]) for dim in order], math.nan)
    x = whole.permute([order.index(dim) for dim in range(len(shape))])
    for dim, (before, _) in enumerate(margins):
        x = x.narrow(dim, before, shape[dim])
    return whole, x.copy_(torch.randn(shape))


@st.composite
def chains(draw):
    """Inputs, their common shape, where the result goes, and steps of exact operations."""
    shape, inputs = draw(SIZES), []
    for _ in range(draw(st.integers(1, 4))):
        small = [draw(st.sampled_from([size, size, 1])) for size in shape]
        inputs.append(draw(strided(small[draw(st.integers(0, len(small))) * draw(st.integers(0, 1)) :]))[1])
    steps = []
    for at in range(draw(st.integers(0, 12))):
        operand = st.integers(max(0, len(inputs) + at - 4), len(inputs) + at - 1) | st.integers(0, len(inputs) - 1)
        name = draw(st.sampled_from(["sub", "mul", "maximum", "neg", "gt", "where"]))
        one, other = draw(operand), draw(operand | st.sampled_from([0.5, -0.0, 3.0]))
        steps.append((name, one, *({"neg": (), "where": (other, draw(operand))}.get(name, (other,)))))
    if not steps:
        inputs = inputs[:1]
    return shape, inputs, draw(strided(shape)), steps


def followed(steps, inputs):
    """The steps by torch, in float32."""
    values = list(inputs)
    for name, *operands in steps:
        x, *more = (values[one] if isinstance(one, int) else torch.tensor(one) for one in operands)
        values.append(torch.where(x != 0, *more) if name == "where" else getattr(torch, name)(x, *more).to(x.dtype))
    return values[-1]


@given(chains(), st.sampled_from([1, 1, 2, 3, 5]))
@settings(max_examples=300, deadline=None)
def test_any_chain_of_any_views(chain, threads):
    shape, inputs, (around, out), steps = chain
    out.fill_(7.0)
    untouched = around.isnan()
    views = [broadcast(View.of(x), shape) for x in inputs]
    run([pointwise(View.of(out), views, steps)], threads)
    assert torch.equal(around.isnan(), untouched)
    assert torch.equal(out, followed(steps, inputs).expand(shape))  # nothing is rounded otherwise


@pytest.mark.parametrize("shape", [(2, 28, 9, 7), (1, 3, 40, 33), (2, 300, 5, 6), (3, 64, 16, 16), (1, 5000, 1, 3)])
def test_layouts_change(shape):
    x = torch.randn(shape)
    for to, from_ in ((torch.channels_last, torch.contiguous_format), (torch.contiguous_format, torch.channels_last)):
        given, out = x.contiguous(memory_format=from_), torch.full(shape, math.nan).contiguous(memory_format=to)
        assert torch.equal(computed([], given, out=out), x)
        assert torch.equal(computed([("mul", 0, 2.0)], given, out=out), 2 * x)


def test_nearest_upsampling_and_a_part_of_a_concatenation():
    x = torch.randn(2, 28, 6, 5).contiguous(memory_format=torch.channels_last)
    joined = torch.full((2, 12, 10, 40), math.nan).permute(0, 3, 1, 2)
    out = joined[:, 7:35].unflatten(2, (6, 2)).unflatten(4, (5, 2))
    run([pointwise(View.of(out), [broadcast(View.of(x[:, :, :, None, :, None]), out.shape)])])
    assert torch.equal(joined[:, 7:35], F.interpolate(x, scale_factor=2))
    assert joined[:, :7].isnan().all() and joined[:, 35:].isnan().all()


def test_in_place():
    x = torch.randn(3, 20, 7, 5).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(20, 1, 1)
    expected = (x + bias) * x
    computed([("add", 0, 1), ("mul", 2, 0)], x, bias, out=x)
    assert torch.equal(x, expected)


def test_a_constant_and_nothing():
    assert torch.equal(computed([("add", 0.0, 2.5)], torch.empty(3, 5)), torch.full((3, 5), 2.5))
    assert computed([("exp", 0)], torch.empty(3, 0, 5)).shape == (3, 0, 5)
    out = torch.empty(37)
    run([pointwise(View.of(out), [], [("sub", 1.0, -0.0), ("div", 0, -0.0)])])
    assert torch.equal(out, torch.full((37,), -math.inf))


def test_the_most_of_everything():
    inputs = [torch.randn(5, 40) for _ in range(10)]
    steps = [("maximum", at, -0.1 * at) for at in range(10)]
    steps += [("add", 9 + at, 10 + at) for at in range(1, 10)] + [("add", 20 + at, 28 - at) for at in range(9)]
    steps += [("mul", 37 - at, 0.5 + at) for at in range(4)]
    assert len(steps) == 32
    assert torch.equal(computed(steps, *inputs), followed(steps, inputs))


def test_bits_depend_neither_on_parts_nor_on_the_batch():
    x, y = torch.randn(2, 6, 21, 9, 7).unbind()
    bias = torch.randn(6, 21, 1, 1)
    steps = [("add", 0, 1), ("exp", 3), ("tanh", 4), ("mul", 5, 2), ("pow", 4, 0.3), ("add", 6, 7), ("silu", 8)]
    whole = computed(steps, x, y, bias)
    for threads in (2, 3, 5):
        assert torch.equal(computed(steps, x, y, bias, threads=threads), whole)
    for at in range(6):
        assert torch.equal(computed(steps, *(one[at : at + 1] for one in (x, y, bias))), whole[at : at + 1])


def test_broadcast_is_torchs():
    x = torch.randn(3, 1, 2)
    for shape in ((3, 1, 2), (3, 4, 2), (5, 3, 4, 2), (1, 3, 0, 2)):
        wanted = x.expand(shape)
        ours = broadcast(View.of(x), shape)
        assert ours.shape == wanted.shape
        assert all(a == b for a, b, size in zip(ours.strides, wanted.stride(), shape, strict=True) if size > 1)
    for shape in ((4, 1, 2), (1, 2), (3, 1, 4)):
        with pytest.raises(ValueError, match="accepted: equal sizes or 1"):
            broadcast(View.of(x), shape)


X = View.of(torch.zeros(3, 5))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: pointwise(X, [X] * 11, [("neg", 0)]), "11 inputs"),
        (lambda: pointwise(X, [X], [("neg", 0)] * 33), "33 steps"),
        (lambda: pointwise(X, [X, X]), "2 inputs without steps"),
        (lambda: pointwise(X, []), "0 inputs without steps"),
        (lambda: pointwise(View.of(torch.zeros([2] * 7)), [], [("neg", 1.0)]), "6 dimensions"),
        (lambda: pointwise(X, [View.of(torch.zeros(3, 4))]), r"input 0 has shape \(3, 4\)"),
        (lambda: pointwise(View.of(torch.zeros(3, 1).expand(3, 5)), [X]), r"strides \(1, 0\)"),
        (lambda: pointwise(X, [X], [("cosh", 0)]), "'cosh'"),
        (lambda: pointwise(X, [X], [("add", 0)]), "number of operands"),
        (lambda: pointwise(X, [X], [("neg", 1)]), "numbers of earlier values"),
        (lambda: pointwise(X, [X], [("neg", -1)]), "numbers of earlier values"),
        (lambda: pointwise(X, [X], [("neg", True)]), "numbers of earlier values"),
        (lambda: pointwise(X, [X], [("where", 0, 1.0)]), "number of operands"),
        (lambda: View.of(torch.zeros(3).double()), "float64"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
