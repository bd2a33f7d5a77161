"""Whole steps by the Triton kernels: the update in the last convolution, and where the whole prediction is needed."""

import pytest
import torch
from torch import nn

from fastdiff.engine import step
from fastdiff.engine.cuda import choice
from fastdiff.engine.evaluation import Given, Network, captured, eager
from fastdiff.engine.prediction import Prediction
from fastdiff.engine.step import State, advance
from fastdiff.kernels.dispatch import using
from fastdiff.kernels.last_conv import denoise_step_of
from fastdiff.samplers.samplers import make_table
from fastdiff.samplers.schedule import make_schedule


class Tiny(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, outputs, 3, padding=1)

    def forward(self, x, t, x_self_cond=None):
        if x_self_cond is not None:
            x = x + 0.3 * x_self_cond
        shift = (t.float()[:, None] / 100 + torch.arange(6, device=t.device) / 10).to(x.dtype)
        return self.last(torch.relu(self.first(x) + shift[:, :, None, None]))


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
@pytest.mark.parametrize(
    "clip, variance, conditioned, joined",
    [
        (None, False, False, True),
        (0.8, False, True, True),
        (("dynamic", 0.9), False, False, False),
        (0.8, True, False, False),
    ],
)
def test_steps_are_those_of_the_reference(
    triton_device, randomised, rel, monkeypatch, sampler, clip, variance, conditioned, joined
):
    calls = []
    monkeypatch.setattr(choice, "is_fused", lambda taps, inputs, outputs, dtype: True)
    monkeypatch.setattr(step, "denoise_step_of", lambda *a, **b: (calls.append(a), denoise_step_of(*a, **b)))
    network, device = randomised(Tiny(4 if variance else 2)).eval(), triton_device
    table = make_table(sampler, make_schedule("linear", 50), 3)
    given = Given(2, (2, 4, 6), None, torch.arange(50), device, torch.float32, 1, variance, conditioned)
    started = torch.randn(2, 2, 4, 6, device=device)
    made = {}
    for backend, form in (("triton", captured), ("reference", eager)):
        with using(backend), torch.no_grad():
            parts = form(Network(network, device, torch.float32), given)
            prediction = Prediction(parts, device, torch.float32, whole=True, guided=False)
            prediction.load_table(table, len(table))
            prediction.load_context(None)
            index, current = torch.zeros(2, dtype=torch.int64, device=device)
            state = State(
                started.clone(),
                torch.from_numpy(table.rows).float().to(device),
                index,
                current,
                key=torch.tensor([7, 0], device=device),
                history=torch.zeros(1, *started.shape, device=device),
                learned_variance=variance,
                self_condition=conditioned,
                clip=clip,
            )
            for _ in range(len(table)):
                advance(state, prediction)
            assert int(state.index) == len(table)
            made[backend] = state.x.cpu()
    assert len(calls) == (len(table) if joined else 0)
    assert rel(made["triton"], made["reference"]) < 5e-6
