"""Settings and helpers of all tests."""

import dataclasses
import gc
import importlib.util
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported, which nothing above does

from fastdiff.bench.families.family import normals
from fastdiff.engine import engine, graphs
from fastdiff.engine.forms import FORMS
from fastdiff.engine.kept import release
from fastdiff.engine.numerics import fixed_numerics
from fastdiff.kernels.dispatch import recording, using

torch.set_num_threads(1)  # the tensors are small; more threads only wait for each other
settings.register_profile("fastdiff", deadline=None, derandomize=True)
settings.load_profile("fastdiff")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _nothing_kept():
    """A test may replace what prepares networks, so it finds none prepared, and leaves none."""
    release()
    yield
    release()


def relative_error(value, reference) -> float:
    """||value - reference|| / ||reference||, in float64."""
    value, reference = torch.as_tensor(value).double(), torch.as_tensor(reference).double()
    return float((value - reference).norm() / reference.norm())


def randomise(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights of the size that training leaves, norms and running statistics included, so that nothing is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(1 + 0.2 * noise.tanh())
            else:
                value.add_(0.1 * noise * (value.std() if value.ndim > 1 and value.std() > 0 else 1.0))
    return network


# Files that take long and would come late: a process is left with one while the others have ended.
LONG = ("tests/training/test_group.py", "tests/shards/test_run.py", "tests/kernels/cpu/test_compiled.py")


def pytest_collection_modifyitems(items):
    """The longest files come first."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


def pytest_collection_finish(session):
    """Thousands of tests and the libraries are no garbage; to look through them each time takes 8% of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def _hangups_are_heard():
    """Under nohup they are not, and commands keep to that."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def rel():
    return relative_error


@pytest.fixture(scope="session")
def randomised():
    return randomise


def neighbour(path: str):
    """A module of these tests; with --import-mode=importlib they cannot import one by its name."""
    spec = importlib.util.spec_from_file_location(f"tests_{Path(path).stem}", Path(__file__).parent / path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def standin():
    return neighbour("standin.py")


@pytest.fixture(scope="session")
def networks():
    return neighbour("capture/networks.py")


@pytest.fixture(scope="session")
def mindspore():
    return neighbour("mindspore.py")


@pytest.fixture(scope="session")
def mindspore_file(mindspore):
    return mindspore.mindspore_file


@pytest.fixture(scope="session")
def taken():
    """A context, which gives a function: the most memory taken since it began, beyond what was there, in bytes."""

    def most() -> int:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    @contextmanager
    def watched():
        gc.collect(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        except OSError:
            pytest.skip("the system does not say how much memory was taken")
        before = most()
        yield lambda: most() - before

    return watched


@pytest.fixture
def cuda(standin, monkeypatch):
    """The stand-in, in the place of torch.cuda."""
    made = standin.cuda()
    monkeypatch.setattr(graphs, "cuda", made)
    graphs._stream.cache_clear()
    yield made
    graphs._stream.cache_clear()


@pytest.fixture
def pool(cuda, monkeypatch):
    """Engines capture by the stand-in, in a pool of their own, unless another form is named."""
    held = graphs.GraphPool()
    form = dataclasses.replace(FORMS["eager"], name="graph-standin", captured=True)
    choose = engine.choose_form
    monkeypatch.setattr(graphs, "POOL", held)
    monkeypatch.setattr(engine, "choose_form", lambda name, *more: choose(name, *more) if name else form)
    return held


@pytest.fixture
def triton_device():
    """Where Triton kernels run here: the CUDA device, or the CPU by Triton's interpreter.

    Operators run their Triton kernels, and what they allocate is poisoned with NaN (torch fills uninitialised memory
    when it is asked for deterministic algorithms), so that an element that no kernel wrote shows.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with using("triton"), fixed_numerics():
            yield torch.device("cuda" if torch.cuda.is_available() else "cpu")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def launched():
    """(call on meta tensors) → the names of the Triton kernels that it launches, in order; with grids if asked."""

    def run(call, grids: bool = False) -> list:
        seen = []
        with recording(lambda kernel, grid, args, options: seen.append((kernel.__name__, grid))):
            call()
        return seen if grids else [name for name, _ in seen]

    return run


# Of a result against float64 arithmetic on the same inputs, by relative norm: float32 arithmetic accumulates a few of
# its roundings (6e-8 each); a 16-bit result is rounded once at the end, by at most 2^-8 (bf16) or 2^-11 (fp16) of its
# value. Triton's interpreter cuts to bfloat16 towards zero, by at most 2^-7.
BOUNDS = {
    torch.float32: 2e-6,
    torch.bfloat16: 2**-8 if torch.cuda.is_available() else 2**-7,
    torch.float16: 2**-11,
}


def image_layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same images in each memory format that a kernel may meet."""
    b, c, h, w = x.shape
    wide = torch.zeros(b, c + 3, h, w + 2, dtype=x.dtype, device=x.device)
    wide[:, 1:-2, :, 1:-1] = x
    joined = torch.cat((x, x), dim=1).to(memory_format=torch.channels_last)
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "crop": wide[:, 1:-2, :, 1:-1],  # no single stride over positions
        "half of a concatenation": joined[:, :c],
    }


@pytest.fixture
def layouts():
    return image_layouts


@pytest.fixture
def agrees(rel):
    """(value, reference) → whether a result in some dtype is within BOUNDS of the float64 one, and of that dtype."""

    def check(value, reference, times: float = 1.0) -> None:
        assert reference.dtype == torch.float64 and value.shape == reference.shape
        assert rel(value.detach().cpu(), reference.detach().cpu()) < times * BOUNDS[value.dtype], value.dtype

    return check


@pytest.fixture
def leaves():
    """Fresh leaves that require gradients, in the given dtype or as they are; None stays None."""

    def make(tensors, dtype=None):
        return [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]

    return make


@pytest.fixture
def unet(randomised):
    """(options) → a small UNet2DModel of 8x8 images, its weights random."""

    def make(**options):
        channels = options.pop("in_channels", 3)
        from diffusers import UNet2DModel

        made = UNet2DModel(
            **{
                "sample_size": 8,
                "in_channels": channels,
                "out_channels": channels,
                "block_out_channels": (8, 16),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "attention_head_dim": 8,
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
                **options,
            }
        )
        return randomised(made).eval()

    return make


@pytest.fixture
def conditional(randomised):
    """A small UNet2DConditionModel, of tokens of 12 numbers."""
    from diffusers import UNet2DConditionModel

    made = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return randomised(made).eval()


@pytest.fixture
def noise():
    """(draw, first, shape) → the normals of fastdiff's draw of that number."""
    return normals


@pytest.fixture
def their_loop():
    """(scheduler, network, shape, ...) → images of a loop of diffusers' own with those normals.

    What the scheduler draws in step k is draw k + 1; the network is (x, t) → the output.
    """

    def loop(scheduler, network, shape, **more):
        row = 0
        module = sys.modules[type(scheduler).__module__]
        draws = mock.patch.object(module, "randn_tensor", lambda *_, **__: normals(row + 1, 0, shape), create=True)
        x = normals(0, 0, shape) * scheduler.init_noise_sigma
        with draws, torch.no_grad():
            for row, t in enumerate(scheduler.timesteps):  # noqa: B007  the draws read it
                out = network(scheduler.scale_model_input(x, t), t)
                x = scheduler.step(out, t, x, return_dict=False, **more)[0]
        return x

    return loop
