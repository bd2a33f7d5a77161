"""The timer's ratios, and what the hardware would allow."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiff import Model, make_schedule
from fastdiff.bench import limits, networks, parity, timing
from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import Ready, Role
from fastdiff.bench.contenders import denoise_steps, evaluations, samplings
from fastdiff.kernels.cpu import compiled

CPU = torch.device("cpu")


# --- the timer ---
def test_a_ratio_is_the_median_over_rounds():
    assert timing.ratio([2, 9, 8], [1, 3, 2])[0] == 3.0
    assert timing.ratio([4.0], [2.0]) == [2, 2, 2]
    slow, fast = [1.0, 1.1, 0.9, 1.3, 1.0], [0.5, 0.5, 0.6, 0.6, 0.45]
    made = timing.ratio(slow, fast)
    assert made == timing.ratio(slow, fast)
    assert made[0] == pytest.approx(2.167, abs=1e-3) and 1.5 <= made[1] < made[0] < made[2] <= 2.223
    with pytest.raises(ValueError):
        timing.ratio([1.0, 2.0], [1.0])


def test_the_interval_holds_the_ratio_in_95_of_100_runs():
    """Rounds drawn around a known ratio of 2: the interval misses it seldom, and is no wider than it must be."""
    random = np.random.default_rng(1)
    held, widths = 0, []
    for _ in range(100):
        fast = 1 + 0.1 * random.random(15)
        slow = 2 * fast * np.exp(0.1 * random.standard_normal(15))
        _, low, high = timing.ratio(slow.tolist(), fast.tolist())
        held += low <= 2 <= high
        widths.append(high - low)
    assert 88 <= held and 0.1 < np.mean(widths) < 0.4


SECONDS = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20)


@given(SECONDS, st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_a_ratio_is_free_of_the_machines_speed(fast, factor, seed):
    random = np.random.default_rng(seed)
    slow = [f * r for f, r in zip(fast, random.uniform(0.5, 5, len(fast)), strict=True)]
    made = timing.ratio(slow, fast)
    assert made[1] <= made[0] <= made[2]
    # A last digit of four may turn.
    assert timing.ratio([factor * s for s in slow], [factor * s for s in fast]) == pytest.approx(made, rel=1.1e-3)
    assert timing.ratio(fast, fast) == [1, 1, 1]
    # Speed that changes from round to round cancels too.
    speed = random.uniform(0.5, 2, len(fast)).tolist()
    changed = [[v * each for v, each in zip(speed, values, strict=True)] for values in (slow, fast)]
    assert timing.ratio(*changed) == pytest.approx(made, rel=1.1e-3)


def test_short_calls_fill_a_turn_and_the_time_is_of_one(clock):
    ran = []

    def run():
        """Each fourth call takes twice as long: the mean over a turn tells, as a median of calls would not."""
        ran.append(1)
        clock.now += 0.02 if len(ran) % 4 == 0 else 0.01

    def end():
        clock.now += 0.5

    turns = timing.Turns()
    turns.add("a", Ready(run, calls=4))
    assert not [*turns.round(0), *turns.round(1)]
    assert turns.seconds["a"] == pytest.approx([0.06 / 5 / 4] * 2) and len(ran) == 1 + 2 * timing.repeats(0.01)
    assert timing.repeats(0.01) * 0.01 >= timing.TURN > (timing.repeats(0.01) - 1) * 0.01
    assert timing.repeats(10) == timing.repeats(timing.TURN) == 1 and timing.repeats(0) > 1
    assert timing.timed(lambda: None, 5, end) == pytest.approx(0.5 / 5)  # the wait for the results is timed


# --- limits ---
@pytest.fixture
def one(monkeypatch, small, one_convolution):
    model = Model(one_convolution(), make_schedule("linear", 50), image_shape=(2, 4, 4))
    monkeypatch.setattr(networks, "load", lambda name: model)


# A multiply-add is two: 9 taps of 2 channels for each of 3 x 4 x 4 outputs, 5 pictures.
FLOP = 2 * (9 * 2) * (3 * 4 * 4) * 5
X, WEIGHT, BIAS, Y = 5 * 2 * 16, 3 * 2 * 9, 3, 5 * 3 * 16
MOVED = (X + WEIGHT + Y) + (Y + BIAS + Y)  # the library's convolution; its bias and the GELU
FUSED = X + 9 * 16 * 16 + BIAS + Y  # the weight's channels padded


def test_work_is_counted_as_by_hand(one):
    assert limits.counted("one", 5, "float32") == (FLOP, 4 * MOVED)
    assert limits.counted("one", 5, "bfloat16") == (FLOP, 2 * FUSED)
    assert limits.work(Case(Kind.EVALUATION, "one", batch=5)) == (1, FLOP, 4 * MOVED)
    assert limits.work(Case(Kind.SAMPLING, "one", "ddim 25", 5)) == (25, 25 * FLOP, 25 * 4 * MOVED)
    assert limits.work(Case(Kind.TRAINING, "one", batch=5)) == (3, 3 * FLOP, 3 * 4 * MOVED)
    assert limits.work(Case(Kind.STEP, "one", "ddim", 5)) == (0, 0, X * (4 + 4 + 4))


def test_a_steps_bytes_are_of_the_tensors_that_it_is_given(small):
    case = Case(Kind.STEP, "A28@28", "ddim", 3)
    x, out, _ = denoise_steps._inputs(case)
    assert limits.work(case)[2] == 2 * x.nbytes + out.nbytes


@pytest.mark.parametrize("network", ["A28@28", "B@16"])
@pytest.mark.parametrize("kind, what", [(Kind.STEP, "ddim"), (Kind.STEP, "ddpm"), (Kind.EVALUATION, "")])
def test_where_steps_are_captured_a_captured_one_is_timed(kind, what, network, small, pool, cuda, rel):
    """By the stand-in for torch.cuda, which the engine then takes for its device's."""
    case = Case(kind, network, what, 3)
    if kind == Kind.STEP:
        ours, published = denoise_steps._ours(case), denoise_steps._published(case, False, True)
    else:
        ours = evaluations.by_engine(case)
        published = next(evaluations.contenders(case, True)).make()
    assert cuda.captures == 1
    for _ in range(2):  # each from the same x and row
        before = cuda.replays
        images = ours.outputs()
        assert cuda.replays - before == (1 if kind == Kind.STEP else 3)
        assert rel(images, published.outputs()) < parity.BOUNDS[kind]
    before = cuda.replays
    ours.run()
    assert cuda.replays - before == 1


def test_the_share_of_the_limit_is_the_longer_of_work_and_traffic_over_the_time(one):
    rates = SimpleNamespace(wanted=True, core=False, arithmetic=[1e9, 5e6, 2e9, 1e9], copy=[4e9, 1e9, 2e9])
    row = {"median_seconds": 0.5, "role": Role.FASTDIFF}
    made = limits.derived(Case(Kind.EVALUATION, "one", batch=5), row, rates)
    assert made["product_gflops"] == 1 and made["copy_gigabytes"] == 2  # medians
    assert made["gflop"] == FLOP / 1e9 and made["megabytes"] == 4 * MOVED / 1e6
    assert made["share_of_limit"] == pytest.approx(FLOP / 1e9 / 0.5) and made["evaluations_per_second"] == 10
    assert "images_per_second" not in made
    rates.copy = [1e3]  # now the traffic takes longer
    made = limits.derived(Case(Kind.SAMPLING, "one", "ddim 25", 5), row, rates)
    assert made["share_of_limit"] == pytest.approx(25 * 4 * MOVED / 1e3 / 0.5)
    assert made["images_per_second"] == 10 and made["evaluations_per_second"] == 250
    other = limits.derived(
        Case(Kind.SAMPLING, "one", "ddim 25", 5), {**row, "role": Role.OTHER_NETWORK, "gflop_of_an_image": 2.0}, rates
    )
    assert other["gflop"] == 2 * 25 * 5 and other["megabytes"] == 0  # of another network, its own
    assert other["share_of_limit"] == pytest.approx(2e9 * 25 * 5 / 1e9 / 0.5)
    assert limits.derived(Case(Kind.COLD, "one"), row, SimpleNamespace(wanted=False)) == {}
    rates.core = True  # what a plan does itself
    planned = {**row, "operations": 3e8, "bytes_moved": 200, "in_torch": []}
    made = limits.derived(Case(Kind.SAMPLING, "one", "ddim 25", 5), planned, rates)
    assert (made["gflop"], made["core_gflops"], made["share_of_limit"]) == (0.3, 1, pytest.approx(0.6))
    assert made["evaluations_per_second"] == 250 and "product_gflops" not in made


def test_the_rates_are_looked_at_every_third_round(monkeypatch, clock):
    monkeypatch.setattr(limits, "SIZES", {"cpu": (4, 8)})
    ends = []

    def end():
        ends.append(1)
        clock.now += 1e-3

    monkeypatch.setattr(limits, "end_of", lambda device: end)
    rates = limits.Rates(Case(Kind.EVALUATION, "one", dtype="bfloat16"))
    for _ in range(7):
        rates.measure()
    assert not rates.core and rates.arithmetic == pytest.approx([2 * 4**3 * 1e3] * 3)
    assert rates.copy == pytest.approx([2 * 8 * 4 * 1e3] * 3)  # read and written
    assert len(ends) == 2 * 2 * 3  # the first of each warms up
    for kind in (Kind.EXPORT, Kind.COLD):
        idle = limits.Rates(Case(kind, "one"))
        idle.measure()
        assert not idle.arithmetic and not idle.wanted


def test_the_rate_of_float32_on_a_cpu_is_the_cores(monkeypatch):
    if compiled.build_error() is not None:
        pytest.skip("no C compiler")
    monkeypatch.setattr(limits, "SIZES", {"cpu": (4, 8)})
    asked = []
    monkeypatch.setattr(limits, "multiply_adds", lambda seconds: asked.append(seconds) or 10**9)
    rates = limits.Rates(Case(Kind.EVALUATION, "one", threads=2))
    rates.measure()
    assert rates.core and rates.arithmetic == [4e9] and asked == [limits.SECONDS] * 2 and len(rates.copy) == 1


@pytest.mark.parametrize("network", ["A28@28", "B@16"])
def test_a_plan_has_its_own_operations(network, small):
    """Fewer than the plain network, whose convolutions are direct."""
    if compiled.build_error() is not None:
        pytest.skip("no C compiler")
    facts = evaluations.by_engine(Case(Kind.EVALUATION, network, batch=3)).facts
    assert facts["in_torch"] == [] and facts["bytes_moved"] > 0
    made = samplings.by_engine(Case(Kind.SAMPLING, network, "ddim 5", batch=3))
    made.run()
    assert made.facts["operations"] == 5 * facts["operations"] and made.facts["bytes_moved"] == 5 * facts["bytes_moved"]
    eager = evaluations.by_engine(Case(Kind.EVALUATION, network, batch=3), "eager")
    assert eager.facts == {}
