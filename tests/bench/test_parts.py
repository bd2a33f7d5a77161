"""The parts of `fastdiff bench`, one by one: plans, the timer's ratios, limits, reports, plots, cold starts."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastdiff
from fastdiff import AnnotatedUnet, ContextUnet, InputError, Model, load, make_schedule, make_table
from fastdiff.bench import against, compiling, limits, networks, parity, plots, report, runner, session, tables, timing
from fastdiff.bench.case import Case, Kind, case_key, case_text
from fastdiff.bench.contender import PUBLISHED, Ready, Role, Status
from fastdiff.bench.contenders import cold_starts, denoise_steps, evaluations, samplings
from fastdiff.bench.live import Live
from fastdiff.bench.peers import cold_process
from fastdiff.bench.peers.reference import CourseLoop, ancestral_step, ddim_loop, dpmpp_2m_loop
from fastdiff.bench.plans import ON_REQUEST, plan

CPU = torch.device("cpu")


@pytest.fixture
def models(tiny) -> dict[str, Model]:
    return tiny(50)


@pytest.fixture
def small(monkeypatch, models):
    """Tiny networks in place of the shipped ones, and no count of the others left."""
    monkeypatch.setattr(networks, "load", models.__getitem__)
    limits.counted.cache_clear()
    yield models
    limits.counted.cache_clear()


@pytest.fixture
def clock(monkeypatch):
    """The timer's clock, which only goes where a test moves it: clock.now += seconds."""
    made = SimpleNamespace(now=0.0, perf_counter=lambda: made.now, sleep=lambda seconds: None)
    monkeypatch.setattr(timing, "time", made)
    return made


# --- plans ---


def test_the_quick_plan():
    cases = plan("quick", "cpu")
    assert {case.network for case in cases} == {"A28@28", "B@16"} == set(networks.SHIPPED)
    assert {(case.kind, case.what, case.batch) for case in cases} == {
        (Kind.EVALUATION, "", 1), (Kind.SAMPLING, "ddim 25", 1),
    }  # fmt: skip
    assert len(cases) == 4
    assert all(case.device == "cpu" and case.threads == 1 and case.dtype == "float32" for case in cases)


def test_the_standard_plan_has_every_kind_and_the_published_loops():
    cases = plan("standard", "cpu")
    assert {case.kind for case in cases} == set(Kind) - set(ON_REQUEST)
    for network, published in (("A28@28", "ddpm 200"), ("B@16", "ddpm_large 500")):
        mine = [case for case in cases if case.network == network]
        assert {case.what for case in mine if case.kind == Kind.SAMPLING} == {
            "ddim 25",
            "ddim 50",
            "dpmpp_2m 15",
            published,
        }
        assert {case.batch for case in mine if case.kind == Kind.EVALUATION} == {1, 4, 16}
        assert {case.batch for case in mine if case.kind in (Kind.EXPORT, Kind.COLD)} == {1}


@pytest.mark.parametrize("name", ["quick", "standard", "full"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_plan_has_a_case_twice(name, device):
    cases = plan(name, device)
    assert len({case.key for case in cases}) == len(cases)
    assert len({case.label for case in cases}) == len(cases)
    assert {case.device for case in cases} == {device} and min(case.rounds for case in cases) > 1


def test_cuda_has_large_batches_and_16_bits_and_needs_no_gpu_to_say_so():
    cases = plan("standard", "cuda")
    assert {case.batch for case in cases if case.kind == Kind.EVALUATION} == {1, 64, 256, 1024}
    assert {case.dtype for case in cases} == {"bfloat16", "float32"}
    assert Kind.EXPORT not in {case.kind for case in cases}  # which uses no GPU
    assert {case.batch for case in cases if case.kind == Kind.TRAINING} == {128}


def test_the_full_plan_has_every_network_and_all_of_the_standard_plan():
    full = plan("full", "cpu")
    assert {case.network for case in full} == set(networks.NETWORKS)
    assert {case.key for case in plan("standard", "cpu")} < {case.key for case in full}


def test_of_two_equal_cases_the_first_stays():
    rounds = {case.key: case.rounds for case in plan("full", "cpu")}
    assert all(rounds[case.key] == case.rounds for case in plan("standard", "cpu"))


def test_networks_and_batches_narrow_threads_and_dtypes_multiply():
    cases = plan("standard", "cpu", (1, 2), ("B@16",), (4,), ("float32", "float16"), ("evaluation",))
    assert [(case.threads, case.dtype) for case in cases] == [
        (1, "float32"), (2, "float32"), (1, "float16"), (2, "float16"),
    ]  # fmt: skip
    assert {(case.network, case.batch, case.kind) for case in cases} == {("B@16", 4, Kind.EVALUATION)}
    assert len(plan("quick", "cpu", (2, 2), dtypes=("float32", "float32"))) == len(plan("quick", "cpu"))
    assert {case.rounds for case in plan("quick", "cpu", rounds=3)} == {3}


@pytest.mark.parametrize(
    "words, kept",
    [
        (("evaluation",), {"evaluation A28@28 batch 1", "evaluation B@16 batch 1"}),
        (("sampling B@16",), {"sampling B@16 ddim 25 batch 1"}),
        (("B@16  SAMPLING",), {"sampling B@16 ddim 25 batch 1"}),
        (("ddim a28",), {"sampling A28@28 ddim 25 batch 1"}),
        (("evaluation a28", "sampling b@16"), {"evaluation A28@28 batch 1", "sampling B@16 ddim 25 batch 1"}),
        (("evaluation b@16 float32",), {"evaluation B@16 batch 1"}),
    ],
)
def test_only_keeps_cases_that_have_all_of_some_words(words, kept):
    assert {case.label for case in plan("quick", "cpu", only=words)} == kept


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("slow", {}, ("plan 'slow'", "quick, standard, full")),
        ("quick", {"networks": ("A29@28",)}, ("network 'A29@28'", *networks.NETWORKS)),
        ("quick", {"dtypes": ("float8",)}, ("dtype 'float8'", "float32, bfloat16, float16")),
        ("quick", {"batches": (0,)}, ("batch = 0", "1 or more")),
        ("quick", {"threads": (-2,)}, ("threads = -2", "1 or more")),
        ("quick", {"rounds": 0}, ("rounds = 0", "1 or more")),
        ("quick", {"only": ("training",)}, ("'training'", "evaluation B@16 batch 1", "sampling A28@28 ddim")),
        ("quick", {"only": ("evaluation x",)}, ("'evaluation x'", "sampling B@16 ddim 25 batch 1")),
    ],
)
def test_what_no_plan_has_is_named_with_what_is_accepted(name, options, words):
    with pytest.raises(InputError) as refusal:
        plan(name, "cpu", **options)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batches": (7,)}, ("7", "batch 1")),
        ({"networks": ("A64@64",)}, ("A64@64", "A28@28", "B@16")),
    ],
)
def test_networks_and_batches_that_the_plan_lacks_are_named_with_what_it_has(options, words):
    with pytest.raises(InputError) as refusal:
        plan("quick", "cpu", **options)
    for word in words:
        assert word in str(refusal.value)


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


def test_contenders_take_turns_every_other_round_backwards(clock):
    ran = []

    def call(name, seconds):
        def run():
            ran.append(name)
            clock.now += seconds

        return Ready(run)

    turns, lengths = timing.Turns(), {"a": 0.1, "b": 0.25, "c": 1.0}
    for name, seconds in lengths.items():
        turns.add(name, call(name, seconds))
    assert not [*turns.round(0), *turns.round(1), *turns.round(2)]
    assert ran == [*"abc", *"abc", *"cba", *"abc"]  # once before, to see how long they are
    assert all(turns.seconds[name] == pytest.approx([seconds] * 3) for name, seconds in lengths.items())


def test_short_calls_fill_a_turn_and_the_time_is_of_one(clock):
    ran = []

    def run():
        ran.append(1)
        clock.now += 0.01

    def end():
        clock.now += 0.5

    turns = timing.Turns()
    turns.add("a", Ready(run, calls=4))
    assert not [*turns.round(0), *turns.round(1)]
    assert turns.seconds["a"] == pytest.approx([0.01 / 4] * 2) and len(ran) == 1 + 2 * timing.repeats(0.01)
    assert timing.repeats(0.01) * 0.01 >= timing.TURN > (timing.repeats(0.01) - 1) * 0.01
    assert timing.repeats(10) == timing.repeats(timing.TURN) == 1 and timing.repeats(0) > 1
    assert timing.timed(run, 5, end) == pytest.approx(0.01 + 0.5 / 5)  # the wait for the results is timed


# --- limits ---


class _One(torch.nn.Module):
    """A convolution with a bias and a GELU, shaped like a network."""

    options: dict = {}

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 3, padding=1)

    def embed_time(self, t):
        return ()

    def embed_context(self, context):
        return ()

    def denoise(self, x, time, context):
        return torch.nn.functional.gelu(self.conv(x))


@pytest.fixture
def one(monkeypatch):
    model = Model(_One(), make_schedule("linear", 50), image_shape=(2, 4, 4))
    monkeypatch.setattr(networks, "load", lambda name: model)
    limits.counted.cache_clear()
    yield
    limits.counted.cache_clear()


# A multiply-add is two: 9 taps of 2 channels for each of 3 x 4 x 4 outputs, 5 pictures.
FLOP = 2 * (9 * 2) * (3 * 4 * 4) * 5
X, WEIGHT, BIAS, Y = 5 * 2 * 16, 3 * 2 * 9, 3, 5 * 3 * 16
MOVED = (X + WEIGHT + BIAS + Y) + (2 * Y + BIAS) + 2 * Y  # the convolution, its bias added in place, the GELU


def test_work_is_counted_as_by_hand(one):
    assert limits.counted("one", 5, "float32") == (FLOP, 4 * MOVED)
    assert limits.counted("one", 5, "bfloat16") == (FLOP, 2 * MOVED)
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
    rates = SimpleNamespace(wanted=True, product=[1e9, 5e6, 2e9, 1e9], copy=[4e9, 1e9, 2e9])
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


def test_the_rates_are_looked_at_every_third_round(monkeypatch, clock):
    monkeypatch.setattr(limits, "SIZES", {"cpu": (4, 8)})
    ends = []

    def end():
        ends.append(1)
        clock.now += 1e-3

    monkeypatch.setattr(limits, "end_of", lambda device: end)
    rates = limits.Rates(Case(Kind.EVALUATION, "one"))
    for _ in range(7):
        rates.measure()
    assert rates.product == pytest.approx([2 * 4**3 * 1e3] * 3)
    assert rates.copy == pytest.approx([2 * 8 * 4 * 1e3] * 3)  # read and written
    assert len(ends) == 2 * 2 * 3  # the first of each warms up
    for kind in (Kind.EXPORT, Kind.COLD):
        idle = limits.Rates(Case(kind, "one"))
        idle.measure()
        assert not idle.product and not idle.wanted


# --- reports ---


def role_of(contender):
    roles = {"reference": Role.REFERENCE, "fastdiff": Role.FASTDIFF}
    return roles.get(contender.split(",")[0], Role.PEER)


def row(contender="fastdiff", kind=Kind.EVALUATION, network="B@16", what="", batch=4, **more):
    facts = {"kind": kind, "network": network, "what": what, "batch": batch, "dtype": "float32", "device": "cpu",
             "threads": 1, "contender": contender, "role": role_of(contender), "status": Status.MEASURED}  # fmt: skip
    if "reason" in more:
        facts["status"] = Status.FAILED
    else:
        facts |= {"median_seconds": 0.002, "seconds": [0.002], "ratio": [2.0, 1.9, 2.1], "share_of_limit": 0.5,
                  "parity": 1e-7, "first_seconds": 0.5}  # fmt: skip
        facts |= {"images_per_second": batch / 0.002} if kind == Kind.SAMPLING else {}
    return {**facts, **more}


def made(*rows, **more):
    facts = {"format": report.FORMAT, "plan": "quick", "machine": "A CPU, 2 cores", "python": "3.12.0",
             "versions": {"torch": "2.13.0"}, "fastdiff": "0.1", "command": "fastdiff bench --quick", "seconds": 130.0,
             "cases": len({case_key(each) for each in rows}), "rows": list(rows)}  # fmt: skip
    return {**facts, **more}


def test_a_report_is_read_from_its_file_or_its_folder(tmp_path):
    whole = made(row("reference"), row())
    paths = report.write(whole, tmp_path / "a" / "b")
    assert report.read(tmp_path / "a" / "b") == report.read(str(paths[0])) == whole
    assert [path.name for path in paths] == ["report.json", "report.md", "share-of-limit.png"]
    assert all(path.stat().st_size for path in paths)


@pytest.mark.parametrize(
    "text", ["", "not json", "[]", "3", "null", '"text"', "{}", '{"format": 2}', json.dumps({"format": 1, "rows": []}),
             json.dumps({**made(), "format": 99}), "\xff\xfe"],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="no report of `fastdiff bench`; accepted: .*report.json") as refusal:
        report.read(path)
    assert "other.json" in str(refusal.value)


def test_a_report_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot read the report .*No such file"):
            report.read(path)


def test_the_markdown_has_every_row_and_note():
    rows = [
        row("reference", ratio=[1.0, 1.0, 1.0]),
        row("fastdiff", graph_bytes=5_000_000),
        row("ONNX Runtime", reason="ImportError: onnxruntime is not installed"),
        row(
            "theirs",
            kind=Kind.SAMPLING,
            what="ddim 25",
            role=Role.OTHER_NETWORK,
            parameters=2_500_000,
            gflop_of_an_image=0.123,
        ),
        row("fastdiff", kind=Kind.COLD, what="ddim 25", batch=1, threads=2, dtype="bfloat16", peak_bytes=300_000_000),
        row("fastdiff, the whole loop", kind=Kind.EXPORT, batch=1, remark="nothing to compare"),
        row("fastdiff", kind=Kind.STEP, what="ddpm", reason="refused: it differs from the reference by 1.0e-02"),
        row("fastdiff", kind=Kind.TRAINING, images_per_second=50.0),
        row("fastdiff", kind=Kind.OPERATOR, what="bias_add", against_compiled=[0.5, 0.4, 0.6]),
        row("fastdiff", kind=Kind.PROFILE, kernels=[{"kernel": "a|b", "calls": 2.0, "microseconds": 3.0}]),
        row("sampler.onnx", kind=Kind.LOOP, what="ddim 10"),
    ]
    text = report.markdown(made(*rows), ["images-by-batch.png"])
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| case", "| ---"))]
    assert len(lines) == len(rows) + 2 and lines.remove("| a/b | 2 | 3.0 | 100% |") is None
    assert lines.remove("| kernel | calls | µs | share |") is None and all(line.count("|") == 10 for line in lines)
    for each in rows:
        (line,) = [x for x in lines if f"| {tables.cells(each)[0]} |" in x and case_text(each) in x
                   and ("reason" not in each or each["reason"] in x) and ("reason" in each) == ("| 500 ms |" not in x)
                   and (each["kind"] != Kind.TRAINING or "| 50 |" in x)
                   and ("graph_bytes" not in each or "its graphs hold 5 MB" in x)][:1]  # fmt: skip
        lines.remove(line)
        assert ("2.00x (1.90 to 2.10)" in line) == (each.get("ratio") == [2.0, 1.9, 2.1])
    assert not lines
    assert "Cut short" not in text and "Cut short: 9 of 12 cases" in report.markdown(made(*rows, cases=12))
    for kind in Kind:
        assert f"## {kind.capitalize()}" in text and report.EXPLAINED[kind] in text
    expected = (
        "2.50 M parameters, 0.123 GFLOP an image and evaluation", "peak 300 MB", "nothing to compare",
        "(other network)", "2 ms", "1e-07", "50%", "A CPU, 2 cores", "torch 2.13.0", "`fastdiff bench --quick`",
        "0.50x (0.40 to 0.60) against torch.compile, it loses", "Geometric mean against torch.compile: 0.50x",
        "![images by batch](images-by-batch.png)", "B@16, ddim 25, batch 1, bfloat16, 2 threads",
    )  # fmt: skip
    assert [words for words in expected if words not in text] == []


def test_a_notes_bars_leave_the_table_whole():
    text = report.markdown(made(row(reason="RuntimeError: expected int | None"), row("reference")))
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("| B@16")]
    assert [line.count("|") for line in rows] == [10, 10]


@pytest.mark.parametrize(
    "seconds, text", [(123.4, "123 s"), (1234.5, "1234 s"), (1.0, "1 s"), (0.9994, "999 ms"), (0.00123, "1.23 ms"),
                      (4.5e-6, "4.5 µs")],
)  # fmt: skip
def test_seconds_in_words(seconds, text):
    assert tables.seconds_text(seconds) == text


def test_versions_are_of_what_is_installed():
    assert report.installed()["torch"] == torch.__version__ or report.installed()["torch"] in torch.__version__
    assert set(report.installed()) <= set(report.PACKAGES)


# --- plots ---


def sampled(contender, batch, what="ddim 25", **more):
    return row(contender, Kind.SAMPLING, "B@16", what, batch, **more)


def test_plots_are_those_that_there_are_rows_for(tmp_path):
    names = lambda *rows: [path.stem for path in plots.write(made(*rows), tmp_path)]  # noqa: E731
    assert names() == [] and names(row(reason="failed")) == []
    both = [sampled(contender, batch) for batch in (1, 4) for contender in ("reference", "fastdiff")]
    assert names(*both) == ["images-by-batch"]
    assert names(*both, sampled("fastdiff", 4, "dpmpp_2m 15")) == ["images-by-batch", "time-by-steps"]
    assert not (tmp_path / "cold-start.png").exists()
    assert names(row(), row(kind=Kind.COLD)) == ["share-of-limit", "cold-start"]
    # What an older report left is gone.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cold-start.png", "share-of-limit.png"]
    assert names(sampled("fastdiff", 1), sampled("fastdiff", 4, reason="it fails")) == []  # one batch is no line


def test_plots_are_pictures_and_leave_no_figure(tmp_path):
    from PIL import Image

    rows = [sampled(c, b, w) for c in ("reference", "fastdiff", "x") for b in (1, 4) for w in ("ddim 25", "ddim 50")]
    rows += [row(network=n, batch=b) for n in ("A28@28", "B@16") for b in (1, 4)] + [row(kind=Kind.COLD, threads=2)]
    before = dict(plots.pyplot().rcParams)
    paths = plots.write(made(*rows), tmp_path)
    assert len(paths) == 4 and plots.pyplot().get_fignums() == [] and dict(plots.pyplot().rcParams) == before
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5  # not blank


def test_lines_and_bars_are_the_rows_figures():
    rows = [sampled("fastdiff", 4), sampled("fastdiff", 1, images_per_second=7.0), sampled("x", 1)]
    figure = plots._images_by_batch(rows, plots._colours(rows))
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()}
    assert drawn == {"fastdiff": [[1, 7], [4, 2000]], "x": [[1, 500]]}
    plots.pyplot().close(figure)
    rows = [row("reference", share_of_limit=0.2), row("fastdiff", share_of_limit=1.3)]
    figure = plots._share(rows, plots._colours(rows))
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([130, 20])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["fastdiff", "reference"]
    plots.pyplot().close(figure)


def test_without_matplotlib_the_refusal_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="pip install 'fastdiff-engine\\[bench\\]'"):
        session.run(plan("quick", "cpu"), "quick", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- two reports ---


def change(old, new):
    return against.Change(("k",), "text", old, new)


@pytest.mark.parametrize(
    "old, new, worse",
    [
        ([2.0, 1.9, 2.1], [1.5, 1.4, 1.6], True),
        ([2.0, 1.9, 2.1], [2.0, 1.9, 2.1], False),
        ([2.0, 1.9, 2.1], [3.0, 2.9, 3.1], False),
        ([2.0, 1.99, 2.01], [1.81, 1.80, 1.82], False),  # by less than 10%, though apart
        ([2.0, 1.99, 2.01], [1.79, 1.78, 1.80], True),
        ([2.0, 1.4, 2.1], [1.5, 1.45, 1.6], False),  # inside the old interval
        ([2.0, 1.9, 2.1], [1.5, 1.0, 2.05], False),  # the old one is inside the new interval
        ([2.0, 1.9, 2.1], [1.5, 1.0, 1.95], True),  # intervals that touch, with both medians outside
        ([2.0, 1.9, 2.1], None, True),
    ],
)
def test_worse_is_by_more_than_10_percent_and_outside_both_intervals(old, new, worse):
    assert change(old, new).worse is worse


def test_a_change_in_words():
    assert str(change([2.0, 1.9, 2.1], [1.5, 1.4, 1.6])) == "text: was 2.00x (1.90 to 2.10), now 1.50x (1.40 to 1.60)"
    assert str(against.Change(("k",), "text", [2, 1, 3], None, "it fails")) == "text: was 2.00x, now it fails"


def test_another_machines_report_is_refused():
    cases = {Case(Kind.EVALUATION, "B@16", batch=4).key, Case(Kind.EVALUATION, "B@16", batch=5).key}
    against.check_comparable(made(row()), "A CPU, 2 cores", cases)
    with pytest.raises(InputError, match="'A CPU, 2 cores', this machine is 'B CPU, 2 cores'; accepted: .*the same"):
        against.check_comparable(made(row()), "B CPU, 2 cores", cases)
    with pytest.raises(InputError, match="none of the cases that are to be measured; accepted: "):
        against.check_comparable(made(row(batch=6)), "A CPU, 2 cores", cases)


def test_rows_of_both_reports_are_compared_and_references_are_not():
    old = [row("reference", ratio=[1.0, 1.0, 1.0]), row("fastdiff"), row("peer"), row("fastdiff", batch=16)]
    new = [row("reference", ratio=[1.0, 1.0, 1.0]), row("fastdiff", ratio=[1.0, 1.0, 1.1]), row("peer"), row("new")]
    changes = against.compare(made(*old), new)
    assert [(c.key[-1], c.old, c.new, c.worse) for c in changes] == [
        ("fastdiff", [2.0, 1.9, 2.1], [1.0, 1.0, 1.1], True), ("peer", [2.0, 1.9, 2.1], [2.0, 1.9, 2.1], False),
    ]  # fmt: skip
    assert changes[0].text == "evaluation B@16, batch 4, fastdiff"
    for more in ({"batch": 5}, {"dtype": "float16"}, {"threads": 2}, {"network": "A28@28"}, {"kind": Kind.STEP},
                 {"what": "ddim"}, {"device": "cuda"}):  # fmt: skip
        assert against.compare(made(row()), [row(**more)]) == []


def test_a_row_of_fastdiffs_that_became_a_note_counts_and_a_peers_does_not():
    for name in ("fastdiff", "fastdiff, eager"):
        (one,) = against.compare(
            made(row(name), row("peer")), [row(name, reason="it fails"), row("peer", reason="gone")]
        )
        assert one.worse and one.key[-1] == name and str(one).endswith("was 2.00x, now it fails")
    assert against.compare(made(row(reason="it failed then")), [row()]) == []


SLOWER = [1.6, 1.55, 1.65]  # 2.0 by 25% slower


def test_a_planted_slowdown_is_confirmed_by_measuring_again():
    rows, asked = [row("reference", ratio=[1, 1, 1]), row(ratio=SLOWER), row("peer")], []

    def again(keys):
        asked.append(keys)
        return [row(ratio=[1.58, 1.5, 1.6]), row("peer", ratio=[0.1, 0.1, 0.1])]

    worse, changes = against.confirmed(made(row(), row("peer")), rows, again)
    assert asked == [{Case(Kind.EVALUATION, "B@16", batch=4).key}]
    assert [c.new for c in worse] == [[1.58, 1.5, 1.6]] and len(changes) == 2
    # The new figure is the report's; what was not suspected keeps its own.
    assert rows[1]["ratio"] == [1.58, 1.5, 1.6] and rows[2]["ratio"] == [2.0, 1.9, 2.1]


def test_what_is_well_again_when_measured_again_is_not_worse():
    rows = [row(ratio=SLOWER)]
    worse, changes = against.confirmed(made(row()), rows, lambda keys: [row(ratio=[1.95, 1.9, 2.0])])
    assert worse == [] and len(changes) == 1 and rows[0]["ratio"] == [1.95, 1.9, 2.0]


def test_a_note_is_measured_again_too():
    old = made(row())
    worse, _ = against.confirmed(old, [row(reason="it fails")], lambda keys: [row(reason="it fails again")])
    assert [str(one) for one in worse] == ["evaluation B@16, batch 4, fastdiff: was 2.00x, now it fails again"]
    assert against.confirmed(old, [row(reason="it fails")], lambda keys: [row()])[0] == []


def test_nothing_is_measured_again_where_nothing_is_worse():
    def never(keys):
        raise AssertionError(keys)

    worse, changes = against.confirmed(made(row()), [row(ratio=[1.9, 1.8, 2.0])], never)
    assert worse == [] and len(changes) == 1
    assert against.confirmed(made(row("a peer")), [row("new")], never) == ([], [])


# --- torch.compile's cache ---


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache of compilations of its own; torch.compile returns what it is given."""
    import torch._dynamo

    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    names = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")
    with torch._dynamo.config.patch({name: getattr(torch._dynamo.config, name) for name in names}):
        yield tmp_path / "cache"


def test_what_was_not_compiled_before_is_not_waited_for(cache):
    with pytest.raises(compiling.ColdCacheError) as refusal:
        compiling.compiled(abs, ("a",), None, cold=False)
    assert str(refusal.value) == compiling.COLD and "without --quick" in compiling.COLD and "minutes" in compiling.COLD


def test_the_mark_is_made_by_the_first_call_that_succeeds(cache):
    def failing(x):
        raise RuntimeError("no compiler")

    made = compiling.compiled(failing, ("a",), None, cold=True)
    with pytest.raises(RuntimeError, match="no compiler"):
        made(1)
    assert not compiling.marker(("a",), None).exists()
    made = compiling.compiled(abs, ("a",), None, cold=True)
    assert not compiling.marker(("a",), None).exists()  # torch.compile itself compiles nothing
    assert made(-1) == 1 and compiling.marker(("a",), None).exists()
    assert compiling.compiled(abs, ("a",), None, cold=False)(-2) == 2


def test_marks_are_of_a_key_a_mode_a_version_and_a_device(cache, monkeypatch):
    marks = {compiling.marker(key, mode) for key in (("a", 1), ("a", 2), ("b", 1)) for mode in (None, "max-autotune")}
    assert len(marks) == 6 and all(mark.is_relative_to(cache) for mark in marks)
    assert compiling.marker(("a", 1), None) in marks
    for where, name, other in ((torch, "__version__", "9.9"), (compiling, "device_name", lambda device: "another")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, other)
            assert compiling.marker(("a", 1), None) not in marks


def test_the_compiler_is_told_to_keep_its_results_and_every_size_is_static(cache, monkeypatch):
    compiling.use_folder()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(compiling.folder()) == str(cache / "bench" / "inductor")
    asked = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: asked.append(options) or call)
    compiling.compiled(abs, ("a",), "max-autotune", cold=True)
    assert asked == [{"mode": "max-autotune", "dynamic": False}]
    assert torch._dynamo.config.fail_on_recompile_limit_hit and torch._dynamo.config.recompile_limit >= 1000


# --- the loops that others are compared with ---


def noises(shape, draws=64):
    made = torch.randn(draws, *shape, generator=torch.Generator().manual_seed(5))
    return made, lambda draw, first, given: made[draw, first : first + given[0]]


def published_predict(model, n=2):
    network = networks.published(model)
    T = model.schedule.num_timesteps
    if model.time == "index":
        return lambda x, t: network(x, torch.full((n,), t))
    return lambda x, t: network(x, torch.tensor([t / T])[:, None, None, None])


@pytest.mark.parametrize("name", ["A28@28", "B@16"])
@pytest.mark.parametrize("sampler, steps", [("ddim", 10), ("dpmpp_2m", 7), ("dpmpp_2m", 2), ("ddim", 1), ("ddpm", 10)])
def test_the_published_loops_are_fastdiffs(name, sampler, steps, models, rel):
    model = models[name]
    table = make_table(sampler, model.schedule, steps, time=model.time)
    nodes = [int(t) for t in table.timestep]
    abar = torch.from_numpy(model.schedule.alphas_cumprod.copy()).float()
    drawn, source = noises((2, *model.image_shape))
    predict = published_predict(model)
    if sampler == "ddpm":
        images = drawn[0]
        with torch.no_grad():
            for k, (t, after) in enumerate(zip(nodes, [*nodes[1:], None], strict=True)):
                clean = torch.ones_like(abar[0]) if after is None else abar[after]
                images = ancestral_step(images, predict(images, t), abar[t], clean, drawn[k + 1])
    else:
        loop = ddim_loop if sampler == "ddim" else dpmpp_2m_loop
        images = loop(predict, abar, nodes, drawn.__getitem__)
    ours = fastdiff.sample(model, 2, sampler, steps, noise=source, device="cpu", form="eager")
    # float32 roundings of a few evaluations and of alphas_cumprod, near 1 at the last node, amplified by the loop.
    assert rel(images, ours) < 2e-5


def test_the_courses_tables_move_together(models):
    loop = CourseLoop(50)
    assert loop.to(torch.device("meta")) is loop
    assert all(table.is_meta for table in (loop.b_t, loop.a_t, loop.ab_t))
    network = networks.published(models["B@16"])
    drawn, _ = noises((2, 3, 16, 16))
    one, other = (made.sample_ddim(network, drawn.__getitem__, 10) for made in (CourseLoop(50), CourseLoop(50).to(CPU)))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name, what", [("A28@28", "ddpm 50"), ("B@16", "ddpm_large 50"), ("A28@28", "ddim 10")])
def test_the_loop_of_a_publication_is_fastdiffs(name, what, small, rel):
    model = small[name]
    drawn, source = noises((2, *model.image_shape))
    network = networks.published(model)
    images = samplings.published_loop(model, what, 2, CPU)(network, drawn.__getitem__)
    sampler, steps = samplings.named(what)
    ours = fastdiff.sample(model, 2, sampler, steps, noise=source, device="cpu", form="eager")
    assert rel(images, ours) < 1e-4  # 50 steps


def test_a_loop_that_nobody_published_is_refused(models):
    for name, what in (("B@16", "ddpm 50"), ("A28@28", "ddpm 10"), ("A28@28", "ddpm_large 50")):
        with pytest.raises(InputError, match=f"{what} is published for no network like this one"):
            samplings.published_loop(models[name], what, 2, CPU)


@pytest.mark.parametrize("name", ["A28@28", "B@16"])
def test_the_loop_that_is_compared_calls_a_predictor_of_two_arguments(name, small):
    """As predictors.Predict is: (x, time)."""
    what = {"A28@28": "ddpm 50", "B@16": "ddpm_large 50"}[name]
    loop = samplings.published_loop(small[name], what, 2, CPU)
    drawn, _ = noises((2, *small[name].image_shape))
    assert loop(lambda x, time: torch.zeros_like(x), drawn.__getitem__).shape == drawn[0].shape


def test_the_networks_by_name():
    assert [networks.load(name).image_shape for name in networks.SHIPPED] == [(1, 28, 28), (3, 16, 16)]
    assert {name: type(load(model).network) for name, model in networks.SHIPPED.items()} == {
        "A28@28": AnnotatedUnet, "B@16": ContextUnet,
    }  # fmt: skip
    made = networks.load("A28@32")
    assert made.image_shape == (3, 32, 32) and made.network.options["dim"] == 28
    before = torch.get_rng_state()
    again = networks.load.__wrapped__("A28@32")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(made.network.parameters(), again.network.parameters(), strict=True))
    for name in ("A28", "A28@29", "C@16", "", "A28@28 "):
        with pytest.raises(InputError, match="accepted: A28@28, .*B@16"):
            networks.load(name)


# --- the live table ---


def live(monkeypatch, terminal, cases):
    import rich.console

    whole, text = rich.console.Console, io.StringIO()
    monkeypatch.setattr(
        rich.console, "Console", lambda **options: whole(file=text, force_terminal=terminal, width=140, **options)
    )
    return Live(cases), text


CASE = Case(Kind.EVALUATION, "B@16", batch=4, rounds=4)
ROWS = [row("reference", ratio=[1.0, 1.0, 1.0]), row(), row("ONNX Runtime", reason="ImportError: [bold]not[/] here")]


def test_a_terminal_shows_a_table_and_a_bar(monkeypatch):
    shown, text = live(monkeypatch, True, [CASE])
    with shown:
        shown.preparing(CASE, "reference")
        shown.round(CASE, 1)
        shown.rows(ROWS)
        shown.live.refresh()
    during = text.getvalue()
    assert "round 1 of 4" in during and "25%" in during and "━" in during
    for words in ("contender", "fastdiff", "2.00x (1.90 to 2.10)", "ImportError: [bold]not[/] here"):
        assert words in during
    text.truncate(0)
    shown.finish()
    after = text.getvalue()
    assert "━" not in after and all(name in after for name in ("reference", "fastdiff", "ONNX Runtime"))


def test_a_terminal_shows_the_latest_rows_and_in_the_end_all(monkeypatch):
    shown, text = live(monkeypatch, True, [Case(Kind.EVALUATION, "B@16")])
    with shown:
        shown.rows([row(f"contender{k:02}") for k in range(40)])
        shown.live.refresh()
    assert "contender39" in text.getvalue() and "contender00" not in text.getvalue()
    shown.finish()
    assert "contender00" in text.getvalue()


def test_elsewhere_each_row_is_a_line(monkeypatch):
    shown, text = live(monkeypatch, False, [Case(Kind.EVALUATION, "B@16")])
    with shown:
        shown.round(CASE, 1)
        shown.rows(ROWS)
        shown.rows([row("fastdiff", kind=Kind.COLD, what="ddim 25", batch=1)])
    shown.finish()
    lines = text.getvalue().splitlines()
    assert lines[0] == "evaluation:" and lines[4] == "cold start:" and len(lines) == 6
    assert lines[2] == "  B@16, batch 4: fastdiff, 2 ms, 2.00x (1.90 to 2.10), 50%, 1e-07"
    assert lines[3] == "  B@16, batch 4: ONNX Runtime, ImportError: [bold]not[/] here"


def test_without_rich_the_refusal_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(InputError, match="pip install 'fastdiff-engine\\[bench\\]'"):
        Live([Case(Kind.EVALUATION, "B@16")])


# --- cold starts ---

START_CASE = Case(Kind.COLD, "B@16", "ddim 25", 1, threads=2, rounds=2)
TAKES = {"published": 4.0, "compiled": 2.0, "fastdiff": 1.0, "onnx": 0.5}


@pytest.fixture
def processes(monkeypatch, small, cache, clock):
    """A stand-in for the processes, which take seconds: what each was started with. The file is a stand-in too."""
    from fastdiff.export import assemble, trace

    asked = []

    def run(words, env, **options):
        assert words[:3] == [sys.executable, "-m", "fastdiff.bench.peers.cold_process"]
        contender, model, start, image, device = words[3:]
        assert device == "cpu"
        empty = env.get("FASTDIFF_CACHE") not in (None, os.environ.get("FASTDIFF_CACHE"))
        assert empty == (env.get("TRITON_CACHE_DIR") != os.environ.get("TRITON_CACHE_DIR"))
        if empty:  # of both: the C kernels' and Triton's
            assert os.listdir(env["FASTDIFF_CACHE"]) == [] and not os.path.exists(env["TRITON_CACHE_DIR"])
        asked.append((contender, model, empty and env["FASTDIFF_CACHE"], env))
        np.save(image, np.load(start) * 0.5)
        clock.now += TAKES[contender] + (2 if empty else 0)
        return subprocess.CompletedProcess(words, 0, f"a line\n{100 + len(asked)}\n", "")

    monkeypatch.setattr(cold_starts.subprocess, "run", run)
    monkeypatch.setattr(trace, "trace", lambda model: None)
    monkeypatch.setattr(
        assemble, "sampler_model", lambda traced, face: SimpleNamespace(SerializeToString=lambda: b"a file")
    )
    return asked


def test_cold_starts_are_whole_processes(processes):
    rows = {each["contender"]: each for each in runner.measure([START_CASE], True, True)}
    assert list(rows) == [
        "reference", "torch.compile, warm cache", "ONNX Runtime, sampler.onnx", "fastdiff", "fastdiff, empty cache",
    ]  # fmt: skip
    assert [each["seconds"] for each in rows.values()] == [[4, 4], [2, 2], [0.5, 0.5], [1, 1], [3, 3]]
    assert rows["fastdiff"]["ratio"] == [4, 4, 4] and rows["ONNX Runtime, sampler.onnx"]["ratio"] == [8, 8, 8]
    assert all(each["parity"] == 0 and each["peak_bytes"] > 100 and "reason" not in each for each in rows.values())
    assert "share_of_limit" not in rows["fastdiff"]
    # Once for the comparison, once to be warm, two rounds.
    names = [name for name, *_ in processes]
    assert {name: names.count(name) for name in TAKES} == {"published": 4, "compiled": 4, "onnx": 4, "fastdiff": 8}
    caches = [folder for _, _, folder, _ in processes if folder]
    assert len(caches) == len(set(caches)) == 4 and not any(map(os.path.exists, caches))
    for name, model, _, env in processes:
        assert env["OMP_NUM_THREADS"] == "2"
        assert model == "sprites" if name != "onnx" else model.endswith("sampler.onnx")
        assert (env["TORCHINDUCTOR_CACHE_DIR"] == str(compiling.folder())) == (name == "compiled")


def test_a_quick_run_starts_no_process_that_would_compile(processes):
    rows = runner.measure([START_CASE], False, True)
    assert [each.get("reason") for each in rows] == [None, compiling.COLD, None, None, None]
    assert rows[1]["status"] == Status.NOT_COMPILED
    assert "compiled" not in [name for name, *_ in processes]
    runner.measure([START_CASE], True, True)
    rows = runner.measure([START_CASE], False, True)
    assert not [each["reason"] for each in rows if "reason" in each]


@pytest.mark.parametrize("errors, note", [("x\nBad: it is\n", "Bad: it is"), ("", "it failed")])
def test_a_process_that_fails_is_a_row_that_says_so(processes, monkeypatch, errors, note):
    right = cold_starts.subprocess.run

    def run(words, **options):
        return subprocess.CompletedProcess(words, 1, "", errors) if words[3] == "fastdiff" else right(words, **options)

    monkeypatch.setattr(cold_starts.subprocess, "run", run)
    rows = runner.measure([START_CASE], True, True)
    assert [each.get("reason") for each in rows] == [None, None, None, note, note]
    refused = session.refused({"rows": rows})
    assert refused[0] == f"cold start B@16, ddim 25, batch 1, 2 threads, fastdiff: RuntimeError: {note}"
    assert len(refused) == 2


def test_a_process_whose_image_differs_is_refused(processes, monkeypatch):
    right = cold_starts.subprocess.run

    def run(words, **options):
        ended = right(words, **options)
        if words[3] == "fastdiff":
            np.save(words[-2], 1.01 * np.load(words[-2]))
        return ended

    monkeypatch.setattr(cold_starts.subprocess, "run", run)
    rows = runner.measure([START_CASE], True, True)
    assert [(each["status"], each["reason"][:51]) for each in rows if "reason" in each] == [
        (Status.REFUSED, "it differs from the reference by 1.0e-02, more than")
    ] * 2
    assert all(("seconds" in each) == ("reason" not in each) for each in rows)


def test_onnxruntime_that_is_missing_says_how_to_install_it(processes, monkeypatch):
    """In the process of a cold start it would be "No module named 'onnxruntime'"."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    right = cold_starts.subprocess.run

    def run(words, **options):
        if words[3] != "onnx":
            return right(words, **options)
        return subprocess.CompletedProcess(words, 1, "", "ModuleNotFoundError: No module named 'onnxruntime'")

    monkeypatch.setattr(cold_starts.subprocess, "run", run)
    (row,) = [each for each in runner.measure([START_CASE], True, True) if "onnx" in each["contender"]]
    assert "pip install" in row["reason"]


def test_only_networks_that_ship_start_cold():
    with pytest.raises(InputError, match="cold start of A64@64; accepted: A28@28, B@16"):
        list(cold_starts.contenders(replace(START_CASE, network="A64@64"), True))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["A28@28", "B@16"])
def test_the_processes_of_a_cold_start_make_the_same_image(network, tmp_path, rel):
    """Real ones: the published loop, fastdiff, and the file, made here as the report makes it."""
    pytest.importorskip("onnxruntime")
    case = Case(Kind.COLD, network, "ddim 25", 1)
    images = {}
    for contender in cold_starts.contenders(case, True):
        if contender.name in (PUBLISHED, cold_starts.SAMPLER_FILE, "fastdiff"):
            ready = contender.make()
            images[contender.name] = ready.outputs()
            assert ready.facts["peak_bytes"] > 2**25
    assert len(images) == 3
    for image in images.values():
        assert image.shape == (1, *load(networks.SHIPPED[network]).image_shape)
        assert rel(image, images[PUBLISHED]) < parity.BOUNDS[Kind.COLD]


def test_the_cold_starts_script_reads_its_models_where_they_lie(tmp_path):
    assert cold_process.STEPS == 25 == len(evaluations.ddim(load("sprites")))
    for name in networks.SHIPPED.values():
        assert (Path(fastdiff.__file__).parent / "models" / name / "model.safetensors").exists()
