"""Nodes: at timesteps and between them, spread by noise level, chosen by a sampler."""

import numpy as np
import pytest
from diffusers import LCMScheduler

from fastdiff import InputError, make_schedule, make_table
from fastdiff.samplers.lcm import lcm_timesteps
from fastdiff.samplers.path import Path, levels
from fastdiff.samplers.samplers import SAMPLERS
from fastdiff.samplers.sigmas import SIGMAS, spread


@pytest.fixture(params=["linear", "cosine", "course"])
def schedule(request):
    return make_schedule(request.param, 300)


def test_at_timesteps_and_between(schedule):
    path = Path.at(schedule, np.array([300.0, 250, 40, 1]) if schedule.first else np.array([299.0, 250, 40, 0]))
    at = path.timestep.astype(int)
    assert np.array_equal(path.alpha, np.sqrt(schedule.alphas_cumprod[at]))
    assert np.array_equal(path.alpha_next, [*path.alpha[1:], 1]) and np.array_equal(path.sigma_next[-1:], [0])
    between = Path.at(schedule, np.array([250.25]))
    (low, high) = (Path.at(schedule, np.array([t])) for t in (250.0, 251.0))
    ratio = [float(one.sigma[0] / one.alpha[0]) for one in (low, high, between)]
    assert ratio[2] == pytest.approx(ratio[0] ** 0.75 * ratio[1] ** 0.25, rel=1e-12)
    assert between.alpha[0] ** 2 + between.sigma[0] ** 2 == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("sigmas", SIGMAS)
def test_spread_from_the_first_node_to_the_last(schedule, sigmas):
    plain = Path.of(schedule, 9, "trailing")
    path = plain.spread(sigmas)
    for at in (0, -1):
        assert path.timestep[at] == plain.timestep[at]
        assert path.alpha[at] == pytest.approx(plain.alpha[at], rel=1e-12)
    ratio = path.sigma / path.alpha
    steps = np.diff(ratio ** (1 / 7) if sigmas == "karras" else np.log(ratio))
    assert np.allclose(steps, steps[0], rtol=1e-9) and steps[0] < 0
    again = Path.at(schedule, path.timestep)  # the timesteps are those of the levels
    assert np.allclose(again.sigma, path.sigma, rtol=1e-12)
    assert np.array_equal(spread(sigmas, ratio[:1]), ratio[:1])


def test_pure_noise_stays_where_levels_are_spread():
    schedule = make_schedule("linear", 50, rescale_zero_snr=True)
    plain = Path.of(schedule, 6, "trailing")
    path = plain.spread("karras")
    assert path.alpha[0] == 0 and path.timestep[0] == 49
    assert np.array_equal(path.timestep[[1, -1]], plain.timestep[[1, -1]]) and (np.diff(path.timestep) < 0).all()
    one = Path.of(schedule, 1, "trailing")
    assert np.array_equal(one.spread("karras").timestep, one.timestep)
    with pytest.raises(InputError, match="timestep 48.5 between 48 and pure noise, alphas_cumprod = 0; accepted"):
        make_table("ddim", schedule, timesteps=[48.5, 20], prediction_type="v_prediction")


def test_a_path_of_levels_has_no_timesteps_to_move_to():
    path = Path.through([3.0, 2.0], *levels(np.array([2.0, 1.0])), sigma_last=0.1, alpha_last=0.9)
    assert path.alpha_next[-1] == 0.9 and path.sigma_next[-1] == 0.1
    with pytest.raises(InputError, match="a path without a schedule"):
        path.spread("karras")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_part_of_the_steps(name):
    """Of any nodes the last int(strength n), and a history that begins anew."""
    schedule = make_schedule("linear", 100)
    nodes = {"timesteps": [99, 70.5, 51, 30, 12, 2]}
    whole, part = (make_table(name, schedule, **nodes, strength=strength) for strength in (1.0, 0.5))
    again = make_table(name, schedule, timesteps=nodes["timesteps"][3:])
    assert np.array_equal(part.rows, again.rows) and len(part) < len(whole)
    assert np.array_equal(part.timestep, whole.timestep[-len(part) :])


def test_lcm_takes_diffusers_timesteps():
    for total, original in ((1000, 50), (1000, 25), (200, 50), (60, 60)):
        theirs = LCMScheduler(total)
        for steps in range(1, original + 1):
            theirs.set_timesteps(steps, original_inference_steps=original)
            assert np.array_equal(lcm_timesteps(total, steps, original), theirs.timesteps)
    assert np.array_equal(make_table("lcm", make_schedule("linear", 20), 3).timestep, [19, 13, 6])
