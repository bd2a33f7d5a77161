"""Philox's normals in C have the bits of plain torch's."""

import pytest
import torch

from fastdiff.kernels import philox as operator
from fastdiff.kernels.cpu import compiled
from fastdiff.kernels.cpu.philox import key_view, normals
from fastdiff.kernels.cpu.plan import View, run
from fastdiff.kernels.dispatch import using
from fastdiff.kernels.philox import normals_reference

pytestmark = pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))

NAN = float("nan")


def drawn(key, draw, shape, ahead=0, threads=1):
    """The normals, made in memory that has NaN before and after them."""
    count = torch.Size(shape).numel()
    memory = torch.full((count + 2,), NAN)
    out = memory[1:-1].view(shape)
    run([normals(key_view(key), View.of(out), draw, ahead)], threads)
    assert memory[[0, -1]].isnan().all()
    return out


@pytest.mark.parametrize(
    "seed, first, draw",
    [(0, 0, 0), (2**63 - 1, 2**63 - 200, 2**32 - 1), ((5 << 33) + 3, (1 << 32) - 2, 7), (2**31, 2**31, 2**31)],
)
@pytest.mark.parametrize("shape", [(150, 28, 28), (2, 3, 129, 131), (67, 1), (5, 3, 5, 7), (1, 64), (3, 65)])
def test_the_bits_are_those_of_plain_torch(seed, first, draw, shape):
    key = torch.tensor([seed, first])
    assert torch.equal(drawn(key, draw, shape), normals_reference(key, draw, shape))


def test_they_are_standard_normals():
    z = drawn(torch.tensor([1, 2]), 3, (100, 10000)).double()
    assert abs(z.mean()) < 4e-3 and abs(z.var() - 1) < 6e-3 and 4.5 < z.abs().max() < 6


@pytest.mark.parametrize("shape", [(3, 3, 17, 19), (1, 1), (7, 2), (1, 1000)])
def test_bits_do_not_depend_on_threads(shape):
    key = torch.tensor([11, 2**40])
    whole = drawn(key, 5, shape)
    for threads in (2, 3, 5):
        assert torch.equal(drawn(key, 5, shape, threads=threads), whole)


def test_a_later_sample_is_the_same_alone():
    key = torch.tensor([11, 2**40])
    whole = drawn(key, 5, (6, 3, 5, 5))
    for sample in range(6):
        assert torch.equal(drawn(key, 5, (1, 3, 5, 5), ahead=sample), whole[sample : sample + 1])


def test_the_key_is_read_when_the_call_runs():
    key, out = torch.tensor([1, 2]), torch.empty(2, 9)
    call = normals(key_view(key), View.of(out), 4)
    key.copy_(torch.tensor([3, 4]))
    run([call])
    assert torch.equal(out, normals_reference(key, 4, (2, 9)))


def test_the_operator_runs_in_c():
    key = torch.tensor([3, 2**33])
    for shape in [(2, 3, 5, 5), (4,), (0, 3), (2, 0)]:
        with using("reference"):
            expected = operator.normals(key, 2, shape)
        assert torch.equal(operator.normals(key, 2, shape), expected)
    assert torch.equal(
        operator.normals(torch.tensor([[3, 0], [5, 0]])[:, 0], 2, (1, 6)), drawn(torch.tensor([3, 5]), 2, (1, 6))
    )


KEY, OUT = torch.tensor([1, 2]), torch.zeros(2, 6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: key_view(torch.zeros(2)), "torch.float32 on cpu"),
        (lambda: key_view(torch.zeros(3, dtype=torch.int64)), r"shape \(3,\)"),
        (lambda: key_view(torch.zeros(4, dtype=torch.int64)[::2]), "contiguous"),
        (lambda: normals(key_view(KEY), View.of(OUT[:, :3]), 0), "normals: out has strides"),
        (lambda: normals(key_view(KEY), View.of(OUT), -1), "normals: draw = -1; accepted"),
        (lambda: normals(key_view(KEY), View.of(OUT), 2**32), "normals: draw = 4294967296"),
        (lambda: normals(key_view(KEY), View.of(OUT), 0, -1), "normals: ahead = -1"),
        (lambda: normals(View(KEY, (3,), (1,)), View.of(OUT), 0), r"normals: key has shape \(3,\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
