"""Engine.tune and `fastdiff tune`: a network's convolutions are measured, and engines use what was found."""

import dataclasses

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fastdiff import Engine, Model, make_schedule
from fastdiff.cli.main import main
from fastdiff.engine import engine, forms
from fastdiff.kernels import tuning


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1)
        self.last = nn.Conv2d(20, 1, 1)

    def forward(self, x, t):
        return self.last(self.second(self.first(x) + t.to(x.dtype)[:, None, None, None] / 100))


@pytest.fixture
def on_a_gpu(triton_device, monkeypatch, tmp_path):
    """Engines run the CUDA form in Triton's interpreter, without graphs."""
    form = dataclasses.replace(forms.FORMS["cuda"], captured=False)
    monkeypatch.setattr(engine, "choose_form", lambda *_: form)
    for module in (engine, forms):
        monkeypatch.setattr(module, "compile_kernels", lambda run, device: None)
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_names", lambda device: {"device": "one", "driver": "1"})
    monkeypatch.setattr(tuning, "compile_ahead", lambda run, device: None)
    tuning._table.cache_clear()
    yield triton_device
    tuning._table.cache_clear()


def test_an_engine_is_tuned(on_a_gpu, monkeypatch, randomised, rel):
    model = Model(randomised(Two()), make_schedule("linear", 20), image_shape=(1, 10, 12))
    made = Engine(model, model.table("ddim", 2), batch_size=2, device=on_a_gpu, dtype=torch.float16)
    before, plain = made.sample(2), made.configuration()
    assert plain["kernels"] is None

    def milliseconds(again):
        again()
        return 1.0 + (tuning._forced.get().rows != 64)

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    shown = []
    measured = made.tune(lambda *of: shown.append(of))
    assert len(measured) == 2 and shown == [(1, 2), (2, 2)]  # the last convolution is the update's
    assert {one.tiling.rows for one in measured.values()} == {64}
    assert rel(made.sample(2), before) < 1e-3
    assert made.configuration()["kernels"].startswith("tiles ")


@pytest.mark.parametrize(
    "dtype, device, message",
    [
        ("bfloat16", "cpu", "nothing to tune in bfloat16 on cpu, form eager"),
        ("float32", "cpu", "unknown dtype 'float32'"),
    ],
)
def test_where_nothing_can_be_tuned_the_command_says_so(dtype, device, message):
    done = CliRunner().invoke(main, ["tune", "sprites", "--dtype", dtype, "--device", device])
    assert done.exit_code == 2 and message in done.output and "accepted: bfloat16" in done.output
