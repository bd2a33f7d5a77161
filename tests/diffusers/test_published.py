"""The loops of diffusers' own scheduler tests: a network x t / (t + 1), from a ramp.

The sums and means of |images| are what diffusers 0.42.1 prints for these configurations; DDPM's, DDIM's and LCM's stand
in its tests too.
"""

import diffusers
import pytest
import torch

from fastdiff import sample
from fastdiff.diffusers.scheduler import Scheduler
from fastdiff.model import Model

V = dict(prediction_type="v_prediction")
KARRAS = dict(use_karras_sigmas=True)
DPM = dict(solver_order=2, lower_order_final=False)
LATER = dict(clip_sample=True, beta_start=0.01)
STABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
PRINTED = [
    ("DDPM", 1000, {}, 258.9611, 0.3372),
    ("DDPM", 1000, V, 202.0299, 0.2631),
    ("DDIM", 10, dict(clip_sample=True), 172.0067, 0.2240),
    ("DDIM", 10, dict(clip_sample=True, **V), 52.5302, 0.0684),
    ("DDIM", 10, dict(set_alpha_to_one=True, **LATER), 149.8295, 0.1951),
    ("DDIM", 10, dict(set_alpha_to_one=False, **LATER), 149.0784, 0.1941),
    ("DPMSolverMultistep", 10, DPM, 185.0114, 0.2409),
    ("DPMSolverMultistep", 10, dict(**DPM, **V), 75.6620, 0.0985),
    ("DPMSolverMultistep", 10, dict(**DPM, **V, **KARRAS), 160.6562, 0.2092),
    ("DPMSolverSinglestep", 10, dict(solver_order=2), 174.9405, 0.2278),
    ("UniPCMultistep", 10, {}, 186.7620, 0.2432),
    ("UniPCMultistep", 10, KARRAS, 230.1783, 0.2997),
    ("UniPCMultistep", 10, V, 76.5825, 0.0997),
    ("UniPCMultistep", 10, dict(**V, **KARRAS), 160.8444, 0.2094),
    ("EulerDiscrete", 10, dict(num_train_timesteps=1100), 168.0516, 0.2188),
    ("EulerDiscrete", 10, dict(num_train_timesteps=1100, **V), 46.9141, 0.0611),
    ("EulerDiscrete", 10, dict(num_train_timesteps=1100, **KARRAS), 156.6845, 0.2040),
    ("EulerAncestralDiscrete", 10, dict(num_train_timesteps=1100), 233.2862, 0.3038),
    ("EulerAncestralDiscrete", 10, dict(num_train_timesteps=1100, **V), 137.2153, 0.1787),
    ("HeunDiscrete", 10, dict(num_train_timesteps=1100), 244.6025, 0.3185),
    ("HeunDiscrete", 10, dict(num_train_timesteps=1100, **V), 116.0958, 0.1512),
    ("HeunDiscrete", 10, dict(num_train_timesteps=1100, **KARRAS), 248.2057, 0.3232),
    ("KDPM2Discrete", 10, dict(num_train_timesteps=1100), 218.2556, 0.2842),
    ("DEISMultistep", 10, dict(solver_order=2), 183.6766, 0.2392),
    ("LCM", 1, STABLE, 18.7097, 0.0244),
    ("LCM", 10, STABLE, 197.7616, 0.2575),
]


class Shrinking(torch.nn.Module):
    def forward(self, x, t):
        t = t.view(-1, 1, 1, 1).to(x)
        return x * t / (t + 1)


@pytest.fixture(scope="module")
def drawn():
    """Theirs come one after another out of torch's generator, seeded with 0."""
    dice = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 8, 8, generator=dice) for _ in range(1000)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, steps, options, total, mean", PRINTED)
def test_what_theirs_print(name, steps, options, total, mean, drawn):
    ramp = (torch.arange(768.0).view(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)
    given = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", **options}
    made = Scheduler.of(getattr(diffusers, f"{name}Scheduler")(**given))
    model = Model(
        Shrinking(),
        made.schedule,
        prediction_type=made.prediction_type,
        image_shape=(3, 8, 8),
        clip=made.clip,
        scheduler=made,
    )
    images = sample(
        model, 4, steps=steps, noise=lambda draw, first, shape: drawn[draw - 1] if draw else ramp, device="cpu"
    )
    assert float(images.abs().sum()) == pytest.approx(total, abs=1e-2)
    assert float(images.abs().mean()) == pytest.approx(mean, abs=1e-3)
