"""Norms over channels in C against float64."""

import pytest
import torch

from fastdiff.kernels.cpu.plan import View, run
from fastdiff.kernels.cpu.position_norm import position_norm
from fastdiff.kernels.position_norm import position_norm as reference


@pytest.mark.parametrize("b, c, h, w", [(1, 1, 1, 1), (2, 5, 3, 4), (3, 16, 7, 5), (2, 43, 2, 3), (1, 130, 3, 1)])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "silu", "relu"])
def test_against_torch(b, c, h, w, centred, activation, in_nan, all_parts, rel):
    x, residual = 3 + torch.randn(b, c, h, w), torch.randn(b, c, h, w)
    weight, bias = torch.randn(1, c, 1, 1), torch.randn(1, c, 1, 1)
    exact = [one.double() for one in (x, weight, bias)]
    expected = reference(*exact, 1e-3, centred, activation, residual.double()).movedim(1, -1)
    given, other = (View.of(in_nan(one.movedim(1, -1), 0, 1, 2, 3)) for one in (x, residual))
    numbers = View.of(weight), View.of(bias.flatten()), 1e-3, centred, activation
    ours = all_parts(lambda out: position_norm(given, out, *numbers, other), (b, h, w, c), 0, 1, 2, 3)
    assert rel(ours, expected) < 5e-6


@pytest.mark.parametrize("c", [5, 16, 43])
def test_without_weights(c, all_parts, rel):
    x = 3 + torch.randn(4, c)
    for centred in (True, False):
        ours = all_parts(lambda out, of=centred: position_norm(View.of(x), out, None, None, 1e-5, of), x.shape, 0, 1)
        assert rel(ours, reference(x.double()[..., None, None], None, None, 1e-5, centred)[..., 0, 0]) < 5e-6
    tiny = View.of(x * 1e-6)  # shorter than eps
    ours = all_parts(lambda out: position_norm(tiny, out, None, None, 1e-3, False), x.shape, 0, 1)
    assert rel(ours, x.double() * 1e-6 / 1e-3) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("centred", [True, False])
def test_what_is_not_finite_stays_visible(value, centred):
    x, out = torch.randn(6, 20), torch.empty(6, 20)
    x[2, 3] = value
    run([position_norm(View.of(x), View.of(out), None, None, 1e-5, centred)])
    expected = reference(x[..., None, None], None, None, 1e-5, centred)[..., 0, 0]
    assert torch.equal(out.isnan(), expected.isnan()) and out[2].isnan().any()


def zeros(*shape):
    return View.of(torch.zeros(shape))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: position_norm(zeros(3, 4), zeros(3, 4), zeros(5), None, 1e-5, True), "weight has shape"),
        (lambda: position_norm(zeros(3, 4), zeros(3, 4), None, zeros(3, 4), 1e-5, True), "bias has shape"),
        (lambda: position_norm(zeros(3, 4), zeros(3, 5), None, None, 1e-5, True), "out has shape"),
        (lambda: position_norm(zeros(3, 4), zeros(3, 4), None, None, 1e-5, True, "tanh"), "'tanh'"),
        (lambda: position_norm(zeros(3, 4), zeros(3, 4), None, None, 1e-5, True, None, zeros(4)), "residual has"),
        (
            lambda: position_norm(View.of(torch.zeros(4, 3).t()), zeros(3, 4), None, None, 1e-5, True),
            "x has shape .* and strides",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
