"""Schedules against the published formulas, and the forward process."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiff import InputError, Schedule, make_schedule, make_table
from fastdiff.bench.peers.reference import CourseLoop
from fastdiff.samplers.prediction import usual_clip
from fastdiff.samplers.samplers import SAMPLERS
from fastdiff.samplers.schedule import NAMES, from_config


def test_linear_quadratic_and_sigmoid():
    assert np.allclose(make_schedule("linear", 200).betas, np.linspace(1e-4, 0.02, 200), rtol=1e-15)
    assert np.allclose(make_schedule("quadratic", 50).betas, np.linspace(1e-2, math.sqrt(0.02), 50) ** 2, rtol=1e-14)
    x = torch.linspace(-6, 6, 30, dtype=torch.float64)
    expected = torch.sigmoid(x) * (0.02 - 1e-4) + 1e-4
    assert np.allclose(make_schedule("sigmoid", 30).betas, expected.numpy(), rtol=1e-14)


def test_cosine_is_the_closed_form_where_it_is_not_clipped():
    schedule = make_schedule("cosine", 1000)
    t = np.arange(1, 1001) / 1000
    closed = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    inside = slice(30, 990)  # the lower clip of beta at 1e-4 changes the first few entries
    assert np.allclose(schedule.alphas_cumprod[inside] / closed[inside], 1, atol=2e-3)
    assert schedule.betas.min() >= 1e-4 and schedule.betas.max() == 0.9999


def test_the_course_keeps_t_plus_1_points():
    schedule, loop = make_schedule("course", 500), CourseLoop(500)
    assert len(schedule.betas) == 501 and schedule.num_timesteps == 500 and schedule.first == 1
    assert schedule.alphas_cumprod[0] == 1
    assert schedule.alphas_cumprod[1] == pytest.approx((1 - schedule.betas[0]) * (1 - schedule.betas[1]), rel=1e-15)
    assert schedule.alphas_cumprod[500] == pytest.approx(0.00629, abs=1e-5)
    assert np.allclose(schedule.alphas_cumprod, loop.ab_t.numpy(), rtol=1e-4)  # the course's is float32, by logarithms


@given(name=st.sampled_from(NAMES), timesteps=st.integers(1, 1000))
def test_every_schedule_falls_and_is_kept(name, timesteps):
    schedule = make_schedule(name, timesteps)
    assert schedule.num_timesteps == timesteps
    assert (np.diff(schedule.alphas_cumprod) < 0).all()
    again = from_config(schedule.config())
    assert np.array_equal(again.betas, schedule.betas) and again.first == schedule.first


def test_the_bounds_of_cosines_betas():
    assert make_schedule("cosine", 1000, max_beta=0.999).betas.max() == 0.999
    ours, theirs = make_schedule("squaredcos_cap_v2", 1000), make_schedule("cosine", 1000, min_beta=0, max_beta=0.999)
    assert np.array_equal(ours.betas, theirs.betas)
    x = np.arange(1001) / 1000  # as it stands in OpenAI's code
    abar = np.cos((x + 0.008) / 1.008 * np.pi / 2) ** 2
    assert np.allclose(ours.betas, np.minimum(1 - abar[1:] / abar[:-1], 0.999), rtol=1e-12)


@given(name=st.sampled_from(NAMES), timesteps=st.integers(2, 1000))
def test_zero_terminal_snr(name, timesteps):
    before, schedule = make_schedule(name, timesteps), make_schedule(name, timesteps, rescale_zero_snr=True)
    root = np.sqrt(np.cumprod(1 - before.betas))
    wanted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    assert schedule.betas[-1] == 1 and schedule.alphas_cumprod[-1] == 0
    assert np.allclose(np.sqrt(schedule.alphas_cumprod[schedule.first :]), wanted[schedule.first :], atol=1e-12)
    assert np.array_equal(from_config(schedule.config()).betas, schedule.betas)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_samplers_start_from_pure_noise(sampler, steps, kind):
    schedule = make_schedule("linear", 50, rescale_zero_snr=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = make_table(sampler, schedule, steps, prediction_type=kind)  # which checks itself
    assert table.alpha[0] == 0 and np.isfinite(table.rows).all()
    with pytest.raises(InputError, match="from alphas_cumprod = 0 with prediction type 'epsilon'"):
        make_table(sampler, schedule, steps)


def test_a_clip_where_the_first_x0_would_be_noise():
    for name, kind, clip in (
        ("cosine", "epsilon", 1.0),
        ("squaredcos_cap_v2", "epsilon", 1.0),
        ("cosine", "v_prediction", None),
        ("linear", "epsilon", None),
    ):
        assert usual_clip(kind, make_schedule(name, 1000).alphas_cumprod) == clip


def test_custom_betas_are_kept():
    schedule = Schedule(np.array([0.1, 0.2, 0.3]))
    assert np.array_equal(from_config(schedule.config()).alphas_cumprod, schedule.alphas_cumprod)
    with pytest.raises(ValueError):
        schedule.betas[0] = 0.5  # read-only


def test_forward_process():
    schedule = make_schedule("linear", 200)
    x0, z, t = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([0, 100, 199])
    x = schedule.q_sample(x0, t, z)
    for row, k in enumerate(t.tolist()):
        abar = float(np.prod(1 - schedule.betas[: k + 1]))
        expected = math.sqrt(abar) * x0[row] + math.sqrt(1 - abar) * z[row]
        assert torch.allclose(x[row], expected, atol=1e-6)


def test_one_timestep_for_all_and_noise_of_its_own():
    schedule, x0, z = make_schedule("linear", 200), torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    assert torch.equal(schedule.q_sample(x0, 40, z), schedule.q_sample(x0, torch.full((3,), 40), z))
    drawn = [(schedule.q_sample(x0, 199) - schedule.q_sample(x0, 199, torch.zeros_like(x0))) for _ in range(2)]
    assert not torch.equal(*drawn) and 0.5 < float(drawn[0].std()) < 1.5


def test_a_schedule_says_in_a_line_what_it_is():
    assert repr(make_schedule("linear", 200, beta_end=0.01)) == "Schedule('linear', 200 timesteps, beta_end=0.01)"
    assert repr(Schedule(np.full(1000, 0.01))) == "Schedule('custom', 1000 timesteps)"


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: make_schedule("linaer", 10), ["linaer", "did you mean 'linear'"]),
        (lambda: make_schedule("linear", 0), ["0", "from 1 to 100000"]),
        (lambda: make_schedule("linear", 10**13), ["10000000000000"]),
        (lambda: make_schedule("linear", 10, beta_start="a"), ["beta_start = 'a'"]),
        (lambda: make_schedule("linear", 10, s=1), ["'s'", "beta_start, beta_end"]),
        (lambda: make_schedule("cosine", 10, beta_end=0.1), ["'beta_end'", "s, min_beta, max_beta"]),
        (lambda: make_schedule("cosine", 10, max_beta=1.5), ["max_beta = 1.5"]),
        (lambda: make_schedule("linear", 1, rescale_zero_snr=True), ["from 2 to 100000"]),
        (lambda: make_schedule("linear", 10, beta_end=2.0), ["2.0"]),
        (lambda: Schedule(np.array([1.0, 0.1])), ["1.0", "the last up to 1"]),
        (lambda: Schedule(np.array([0.1, 1.1])), ["1.1"]),
        (lambda: Schedule(np.array([0.1, float("nan")])), ["nan"]),
        (lambda: Schedule(np.zeros((2, 2))), ["(2, 2)"]),
        (lambda: make_schedule("linear", 10).q_sample(torch.zeros(1, 1, 2, 2), -1), ["t = [-1]", "from 0 to 9"]),
        (lambda: make_schedule("linear", 10).q_sample(torch.zeros(1, 1, 2, 2), 10), ["t = [10]", "from 0 to 9"]),
        (lambda: make_schedule("linear", 10).q_sample(torch.zeros(1, 1, 2, 2), 0.5), ["t = [0.5]"]),
        (lambda: make_schedule("linear", 10).q_sample(torch.zeros(3, 1), torch.tensor([1, 2])), ["for each image"]),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(InputError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)
