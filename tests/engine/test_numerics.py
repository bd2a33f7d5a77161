"""torch's settings of the process while engines run: set once, readable, and as they were afterwards."""

import threading

import pytest
import torch

from fastdiff import Engine, Model, make_schedule, make_table
from fastdiff.engine.numerics import fixed_numerics

backends = torch.backends
cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
READERS = {
    "matmul": lambda: cuda.matmul.fp32_precision,
    "conv": lambda: cudnn.conv.fp32_precision,
    "rnn": lambda: cudnn.rnn.fp32_precision,
    "mkldnn matmul": lambda: mkldnn.matmul.fp32_precision,
    "mkldnn conv": lambda: mkldnn.conv.fp32_precision,
    "matmul.allow_tf32": lambda: cuda.matmul.allow_tf32,
    "cudnn.allow_tf32": lambda: cudnn.allow_tf32,
    "float32_matmul_precision": torch.get_float32_matmul_precision,
    "deterministic": lambda: cudnn.deterministic,
    "benchmark": lambda: cudnn.benchmark,
}
UNREADABLE = "torch refuses to read it"


def settings() -> dict:
    found = {}
    for name, read in READERS.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = UNREADABLE
    return found


@pytest.fixture
def fresh():
    """The settings of a new process, before and after."""
    before = settings()
    yield before
    torch.set_float32_matmul_precision(before["float32_matmul_precision"])
    cudnn.allow_tf32 = before["cudnn.allow_tf32"]
    cuda.matmul.fp32_precision, mkldnn.matmul.fp32_precision = before["matmul"], before["mkldnn matmul"]
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before["conv"], before["rnn"]
    mkldnn.conv.fp32_precision = before["mkldnn conv"]
    cudnn.deterministic, cudnn.benchmark = before["deterministic"], before["benchmark"]
    assert settings() == before


def nothing() -> None:
    pass


def older_names() -> None:
    cuda.matmul.allow_tf32 = True
    cudnn.allow_tf32 = False


def newer_names() -> None:
    """As torch's documentation has them now; the older names can then no longer be read."""
    cuda.matmul.fp32_precision = "tf32"
    cudnn.conv.fp32_precision = "ieee"


def benchmarking() -> None:
    cudnn.benchmark, mkldnn.conv.fp32_precision = True, "bf16"


@pytest.mark.parametrize(
    "chosen",
    [
        nothing,
        older_names,
        newer_names,
        benchmarking,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
    ],
)
def test_whatever_the_user_chose_is_set_readable_and_put_back(chosen, fresh):
    chosen()
    before = settings()
    with fixed_numerics():
        inside = settings()
    assert settings() == before
    assert [inside[name] for name in ("matmul", "conv", "rnn", "mkldnn matmul", "mkldnn conv")] == ["ieee"] * 5
    assert inside["deterministic"] is True and inside["benchmark"] is False
    readable = {name for name, value in before.items() if value != UNREADABLE}
    assert all(inside[name] != UNREADABLE for name in readable)


def test_a_network_may_read_and_use_the_flags(fresh):
    torch.set_float32_matmul_precision("high")

    class Reads(torch.nn.Module):
        def forward(self, x, t):
            assert not cudnn.allow_tf32 and not cuda.matmul.allow_tf32
            with cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=False):
                return 0.1 * x

    model = Model(Reads(), make_schedule("linear", 10), image_shape=(1, 4, 4))
    assert Engine(model, make_table("ddim", model.schedule, 3), batch_size=2, device="cpu").sample(2).shape == (
        2,
        1,
        4,
        4,
    )
    assert cuda.matmul.allow_tf32


def test_the_first_to_begin_sets_them_and_the_last_to_end_puts_them_back(fresh):
    """Threads that overlap: the one that began first ends while the other is still inside."""
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"
    began, ended, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with fixed_numerics():
            began.set()
            assert second_is_in.wait(30)
        seen.append(cudnn.conv.fp32_precision)
        ended.set()

    second_is_in = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert began.wait(30)
    with fixed_numerics():
        second_is_in.set()
        assert ended.wait(30)
        seen.append(cudnn.conv.fp32_precision)
    thread.join(30)
    assert seen == ["ieee", "ieee"] and cudnn.conv.fp32_precision == "tf32"


def test_they_hold_while_a_network_runs_and_not_while_the_caller_does(fresh):
    """A generator must not leave its settings to the caller while it waits."""
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"
    seen = []

    class Looks(torch.nn.Module):
        def forward(self, x, t):
            seen.append(cudnn.conv.fp32_precision)
            return 0.1 * x

    model = Model(Looks(), make_schedule("linear", 10), image_shape=(1, 4, 4))
    for images in Engine(model, make_table("ddim", model.schedule, 1), batch_size=2, device="cpu", form="eager").stream(
        4
    ):
        assert torch.is_grad_enabled() and not images.requires_grad
        seen.append(cudnn.conv.fp32_precision)
    assert seen == ["ieee", "tf32"] * 2


def test_an_error_puts_them_back(fresh):
    before = settings()
    with pytest.raises(ZeroDivisionError), fixed_numerics():
        raise ZeroDivisionError
    assert settings() == before
