"""How the C kernels are tested: among NaN, in several parts, and a picture alone."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff.kernels.cpu.compiled import build_error
from fastdiff.kernels.cpu.plan import Call, View, run

if build_error() is not None:
    pytest.skip(str(build_error()), allow_module_level=True)


def fenced(b, c, h, w):
    """Pictures that are a channel slice of wider ones, and the memory in which they lie; all of it NaN."""
    memory = torch.full((b + 2, h, w, c + 5), torch.nan)
    return memory[1:-1, :, :, 2 : 2 + c].permute(0, 3, 1, 2), memory


def view(x):
    """Of pictures in a slice among NaN, or of other numbers as they are."""
    if x is None or x.ndim != 4:
        return None if x is None else View.of(x)
    held, _ = fenced(*x.shape)
    return View.of(held.copy_(x))


def once(make, shape, given, threads):
    out, memory = fenced(*shape)
    calls = make(View.of(out), *map(view, given))
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills scratch space with NaN
    run([calls] if isinstance(calls, Call) else calls, threads)
    torch.use_deterministic_algorithms(False)
    result = out.clone(memory_format=torch.contiguous_format)
    out.fill_(torch.nan)
    assert memory.isnan().all(), "a kernel wrote beside its output"
    return result


def same_bits(one, other):
    """Unlike ==, true of NaN."""
    return one.view(torch.int32).equal(other.view(torch.int32))


@pytest.fixture(scope="session")
def computed():
    """(make, shape, *given) → what the calls write that make(out, *views) returns, for given batches of numbers.

    Bits must depend neither on the number of threads nor on which other pictures are in the batch.
    """

    def result(make, shape, *given):
        whole = once(make, shape, given, 1)
        for threads in (2, 3, 5):
            assert same_bits(whole, once(make, shape, given, threads)), f"{threads} parts"
        alone = [None if one is None else one[-1:] for one in given]
        assert same_bits(whole[-1:], once(make, (1, *shape[1:]), alone, 1)), "a picture alone"
        return whole

    return result


@pytest.fixture(scope="session")
def activations():
    """What each name of an activation means."""
    return {
        None: lambda x: x,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "relu": F.relu,
    }
