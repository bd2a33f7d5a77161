"""The engine's reports run, small and without a GPU; their parity gates hold; what fails is a row that says so."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from fastdiff import AnnotatedUnet, ContextUnet, Model, graphs, load, make_schedule, make_table, sample
from fastdiff.bench import contenders, engine, evaluation, loops
from fastdiff.forms import FORMS

CPU = torch.device("cpu")


def status(main, *arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    return stop.value.code


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(graphs.POOL, "limit", graphs.POOL.limit)
    yield
    torch.set_num_threads(threads)


def tiny(rand) -> dict[str, Model]:
    annotated = rand(AnnotatedUnet(8, dim_mults=(1, 2)))
    context = rand(ContextUnet(3, 8, 5, 16))
    return {
        "A": Model(annotated, make_schedule("linear", 40), image_shape=(1, 8, 8)),
        "B": Model(context, make_schedule("course", 50), image_shape=(3, 16, 16), time="fraction"),
    }


@pytest.fixture
def small(monkeypatch, randomised):
    """Tiny networks in place of the shipped ones."""
    models = tiny(randomised)
    monkeypatch.setattr(evaluation.fastdiff, "load", {"fashion-mnist": models["A"], "sprites": models["B"]}.get)
    return models


def test_the_evaluations_report(small, tmp_path, monkeypatch, capsys):
    def failing(*given):
        raise ImportError("No module named 'onnxruntime'")

    monkeypatch.setattr(contenders, "by_onnxruntime", failing)
    output = tmp_path / "new" / "evaluation.json"
    options = ("--batch", 1, 3, "--threads", 1, "--rounds", 1, "--cold-rounds", 0, "--output", output)
    assert status(evaluation.main, *options) == 1
    report = json.loads(output.read_text())
    names = [f.name for f in FORMS.values() if not f.captured and f.missing(CPU, torch.float32) is None]
    expected = ["published", *(f"fastdiff, {n}" + ", the default" * (n == names[0]) for n in names), "ONNX Runtime"]
    assert [row["contender"] for row in report["rows"]] == expected * 4
    for row in report["rows"]:
        if row["contender"] == "ONNX Runtime":
            assert row["note"] == "ImportError: No module named 'onnxruntime'" and "milliseconds" not in row
        else:
            assert row["parity"] < 1e-5 and row["milliseconds"] > 0 and row["gflops"] > 0 and row["page_faults"] >= 0
            assert row["product_gflops"] > 0 and row["ratio"][1] <= row["ratio"][0] <= row["ratio"][2]
    text = output.with_suffix(".md").read_text()
    assert "ImportError" in text and "Cold start" not in text and report["machine"] in text


def test_a_contender_that_is_wrong_is_not_timed(small, tmp_path, monkeypatch):
    right = contenders.by_engine
    monkeypatch.setattr(contenders, "by_engine", lambda *given: lambda x, row: right(*given)(x, row) * 1.0001)
    monkeypatch.setattr(
        contenders, "by_onnxruntime", lambda model, table, *rest: contenders.by_publication(model, table)
    )
    output = tmp_path / "evaluation.json"
    options = ("--batch", 2, "--threads", 1, "--rounds", 1, "--network", "A", "--cold-rounds", 0, "--output", output)
    assert status(evaluation.main, *options) == 1
    for row in json.loads(output.read_text())["rows"]:
        wrong = row["contender"].startswith("fastdiff")
        assert ("milliseconds" in row) != wrong
        assert not wrong or row["note"].startswith("not timed: it differs by 1.0e-04")


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnxruntime", "onnxscript"))), reason="needs onnxruntime and onnxscript"
)
@pytest.mark.parametrize("letter", ["A", "B"])
def test_onnxruntime_computes_the_same(letter, rel, randomised):
    model = tiny(randomised)[letter]
    table = make_table("ddim", model.schedule, 25, time=model.time)
    x = torch.randn(2, *model.image_shape)
    with torch.no_grad():
        theirs, ours = contenders.by_onnxruntime(model, table, 2, 1), contenders.by_publication(model, table)
        for row in evaluation.ROWS:
            assert rel(theirs(x, row), ours(x, row)) < 1e-5


def test_the_cold_start(tmp_path, monkeypatch):
    """Fresh processes; a stand-in for the one that makes the images, which takes seconds."""
    asked = []

    def run(words, env, **options):
        asked.append((words[-2:], env["FASTDIFF_CACHE"], env["OMP_NUM_THREADS"]))
        assert words[:3] == [sys.executable, "-m", "fastdiff.bench.coldstart"]
        return subprocess.CompletedProcess(words, 0, f"{len(asked)}.5\n", "")

    monkeypatch.setattr(evaluation.subprocess, "run", run)
    rows = evaluation.cold_start("B", 2, 2)
    assert [row["loop"] for row in rows] == ["published", "fastdiff, warm cache", "fastdiff, empty cache"]
    # 1.5 s to fill the cache; then 2.5, 3.5, 4.5, and in the second round, turned about, 5.5, 6.5, 7.5.
    assert [row["seconds"] for row in rows] == [5.0, 5.0, 5.0]
    assert rows[1]["ratio"] == pytest.approx([(2.5 / 3.5 + 7.5 / 6.5) / 2, 2.5 / 3.5, 7.5 / 6.5], abs=1e-3)
    assert [loop for (loop, _), *_ in asked] == ["fastdiff", "published", *["fastdiff"] * 4, "published"]
    caches = [cache for (loop, _), cache, _ in asked if loop == "fastdiff"]
    assert len(set(caches)) == 3 and caches.count(caches[0]) == 3  # one warm, and an empty one for each round
    monkeypatch.setattr(
        evaluation.subprocess, "run", lambda words, **o: subprocess.CompletedProcess(words, 1, "", "x\nBad: it is\n")
    )
    assert all("Bad: it is" in row["note"] for row in evaluation.cold_start("A", 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["published", "fastdiff"])
@pytest.mark.parametrize("name", ["fashion-mnist", "sprites"])
def test_the_process_of_a_cold_start(loop, name, tmp_path):
    words = [sys.executable, "-m", "fastdiff.bench.coldstart", loop, name]
    ended = subprocess.run(words, env={**os.environ, "FASTDIFF_CACHE": str(tmp_path)}, capture_output=True, text=True)
    assert ended.returncode == 0 and float(ended.stdout) > 0, ended.stderr


def test_the_engines_report(tmp_path):
    output = tmp_path / "engine.json"
    options = ("--device", "cpu", "--smoke", "--no-compile", "--rounds", 1, "--batch", 2, "--output", output)
    assert status(engine.main, *options) == 0
    report = json.loads(output.read_text())
    assert len(report["rows"]) == 1 + 3 * 4
    for row in report["rows"]:
        assert "note" not in row and row["images_per_second"] > 0 and row["against_published"][0] > 0
        assert row["largest"] < 1e-3 if row["dtype"] == "float32" else 0 < row["rms"] < 0.2
    assert [row["dtype"] for row in report["distance"]] == ["float32", "bfloat16", "float16"]
    assert all(row["full_run_finite"] and row["full_run_steps"] == 50 for row in report["distance"])
    assert (
        report["distance"][0]["mean_rms"] == 0 < report["distance"][2]["mean_rms"] < report["distance"][1]["mean_rms"]
    )
    assert "torch's own precisions" in output.with_suffix(".md").read_text()


def test_engines_that_fail_or_are_wrong_are_rows_that_say_so(tmp_path, monkeypatch):
    made = loops.ByEngine.__init__

    def wrong(self, model, n, device, dtype, form, unroll=1):
        if dtype == torch.float16:
            raise RuntimeError("no such units")
        made(self, model, n, device, dtype, form, unroll)
        if unroll == 5:
            self.engine.network.init_conv.weight.mul_(1.5 if dtype == torch.float32 else float("nan"))

    monkeypatch.setattr(loops.ByEngine, "__init__", wrong)
    output = tmp_path / "engine.json"
    options = ("--device", "cpu", "--smoke", "--no-compile", "--rounds", 1, "--batch", 2, "--output", output)
    assert status(engine.main, *options) == 1
    report = json.loads(output.read_text())
    for row in report["rows"]:
        if row["dtype"] == "float16":
            assert row["note"] == "RuntimeError: no such units"
        elif "5 steps at" in row["contender"] and "25" not in row["contender"]:
            assert row["note"].startswith("not timed: images differ by") and "seconds" not in row
        else:
            assert "note" not in row
    assert "RuntimeError: no such units" in output.with_suffix(".md").read_text()


def test_the_loops_that_are_compared_sample_the_same(monkeypatch):
    """torch.compile itself is the GPU's affair; here the step that it would be given runs as it is."""
    monkeypatch.setattr(torch, "compile", lambda **options: lambda f: f)
    model = engine.make_model(smoke=True)
    expected = sample(model, 3, "ddim", 25, device="cpu")
    for loop in (loops.by_publication(model, 3, CPU), loops.by_compiler(model, 3, CPU, torch.float32)):
        torch.testing.assert_close(loop(), expected, atol=1e-4, rtol=0)


def test_the_models_of_the_evaluation_are_the_shipped_ones():
    assert {letter: type(load(name).network) for letter, name in evaluation.MODELS.items()} == {
        "A": AnnotatedUnet,
        "B": ContextUnet,
    }
