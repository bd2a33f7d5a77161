"""Samplers by their names against diffusers' live schedulers.

The tables are run in NumPy and float64, and the schedulers as far as they allow it: some make their samples float32,
and all round the sigmas that they choose.
"""

import sys

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from fastdiff import make_schedule, make_table

T = 200
SCHEDULE = make_schedule("linear", T)
BETAS = SCHEDULE.betas.astype(np.float32)
BOUND = 2e-5  # where sigmas or samples are rounded to float32
SHAPE = (2, 1, 4, 3)
SIGMAS = {None: {}, "karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}


def network(x, time):
    """Neither linear nor constant, of arrays and tensors."""
    sin = torch.sin if isinstance(x, torch.Tensor) else np.sin
    return 0.8 * sin(2 * x + 0.01 * float(time)) + 0.1


def draw(row):
    return np.random.default_rng(1000 + row).standard_normal(SHAPE)


@pytest.fixture
def drive(monkeypatch):
    """A scheduler's own loop, from x as the scheduler has it, with the noise of row i in its step i."""

    def loop(scheduler, x):
        at = 0
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = scheduler.sigmas.double()
        monkeypatch.setattr(
            sys.modules[type(scheduler).__module__],
            "randn_tensor",
            lambda *_, **__: torch.from_numpy(draw(at)),
            raising=False,
        )
        x = torch.from_numpy(x)
        for at, time in enumerate(scheduler.timesteps):  # noqa: B007  the noise is at's
            given = scheduler.scale_model_input(x, time)
            out = network(given, time)
            x = scheduler.step(out, time, x).prev_sample
        return x.double().numpy()

    return loop


def in_float64(scheduler):
    """With the schedule as it is, not rounded."""
    scheduler.alphas_cumprod = torch.from_numpy(SCHEDULE.alphas_cumprod.copy())
    if hasattr(scheduler, "final_alpha_cumprod"):
        to_one = scheduler.config.set_alpha_to_one
        scheduler.final_alpha_cumprod = torch.tensor(1.0).double() if to_one else scheduler.alphas_cumprod[0]
    return scheduler


def ve(scheduler):
    """What turns x into the unscaled X that this scheduler keeps."""
    return float(1 + scheduler.sigmas[0].double() ** 2) ** 0.5


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigmas", SIGMAS)
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("sampler, scheduler", [("euler", EulerDiscreteScheduler), ("heun", HeunDiscreteScheduler)])
def test_euler_and_heun(sampler, scheduler, spacing, sigmas, kind, steps, drive, run, rel):
    theirs = scheduler(T, trained_betas=BETAS, timestep_spacing=spacing, prediction_type=kind, **SIGMAS[sigmas])
    if steps == 1 and sigmas == "karras":
        sigmas = None  # their Karras of one step is the same node
    theirs.set_timesteps(steps)
    table = make_table(sampler, SCHEDULE, steps, spacing=spacing, sigmas=sigmas, prediction_type=kind)
    assert np.allclose(table.time, theirs.timesteps, atol=1e-3)
    start = draw(-1) * table.init_noise_sigma
    assert rel(run(table, network, start), drive(theirs, start * ve(theirs))) < BOUND


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_euler_ancestral(spacing, kind, steps, drive, run, rel):
    theirs = EulerAncestralDiscreteScheduler(T, trained_betas=BETAS, timestep_spacing=spacing, prediction_type=kind)
    theirs.set_timesteps(steps)
    table = make_table("euler_ancestral", SCHEDULE, steps, spacing=spacing, prediction_type=kind)
    start = draw(-1) * table.init_noise_sigma
    assert rel(run(table, network, start, draw), drive(theirs, start * ve(theirs))) < BOUND


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_they_begin_with_noise_of_the_first_level(scheduler, spacing):
    theirs = scheduler(T, trained_betas=BETAS, timestep_spacing=spacing)
    theirs.set_timesteps(12)
    name = {"EulerDiscrete": "euler", "HeunDiscrete": "heun"}.get(
        scheduler.__name__.removesuffix("Scheduler"), "euler_ancestral"
    )
    table = make_table(name, SCHEDULE, 12, spacing=spacing)
    assert table.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma) / ve(theirs), rel=1e-5)
    assert table.init_noise_sigma < 0.95  # T = 200 ends short of pure noise


@pytest.mark.parametrize("steps", [2, 7, 30])
def test_edm(steps, drive, run, rel):
    theirs = HeunDiscreteScheduler(T, trained_betas=BETAS, timestep_spacing="linspace", use_karras_sigmas=True)
    theirs.set_timesteps(steps)
    table = make_table("edm", SCHEDULE, steps)
    start = draw(-1) * table.init_noise_sigma
    assert rel(run(table, network, start), drive(theirs, start * ve(theirs))) < BOUND


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_edm_with_churn_is_algorithm_2(eta, run, rel):
    """Written out from Karras et al. 2022 with X = x0 + sigma noise; gamma = eta (sqrt(2) - 1), sigma_0 the most."""
    steps = 12
    table = make_table("edm", SCHEDULE, steps, eta=eta)
    abar = SCHEDULE.alphas_cumprod
    known = np.sqrt((1 - abar) / abar)
    sigmas = (known[-1] ** (1 / 7) + np.arange(steps) / (steps - 1) * (known[0] ** (1 / 7) - known[-1] ** (1 / 7))) ** 7

    def denoised(x, sigma):
        time = np.interp(np.log(sigma), np.log(known), np.arange(T))
        return x - sigma * network(x / np.sqrt(1 + sigma**2), time)

    x = sigmas[0] * draw(-1)
    for i, sigma in enumerate(sigmas):
        hat = min(sigma * (1 + eta * (2**0.5 - 1)), sigmas[0])
        x = x + np.sqrt(hat**2 - sigma**2) * (draw(2 * i - 1) if i else 0.0)  # of the row before
        slope = (x - denoised(x, hat)) / hat
        after = sigmas[i + 1] if i + 1 < steps else 0.0
        euler_step = x + (after - hat) * slope
        if after:
            slope = (slope + (euler_step - denoised(euler_step, after)) / after) / 2
        x = x + (after - hat) * slope
    assert rel(run(table, network, draw(-1) * table.init_noise_sigma, draw), x) < 1e-9


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 14, 15, 40])
def test_dpmpp_3m_and_unipc(kind, steps, drive, run, rel):
    common = {"trained_betas": BETAS, "timestep_spacing": "trailing", "prediction_type": kind}
    for name, theirs in (
        ("dpmpp_3m", DPMSolverMultistepScheduler(T, solver_order=3, **common)),
        ("unipc", UniPCMultistepScheduler(T, **common)),
    ):
        theirs.set_timesteps(steps)
        table = make_table(name, SCHEDULE, steps, prediction_type=kind)
        assert rel(run(table, network, draw(-1)), drive(theirs, draw(-1))) < BOUND, name


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 50])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_lcm(kind, steps, clip, drive, run, rel):
    theirs = in_float64(
        LCMScheduler(T, prediction_type=kind, clip_sample=clip is not None, original_inference_steps=50)
    )
    theirs.set_timesteps(steps)
    table = make_table("lcm", SCHEDULE, steps, prediction_type=kind)
    assert np.array_equal(table.timestep, theirs.timesteps)
    assert rel(run(table, network, draw(-1), draw, clip), drive(theirs, draw(-1))) < 1e-6  # c_skip, c_out


def test_timesteps_of_ones_own(drive, run, rel):
    asked = [190, 120, 60, 22, 5]
    theirs = EulerDiscreteScheduler(T, trained_betas=BETAS)
    theirs.set_timesteps(timesteps=asked)
    table = make_table("euler", SCHEDULE, timesteps=asked)
    assert np.array_equal(table.timestep, asked)
    start = draw(-1) * table.init_noise_sigma
    assert rel(run(table, network, start), drive(theirs, start * ve(theirs))) < BOUND
