"""One step of the shipped models through an engine, as users run it, first checked against the published network."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.bench.networks import SHIPPED, load, published
from fastdiff.bench.shapes import Network
from fastdiff.bench.traffic import network_flop
from fastdiff.engine.engine import Engine
from fastdiff.kernels.denoise_step import denoise_step
from fastdiff.kernels.dispatch import using

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # relative, of one evaluation
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float32)}
ROW = 12  # of 25
CHECKED = 16  # samples that are compared with float64


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    dtypes = DTYPES[torch.device(metafunc.config.getoption("--suite-device")).type]
    metafunc.parametrize("dtype", dtypes, ids=[str(dtype)[6:] for dtype in dtypes])


def exactly(model: fastdiff.Model, x: Tensor, time: float) -> Tensor:
    """The published network in float64."""
    t = torch.full((len(x),), time, dtype=torch.float64, device=x.device)
    return published(model).to(x.device).double()(x, t if model.time == "index" else t.view(-1, 1, 1, 1))


@pytest.mark.parametrize("batch", [1, 16, 64])
@pytest.mark.parametrize("name", SHIPPED)
def test_step(name: str, batch: int, dtype: torch.dtype, device: torch.device, measure: Callable[..., None]) -> None:
    model = load(name)
    table = fastdiff.make_table("ddim", model.schedule, 25, prediction_type=model.prediction_type, time=model.time)
    engine = Engine(model, table, batch_size=batch, dtype=dtype, device=device)
    x = torch.randn(batch, *model.image_shape, device=device)
    with engine._settings():
        prediction, run = engine._step(engine._kind(table), table)
        prediction.load_context(None)
        getattr(run, "ready", lambda: None)()  # where it is captured

        def begin() -> None:
            engine.x.copy_(x)  # each time: what a step leaves would grow from one to the next
            engine.index.fill_(ROW)

        def step() -> None:
            begin()
            run()

        begin()
        out = prediction(engine.x, engine.index).double()[:CHECKED]
        step()
        some = x[:CHECKED].double()
        exact = exactly(model, some, float(table.time[ROW]))
        error = float((out - exact).norm() / exact.norm())
        assert error < BOUNDS[dtype]
        with using("reference"):
            after = denoise_step(some, exact, engine.rows.double(), torch.tensor(ROW, device=device), clip=engine.clip)
        assert float((engine.x[:CHECKED] - after[0]).norm() / after[0].norm()) < BOUNDS[dtype]
        network = model.network
        flop = network_flop(Network(lambda: type(network)(**network.options), model.image_shape), batch)
        measure(
            step, f"step of {name}", form=engine.form.name, dtype=str(dtype)[6:], batch=batch, error=error,
            gflop=flop / 1e9, threads=torch.get_num_threads(),
        )  # fmt: skip
