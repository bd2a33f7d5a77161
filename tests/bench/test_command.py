"""`fastdiff bench`: its gate, its contenders on tiny networks, and the whole command on the machine's own clock or one
that a test moves."""

import copy
import json
import math
import os
import re
import shutil
import socket
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastdiff import Model
from fastdiff.bench import compiling, limits, networks, parity, report, runner, session, tables, timing
from fastdiff.bench.case import Case, Kind, case_text
from fastdiff.bench.contender import Contender, Ready, Role, Status
from fastdiff.bench.contenders import evaluations, exports, trainings
from fastdiff.bench.contenders.by_kind import CONTENDERS
from fastdiff.bench.peers import others, predictors
from fastdiff.bench.plans import plan
from fastdiff.cli.main import main
from fastdiff.engine import graphs
from fastdiff.engine.forms import FORMS
from fastdiff.engine.prepared import Prediction

CPU = torch.device("cpu")
T = 25  # as many as an evaluation's table has steps
PLAIN = ["reference", "eager, tuned", "torch.compile", "torch.compile, max-autotune", "ONNX Runtime"]
DIFFUSERS = "diffusers' scheduler"
OTHERS = ["diffusers' UNet2DModel", "denoising-diffusion-pytorch's Unet"]


def ours() -> list[str]:
    """fastdiff's contenders on this CPU, in float32."""
    names = [form.name for form in FORMS.values() if form.build_error(CPU, torch.float32) is None]
    return ["fastdiff", *(f"fastdiff, {name}" for name in names[1:])]


@pytest.fixture
def models(tiny) -> dict[str, Model]:
    return tiny(T)


CACHES = (predictors.compiled, predictors.autotuned, predictors.exported)
COUNTED = limits.counted  # which takes a second for each batch


@pytest.fixture
def small(monkeypatch, models, tmp_path):
    """Tiny networks for the shipped ones, and no long work: torch.compile returns what it is given, what ONNX Runtime
    would run runs in torch, other networks return noise, every turn is one call, the large product is small, operations
    are not counted.

    A model is a new object for each test: diffusers' schedulers are kept by model.
    """
    import torch._dynamo

    mine = {name: replace(model) for name, model in models.items()}
    monkeypatch.setattr(networks, "load", mine.__getitem__)
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")
    monkeypatch.setattr(predictors, "onnxruntime", lambda name, device, threads: predictors.published(name, device))
    for name in ("diffusers_unet", "lucidrains_unet"):
        monkeypatch.setattr(others, name, lambda *given: another())
    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setattr(timing, "TURN", 0)
    monkeypatch.setattr(limits, "SIZES", {"cpu": (16, 256)})
    monkeypatch.setattr(limits, "counted", lambda *given: (10**6, 10**5))
    for cached in CACHES:
        cached.cache_clear()
    options = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")
    with torch._dynamo.config.patch({name: getattr(torch._dynamo.config, name) for name in options}):
        yield mine
    for cached in CACHES:
        cached.cache_clear()


def another() -> others.Other:
    return others.Other(
        "another", torch.nn.Identity(), 1000, lambda x, t: x + 1, lambda sampler, steps, n: torch.zeros(n)
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command: (words) → its result; catches no exception that is not its own."""
    monkeypatch.chdir(tmp_path)

    def invoke(*words, code=0):
        result = CliRunner().invoke(main, ["bench", *map(str, words)], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def keep_only(monkeypatch):
    """(kind, names) → of that kind's contenders only these are left."""

    def keep(kind, *names):
        whole = CONTENDERS[kind]
        monkeypatch.setitem(CONTENDERS, kind, lambda *given: [c for c in whole(*given) if c.name in names])

    return keep


def measured(*cases, cold=True, together=True):
    return runner.measure(cases, cold, together)


def by_name(rows):
    return {row["contender"]: row for row in rows}


def notes(rows):
    return {row["contender"]: tables.why(row) for row in rows if row["status"] != Status.MEASURED}


def timed_only(rows):
    """A row has either a reason or figures, never neither."""
    assert all(("reason" in row) != ("median_seconds" in row) for row in rows)
    assert all(("reason" in row) != (row["status"] == Status.MEASURED) for row in rows)


# --- every contender computes the same ---

CASES = [
    Case(Kind.STEP, "A28@28", "ddim", 2, rounds=1),
    Case(Kind.STEP, "B@16", "ddpm", 2, rounds=1),
    Case(Kind.STEP, "A28@28", "ddpm", 2, rounds=1),
    Case(Kind.STEP, "B@16", "ddim", 2, rounds=1),
    Case(Kind.EVALUATION, "A28@28", "", 2, rounds=1),
    Case(Kind.EVALUATION, "B@16", "", 2, rounds=1),
    Case(Kind.SAMPLING, "A28@28", "ddim 5", 2, rounds=1),
    Case(Kind.SAMPLING, "B@16", "ddim 5", 2, rounds=1),
    Case(Kind.SAMPLING, "A28@28", "dpmpp_2m 5", 2, rounds=1),
    Case(Kind.SAMPLING, "B@16", "dpmpp_2m 5", 2, rounds=1),
    Case(Kind.SAMPLING, "A28@28", f"ddpm {T}", 2, rounds=1),
    Case(Kind.SAMPLING, "B@16", f"ddpm_large {T}", 2, rounds=1),
    Case(Kind.TRAINING, "A28@28", "", 3, rounds=1),
    Case(Kind.TRAINING, "B@16", "", 6, rounds=1),
]


def expected_names(kind):
    return {
        Kind.STEP: ["reference", "torch.compile", DIFFUSERS, "fastdiff"],
        Kind.EVALUATION: [*PLAIN, *ours(), *OTHERS],
        Kind.SAMPLING: [*PLAIN, DIFFUSERS, *ours(), *OTHERS],
        Kind.TRAINING: ["reference", "eager, tuned", "torch.compile", "fastdiff"],
    }[kind]


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
def test_every_contender_agrees_with_the_reference(case, small):
    if case.kind in (Kind.STEP, Kind.SAMPLING):
        pytest.importorskip("diffusers")
    rows = measured(case)
    assert [row["contender"] for row in rows] == expected_names(case.kind)
    assert notes(rows) == {}
    for row in rows:
        assert row["median_seconds"] > 0 and len(row["seconds"]) == 1 and row["first_seconds"] > 0
        if row["role"] == Role.OTHER_NETWORK:
            assert "parity" not in row and row["parameters"] == 1000 and row["gflop_of_an_image"] == 0
            continue
        assert row["parity"] <= row["bound"] == parity.BOUNDS[case.kind] and row["share_of_limit"] > 0
        assert ("images_per_second" in row) == (case.kind in (Kind.SAMPLING, Kind.TRAINING))
    assert rows[0]["parity"] == 0 and rows[0]["ratio"] == [1, 1, 1]
    # The others compute by another path: equality to the bit would mean that the reference was compared with itself.
    assert case.kind == Kind.TRAINING or 0 < by_name(rows)["fastdiff"]["parity"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_are_compared_with_wide_bounds_and_the_reference_is_float32(dtype, small):
    rows = by_name(measured(Case(Kind.EVALUATION, "B@16", "", 2, dtype, rounds=1)))
    assert notes(rows.values()) == {} and rows["reference"]["bound"] == parity.BOUNDS[Kind.EVALUATION]
    assert 1e-4 < rows["fastdiff"]["parity"] < parity.BOUNDS_16[Kind.EVALUATION] == rows["fastdiff"]["bound"]
    assert rows["torch.compile"]["parity"] == 0  # of the published network, float32


def test_diffusers_own_network_is_measured_without_a_claim(small, monkeypatch, keep_only):
    pytest.importorskip("diffusers")
    monkeypatch.undo()  # the real one
    monkeypatch.setattr(networks, "load", small.__getitem__)
    monkeypatch.setattr(timing, "TURN", 0)
    case = Case(Kind.EVALUATION, "B@16", "", 1, rounds=1)
    keep_only(Kind.EVALUATION, "reference", OTHERS[0])
    reference, other = measured(case)
    assert other["role"] == Role.OTHER_NETWORK and other["parameters"] > 10_000
    # Its own operations, for a batch of one image.
    assert other["gflop"] == other["gflop_of_an_image"] > 0 and other["share_of_limit"] > 0
    assert other["ratio"][0] > 0 and "parity" not in other
    assert tables.cells(other)[0].endswith("(other network)") and tables.cells(other)[-1] == "no claim"
    assert reference["gflop"] > 0


@pytest.mark.slow  # the exporter takes long in each
@pytest.mark.parametrize("network", ["A28@28", "B@16"])
def test_exports_are_measured_and_onnxruntime_computes_the_same(network, small, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rows = measured(Case(Kind.EXPORT, network, "", 1, rounds=1))
    assert [row["contender"] for row in rows] == ["reference", "fastdiff", "fastdiff, the whole loop"]
    assert notes(rows) == {} and all(row["bytes"] > 1000 for row in rows)
    assert [row.get("parity", 9) < 1e-5 for row in rows] == [True, True, False]
    assert rows[2]["remark"].startswith("nothing to compare")
    monkeypatch.undo()
    monkeypatch.setattr(networks, "load", small.__getitem__)
    reference, theirs = (
        make(network, CPU, *more) for make, more in ((predictors.published, ()), (predictors.onnxruntime, (1,)))
    )
    x, times = evaluations.inputs(Case(Kind.EVALUATION, network, "", 2))
    for at in times:
        one, two = reference(x, at), theirs(x, at)
        assert float((one - two).norm() / one.norm()) < 1e-5


@pytest.mark.slow  # a compilation
def test_torch_compile_itself_is_measured(small, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(networks, "load", small.__getitem__)
    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiling.folder()))
    rows = by_name(measured(Case(Kind.STEP, "B@16", "ddim", 2, rounds=1), cold=True))
    assert "note" not in rows["torch.compile"] and rows["torch.compile"]["parity"] < 1e-5
    assert compiling.marker(("step", "ddim", 2, 3, 16, 16, "cpu", 1), None).exists()


# --- the gate ---


@pytest.fixture
def perturbed(monkeypatch):
    """fastdiff's copies of the networks have one tensor that is 1% off."""

    def spoil(network):
        network = copy.deepcopy(network)
        with torch.no_grad():
            for name, value in network.named_parameters():
                if name in ("final_conv.1.weight", "out.3.weight"):
                    value.mul_(1.01)
                    break
            else:
                raise AssertionError("no such tensor")
        return network

    for name, form in FORMS.items():
        wrong = lambda network, *more, form=form: form.prepare(spoil(network), *more)  # noqa: E731
        monkeypatch.setitem(FORMS, name, replace(form, prepare=wrong))
    whole = trainings.Trainer.__init__

    def init(self, recipe, data, *, device, init):
        whole(self, recipe, data, device=device, init=replace(init, network=spoil(init.network)))

    monkeypatch.setattr(trainings.Trainer, "__init__", init)


@pytest.mark.parametrize("network", ["A28@28", "B@16"])
def test_a_perturbed_weight_is_refused(network, small, perturbed, run, monkeypatch):
    monkeypatch.setattr(
        session, "runner", SimpleNamespace(measure=lambda cases, *more: runner.measure(CHOSEN[network], *more))
    )
    result = run("--only", "evaluation", "--network", network, "--rounds", 1, code=1)
    rows = report.read("bench-report")["rows"]
    timed_only(rows)
    wrong = {(row["kind"], row["contender"]) for row in rows if row["status"] == Status.REFUSED}
    assert wrong == {(kind, name) for kind in (Kind.EVALUATION, Kind.SAMPLING) for name in ours()} | {
        (Kind.TRAINING, "fastdiff")
    }
    for row in rows:
        if "reason" in row:
            assert row["reason"].startswith("it differs from the reference by ")
            assert row["parity"] > row["bound"] and f"more than {row['bound']:.0e}" in row["reason"]
            text = f"refused: {row['kind']} {case_text(row)}, {row['contender']}: refused: {row['reason']}"
            assert text in result.stderr.splitlines()
            assert row["reason"] in result.stdout and row["reason"] in open("bench-report/report.md").read()
    assert len(result.stderr.splitlines()) == len(wrong)


CHOSEN = {
    network: [
        Case(kind, network, what, 2, rounds=1)
        for kind, what in ((Kind.EVALUATION, ""), (Kind.SAMPLING, "ddim 5"), (Kind.TRAINING, ""), (Kind.STEP, "ddim"))
    ]
    for network in ("A28@28", "B@16")
}


def contender(name, value=1.0, other=False, run=lambda: None, make=None):
    outputs = None if other else lambda: value if isinstance(value, torch.Tensor) else torch.full((2, 3), value)
    roles = {"reference": Role.REFERENCE, "fastdiff": Role.FASTDIFF}
    role = Role.OTHER_NETWORK if other else roles.get(name, Role.PEER)
    return Contender(name, make or (lambda: Ready(run, outputs)), role)


@pytest.fixture
def every_kind(small, monkeypatch):
    """every_kind(make): from then on cases of every kind have the contenders of make(case, cold)."""

    def put(make):
        for kind in CONTENDERS:
            monkeypatch.setitem(CONTENDERS, kind, make)

    return put


@pytest.fixture
def contenders(every_kind):
    """Contenders that a test makes up, for cases of every kind: contenders(...) → their rows."""

    def rows(*made, case=CASES[4], rounds=2, **options):
        every_kind(lambda *given: iter(made))
        return measured(replace(case, rounds=rounds), **options)

    return rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1.01, -1.0, 0.0])
def test_other_values_are_refused(value, contenders):
    ran = []
    rows = contenders(contender("reference"), contender("x", value, run=lambda: ran.append(1)), contender("y"))
    assert list(notes(rows)) == ["x"] and not ran
    timed_only(rows)
    assert notes(rows)["x"].startswith("refused: it differs from the reference by")


@pytest.mark.parametrize("value", [float("nan"), 1.01])
def test_a_refusal_is_json_that_everyone_reads(value, contenders):
    rows = contenders(contender("reference"), contender("x", value))
    text = json.dumps(rows)

    def refuse(constant):
        raise AssertionError(f"{constant} in {text}")

    assert json.loads(text, parse_constant=refuse) == rows


@pytest.mark.parametrize("shape", [(2, 4), (3, 2), (6,), (1, 2, 3), ()])
def test_another_shape_is_refused(shape, contenders):
    rows = contenders(contender("reference"), contender("x", torch.ones(shape)), contender("y"))
    assert notes(rows) == {"x": f"refused: its result has shape {shape}, not (2, 3)"}


def test_a_nan_of_the_reference_refuses_all(contenders):
    rows = contenders(contender("reference", float("nan")), contender("x"), contender("y", float("nan")))
    assert list(notes(rows)) == ["reference", "x", "y"]


def fails(message="no such units"):
    def call(*given):
        raise RuntimeError(message)

    return call


def test_contenders_that_fail_are_rows_that_say_so(contenders):
    calls = []

    def later():
        calls.append(1)
        if len(calls) == 3:  # once to be warm, once in the first round
            raise ValueError("out of memory\nand more")

    rows = contenders(
        contender("reference"),
        contender("made", make=fails()),
        contender("compared", make=lambda: Ready(lambda: None, fails("no result"))),
        contender("warmed", run=fails("no run")),
        contender("later", run=later),
        contender("well"),
        rounds=4,
    )
    assert notes(rows) == {
        "made": "RuntimeError: no such units",
        "compared": "RuntimeError: no result",
        "warmed": "RuntimeError: no run",
        "later": "ValueError: out of memory",
    }
    timed_only(rows)
    assert len(by_name(rows)["well"]["seconds"]) == 4 and len(calls) == 3
    assert session.refused({"rows": rows}) == []  # none of these is fastdiff's own
    named = [{**row, "contender": f"fastdiff, {row['contender']}", "role": Role.FASTDIFF} for row in rows]
    assert [text.split(": ")[0] for text in session.refused({"rows": named})] == [
        f"evaluation A28@28, batch 2, fastdiff, {name}" for name in notes(rows)
    ]


def test_without_a_reference_nothing_is_compared(contenders):
    for broken in (
        contender("reference", make=fails()),
        contender("reference", make=lambda: Ready(lambda: None, fails())),
    ):
        rows = contenders(broken, contender("fastdiff"), contender("x"), contender("theirs", other=True))
        assert notes(rows) == {
            "reference": "RuntimeError: no such units",
            "fastdiff": "not timed: there is no reference to compare with",
            "x": "not timed: there is no reference to compare with",
        }
        assert "ratio" not in by_name(rows)["theirs"] and len(session.refused({"rows": rows})) == 1


def test_a_reference_that_fails_when_it_is_timed_leaves_times_without_ratios(contenders):
    calls = []

    def later():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    rows = contenders(contender("reference", run=later), contender("x"), rounds=3)
    assert notes(rows) == {"reference": "RuntimeError: out of memory"}
    assert "ratio" not in rows[1] and len(rows[1]["seconds"]) == 3


def test_one_that_checks_its_own_result_says_so(contenders):
    rows = contenders(contender("reference"), contender("x", make=lambda: Ready(lambda: None)))
    assert rows[1]["remark"] == "nothing to compare: it checks its own result" and "parity" not in rows[1]
    rows = contenders(contender("reference"), contender("theirs", other=True))
    assert "remark" not in rows[1]


def test_what_is_missing_says_how_to_install_it(small, monkeypatch):
    for name in ("diffusers", "onnxruntime", "denoising_diffusion_pytorch"):
        for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)
    whole = {name: getattr(sys.modules["fastdiff.bench.peers.others"], name) for name in ("diffusers", "lucidrains")}
    monkeypatch.setattr(others, "diffusers_unet", lambda *given: whole["diffusers"]())
    monkeypatch.setattr(others, "lucidrains_unet", lambda *given: whole["lucidrains"]())
    monkeypatch.setattr(predictors, "onnxruntime", ONNXRUNTIME)
    install = {
        "ONNX Runtime": "InputError: ONNX Runtime is not installed (import of onnxruntime halted; None in sys.modules)"
        "; pip install '.[onnx]' in the clone of fastdiff, or [onnx-gpu]",
        DIFFUSERS: "ImportError: diffusers is not installed; pip install diffusers",
        OTHERS[0]: "ImportError: diffusers is not installed; pip install diffusers",
        OTHERS[1]: f"ImportError: {others.LUCIDRAINS}",
    }
    install["ONNX Runtime"] = install["ONNX Runtime"][:132]  # as reporting.failure cuts it
    rows = measured(Case(Kind.EVALUATION, "B@16", "", 2, rounds=1))
    assert notes(rows) == {name: text for name, text in install.items() if name != DIFFUSERS}
    timed_only(rows)
    assert notes(measured(Case(Kind.SAMPLING, "B@16", "ddim 5", 2, rounds=1))) == install
    assert notes(measured(Case(Kind.STEP, "B@16", "ddim", 2, rounds=1))) == {DIFFUSERS: install[DIFFUSERS]}


ONNXRUNTIME = predictors.onnxruntime  # itself, which `small` replaces


def test_an_export_without_onnxruntime_says_how_to_install_it(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("_by_torch", "_network", "_loop"):
        monkeypatch.setattr(exports, name, lambda case, path, name=name: path.write_text(name))
    rows = measured(Case(Kind.EXPORT, "B@16", "", 1, rounds=1))
    assert "pip install" in rows[0]["reason"] and rows[0]["status"] == Status.MISSING


def test_nothing_that_was_not_compiled_before_is_compiled_in_a_quick_run(small, keep_only):
    keep_only(Kind.EVALUATION, "reference", *PLAIN[2:4])
    cases = [Case(Kind.EVALUATION, "B@16", "", 2, rounds=1), Case(Kind.STEP, "B@16", "ddim", 2, rounds=1)]
    cold = f"ColdCacheError: {compiling.COLD}"
    rows = measured(*cases, cold=False)
    assert [(row["kind"], row["contender"]) for row in rows if notes([row]).get(row["contender"]) == cold] == [
        (Kind.EVALUATION, "torch.compile"),
        (Kind.EVALUATION, "torch.compile, max-autotune"),
        (Kind.STEP, "torch.compile"),
    ]
    assert notes(measured(*cases, cold=True)) == notes(measured(*cases, cold=False)) == {}
    # Another batch, other threads, another precision: other code.
    for more in ({"batch": 3}, {"threads": 2}):
        assert notes(measured(replace(cases[0], **more), cold=False)).keys() == {
            "torch.compile",
            "torch.compile, max-autotune",
        }
    other = measured(replace(cases[0], dtype="bfloat16"), cold=False)
    assert notes(other).keys() == {"torch.compile, max-autotune"}  # the published network stays float32


# --- turns ---


def watched(name, seen):
    """A contender that notes what it is asked, and under which settings."""

    def note(what):
        seen.append((name, what, torch.is_grad_enabled(), torch.get_num_threads()))

    def outputs():
        note("outputs")
        return torch.ones(2)

    def make():
        note("make")
        return Ready(lambda: note("run"), outputs)

    return Contender(name, make, Role.PEER if name in ("b", "c") else Role.REFERENCE)


def test_contenders_take_turns_every_other_round_backwards(contenders):
    seen = []
    contenders(watched("reference", seen), watched("b", seen), watched("c", seen), rounds=3)
    prepared = [(n, w) for n in ("reference", "b", "c") for w in ("make", "outputs", "run")]
    assert [(name, what) for name, what, *_ in seen[:9]] == prepared
    assert [name for name, *_ in seen[9:]] == ["reference", "b", "c", "c", "b", "reference", "reference", "b", "c"]


def test_cases_take_turns_or_follow_each_other(every_kind):
    cases = [Case(Kind.EVALUATION, "B@16", batch=batch, rounds=rounds) for batch, rounds in ((1, 2), (2, 4))]
    for together, rounds in ((True, [1, 2, 2, 1, 2, 2]), (False, [1, 1, 2, 2, 2, 2])):
        seen, steps, done = [], [], []

        class Notes(runner.Watcher):
            def preparing(self, case, contender, steps=steps):
                steps.append(("preparing", case.label, contender))

            def round(self, case, number, steps=steps):
                steps.append(("round", case.label, number))

            def rows(self, rows, done=done):
                done.append([row["batch"] for row in rows])

        every_kind(lambda case, cold, s=seen: iter([watched(case.batch, s)]))
        rows = runner.measure(cases, True, together, Notes())
        warm = [name for name, what, *_ in seen if what == "run"]
        assert warm[2:] == rounds if together else warm == [1, *rounds[:2], 2, *rounds[2:]]
        assert [row["batch"] for row in rows] == [1, 2] and done == [[1], [2]]
        assert [len(row["seconds"]) for row in rows] == [2, 4]
        assert sum(what == "round" for what, *_ in steps) == 6 and len(steps) == 2 + 6
        assert steps[0] == ("preparing", "evaluation B@16 batch 1", 1)
        assert ("round", "evaluation B@16 batch 2", 4) in steps


def test_threads_and_gradients_are_those_of_the_case_and_come_back(every_kind):
    seen = []
    every_kind(lambda case, cold: iter([watched(case.kind, seen)]))
    before, limit = torch.get_num_threads(), graphs.POOL.limit
    measured(replace(CASES[4], threads=2), replace(CASES[0], threads=1), replace(CASES[6], threads=2))
    assert {(name, threads) for name, _, _, threads in seen} == {
        (Kind.EVALUATION, 2),
        (Kind.STEP, 1),
        (Kind.SAMPLING, 2),
    }
    assert not any(grad for _, _, grad, _ in seen)
    assert torch.get_num_threads() == before and graphs.POOL.limit == limit and torch.is_grad_enabled()


def test_a_case_that_is_no_training_has_no_gradients_beside_one_that_is(every_kind):
    """Compiled code is for one of the two: it would be compiled again, and within a round."""
    seen = []
    every_kind(lambda case, cold: iter([watched(case.kind, seen)]))
    measured(CASES[4], CASES[12], together=False)
    assert {(name, what, grad) for name, what, grad, _ in seen} == {
        (kind, what, kind == Kind.TRAINING)
        for kind in (Kind.EVALUATION, Kind.TRAINING)
        for what in ("make", "outputs", "run")
    }


# --- the command ---

CASES_OF_QUICK = len(plan("quick", "cpu"))


def test_the_quick_plan_on_tiny_networks(small, run, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(limits, "counted", cache(COUNTED.__wrapped__))
    result = run("--quick", "--rounds", 2, "-o", "deep/report")
    whole = report.read("deep/report")
    rows = whole["rows"]
    assert [(row["kind"], row["network"], row["what"], row["batch"]) for row in rows] == [
        (case.kind, case.network, case.what, case.batch)
        for case in plan("quick", "cpu")
        for name in expected_names(case.kind)
        if case.kind != Kind.SAMPLING or name not in OTHERS
    ]
    assert notes(rows) == dict.fromkeys(
        ("torch.compile", "torch.compile, max-autotune"), f"ColdCacheError: {compiling.COLD}"
    )
    timed_only(rows)
    assert all(len(row["seconds"]) == 2 for row in rows if "reason" not in row)
    files = {path.name: path for path in (tmp_path / "deep" / "report").iterdir()}
    assert files.keys() == {"report.json", "report.md", "share-of-limit.png"}
    text = files["report.md"].read_text()
    lines = result.stdout.splitlines()
    for row in rows:
        assert f"  {case_text(row)}: {', '.join(filter(None, tables.cells(row)))}" in lines
        assert f"| {case_text(row)} | {' | '.join(tables.cells(row))} |" in text
    assert [line for line in lines if line.startswith("wrote ")] == [
        f"wrote deep/report/{name}" for name in ("report.json", "report.md", "share-of-limit.png")
    ]
    headings = [line for line in lines if not line.startswith((" ", "wrote"))]
    assert headings == ["evaluation:", "sampling:"]
    for name in ("report.json", "report.md"):
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", files[name].read_text())
    assert whole["machine"] == session.hardware("cpu") and f"{os.cpu_count()} cores" in whole["machine"]
    assert whole["plan"] == "quick" and "worse" not in whole and whole["seconds"] > 0
    assert whole["versions"]["torch"] and whole["command"].startswith("fastdiff") and whole["fastdiff"]
    assert result.stderr == "" and not [p for p in tmp_path.rglob("*") if p.name.startswith(".fastdiff-")]


def test_an_interrupted_run_leaves_the_cases_that_are_done(small, run, monkeypatch):
    """The standard plan finishes each case before the next begins."""
    whole = CONTENDERS[Kind.STEP]

    def contenders(case, cold):
        if case.what == "ddpm":
            raise KeyboardInterrupt
        return whole(case, cold)

    monkeypatch.setitem(CONTENDERS, Kind.STEP, contenders)
    result = run("--only", "denoise step", "--batch", 1, "--rounds", 1, "--device", "cpu", code=130)
    assert "stopped: 2 of 4 cases are in bench-report" in result.stdout
    assert {path.name for path in Path("bench-report").iterdir()} == {report.PARTIAL, report.PARTIAL_TEXT}
    made = report.read(f"bench-report/{report.PARTIAL}")
    assert [row["contender"] for row in made["rows"]] == expected_names(Kind.STEP) * 2
    assert "Cut short: 2 of 4 cases." in Path(f"bench-report/{report.PARTIAL_TEXT}").read_text()


@pytest.mark.parametrize("there", [False, True])
def test_stopped_before_anything_was_measured_no_report_is_left(there, every_kind, run):
    """By the signal of Ctrl-C; one that was there before stays."""
    kept = Path("bench-report") / report.NAME
    if there:
        kept.parent.mkdir()
        kept.write_text("an older report")

    def stops(case, cold):
        raise KeyboardInterrupt

    every_kind(stops)
    result = run("--quick", code=130)
    assert "stopped: 0 cases were finished" in result.stdout and "wrote" not in result.stdout
    assert list(Path("bench-report").glob("*")) == ([kept] if there else [])
    assert there or not kept.parent.exists()
    assert not there or kept.read_text() == "an older report"


def test_list_prints_the_cases_and_measures_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "measure", fails("measured"))
    lines = run("--quick", "--list").output.splitlines()
    assert lines == [f"{case.label}: {case.rounds} rounds" for case in plan("quick", "cpu")]
    assert run("--list", "--only", "training b@16", "--threads", 2, "--device", "cpu").output == (
        "training step B@16 batch 16 2 threads: 9 rounds\n"
    )
    assert len(run("--full", "--list", "--device", "cpu").output.splitlines()) > 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, said",
    [
        (("nope",), "unknown command 'nope'; accepted: quality, distance, classifier"),
        (("--network", "C"), "network 'C'; accepted: A28@28"),
        (("--network", "A64@64"), "no case for 'A64@64'; its cases: evaluation A28@28 batch 1"),
        (("--dtype", "int8"), "dtype 'int8'; accepted: float32"),
        (("--batch", "0"), "batch = 0; accepted: 1 or more"),
        (("--batch", "7"), "no case for 7; its cases: evaluation A28@28 batch 1"),
        (("--batch", "many"), "'many' is not a valid integer"),
        (("--threads", "-1"), "threads = -1; accepted: 1 or more"),
        (("--rounds", "0"), "rounds = 0; accepted: 1 or more"),
        (("--only", "nothing"), "no case for 'nothing'; its cases: evaluation"),
        (("--device", "abacus"), "abacus"),
        (("-o", ""), "-o ''; accepted: a folder"),
        (("-o", "file"), "cannot write to 'file'"),
        (("-o", "file/report"), "cannot write to 'file/report'"),
        (("--against", "none.json"), "cannot read the report 'none.json'"),
        (("--against", "file"), "'file' is no report of `fastdiff bench`"),
        (("--against", "other.json"), "the old report is of 'another machine', this machine is"),
        (("--quicker",), "No such option"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(words, said, run, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "measure", fails("measured"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")
    (tmp_path / "file").write_text("text")
    other = {
        "format": report.FORMAT,
        "machine": "another machine",
        "rows": [],
        "versions": {},
        "fastdiff": "",
        "command": "",
    }
    (tmp_path / "other.json").write_text(json.dumps(other))
    result = run("--quick", *words, code=2)
    assert said in result.stderr and result.stdout == "" and "Traceback" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other.json"]


# --- against an older report ---


class Clock:
    """The machine's clock, without the machine: contenders take the seconds that they are said to.

    On top, as on a real machine: everything is now slower, now faster by half within a run, and each call by a tenth.
    """

    def __init__(self, seed):
        self.now, self.random = 0.0, np.random.default_rng(seed)
        self.slower = {}  # contender → factor

    def perf_counter(self):
        self.now += 1e-5
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def takes(self, name):
        nominal = 0.004 if name == "reference" else 0.0015 if name.startswith("fastdiff") else 0.003
        drift = 1 + 0.5 * math.sin(self.now / 7)
        self.now += nominal * self.slower.get(name, 1) * drift * math.exp(0.1 * self.random.standard_normal())


@pytest.fixture
def clocked(small, monkeypatch):
    """clocked(seed) → the clock that contenders are timed by from then on. They are prepared and compared as ever."""

    def start(seed):
        clock = Clock(seed)
        monkeypatch.setattr(timing, "time", clock)
        return clock

    # What they compute is compared; what is timed is the clock's alone, so long turns cost nothing.
    monkeypatch.setattr(timing, "TURN", 0.05)
    now = lambda: timing.time  # noqa: E731
    for kind, whole in list(CONTENDERS.items()):

        def wrapped(case, cold, whole=whole):
            for one in whole(case, cold):

                def make(one=one):
                    ready = one.make()
                    ready.run = lambda: now().takes(one.name)
                    return ready

                yield replace(one, make=make)

        monkeypatch.setitem(CONTENDERS, kind, wrapped)
    return start


QUICK = ("--quick", "--only", "evaluation")


def test_an_unchanged_tree_is_no_worse_than_itself(clocked, run):
    clocked(0)
    run(*QUICK, "-o", "old")
    for seed in range(1, 5):
        clocked(seed)
        result = run(*QUICK, "--against", "old", "-o", "new")
        # References, and what would have to be compiled, have no ratio to compare.
        compared = (len(expected_names(Kind.EVALUATION)) - 3) * 2
        assert f"no row of {compared} is worse by more than 10%" in result.stdout.splitlines()
        assert "WORSE" not in result.stdout and report.read("new")["worse"] == []


def test_a_planted_slowdown_of_a_quarter_is_found_and_named(clocked, run):
    clocked(0)
    run(*QUICK, "-o", "old")
    clock = clocked(1)
    clock.slower = {"fastdiff": 1.25}
    result = run(*QUICK, "--against", "old/report.json", "-o", "new", code=1)
    lines = result.stdout.splitlines()
    cases = [case for case in plan("quick", "cpu") if case.kind == Kind.EVALUATION]
    assert f"measuring again: {'; '.join(case.label for case in cases)}" in lines
    worse = [line for line in lines if line.startswith("WORSE")]
    expected = [f"WORSE  {c.kind} {case_text(vars(c))}, fastdiff: was " for c in cases]
    assert len(worse) == len(expected) == 2
    for line, start in zip(worse, expected, strict=True):
        assert line.startswith(start)
        was, now = (float(part.split("x")[0]) for part in line.removeprefix(start).split(", now "))
        assert now / was == pytest.approx(1 / 1.25, rel=0.05)
    new = report.read("new")
    assert new["worse"] == worse
    # Rows that were measured again took twice the rounds, and theirs are the figures that are kept.
    for row in new["rows"]:
        if "reason" not in row:
            assert len(row["seconds"]) == cases[0].rounds * (2 if row["contender"] == "fastdiff" else 1)
    # A quarter faster is nothing to complain of.
    clocked(2)
    assert "no row of" in run(*QUICK, "--against", "new", "-o", "newer").stdout


def test_a_slowdown_that_is_gone_when_measured_again_is_no_slowdown(clocked, run, monkeypatch):
    clocked(0)
    run(*QUICK, "-o", "old")
    clock = clocked(1)
    clock.slower = {"fastdiff": 1.5}
    again = session._again

    def quiet(*given):
        clock.slower = {}
        return again(*given)

    monkeypatch.setattr(session, "_again", quiet)
    result = run(*QUICK, "--against", "old", "-o", "new")
    assert "measuring again" in result.stdout and "WORSE" not in result.stdout
    assert report.read("new")["worse"] == []


def test_what_is_refused_now_and_was_not_then_is_worse(clocked, run, monkeypatch):
    clocked(0)
    run(*QUICK, "-o", "old")
    clocked(1)
    right = Prediction.__call__
    monkeypatch.setattr(Prediction, "__call__", lambda self, *given: right(self, *given) * 1.001)
    result = run(*QUICK, "--against", "old", "-o", "new", code=1)
    worse = [line for line in result.stdout.splitlines() if line.startswith("WORSE")]
    assert len(worse) == 2 * len(ours())
    assert all("now refused: it differs from the reference by 1.0e-03" in line for line in worse)
    assert len(result.stderr.splitlines()) == len(worse)


def test_the_old_report_may_be_the_one_that_is_replaced(clocked, run):
    clocked(0)
    run(*QUICK, "-o", "same")
    clocked(1)
    old = report.read("same")
    run(*QUICK, "--against", "same", "-o", "same")
    assert report.read("same")["rows"] != old["rows"] and report.read("same")["worse"] == []


def test_work_that_is_done_again_a_quarter_of_the_time_is_found(small, run, monkeypatch, keep_only):
    """Real calls, timed by what this thread computes: other programs have their part of the machine's clock."""
    own = SimpleNamespace(perf_counter=time.thread_time, sleep=lambda seconds: None)
    monkeypatch.setattr(timing, "time", own)
    monkeypatch.setattr(timing, "TURN", 0.01)
    keep_only(Kind.EVALUATION, "reference", "fastdiff")
    words = ("--quick", "--only", "evaluation B@16", "--rounds", 24)
    run(*words, "-o", "old")
    run(*words, "--against", "old", "-o", "new")
    right = evaluations.by_engine

    def slower(case, form):
        ready, calls = right(case, form), []
        run = ready.run

        def again():
            calls.append(1)
            run()
            if len(calls) % 4 == 0:
                run()

        ready.run = again
        return ready

    monkeypatch.setattr(evaluations, "by_engine", slower)
    worse = run(*words, "--against", "old", "-o", "new", code=1).stdout
    assert "WORSE  evaluation B@16, batch 1, fastdiff: was " in worse
    shutil.rmtree("new")


def test_the_old_scripts_promises_hold_for_the_cold_start_too():
    """A cold start is a kind like the others: it is gated, and --quick has none."""
    assert CONTENDERS.keys() == parity.BOUNDS.keys() and Kind.COLD in parity.BOUNDS
    assert Kind.COLD not in {case.kind for case in plan("quick", "cpu")}


def test_an_update_replaces_its_own_cases_and_keeps_the_rest(clocked, run, monkeypatch):
    clocked(0)
    monkeypatch.setattr(sys, "argv", ["fastdiff", "bench", "--quick"])
    run("--quick", "--only", "evaluation", "--rounds", 3, "-o", "whole")
    old = report.read("whole")
    clocked(1)
    monkeypatch.setattr(sys, "argv", ["fastdiff", "bench", "--update"])
    run("--quick", "--only", "evaluation B@16", "--rounds", 4, "--update", "-o", "whole")
    new = report.read("whole")
    kept = [row for row in old["rows"] if row["network"] == "A28@28"]
    assert new["rows"][: len(kept)] == kept and new["cases"] == 2 == report.done(new)
    anew = [row for row in new["rows"] if row["network"] == "B@16" and "seconds" in row]
    assert anew and all(len(row["seconds"]) == 4 for row in anew)
    assert new["command"] == "fastdiff bench --quick and then fastdiff bench --update"
    assert [run["command"] for run in new["runs"]] == ["fastdiff bench --quick", "fastdiff bench --update"]
    assert new["plan"] == "quick" and new["fastdiff"] == old["fastdiff"]  # said once
    other = {**new, "machine": "another machine"}
    (Path("whole") / report.NAME).write_text(json.dumps(other))
    result = run("--quick", "--only", "evaluation", "--update", "-o", "whole", code=2)
    assert "is of 'another machine'" in result.stderr
    assert "cannot read the report" in run("--quick", "--update", "-o", "nothing", code=2).stderr
