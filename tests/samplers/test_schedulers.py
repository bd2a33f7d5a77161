"""Tables against diffusers' live schedulers: entries by their names, formulas on the schedulers' own levels.

The tables are run in NumPy and float64, and the schedulers as far as they allow it: some make their samples float32,
and all round the sigmas that they choose.
"""

import itertools
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from fastdiff import make_schedule, make_table
from fastdiff.samplers.ddim import ddim_keeping_noise, ddpm, ddpm_large, ddpm_learned
from fastdiff.samplers.euler import euler
from fastdiff.samplers.integrators import dpmpp, unipc
from fastdiff.samplers.path import Path, levels
from fastdiff.samplers.prediction import preconditioned
from fastdiff.samplers.samplers import tabulate

T = 200
SCHEDULE = make_schedule("linear", T)
BETAS = SCHEDULE.betas.astype(np.float32)
BOUND = 2e-5  # where sigmas or samples are rounded to float32
TIGHT = 1e-9  # where nothing is
SHAPE = (2, 1, 4, 3)
SIGMAS = {None: {}, "karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}


def network(x, time):
    """Neither linear nor constant, of arrays and tensors."""
    sin = torch.sin if isinstance(x, torch.Tensor) else np.sin
    return 0.8 * sin(2 * x + 0.01 * float(time)) + 0.1


def variance(x, time):
    cos = torch.cos if isinstance(x, torch.Tensor) else np.cos
    return cos(3 * x - 0.02 * float(time))


def draw(row):
    return np.random.default_rng(1000 + row).standard_normal(SHAPE)


@pytest.fixture
def drive(monkeypatch):
    """A scheduler's own loop, from x as the scheduler has it, with the noise of row i in its step i."""

    def loop(scheduler, x, learned=False, **more):
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
            if learned:
                out = torch.cat([out, variance(given, time)], dim=1)
            x = scheduler.step(out, time, x, **more).prev_sample
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


def path_of(scheduler):
    """The scheduler's own timesteps and levels."""
    alpha, sigma = levels(scheduler.sigmas.double().numpy())
    return Path.through(
        scheduler.timesteps.double(), alpha[:-1], sigma[:-1], alpha_last=alpha[-1], sigma_last=sigma[-1]
    )


# --- the entries ---


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


# --- the formulas, on levels from elsewhere ---


ENDS = [("trailing", "zero"), ("linspace", "sigma_min"), ("leading", "zero")]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("lower, at_final", [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("spacing, end", ENDS)
def test_dpm_solver(order, sde, solver_type, lower, at_final, spacing, end, drive, run, rel):
    theirs = DPMSolverMultistepScheduler(
        T,
        trained_betas=BETAS,
        solver_order=order,
        algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
        solver_type=solver_type,
        lower_order_final=lower,
        euler_at_final=at_final,
        timestep_spacing=spacing,
        final_sigmas_type=end,
    )
    options = {"sde": sde, "solver_type": solver_type, "lower_order_final": lower, "euler_at_final": at_final}
    for steps in (1, 2, 5, 14, 20):
        theirs.set_timesteps(steps)
        path = path_of(theirs)
        table = tabulate("dpmpp", path, dpmpp(path, order, **options), prediction_type="epsilon")
        assert rel(run(table, network, draw(-1), draw), drive(theirs, draw(-1))) < BOUND, steps


@pytest.mark.parametrize("sigmas", ["karras", "exponential"])
def test_dpm_solver_on_spread_sigmas(sigmas, drive, run, rel):
    theirs = DPMSolverMultistepScheduler(
        T, trained_betas=BETAS, timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2", **SIGMAS[sigmas]
    )
    theirs.set_timesteps(10)
    path = path_of(theirs)
    table = tabulate("dpmpp", path, dpmpp(path), prediction_type="epsilon")
    assert rel(run(table, network, draw(-1)), drive(theirs, draw(-1))) < BOUND


# Their bh1 is NaN where the end is clean, and so is order 2 there.
UNIPC = [
    ("bh2", True, "trailing", "zero"),
    ("bh2", True, "leading", "zero"),
    ("bh2", True, "linspace", "sigma_min"),
    ("bh2", False, "linspace", "sigma_min"),
    ("bh1", True, "trailing", "sigma_min"),
    ("bh1", False, "linspace", "sigma_min"),
]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type, lower, spacing, end", UNIPC)
@pytest.mark.parametrize("disabled", [[], [0, 2]])
def test_unipc(order, solver_type, lower, spacing, end, disabled, drive, run, rel):
    theirs = UniPCMultistepScheduler(
        T,
        trained_betas=BETAS,
        solver_order=order,
        solver_type=solver_type,
        lower_order_final=lower,
        disable_corrector=disabled,
        timestep_spacing=spacing,
        final_sigmas_type=end,
    )
    options = {"solver_type": solver_type, "lower_order_final": lower, "disable_corrector": disabled}
    for steps in (1, 2, 5, 20):
        theirs.set_timesteps(steps)
        path = path_of(theirs)
        table = tabulate("unipc", path, unipc(path, order, **options), prediction_type="epsilon")
        assert rel(run(table, network, draw(-1)), drive(theirs, draw(-1))) < TIGHT, steps


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spread", ["karras", "exponential"])
@pytest.mark.parametrize(
    "order, sde, end",
    [
        *itertools.product((0, 1, 2, 3), (False,), ("zero", "sigma_min")),
        *itertools.product((1, 2), (True,), ("zero",)),  # their SDE to sigma_min is NaN
    ],
)
def test_edm_schedulers(kind, spread, order, sde, end, drive, run, rel):
    """Their networks are given X / sqrt(sigma^2 + sigma_data^2), and log(sigma) / 4 for the time."""
    common = {"sigma_schedule": spread, "final_sigmas_type": end, "prediction_type": kind, "sigma_data": 0.4}
    if order:
        algorithm = "sde-dpmsolver++" if sde else "dpmsolver++"
        # Their last step to sigma_min has no length, and is NaN in order 3.
        more = {"euler_at_final": order == 3}
        theirs = EDMDPMSolverMultistepScheduler(solver_order=order, algorithm_type=algorithm, **common, **more)
    else:
        theirs = EDMEulerScheduler(**common)
    theirs.set_timesteps(18)
    sigmas = theirs.sigmas.double().numpy()
    alpha = 1 / np.sqrt(sigmas**2 + 0.4**2)
    path = Path.through(
        theirs.timesteps.double(), alpha[:-1], (sigmas * alpha)[:-1], alpha_last=1.0, sigma_last=sigmas[-1]
    )
    table = tabulate(
        "edm",
        path,
        dpmpp(path, order, sde=sde, euler_at_final=order == 3) if order else euler(path),
        prediction_type=kind,
        reading=lambda kind, alpha, sigma: preconditioned(kind, alpha, sigma, sigma_data=0.4),
    )
    start = draw(-1)
    assert rel(run(table, network, start, draw), drive(theirs, start / alpha[0])) < (TIGHT if order else BOUND)


def ddim_path(scheduler):
    """DDIM goes to t - T // n, whatever its next node is."""
    abar, steps = scheduler.alphas_cumprod.double().numpy(), scheduler.num_inference_steps
    timestep = scheduler.timesteps.numpy()
    after = timestep - T // steps
    abar_next = np.where(after >= 0, abar[after], float(scheduler.final_alpha_cumprod))
    return Path(
        timestep, np.sqrt(abar[timestep]), np.sqrt(1 - abar[timestep]), np.sqrt(abar_next), np.sqrt(1 - abar_next)
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("spacing, steps", [("leading", 30), ("trailing", 20), ("linspace", 7)])
def test_ddim_whose_clip_keeps_the_noise(kind, eta, to_one, spacing, steps, drive, run, rel):
    theirs = in_float64(
        DDIMScheduler(T, clip_sample=True, prediction_type=kind, set_alpha_to_one=to_one, timestep_spacing=spacing)
    )
    theirs.set_timesteps(steps)
    path = ddim_path(theirs)
    table = tabulate("ddim", path, ddim_keeping_noise(path, eta, prediction_type=kind), prediction_type=kind)
    wanted = drive(theirs, draw(-1), eta=eta)
    assert rel(run(table, network, draw(-1), draw, clip=1.0), wanted) < TIGHT
    if kind == "epsilon":
        assert rel(run(table, network, draw(-1), draw), wanted) > 0.01  # it clips


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing, steps", [("leading", 30), ("trailing", 20), ("trailing", 200)])
@pytest.mark.parametrize("kept, formula", [("fixed_small", ddpm), ("fixed_large", ddpm_large)])
def test_ddpm(kind, spacing, steps, kept, formula, drive, run, rel):
    theirs = in_float64(
        DDPMScheduler(T, variance_type=kept, clip_sample=True, prediction_type=kind, timestep_spacing=spacing)
    )
    theirs.set_timesteps(steps)
    path = Path.at(SCHEDULE, theirs.timesteps.numpy())
    more = {"noise_at_end": int(theirs.timesteps[-1]) > 0} if kept == "fixed_large" else {}
    table = tabulate(
        "ddpm", path, formula(path, **more), prediction_type=kind, preserves_variance=kept == "fixed_small"
    )
    assert rel(run(table, network, draw(-1), draw, clip=1.0), drive(theirs, draw(-1))) < TIGHT


@pytest.mark.parametrize("steps", [20, 200])
def test_ddpm_of_learned_variance(steps, drive, run, rel):
    theirs = in_float64(DDPMScheduler(T, variance_type="learned_range", clip_sample=False, timestep_spacing="leading"))
    theirs.set_timesteps(steps)
    path = Path.at(SCHEDULE, theirs.timesteps.numpy())
    table = tabulate("ddpm", path, ddpm_learned(path), prediction_type="epsilon")
    wanted = drive(theirs, draw(-1), learned=True)
    assert rel(run(table, network, draw(-1), draw, variance=variance), wanted) < TIGHT
    assert rel(run(table, network, draw(-1), draw), wanted) > 0.001


def test_timesteps_of_ones_own(drive, run, rel):
    asked = [190, 120, 60, 22, 5]
    theirs = EulerDiscreteScheduler(T, trained_betas=BETAS)
    theirs.set_timesteps(timesteps=asked)
    table = make_table("euler", SCHEDULE, timesteps=asked)
    assert np.array_equal(table.timestep, asked)
    start = draw(-1) * table.init_noise_sigma
    assert rel(run(table, network, start), drive(theirs, start * ve(theirs))) < BOUND
