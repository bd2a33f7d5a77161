"""Whether Triton's kernels run: what a launch needs, and the warning where that is missing."""

import sysconfig

import pytest
import torch

from fastdiff.kernels import dispatch
from fastdiff.kernels.bias_add import bias_add

CUDA = torch.device("cuda", 0)


@pytest.fixture
def capable(monkeypatch):
    """(major) → whether a device of that compute capability runs the kernels; a compiler is there."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setenv("CC", "cc")

    def ask(major: int = 9) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        return dispatch._capable.__wrapped__(CUDA)

    return ask


@pytest.fixture
def headers(monkeypatch, tmp_path):
    """The folder in which Python's C headers are looked for, with Python.h in it."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme="": str(tmp_path / scheme))
    for variable in ("CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "Python.h").touch()
    return tmp_path


def test_compute_capability_8_and_newer(capable, headers):
    assert capable() and not capable(7)


def test_without_a_compiler_the_operators_run_in_plain_torch(capable, headers, monkeypatch):
    monkeypatch.delenv("CC")
    monkeypatch.setattr(dispatch.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="^no C compiler, which Triton needs; the operators run in plain torch$"):
        assert not capable()


def test_without_pythons_headers_too(capable, headers):
    """Triton finds out at its first launch, in the middle of an evaluation."""
    (headers / "Python.h").unlink()
    words = rf"^no Python\.h in {headers} \(a package such as python3-dev has it\), which Triton needs"
    with pytest.warns(UserWarning, match=words):
        assert not capable()


@pytest.mark.parametrize("place", ["posix_prefix", "CPATH"])
def test_headers_that_a_compiler_finds_elsewhere_will_do(place, capable, headers, monkeypatch):
    other = headers / place
    other.mkdir()
    (headers / "Python.h").rename(other / "Python.h")
    monkeypatch.setenv("CPATH", f"{headers / 'nothing'}:{headers / 'CPATH'}")
    assert capable()


def test_withheld_launches_are_not_made(triton_device):
    """The recorder gets them, with their arguments."""
    x = torch.ones(1, 2, 3, 3, device=triton_device)
    seen = []
    with dispatch.withholding(lambda kernel, grid, args, options: seen.append((kernel.__name__, args[0].data_ptr()))):
        y = bias_add(x, x)
    assert seen == [("conv_ending_forward", x.data_ptr())] and y.shape == x.shape and y.isnan().all()
    assert torch.equal(bias_add(x, x), 2 * x)
