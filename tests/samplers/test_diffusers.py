"""Whole loops against diffusers' schedulers: the same nodes, the same noise, the same network outputs."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from fastdiff import Model, make_schedule, sample

T = 200
# float32 loops of up to 200 steps, and their float32 schedule against ours in float64
BOUND = 1e-4


class Wavy(torch.nn.Module):
    """A cheap network of x and t that is neither linear nor constant."""

    def forward(self, x, t):
        return torch.sin(2 * x + 0.01 * t.view(-1, 1, 1, 1).float()) * 0.8 + 0.1


def model(kind="epsilon", name="linear"):
    return Model(Wavy(), make_schedule(name, T), prediction_type=kind, image_shape=(1, 6, 5))


def noise(draw, first, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + draw))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing, steps", [("leading", 25), ("trailing", 40), ("linspace", 200), ("trailing", 1)])
@pytest.mark.parametrize("eta, clip", [(0.0, None), (0.7, None), (1.0, 1.0)])
def test_ddim_where_the_nodes_agree(kind, spacing, steps, eta, clip, rel):
    """Their DDIM takes t - T // n for the next node, ours the next of the list: equal where n divides T."""
    scheduler = DDIMScheduler(
        T,
        1e-4,
        0.02,
        "linear",
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        prediction_type=kind,
        timestep_spacing=spacing,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(steps)
    x = noise(0, 0, (3, 1, 6, 5))
    for i, t in enumerate(scheduler.timesteps):
        out = Wavy()(x, torch.full((3,), int(t)))
        x = scheduler.step(
            out, t, x, eta=eta, use_clipped_model_output=True, variance_noise=noise(i + 1, 0, x.shape) if eta else None
        ).prev_sample
    ours = sample(model(kind), 3, "ddim", steps=steps, eta=eta, spacing=spacing, clip=clip, noise=noise, device="cpu")
    assert rel(ours, x) < BOUND


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("variance, sampler", [("fixed_small", "ddpm"), ("fixed_large", "ddpm_large")])
def test_ddpm_on_all_timesteps(name, variance, sampler, rel, monkeypatch):
    betas = make_schedule(name, T).betas.astype(np.float32)
    scheduler = DDPMScheduler(T, trained_betas=betas, variance_type=variance, clip_sample=True)
    draws = iter(range(1, T))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, **_: noise(next(draws), 0, shape)
    )
    x = noise(0, 0, (3, 1, 6, 5))
    scheduler.set_timesteps(T)
    for t in scheduler.timesteps:
        x = scheduler.step(Wavy()(x, torch.full((3,), int(t))), t, x).prev_sample
    ours = sample(model(name=name), 3, sampler, steps=T, clip=1.0, noise=noise, device="cpu")
    assert rel(ours, x) < BOUND


class TwoHalves(torch.nn.Module):
    """A prediction and, in as many channels more, a variance."""

    def forward(self, x, t):
        out = Wavy()(x, t)
        return torch.cat((out, torch.cos(3 * x) * out), 1)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddpm_with_a_learned_variance(name, rel, monkeypatch):
    schedule = make_schedule(name, 50)
    scheduler = DDPMScheduler(
        50, trained_betas=schedule.betas.astype(np.float32), variance_type="learned_range", clip_sample=True
    )
    scheduler.betas = torch.tensor(schedule.betas)  # in float64, as x is
    scheduler.alphas_cumprod = torch.tensor(schedule.alphas_cumprod)
    draws = iter(range(1, 50))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, **_: noise(next(draws), 0, shape).double()
    )
    x = noise(0, 0, (3, 2, 6, 5)).double()
    scheduler.set_timesteps(50)
    for t in scheduler.timesteps:
        x = scheduler.step(TwoHalves()(x, torch.full((3,), int(t))), t, x).prev_sample
    learned = Model(TwoHalves(), schedule, image_shape=(2, 6, 5), learned_variance=True)
    ours = sample(learned, 3, "ddpm", clip=1.0, noise=noise, device="cpu")
    assert rel(ours, x) < 1e-5


@pytest.mark.parametrize("sampler, algorithm", [("dpmpp_2m", "dpmsolver++"), ("dpmpp_2m_sde", "sde-dpmsolver++")])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [2, 3, 15, 50])
def test_dpm_solver(sampler, algorithm, kind, steps, rel):
    scheduler = DPMSolverMultistepScheduler(
        T,
        1e-4,
        0.02,
        "linear",
        solver_order=2,
        prediction_type=kind,
        algorithm_type=algorithm,
        solver_type="midpoint",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        lower_order_final=True,
        euler_at_final=True,
    )
    scheduler.set_timesteps(steps)
    x = noise(0, 0, (3, 1, 6, 5))
    for i, t in enumerate(scheduler.timesteps):
        out = Wavy()(x, torch.full((3,), int(t)))
        x = scheduler.step(out, t, x, variance_noise=noise(i + 1, 0, x.shape)).prev_sample
    ours = sample(model(kind), 3, sampler, steps=steps, noise=noise, device="cpu")
    assert rel(ours, x) < BOUND


def test_dynamic_clipping(rel):
    scheduler = DDIMScheduler(
        T,
        1e-4,
        0.02,
        "linear",
        clip_sample=False,
        thresholding=True,
        dynamic_thresholding_ratio=0.9,
        sample_max_value=1e9,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(20)
    x = noise(0, 0, (3, 1, 6, 5))
    for t in scheduler.timesteps:
        out = Wavy()(x, torch.full((3,), int(t)))
        x = scheduler.step(out, t, x, use_clipped_model_output=True).prev_sample
    ours = sample(model(), 3, "ddim", steps=20, clip=("dynamic", 0.9), noise=noise, device="cpu")
    assert rel(ours, x) < BOUND
    unclipped = sample(model(), 3, "ddim", steps=20, noise=noise, device="cpu")
    assert rel(unclipped, x) > 0.01  # the setting does something


@pytest.mark.parametrize("strength, rows", [(0.04, 1), (0.3, 7), (0.6, 15), (1.0, 25)])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "dpmpp_2m_sde"])
def test_beginning_with_a_picture(name, strength, rows, rel):
    """As their image-to-image pipelines: the last int(strength n) steps, and no history at first."""
    if name == "ddim":
        scheduler = DDIMScheduler(T, 1e-4, 0.02, "linear", clip_sample=False, timestep_spacing="trailing")
    else:
        scheduler = DPMSolverMultistepScheduler(
            T,
            1e-4,
            0.02,
            "linear",
            algorithm_type="dpmsolver++" if name == "dpmpp_2m" else "sde-dpmsolver++",
            timestep_spacing="trailing",
            final_sigmas_type="zero",
            euler_at_final=True,
        )
    scheduler.set_timesteps(25)
    timesteps = scheduler.timesteps[25 - rows :]
    if name != "ddim":
        scheduler.set_begin_index(25 - rows)
    pictures = noise(77, 0, (3, 1, 6, 5))
    alpha = float(scheduler.alphas_cumprod[timesteps[0]]) ** 0.5
    x = alpha * pictures + (1 - alpha**2) ** 0.5 * noise(0, 0, pictures.shape)
    for i, t in enumerate(timesteps):
        out, drawn = Wavy()(x, torch.full((3,), int(t))), noise(i + 1, 0, x.shape)
        x = scheduler.step(out, t, x, **({"variance_noise": drawn} if name != "ddim" else {})).prev_sample
    ours = sample(model(), 3, name, steps=25, init=pictures, strength=strength, noise=noise, device="cpu")
    assert rel(ours, x) < BOUND
