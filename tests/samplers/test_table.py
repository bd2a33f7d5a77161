"""Step tables: invariants, the published formulas, spacings, and the order of convergence on a Gaussian."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff import InputError, Schedule, StepTable, make_schedule, make_table
from fastdiff.bench.peers.reference import CourseLoop
from fastdiff.samplers.ddim import ddim
from fastdiff.samplers.euler import edm, euler, heun
from fastdiff.samplers.integrators import dpmpp_2m, dpmpp_3m, unipc
from fastdiff.samplers.path import Path, levels
from fastdiff.samplers.prediction import PREDICTION_TYPES
from fastdiff.samplers.samplers import SAMPLERS, tabulate
from fastdiff.samplers.schedule import NAMES
from fastdiff.samplers.sigmas import SIGMAS
from fastdiff.samplers.spacing import SPACINGS, spaced


def most_steps(sampler: str, timesteps: int) -> int:
    return min(timesteps, 50) if sampler == "lcm" else timesteps


@given(
    name=st.sampled_from(NAMES),
    timesteps=st.integers(1, 1000),
    share=st.floats(0, 1),
    sampler=st.sampled_from(list(SAMPLERS)),
    nodes=st.sampled_from(["trailing", "leading", "linspace", *SIGMAS, "given", "between"]),
    kind=st.sampled_from(PREDICTION_TYPES),
    eta=st.floats(0, 1),
)
def test_every_table_builds_and_holds_its_invariants(name, timesteps, share, sampler, nodes, kind, eta):
    """Building checks that rows lead to alpha' x0 + sigma' noise; here also what every run needs."""
    entry = SAMPLERS[sampler]
    steps = 1 + int(share * (most_steps(sampler, timesteps) - 1))
    schedule = make_schedule(name, timesteps)
    low, high = schedule.first, schedule.first + timesteps - 1
    if nodes in ("given", "between"):
        asked = np.linspace(high, low, steps)
        ask = {"timesteps": asked.round() if nodes == "given" else asked}
    elif entry.nodes is not None:
        ask = {"steps": steps}
    elif nodes in SIGMAS:
        ask = {"steps": steps, "sigmas": nodes}
    else:
        ask = {"steps": steps, "spacing": nodes}
    eta = eta if entry.takes_eta else 0.0
    table = make_table(sampler, schedule, eta=eta, prediction_type=kind, **ask)
    if entry.name in ("heun", "edm"):
        # A node's timestep comes twice: at the end of a step, and, raised by churn, where the next begins.
        assert len(table) == 2 * steps - 1
        assert (np.diff(table.timestep[::2]) <= 0).all() and (np.diff(table.timestep[1::2]) < 0).all()
        assert (table.timestep[2::2] >= table.timestep[1::2]).all()
        assert eta or np.array_equal(table.timestep[2::2], table.timestep[1::2])
    else:
        assert len(table) == steps
        assert (np.diff(table.timestep) < 0).all()
    assert low <= table.timestep[-1] and table.timestep[0] <= high
    assert table.s[-1] == 0 and table.depth <= 2 and not table.returns.any()
    assert 0 < table.init_noise_sigma <= 1
    if entry.preserves_mean:
        # The last step lands on x0 (for the course's fixed-large row, on its own alpha').
        mean = table.a[-1] * table.alpha[-1] + table.b[-1]
        assert mean == pytest.approx(table.alpha_next[-1], abs=1e-12)
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


def gaussian_network(table: StepTable, sd: float):
    """The exact network of epsilon for data N(0, sd^2): E[x0 | x] = alpha sd^2 x / (alpha^2 sd^2 + sigma^2)."""
    levels = {time: (alpha, sigma) for time, alpha, sigma in zip(table.time, table.alpha, table.sigma, strict=True)}

    def network(x, time):
        alpha, sigma = levels[time]
        x0 = alpha * sd**2 * x / (alpha**2 * sd**2 + sigma**2)
        return (x - alpha * x0) / sigma

    return network


def smooth_schedule(timesteps: int) -> Schedule:
    """One continuous noise path at any resolution, log(sigma / alpha) linear from 3 to -5 (Karras-like in log SNR)."""
    logsnr = np.linspace(5, -3, timesteps)
    abar = 1 / (1 + np.exp(-2 * logsnr))
    return Schedule(1 - abar / np.append(1.0, abar[:-1]))


ORDERS = {
    "ddim": (ddim, 1),
    "euler": (euler, 1),
    "heun": (heun, 2),
    "edm": (edm, 2),
    "dpmpp_2m": (dpmpp_2m, 2),
    "dpmpp_3m": (dpmpp_3m, 2),  # published with half the weight of x0's curvature, which costs it an order
    # The corrector raises the order by one (Zhao et al. 2023, theorem 3.1).
    "unipc 1": (partial(unipc, order=1, lower_order_final=False), 2),
    "unipc 2": (partial(unipc, lower_order_final=False), 3),
    "unipc 3": (partial(unipc, order=3, lower_order_final=False), 4),
}


@pytest.mark.parametrize("formula, order", ORDERS.values(), ids=ORDERS)
def test_order_of_convergence(formula, order, run):
    """The global error on an analytic Gaussian falls as h^order; the flow's exact map is a ratio of deviations."""
    sd, start = 0.5, 1.3
    errors = []
    counts = (20, 40, 80, 160)
    for steps in counts:
        # The last node is not clean, for a last step to x0 has no error of its own order. The first steps are short,
        # of length h^2, for the orders below while there is little history would else be seen in the result.
        alpha, sigma = levels(np.exp(3 - 8 * np.linspace(0, 1, steps + 1) ** 2))
        end = {"alpha_last": alpha[-1], "sigma_last": sigma[-1]}
        path = Path.through(np.arange(steps, 0, -1), alpha[:-1], sigma[:-1], **end)
        table = tabulate("trial", path, formula(path), prediction_type="epsilon")
        first, last = (np.hypot(sd * alpha[at], sigma[at]) for at in (0, -1))
        errors.append(abs(run(table, gaussian_network(table, sd), start) - start * last / first))
    slopes = np.diff(np.log(errors)) / np.diff(np.log(counts))
    assert -slopes[-1] == pytest.approx(order, abs=0.25), (errors, slopes)


@pytest.mark.parametrize(
    "sampler, eta, bound",
    [
        ("ddpm", 0.0, 0.01),
        ("ddim", 0.0, 0.01),
        ("ddim", 0.5, 0.01),
        ("dpmpp_2m_sde", 0.0, 0.01),
        ("ddpm_large", 0.0, 0.02),
        ("euler_ancestral", 0.0, 0.01),
        ("edm", 0.2, 0.01),
    ],
)
def test_stochastic_samplers_reach_the_data_variance(sampler, eta, bound):
    """In closed form: the variance of x through a run, exact Gaussian network, approaches sd^2."""
    sd = 0.5
    table = make_table(sampler, smooth_schedule(1000), 1000, eta=eta)
    var = np.array([[table.alpha[0] ** 2 * sd**2 + table.sigma[0] ** 2, 0.0], [0.0, 0.0]])  # of (x, x0_prev)
    for i in range(len(table)):
        gain = table.alpha[i] * sd**2 / (table.alpha[i] ** 2 * sd**2 + table.sigma[i] ** 2)  # x0 = gain x
        m = np.array([[table.a[i] + table.b[i] * gain, table.c[i]], [gain, 0.0]])
        var = m @ var @ m.T
        var[0, 0] += table.s[i] ** 2
    assert var[0, 0] == pytest.approx(sd**2, rel=bound)


def test_the_mode_without_extra_noise_collapses(run):
    """What the course shows: the variance of its samples is far below the data's."""
    sd, table = 0.5, make_table("ddpm_no_noise", smooth_schedule(1000), 1000)
    assert abs(run(table, gaussian_network(table, sd), 1.0)) < 0.2 * sd


def changed(table: StepTable, row: int, **by: float) -> StepTable:
    """The table with so much added in one row."""
    columns = {name: np.array(getattr(table, name)) for name in by}
    for name, amount in by.items():
        columns[name][row] += amount
    return dataclasses.replace(table, **columns)


def test_a_broken_table_is_refused():
    table = make_table("ddim", make_schedule("linear", 100), 10)
    with pytest.raises(InputError, match="table row 3 misses alpha_next by 0.000"):
        changed(table, 3, a=1e-3)
    with pytest.raises(InputError, match="table row 3 misses sigma_next squared by 1e-06"):
        changed(table, 3, s=1e-3)
    with pytest.raises(InputError, match="holds nan"):
        dataclasses.replace(table, p=np.full(10, np.nan))
    with pytest.raises(InputError, match="shape"):
        dataclasses.replace(table, q=np.zeros(9))
    with pytest.raises(InputError, match="init_noise_sigma = -1"):
        dataclasses.replace(table, init_noise_sigma=-1)


@pytest.mark.parametrize("column, back", [("c", 1), ("d", 2), ("e", 3)])
def test_history_before_the_first_row_is_refused(column, back):
    table = make_table("ddim", make_schedule("linear", 100), 10)
    for row in range(back):
        with pytest.raises(InputError, match=f"{column} = 0.5 in row {row}; accepted: 0 in the first {back}"):
            changed(table, row, **{column: 0.5, "b": -0.5})
    assert changed(table, back, **{column: 0.5, "b": -0.5}).depth == back


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_check_covers_every_column(kind):
    """What is moved from one column to another of the same meaning passes, and what is not is refused."""
    table = make_table("ddim", make_schedule("linear", 100), 10, prediction_type=kind)
    row, p, q = 5, table.p[5], table.q[5]
    # out is (x0 - p x) / q: so much of out is o / q of x0 and -o p / q of x.
    moved = changed(table, row, o=0.3, b=-0.3 / q, a=0.3 * p / q)
    assert moved.depth == 0 and moved.rows[row, 6] == 0.3
    with pytest.raises(InputError, match="table row 5 misses"):
        changed(table, row, o=0.3)
    # What is remembered as u x + v x0 counts with the x and x0 of then.
    alpha, sigma = table.alpha[row - 1], table.sigma[row - 1]
    remembered = {"u": np.where(np.arange(10) == row - 1, 0.5, 0.0), "v": np.where(np.arange(10) == row - 1, 0.7, 1.0)}
    mixed = dataclasses.replace(table, **remembered)
    noise = 0.2 * 0.5 * sigma / table.sigma[row]  # as much of x has it, so take that from a
    mean = 0.2 * (0.5 * alpha + 0.7) - noise * table.alpha[row]
    assert changed(mixed, row, c=0.2, a=-noise, b=-mean).depth == 1
    with pytest.raises(InputError, match="row 5 misses alpha_next by"):
        changed(mixed, row, c=0.2, b=-0.2)
    with pytest.raises(InputError, match="row 5 misses sigma_next squared by"):
        changed(mixed, row, c=0.2, b=-0.2 * (0.5 * alpha + 0.7))


def test_what_is_remembered_has_no_noise():
    table = make_table("ddpm", make_schedule("linear", 100), 10)
    with pytest.raises(InputError, match="a table with u and s; accepted: one of them"):
        dataclasses.replace(table, u=0.5)


def test_exemptions_from_the_check():
    table = make_table("ddim", make_schedule("linear", 100), 10)
    scaled = {"a": table.a * 0.9, "b": table.b * 0.9}
    with pytest.raises(InputError, match="row 9 misses alpha_next by -0.1"):
        dataclasses.replace(table, **scaled, preserves_variance=False)
    with pytest.raises(InputError, match="row 0 misses sigma_next squared by -0.1"):
        dataclasses.replace(table, **scaled, preserves_mean=False)
    dataclasses.replace(table, **scaled, preserves_mean=False, preserves_variance=False)
    assert [name for name, one in SAMPLERS.items() if not one.preserves_mean] == ["lcm"]


def test_learned_variance_lies_between_s_and_S(run):
    schedule = make_schedule("linear", 50)
    table = make_table("ddpm", schedule, 50, learned_variance=True)
    least, most = (make_table(name, schedule, 50) for name in ("ddpm", "ddpm_large"))
    assert table.learned_variance and not least.learned_variance
    assert np.array_equal(table.s, least.s) and np.allclose(table.S, most.s, rtol=1e-12)
    noise = np.random.default_rng(0).standard_normal(50)

    def through(table, **more):
        return run(table, lambda x, t: np.sin(x), 0.4, lambda i: noise[i], **more)

    assert through(table, variance=lambda x, t: -1.0) == pytest.approx(through(least), rel=1e-12)
    assert through(table, variance=lambda x, t: 1.0) == pytest.approx(through(most), rel=1e-12)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda s: make_table("dimm", s, 10), ["'dimm'", "did you mean 'ddim'"]),
        (lambda s: make_table("ddim", s, 201), ["201", "1 to 200"]),
        (lambda s: make_table("ddim", s, 0), ["0", "1 to 200"]),
        (lambda s: make_table("ddim", s, 2.0), ["2.0"]),
        (lambda s: make_table("ddim", s, 10, eta=1.5), ["1.5", "0 to 1"]),
        (lambda s: make_table("ddpm", s, 10, eta=0.5), ["0.5", "eta belongs to ddim and edm"]),
        (lambda s: make_table("ddim", s, 10, spacing="trialing"), ["trialing", "did you mean 'trailing'"]),
        (lambda s: make_table("ddim", s, 10, prediction_type="eps"), ["eps", "epsilon"]),
        (lambda s: make_table("ddim", s, 10, time="seconds"), ["seconds"]),
        (lambda s: make_table("ddim", s, 10, sigmas="karas"), ["'karas'", "did you mean 'karras'"]),
        (lambda s: make_table("edm", s, 10, sigmas="karras"), ["sigmas = 'karras' with sampler 'edm'", "leave it out"]),
        (lambda s: make_table("lcm", s, 4, spacing="leading"), ["spacing = 'leading' with sampler 'lcm'"]),
        (lambda s: make_table("lcm", s, 51), ["steps = 51", "1 to 50"]),
        (lambda s: make_table("edm", s, 201), ["steps = 201", "1 to 200"]),
        (lambda s: make_table("ddim", s, 2, timesteps=[9, 4]), ["timesteps with steps", "leave those out"]),
        (lambda s: make_table("ddim", s, timesteps=[9, 4], spacing="leading"), ["timesteps with steps, spacing"]),
        (lambda s: make_table("ddim", s, timesteps=[9, 4], sigmas="karras"), ["timesteps with", "sigmas"]),
        (lambda s: make_table("ddim", s, timesteps=[9, 9]), ["timesteps with 9 after 9", "fall"]),
        (lambda s: make_table("ddim", s, timesteps=[4.5, 9]), ["timesteps with 9 after 4.5"]),
        (lambda s: make_table("ddim", s, timesteps=[200, 4]), ["timesteps with 200", "0 to 199"]),
        (lambda s: make_table("ddim", s, timesteps=[9, -1]), ["timesteps with -1", "0 to 199"]),
        (lambda s: make_table("ddim", s, timesteps=[math.nan]), ["timesteps with nan"]),
        (lambda s: make_table("ddim", s, timesteps=[]), ["timesteps = []", "numbers that fall"]),
        (lambda s: make_table("ddim", s, timesteps=[[9], [4, 3]]), ["timesteps = [[9], [4, 3]]"]),
        (lambda s: make_table("ddim", s, timesteps="999"), ["timesteps = '999'"]),
        (lambda s: make_table("ddim", s, timesteps=[True]), ["timesteps = [True]"]),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(InputError) as caught:
        make(make_schedule("linear", 200))
    for word in words:
        assert word in str(caught.value)


def test_rows_are_the_columns():
    table = make_table("dpmpp_2m_sde", make_schedule("linear", 100), 10)
    assert table.rows.shape == (10, 12) and table.rows.dtype == np.float64
    for k, name in enumerate(("p", "q", "a", "b", "c", "s", "o", "d", "e", "u", "v", "S")):
        assert np.array_equal(table.rows[:, k], getattr(table, name))
    assert table.v.all() and not table.o.any() and not table.u.any() and np.array_equal(table.s, table.S)


@pytest.mark.parametrize("sampler, depth", [("ddim", 0), ("heun", 1), ("dpmpp_2m", 1), ("dpmpp_3m", 2), ("unipc", 2)])
def test_how_far_back_history_goes(sampler, depth):
    assert make_table(sampler, make_schedule("linear", 100), 20).depth == depth


def test_a_table_says_in_a_few_lines_what_it_is():
    text = repr(make_table("ddim", make_schedule("linear", 1000), 1000))
    assert "'ddim', 1000 rows, epsilon" in text and text.count("\n") == 3


def test_spacing_names():
    assert set(SPACINGS) == {"trailing", "leading", "linspace", "course"}
