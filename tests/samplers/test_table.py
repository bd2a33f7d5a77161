"""Step tables: invariants, the published formulas, spacings, and the order of convergence on a Gaussian."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff import InputError, Schedule, StepTable, make_schedule, make_table
from fastdiff.bench.peers.reference import CourseLoop
from fastdiff.samplers.prediction import PREDICTION_TYPES
from fastdiff.samplers.samplers import SAMPLERS
from fastdiff.samplers.schedule import NAMES
from fastdiff.samplers.spacing import SPACINGS, spaced


@given(
    name=st.sampled_from(NAMES),
    timesteps=st.integers(1, 1000),
    share=st.floats(0, 1),
    sampler=st.sampled_from(list(SAMPLERS)),
    spacing=st.sampled_from(["trailing", "leading", "linspace"]),
    kind=st.sampled_from(PREDICTION_TYPES),
    eta=st.floats(0, 1),
)
def test_every_table_builds_and_holds_its_invariants(name, timesteps, share, sampler, spacing, kind, eta):
    """Building checks a alpha + b + c = alpha' and a^2 sigma^2 + s^2 = sigma'^2; here also what every run needs."""
    steps = 1 + int(share * (timesteps - 1))
    schedule = make_schedule(name, timesteps)
    table = make_table(
        sampler, schedule, steps, eta=eta if SAMPLERS[sampler].takes_eta else 0.0, spacing=spacing, prediction_type=kind
    )
    assert len(table) == steps
    assert (np.diff(table.timestep) < 0).all()
    assert schedule.first <= table.timestep[-1] and table.timestep[0] < schedule.first + timesteps
    assert table.s[-1] == 0 and table.c[0] == 0
    # The last step lands on x0 (for the course's fixed-large row, on its own alpha').
    assert table.a[-1] * table.alpha[-1] + table.b[-1] + table.c[-1] == pytest.approx(table.alpha_next[-1], abs=1e-12)
    # p and q recover x0 = 0.7 from x = alpha x0 + sigma eps with eps = -1.3
    x0, eps = 0.7, -1.3
    out = {"epsilon": eps, "sample": x0, "v_prediction": table.alpha * eps - table.sigma * x0}[kind]
    x = table.alpha * x0 + table.sigma * eps
    assert np.allclose(table.p * x + table.q * out, x0, rtol=1e-6)


@pytest.mark.parametrize("timesteps", [200, 500, 1000])
def test_every_number_of_steps(timesteps):
    schedule = make_schedule("linear", timesteps)
    for steps in range(1, timesteps + 1):
        assert len(make_table("ddim", schedule, steps)) == steps


def test_spacings_are_diffusers_own():
    from diffusers import DDIMScheduler

    for timesteps in (200, 500, 1000):
        schedulers = {
            spacing: DDIMScheduler(num_train_timesteps=timesteps, timestep_spacing=spacing)
            for spacing in ("trailing", "leading", "linspace")
        }
        for steps in range(1, timesteps + 1):
            for spacing, scheduler in schedulers.items():
                scheduler.set_timesteps(steps)
                theirs = scheduler.timesteps.numpy()
                # For some counts their arange runs one node too far, to timestep -1: the published n are the first n.
                assert np.array_equal(spaced(timesteps, steps, spacing), theirs[:steps]), (spacing, steps)


def test_course_spacing():
    assert np.array_equal(spaced(500, 20, "course") + 1, np.arange(500, 0, -25))
    with pytest.raises(InputError, match="steps = 30 with spacing 'course'; accepted: a divisor of 500"):
        spaced(500, 30, "course")


def test_unit_stride_ddim_with_eta_1_is_the_ddpm_posterior():
    schedule = make_schedule("linear", 200)
    table = make_table("ddpm", schedule, 200)
    t = table.timestep.astype(int)
    beta, abar = schedule.betas[t], schedule.alphas_cumprod[t]
    abar_prev = np.append(abar[1:], 1.0)
    # Ho et al. 2020, eq. 7: the posterior mean's coefficients of x_t and x_0, and its variance
    assert np.allclose(table.a, np.sqrt(1 - beta) * (1 - abar_prev) / (1 - abar), atol=1e-12)
    assert np.allclose(table.b, np.sqrt(abar_prev) * beta / (1 - abar), atol=1e-12)
    assert np.allclose(table.s**2, beta * (1 - abar_prev) / (1 - abar), atol=1e-14)


@pytest.mark.parametrize("sampler", ["ddpm_large", "ddpm_no_noise"])
def test_fixed_large_is_the_course_step(sampler):
    table, loop = make_table(sampler, make_schedule("course", 500), 500, time="fraction"), CourseLoop(500)
    a, ab = loop.a_t.double().numpy(), make_schedule("course", 500).alphas_cumprod
    for i in range(500):
        t = 500 - i
        x, eps = 0.4, -0.9
        mean = (x - eps * (1 - a[t]) / math.sqrt(1 - ab[t])) / math.sqrt(a[t])
        x0 = table.p[i] * x + table.q[i] * eps
        assert table.a[i] * x + table.b[i] * x0 == pytest.approx(mean, rel=3e-6, abs=3e-6)
        extra = loop.b_t[t].sqrt() if t > 1 and sampler == "ddpm_large" else 0
        assert table.s[i] == pytest.approx(float(extra), rel=1e-6)
        assert table.time[i] == t / 500


def test_ddim_is_the_course_step():
    table, loop = (
        make_table("ddim", make_schedule("course", 500), 20, spacing="course", time="fraction"),
        CourseLoop(500),
    )
    for i, t in enumerate(range(500, 0, -25)):
        x, eps = 0.4, -0.9
        x0 = table.p[i] * x + table.q[i] * eps
        theirs = float(loop.denoise_ddim(x, t, t - 25, eps))
        assert table.a[i] * x + table.b[i] * x0 == pytest.approx(theirs, rel=2e-5)


def gaussian_run(table: StepTable, sd: float, x: float) -> float:
    """Run a table with the exact network for data N(0, sd^2): E[x0 | x] = alpha sd^2 x / (alpha^2 sd^2 + sigma^2)."""
    x0_prev = 0.0
    for i in range(len(table)):
        alpha, sigma = table.alpha[i], table.sigma[i]
        x0 = alpha * sd**2 * x / (alpha**2 * sd**2 + sigma**2)
        eps = (x - alpha * x0) / sigma
        p, q, a, b, c, _ = table.rows[i]
        predicted = p * x + q * eps
        x, x0_prev = a * x + b * predicted + c * x0_prev, predicted
    return x


def smooth_schedule(timesteps: int) -> Schedule:
    """One continuous noise path at any resolution, log(sigma / alpha) linear from 3 to -5 (Karras-like in log SNR)."""
    logsnr = np.linspace(5, -3, timesteps)
    abar = 1 / (1 + np.exp(-2 * logsnr))
    return Schedule(1 - abar / np.append(1.0, abar[:-1]))


@pytest.mark.parametrize("sampler, order", [("ddim", 1), ("dpmpp_2m", 2)])
def test_order_of_convergence(sampler, order):
    """The global error on an analytic Gaussian falls as h^order; the flow's exact map is a ratio of deviations."""
    sd, x_start = 0.5, 1.3
    errors = []
    counts = (20, 40, 80, 160)
    for steps in counts:
        table = make_table(sampler, smooth_schedule(steps), steps)
        # Leave the last step to x0 out: every sampler does it alike, and it has no error of its own order.
        head = {
            f.name: getattr(table, f.name)[:-1]
            for f in dataclasses.fields(table)
            if isinstance(getattr(table, f.name), np.ndarray)
        }
        inner = dataclasses.replace(table, **head)
        first, last = (
            np.hypot(sd * inner.alpha[0], inner.sigma[0]),
            np.hypot(sd * inner.alpha_next[-1], inner.sigma_next[-1]),
        )
        errors.append(abs(gaussian_run(inner, sd, x_start) - x_start * last / first))
    slopes = np.diff(np.log(errors)) / np.diff(np.log(counts))
    assert -slopes[-1] == pytest.approx(order, abs=0.25), errors


def test_stochastic_samplers_reach_the_data_variance():
    """In closed form: the variance of x through a run, exact Gaussian network, approaches sd^2."""
    sd = 0.5
    for sampler, steps, bound in (
        ("ddpm", 1000, 0.01),
        ("ddim", 1000, 0.01),
        ("dpmpp_2m_sde", 1000, 0.01),
        ("ddpm_large", 1000, 0.02),
    ):
        table = make_table(sampler, smooth_schedule(1000), steps)
        var = np.array([[table.alpha[0] ** 2 * sd**2 + table.sigma[0] ** 2, 0.0], [0.0, 0.0]])  # of (x, x0_prev)
        for i in range(len(table)):
            gain = table.alpha[i] * sd**2 / (table.alpha[i] ** 2 * sd**2 + table.sigma[i] ** 2)  # x0 = gain x
            m = np.array([[table.a[i] + table.b[i] * gain, table.c[i]], [gain, 0.0]])
            var = m @ var @ m.T
            var[0, 0] += table.s[i] ** 2
        assert var[0, 0] == pytest.approx(sd**2, rel=bound), sampler


def test_the_mode_without_extra_noise_collapses():
    """What the course shows: the variance of its samples is far below the data's."""
    sd, table = 0.5, make_table("ddpm_no_noise", smooth_schedule(1000), 1000)
    assert abs(gaussian_run(table, sd, 1.0)) < 0.2 * sd


def test_a_broken_table_is_refused():
    table = make_table("ddim", make_schedule("linear", 100), 10)
    for column, message in (("a", "a alpha"), ("s", r"a\^2 sigma")):
        values = getattr(table, column).copy()
        values[3] += 1e-3
        with pytest.raises(InputError, match=f"table row 3 breaks {message}"):
            dataclasses.replace(table, **{column: values})
    with pytest.raises(InputError, match="c = 0.5 in the first row"):
        dataclasses.replace(table, c=np.full(10, 0.5))
    with pytest.raises(InputError, match="holds nan"):
        dataclasses.replace(table, p=np.full(10, np.nan))
    with pytest.raises(InputError, match="shape"):
        dataclasses.replace(table, q=np.zeros(9))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda s: make_table("dimm", s, 10), ["'dimm'", "did you mean 'ddim'"]),
        (lambda s: make_table("ddim", s, 201), ["201", "1 to 200"]),
        (lambda s: make_table("ddim", s, 0), ["0", "1 to 200"]),
        (lambda s: make_table("ddim", s, 2.0), ["2.0"]),
        (lambda s: make_table("ddim", s, 10, eta=1.5), ["1.5", "0 to 1"]),
        (lambda s: make_table("ddpm", s, 10, eta=0.5), ["0.5", "eta belongs to ddim"]),
        (lambda s: make_table("ddim", s, 10, spacing="trialing"), ["trialing", "did you mean 'trailing'"]),
        (lambda s: make_table("ddim", s, 10, prediction_type="eps"), ["eps", "epsilon"]),
        (lambda s: make_table("ddim", s, 10, time="seconds"), ["seconds"]),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(InputError) as caught:
        make(make_schedule("linear", 200))
    for word in words:
        assert word in str(caught.value)


def test_rows_are_the_columns():
    table = make_table("dpmpp_2m_sde", make_schedule("linear", 100), 10)
    assert table.rows.shape == (10, 6) and table.rows.dtype == np.float64
    for k, name in enumerate("pqabcs"):
        assert np.array_equal(table.rows[:, k], getattr(table, name))


def test_a_table_says_in_a_few_lines_what_it_is():
    text = repr(make_table("ddim", make_schedule("linear", 1000), 1000))
    assert "'ddim', 1000 steps, epsilon" in text and text.count("\n") == 3


def test_spacing_names():
    assert set(SPACINGS) == {"trailing", "leading", "linspace", "course"}
