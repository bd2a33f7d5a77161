"""Tables of diffusers' schedulers: loops by their coefficients against the schedulers' own, and what is refused."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from fastdiff.diffusers.scheduler import Scheduler
from fastdiff.diffusers.unit_vectors import looped

T = 1000
SHAPE = (2, 3, 4, 5)
# Theirs run in float32; where x0 is clipped at noisy steps it is 160 times the network's rounding, but bounded.
BOUND = 2e-5

DPM, ANCESTRAL = DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
CASES = [
    (DDPMScheduler, {}),
    (DDPMScheduler, dict(variance_type="fixed_large", clip_sample=False)),
    (DDPMScheduler, dict(prediction_type="v_prediction", clip_sample_range=0.7, timestep_spacing="trailing")),
    (DDPMScheduler, dict(variance_type="fixed_small_log", beta_schedule="squaredcos_cap_v2")),
    (DDPMScheduler, dict(thresholding=True, sample_max_value=1e9, dynamic_thresholding_ratio=0.8)),
    (DDIMScheduler, {}),
    (DDIMScheduler, dict(prediction_type="v_prediction", timestep_spacing="trailing", set_alpha_to_one=False)),
    (DDIMScheduler, dict(prediction_type="sample", timestep_spacing="linspace", beta_schedule="scaled_linear")),
    (DDIMScheduler, dict(clip_sample=False, steps_offset=1, set_alpha_to_one=False)),
    (DDIMScheduler, dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")),
    (DDIMScheduler, dict(trained_betas=np.linspace(1e-3, 3e-2, T).tolist(), thresholding=True)),
    (DPM, {}),
    (DPM, dict(solver_order=3, use_karras_sigmas=True)),
    (DPM, dict(algorithm_type="sde-dpmsolver++", euler_at_final=True)),
    (DPM, dict(solver_type="heun", final_sigmas_type="sigma_min", lower_order_final=False)),
    (DPM, dict(thresholding=True, prediction_type="sample")),
    (DPMSolverSinglestepScheduler, dict(solver_order=2)),
    (UniPCMultistepScheduler, {}),
    (UniPCMultistepScheduler, dict(solver_order=3, use_karras_sigmas=True, final_sigmas_type="sigma_min")),
    (UniPCMultistepScheduler, dict(solver_type="bh1", final_sigmas_type="sigma_min")),
    (EulerDiscreteScheduler, {}),
    (EulerDiscreteScheduler, dict(use_karras_sigmas=True, prediction_type="v_prediction")),
    (EulerDiscreteScheduler, dict(use_exponential_sigmas=True, timestep_spacing="trailing")),
    (ANCESTRAL, {}),
    (ANCESTRAL, dict(prediction_type="v_prediction", timestep_spacing="leading")),
    (HeunDiscreteScheduler, dict(clip_sample=True)),
    (HeunDiscreteScheduler, dict(use_karras_sigmas=True)),
    (KDPM2DiscreteScheduler, {}),
    (KDPM2AncestralDiscreteScheduler, {}),
    (DEISMultistepScheduler, {}),
    (LCMScheduler, dict(clip_sample=True)),
    (TCDScheduler, {}),
]


def network(x, t):
    """Neither linear nor constant; float32, as the schedulers are."""
    return torch.sin(2 * torch.as_tensor(x).float() + 0.01 * float(t)) * 0.8 + 0.1


def own_loop(scheduler, normals, **more):
    """A loop of the scheduler's own, its noise in place of what it would draw."""
    draws = iter(normals[1:])
    module = type(scheduler).__module__
    with pytest.MonkeyPatch.context() as patch:
        if "randn_tensor" in vars(__import__(module, fromlist=["x"])):
            patch.setattr(f"{module}.randn_tensor", lambda *_, **__: next(draws))
        x = normals[0] * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            out = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(out, t, x, return_dict=False, **more)[0]
    return x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("kind, options", CASES, ids=lambda value: getattr(value, "__name__", None) or str(value))
def test_a_loop_by_the_table_is_the_schedulers_own(kind, options, steps):
    scheduler = kind(num_train_timesteps=T, **options)
    try:
        scheduler.set_timesteps(steps)
        normals = torch.randn(len(scheduler.timesteps) + 1, *SHAPE, generator=torch.Generator().manual_seed(steps))
        theirs = own_loop(scheduler, normals)
    except (ValueError, IndexError, AssertionError):
        pytest.skip("it does not run itself with so few steps")
    if not torch.isfinite(theirs).all():
        pytest.skip("its own images are not finite with so few steps")
    table = Scheduler.of(kind(num_train_timesteps=T, **options)).table(steps)
    assert table.time.tolist() == [float(t) for t in scheduler.timesteps]
    ours, largest = looped(
        table, lambda x, t: network(x, t).double().numpy(), normals.double().numpy(), clip_of(options, kind)
    )
    assert np.abs(ours - theirs.numpy()).max() < BOUND * max(largest, 1)


def clip_of(options, kind):
    return Scheduler.of(kind(num_train_timesteps=T, **options)).clip
