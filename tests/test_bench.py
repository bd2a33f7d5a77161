"""The GPU's reports run without one, tiny, in Triton's interpreter; their parity gates hold; bytes are counted."""

import json
from pathlib import Path

import pytest
import torch

from fastdiff.bench import operators, profiling
from fastdiff.bench.shapes import NETWORKS, Network
from fastdiff.bench.traffic import launches_table, network_flop, network_traffic, report, step_launches
from fastdiff.kernels import bias_add_triton

ROOT = Path(__file__).parent.parent
TINY = ["--device", "cpu", "--smoke", "--rounds", "2", "--no-compile"]


def run(main, *arguments) -> int:
    """The exit status."""
    with pytest.raises(SystemExit) as stop:
        main([*TINY, *map(str, arguments)])
    return stop.value.code


def test_the_operators_report(tmp_path, capsys):
    output = tmp_path / "new" / "operators.json"
    assert run(operators.main, "--batch", 2, "--step-batch", 3, "--output", output) == 0
    report = json.loads(output.read_text())
    assert {row["operator"] for row in report["rows"]} == {
        "depthwise_conv", "group_norm", "conv_norm", "conv_add", "bias_add", "channel_norm", "linear_attention",
        "attention_block", "denoise_step",
    }  # fmt: skip
    for row in report["rows"]:
        assert row["note"] == "" and row["error"] < 2e-2 and row["microseconds"].keys() == {"plain", "fused"}
        assert row["against_plain"][0] > 0
    assert "Triton's interpreter: the times mean nothing" in output.with_suffix(".md").read_text()
    # x and the prediction read, x written: 4 + 2 + 4 bytes an element.
    step = next(row for row in report["rows"] if row["case"] == "1x4x4, no noise")
    assert step["megabytes"] == pytest.approx(3 * 16 * 10 / 1e6)


def test_an_operator_that_is_wrong_is_not_timed(tmp_path, monkeypatch):
    right = bias_add_triton.forward
    monkeypatch.setattr(bias_add_triton, "forward", lambda x, *more: right(x, *more) * 1.05)
    output = tmp_path / "operators.json"
    assert run(operators.main, "--batch", 2, "--only", "bias_add", "channel_norm", "--output", output) == 1
    notes = {row["operator"]: (row["note"], row["microseconds"]) for row in json.loads(output.read_text())["rows"]}
    assert notes["bias_add"][0].startswith("not timed: the error exceeds") and not notes["bias_add"][1]
    assert notes["channel_norm"][0] == "" and notes["channel_norm"][1]


def test_every_sample_that_is_timed_is_compared(tmp_path, monkeypatch):
    """For other numbers of samples an operator may choose other kernels."""
    right = bias_add_triton.forward

    def wrong_in_the_last(x, *more):
        y = right(x, *more)
        y[-1] *= 2
        return y

    monkeypatch.setattr(bias_add_triton, "forward", wrong_in_the_last)
    output = tmp_path / "operators.json"
    assert run(operators.main, "--batch", 20, "--only", "bias_add", "--output", output) == 1
    notes = [row["note"] for row in json.loads(output.read_text())["rows"]]
    assert all(note.startswith("not timed: the error exceeds") for note in notes)


def test_an_operator_that_fails_is_a_row_that_says_so(tmp_path, monkeypatch):
    def fail(*given):
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr(bias_add_triton, "forward", fail)
    output = tmp_path / "operators.json"
    assert run(operators.main, "--batch", 2, "--only", "bias_add", "channel_norm", "--output", output) == 1
    notes = {row["operator"]: row["note"] for row in json.loads(output.read_text())["rows"]}
    assert notes == {"bias_add": "RuntimeError: out of shared memory", "channel_norm": ""}


def test_an_unknown_operator_is_named(capsys):
    assert run(operators.main, "--only", "softmax") == 2
    assert "no operator softmax; there are" in capsys.readouterr().err


@pytest.mark.slow  # a minute in Triton's interpreter
def test_the_profile(tmp_path):
    output = tmp_path / "profile.json"
    assert run(profiling.main, "--batch", 1, "--output", output) == 0
    (row,) = json.loads(output.read_text())["rows"]
    assert row["error"] < 3e-2 and row["milliseconds"].keys() == {"plain", "fused"}
    assert row["kernels"]["plain"] and row["kernels"]["fused"] and row["floor_milliseconds"]["fused"] > 0
    training = json.loads(output.read_text())["training"]
    assert training["error"] < 6e-2 and training["milliseconds"].keys() == {"plain", "fused"}
    assert "kernels by time" in output.with_suffix(".md").read_text()


def test_operations_are_those_of_the_specification():
    """measuring.md: 0.560 GFLOP an image for network A at dim 28, 3.45 at dim 64 and 32x32."""
    assert network_flop(NETWORKS["A, dim 28, 28x28"]) / 1024 == pytest.approx(0.560e9, rel=2e-3)
    assert network_flop(NETWORKS["A, dim 64, 32x32"]) / 1024 == pytest.approx(3.45e9, rel=2e-3)


class _One(torch.nn.Module):
    """A convolution with a bias and a GELU, shaped like a network."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 3, padding=1)

    def embed_time(self, t):
        return ()

    def embed_context(self, context):
        return ()

    def denoise(self, x, time, context):
        return torch.nn.functional.gelu(self.conv(x))


def test_bytes_are_counted_as_by_hand():
    moved = network_traffic(Network(_One, (2, 4, 4)), torch.bfloat16, fused=False, batch=5).moved
    x, w, y = 5 * 2 * 16 * 2, 3 * 2 * 9 * 2, 5 * 3 * 16 * 2
    assert moved["convolution"] == x + w + 3 * 2 + y
    assert moved["convolution's bias"] == 2 * y + 3 * 2
    assert moved["gelu"] == 2 * y
    assert sum(moved.values()) == moved["convolution"] + moved["convolution's bias"] + moved["gelu"]


def test_launches_of_a_step_are_counted_as_by_hand():
    """x in the network's dtype, the row's time, convolution, its bias, GELU, the update, the row's number."""

    class Flat(_One):
        def denoise(self, x, time, context):
            return torch.nn.functional.gelu(self.conv(x))[:, :2]

    counted = step_launches(Network(Flat, (2, 4, 4)), torch.bfloat16, 5)
    assert counted == {name: 1 for name in (
        "_to_copy", "index_select", "convolution", "convolution's bias", "gelu", "denoise_step_forward", "add_",
    )}  # fmt: skip


def test_network_a_launches_what_the_readme_says():
    """142 before the taps of depthwise convolutions were laid out once."""
    counts = [step_launches(NETWORKS["A, dim 28, 28x28"], torch.bfloat16, batch) for batch in (1, 64, 1024)]
    assert [count.total() for count in counts] == [125, 125, 116]
    assert all(not count["clone"] and count["_to_copy"] == 1 for count in counts)


def test_the_committed_count_and_the_readme_are_what_the_code_counts():
    network = NETWORKS["A, dim 28, 28x28"]
    plain, fused = (network_traffic(network, torch.bfloat16, form).total / 1024 / 1e6 for form in (False, True))
    assert fused < 0.5 * plain
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"moves {fused:.1f} MB an image through them, against {plain:.1f} MB in plain torch" in readme
    assert (ROOT / "bench/results/traffic.md").read_text() == report(torch.bfloat16)


def test_the_committed_code_generation_is_clean_and_whole():
    text = (ROOT / "bench/results/kernels.md").read_text()
    assert " 0 with spills, a stack, or too much shared memory" in text
    assert launches_table() in text
    for kernel in ("denoise_step_forward", "linear_attention_whole", "attention_block_out", "group_norm_backward"):
        for arch in (80, 90, 100):
            assert f"| {kernel} | {arch} |" in text


def test_a_report_that_is_stopped_early_keeps_what_was_measured(tmp_path, monkeypatch):
    """As `make gpu` stops a slice that takes too long: by the signal of Ctrl-C."""
    measure, output = operators.measure, tmp_path / "operators.json"

    def stops(case, *more):
        if case.operator == "channel_norm":
            raise KeyboardInterrupt
        return measure(case, *more)

    monkeypatch.setattr(operators, "measure", stops)
    assert run(operators.main, "--batch", 2, "--only", "bias_add", "channel_norm", "--output", output) == 130
    report = json.loads(output.read_text())
    assert [row["operator"] for row in report["rows"]] == ["bias_add"]
    assert "Stopped early: what is missing was not measured." in output.with_suffix(".md").read_text()


def test_a_profile_that_is_stopped_early_keeps_what_was_measured(tmp_path, monkeypatch):
    def stops(network, batch, *more):
        if batch == 2:
            raise KeyboardInterrupt
        return profiling._failed(batch, RuntimeError("no GPU"))

    monkeypatch.setattr(profiling, "measure", stops)
    output = tmp_path / "profile.json"
    assert run(profiling.main, "--batch", 1, 2, "--output", output) == 130
    report = json.loads(output.read_text())
    assert [row["batch"] for row in report["rows"]] == [1] and report["training"] is None
    assert "Stopped early" in output.with_suffix(".md").read_text()


def test_stopped_before_anything_was_measured_no_report_is_left(tmp_path, monkeypatch):
    def stops(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(operators, "copy_rate", stops)
    output = tmp_path / "operators.json"
    assert run(operators.main, "--output", output) == 130 and not output.exists()
