"""Memory full of NaN around what a kernel may touch, and every number of parts."""

import pytest
import torch

from fastdiff.kernels.cpu.compiled import build_error
from fastdiff.kernels.cpu.plan import Call, View, run

if build_error() is not None:
    pytest.skip(str(build_error()), allow_module_level=True)


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
