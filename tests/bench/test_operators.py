"""Operators, profiles and exported loops as cases of the runner; Triton kernels run in its interpreter."""

import pytest
from click.testing import CliRunner

from fastdiff.bench import limits, networks, parity, runner, session, timing
from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import Role, Status
from fastdiff.bench.contenders import exported_loops, profiles
from fastdiff.bench.operators import catalogue as operators
from fastdiff.bench.plans import plan
from fastdiff.cli.main import main
from fastdiff.kernels import bias_add_triton
from fastdiff.kernels.dispatch import using


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(operators, "LEVELS", ((4, 4),))
    monkeypatch.setattr(operators, "COURSE", (8, 4))
    monkeypatch.setattr(operators, "WIDER", ((6, 4),))
    monkeypatch.setattr(operators, "STEPS", ((operators.A, 1, 4),))
    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setattr(timing, "TURN", 0)
    monkeypatch.setattr(limits, "SIZES", {"cpu": (16, 256)})
    monkeypatch.setattr(limits, "SECONDS", 1e-3)


def measured(*names, batch):
    """The rows of the operators of those names, or all; torch.compile left out."""
    with using("triton"):
        chosen = [one for one in operators.catalogue("cpu") if not names or one.name in names]
        cases = [Case(Kind.OPERATOR, one.network, one.what, batch, "bfloat16", rounds=1) for one in chosen]
        return runner.measure(cases, cold=False, together=False)


def of(rows, role):
    return [row for row in rows if row["role"] == role]


def test_every_operator_is_held_against_float64_and_timed():
    rows = measured(batch=1)
    assert {row["what"].split(",")[0] for row in rows} == {
        "depthwise_conv",
        "group_norm",
        "conv_norm",
        "conv_add",
        "fused_conv",
        "bias_add",
        "channel_norm",
        "linear_attention",
        "attention_block",
        "denoise_step",
        "denoise_step_of",
        "position_norm",
        "small_attention",
    }
    for row in of(rows, Role.COMPILED):
        assert row["status"] == Status.NOT_COMPILED
    for row in [*of(rows, Role.REFERENCE), *of(rows, Role.FASTDIFF)]:
        assert row["status"] == Status.MEASURED and len(row["seconds"]) == 1 and row["ratio"][0] > 0
        assert 0 <= row["parity"] <= row["bound"] == (1e-5 if row.get("precision") else 2e-2)
        assert row["share_of_limit"] > 0 and "images_per_second" not in row
    # x and the prediction read, x written: 4 + 2 + 4 bytes an element.
    step = next(row for row in rows if row["what"] == "denoise_step, 1x4x4, no noise")
    assert step["megabytes"] == pytest.approx(16 * 10 / 1e6)


def test_operators_of_a_cpu_are_those_of_its_c_kernels(monkeypatch):
    from fastdiff.kernels.cpu import compiled

    monkeypatch.setattr(operators, "LEVELS", ((28, 14),))
    monkeypatch.setattr(operators, "COURSE", (16, 4))  # a vector of any processor
    if compiled.build_error() is not None:
        pytest.skip("no C compiler")
    names = {one.name for one in operators.catalogue("cpu")}
    assert {"winograd", "depthwise", "attention_block", "denoise_step"} <= names and "conv_norm" not in names
    for one in operators.catalogue("cpu"):
        if one.name in ("winograd", "depthwise", "attention_block", "group_norm"):
            case = Case(Kind.OPERATOR, one.network, one.what, 2, rounds=1)
            rows = runner.measure([case], cold=False, together=False)
            (row,) = of(rows, Role.FASTDIFF)
            assert row["status"] == Status.MEASURED and row["parity"] < 1e-5, row
            (reference,) = of(rows, Role.REFERENCE)
            assert (row["gflop"] < reference["gflop"]) == (one.name in ("winograd", "attention_block"))
            assert row["megabytes"] > reference["megabytes"]  # weights too


def test_an_operator_that_is_wrong_in_any_sample_is_not_timed(monkeypatch):
    """For other numbers of samples an operator may choose other kernels."""
    right = bias_add_triton.forward

    def wrong_in_the_last(x, *more):
        y = right(x, *more)
        y[-1] *= 1.25
        return y

    monkeypatch.setattr(bias_add_triton, "forward", wrong_in_the_last)
    made = measured("bias_add", "channel_norm", batch=20)
    other, wrong = of(made, Role.FASTDIFF)
    assert (wrong["what"][:8], wrong["status"]) == ("bias_add", Status.REFUSED) and "seconds" not in wrong
    assert wrong["reason"].startswith("it differs from the reference by ")
    assert wrong["parity"] == pytest.approx(0.25 / 20**0.5, rel=0.3)  # samples differ in size, and bfloat16 rounds
    assert other["status"] == Status.MEASURED and other["seconds"]
    (refused,) = session.refused({"rows": made})  # which ends the command with 1
    assert refused.startswith("operator A28@28, bias_add, ")


def test_an_operator_that_fails_is_a_row_that_says_so(monkeypatch):
    def fail(*given):
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr(bias_add_triton, "forward", fail)
    rows = {row["what"].split(",")[0]: row for row in of(measured("bias_add", "channel_norm", batch=2), Role.FASTDIFF)}
    assert (rows["bias_add"]["status"], rows["bias_add"]["reason"]) == (Status.FAILED, "out of shared memory")
    assert rows["channel_norm"]["status"] == Status.MEASURED


def test_what_is_on_request_must_be_named():
    labels = [case.label for case in plan("standard", "cuda", dtypes=("bfloat16",), only=("operator", "profile A28"))]
    assert any("attention_block" in label for label in labels) and "profile A28@28 batch 1024 bfloat16" in labels
    assert not any(label.startswith(("evaluation", "profile B@16")) for label in labels)
    assert not any(
        "attention_block" in case.what for case in plan("standard", "cuda", dtypes=("float32",), only=("operator",))
    )
    assert all(case.kind != Kind.OPERATOR for case in plan("standard", "cuda", only=("A28@28", "channels")))
    result = CliRunner().invoke(main, ["bench", "--device", "cpu", "--only", "operator softmax"])
    assert result.exit_code == 2 and "no case for 'operator softmax'" in result.stderr


@pytest.mark.slow  # a minute in Triton's interpreter
def test_a_profile_lists_kernels_and_counts_its_own_bytes(tiny, monkeypatch):
    monkeypatch.setattr(networks, "load", tiny(25).__getitem__)
    limits.counted.cache_clear()
    with using("triton"):
        rows = runner.measure([Case(Kind.PROFILE, "A28@28", "", 1, "bfloat16", rounds=2)], False, False)
    limits.counted.cache_clear()
    plain, compiled, fused = rows
    assert plain["contender"] == profiles.PLAIN and compiled["status"] == Status.NOT_COMPILED
    assert 0 < fused["parity"] < parity.BOUNDS_16[Kind.PROFILE] and fused["bytes_moved"] < plain["bytes_moved"]
    for row in (plain, fused):
        times = [kernel["microseconds"] for kernel in row["kernels"]]
        assert times == sorted(times, reverse=True) and row["share_of_limit"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("network, what", [("A28@28", "ddpm 5"), ("B@16", "ddim 5")])
def test_exported_loops_are_held_against_fastdiffs_images(network, what, tiny, monkeypatch):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr(networks, "load", tiny(25).__getitem__)
    exported_loops.predictors.exported.cache_clear()
    rows = runner.measure([Case(Kind.LOOP, network, what, 2, rounds=2)], False, False)
    exported_loops.predictors.exported.cache_clear()
    assert [row["status"] for row in rows] == [Status.MEASURED] * 5, rows
    assert [row["contender"] for row in rows] == [exported_loops.NETWORK, *exported_loops.FACES, "fastdiff"]
    assert "parity" not in rows[0] and all(row["parity"] <= parity.BOUNDS[Kind.LOOP] for row in rows[1:])
    assert all(row["bytes"] > 1000 for row in rows[:4]) and all(row["images_per_second"] > 0 for row in rows)
