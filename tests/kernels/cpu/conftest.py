"""How the C kernels are tested: among NaN, in several parts, and a picture alone."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff.kernels.cpu.compiled import build_error
from fastdiff.kernels.cpu.plan import Call, View, run


@pytest.fixture(autouse=True)
def needs_compiler():
    if build_error() is not None:
        pytest.skip(str(build_error()))


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


@pytest.fixture(autouse=True)
def poisoned():
    """Uninitialised memory is NaN, so that an element that no kernel wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def in_nan(x: torch.Tensor, *order: int) -> torch.Tensor:
    """x in memory in this order of its dimensions, a slice of the last, with NaN all around."""
    moved = x.permute(order)
    around = torch.full((*moved.shape[:-1], moved.shape[-1] + 5), float("nan"))
    rows = around.view(-1, around.shape[-1])
    held = torch.full((len(rows) + 2, around.shape[-1]), float("nan"))
    slices = held[1:-1].view(around.shape)[..., 2:-3].copy_(moved)
    return slices.permute(sorted(range(x.ndim), key=lambda dim: order[dim]))


def all_parts(calls, shape, *order: int) -> torch.Tensor:
    """What calls(View of the output) compute: the same bits by any number of threads, and all else untouched."""
    results = []
    for threads in (1, 2, 3, 5):
        out = in_nan(torch.full(shape, float("nan")), *order)
        made = calls(View.of(out))
        run([made] if isinstance(made, Call) else made, threads)
        assert int((~out._base.isnan()).sum()) == out.numel()
        results.append(out)
    assert all(torch.equal(one, results[0]) for one in results)
    return results[0].clone()


@pytest.fixture(name="in_nan")
def _in_nan():
    return in_nan


@pytest.fixture(name="all_parts")
def _all_parts():
    return all_parts
