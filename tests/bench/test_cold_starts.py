"""Cold starts: what the runner makes of their processes, and that these make the same image."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastdiff
from fastdiff import InputError, load
from fastdiff.bench import compiling, networks, parity, runner, session
from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import PUBLISHED, Status
from fastdiff.bench.contenders import cold_starts, evaluations
from fastdiff.bench.peers import cold_process

START_CASE = Case(Kind.COLD, "B@16", "ddim 25", 1, threads=2, rounds=2)
TAKES = {"published": 4.0, "compiled": 2.0, "fastdiff": 1.0, "eager": 1.5, "onnx": 0.5}


class Processes:
    """A stand-in for them: what each was started with; failing: contender → errors."""

    def __init__(self, clock):
        self.clock, self.asked, self.failing, self.factor = clock, [], {}, 1.0

    def run(self, words, env, **options):
        assert words[:3] == [sys.executable, "-m", "fastdiff.bench.peers.cold_process"]
        contender, model, start, image, device = words[3:]
        assert device == "cpu"
        empty = env.get("FASTDIFF_CACHE") not in (None, os.environ.get("FASTDIFF_CACHE"))
        assert empty == (env.get("TRITON_CACHE_DIR") != os.environ.get("TRITON_CACHE_DIR"))
        if empty:  # of both: the C kernels' and Triton's
            assert os.listdir(env["FASTDIFF_CACHE"]) == [] and not os.path.exists(env["TRITON_CACHE_DIR"])
        self.asked.append((contender, model, empty and env["FASTDIFF_CACHE"], env))
        np.save(image, np.load(start) * (self.factor if contender == "fastdiff" else 1))
        self.clock.now += TAKES[contender] + (2 if empty else 0)
        errors = self.failing.get(contender)
        return subprocess.CompletedProcess(words, errors is not None, f"a line\n{100 + len(self.asked)}\n", errors)

    def rows(self, cold=True):
        return runner.measure([START_CASE], cold, True)


@pytest.fixture
def processes(monkeypatch, small, compiler, clock):
    """Processes that take seconds; the file is a stand-in too."""
    from fastdiff.export import assemble, parts

    made = Processes(clock)
    file = SimpleNamespace(SerializeToString=lambda: b"a file")
    monkeypatch.setattr(cold_starts.subprocess, "run", made.run)
    monkeypatch.setattr(parts, "capture", lambda model: None)
    monkeypatch.setattr(assemble, "sampler_model", lambda traced, face: file)
    return made


def test_cold_starts_are_whole_processes(processes):
    rows = {each["contender"]: each for each in processes.rows()}
    assert list(rows) == [
        "reference",
        "torch.compile, warm cache",
        "ONNX Runtime, sampler.onnx",
        "fastdiff",
        "fastdiff, eager",
        "fastdiff, empty cache",
    ]
    assert [each["seconds"] for each in rows.values()] == [[4, 4], [2, 2], [0.5, 0.5], [1, 1], [1.5, 1.5], [3, 3]]
    assert rows["fastdiff"]["ratio"] == [4, 4, 4] and rows["ONNX Runtime, sampler.onnx"]["ratio"] == [8, 8, 8]
    assert all(each["parity"] == 0 and each["peak_bytes"] > 100 and "reason" not in each for each in rows.values())
    assert "share_of_limit" not in rows["fastdiff"]
    # Once for the comparison, once to be warm, two rounds.
    names = [name for name, *_ in processes.asked]
    assert {name: names.count(name) for name in TAKES} == {**dict.fromkeys(TAKES, 4), "fastdiff": 8}
    caches = [folder for _, _, folder, _ in processes.asked if folder]
    assert len(caches) == len(set(caches)) == 4 and not any(map(os.path.exists, caches))
    for name, model, _, env in processes.asked:
        assert env["OMP_NUM_THREADS"] == "2"
        assert model == "sprites" if name != "onnx" else model.endswith("sampler.onnx")
        assert (env["TORCHINDUCTOR_CACHE_DIR"] == str(compiling.folder())) == (name == "compiled")


def test_a_quick_run_starts_no_process_that_would_compile(processes):
    rows = processes.rows(cold=False)
    assert [each.get("reason") for each in rows] == [None, compiling.COLD, None, None, None, None]
    assert rows[1]["status"] == Status.NOT_COMPILED
    assert "compiled" not in [name for name, *_ in processes.asked]
    processes.rows()
    assert not [each["reason"] for each in processes.rows(cold=False) if "reason" in each]


@pytest.mark.parametrize("errors, note", [("x\nBad: it is\n", "Bad: it is"), ("", "it failed")])
def test_a_process_that_fails_is_a_row_that_says_so(processes, errors, note):
    processes.failing = {"fastdiff": errors}
    rows = processes.rows()
    assert [each.get("reason") for each in rows] == [None, None, None, note, None, note]
    refused = session.refused({"rows": rows})
    assert refused[0] == f"cold start B@16, ddim 25, batch 1, 2 threads, fastdiff: RuntimeError: {note}"
    assert len(refused) == 2


def test_a_process_whose_image_differs_is_refused(processes):
    processes.factor = 1.01
    rows = processes.rows()
    assert [(each["status"], each["reason"][:51]) for each in rows if "reason" in each] == [
        (Status.REFUSED, "it differs from the reference by 1.0e-02, more than")
    ] * 2
    assert all(("seconds" in each) == ("reason" not in each) for each in rows)


def test_onnxruntime_that_is_missing_says_how_to_install_it(processes, monkeypatch):
    """In the process of a cold start it would be "No module named 'onnxruntime'"."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    processes.failing = {"onnx": "ModuleNotFoundError: No module named 'onnxruntime'"}
    (row,) = [each for each in processes.rows() if "onnx" in each["contender"]]
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
        if contender.name in (PUBLISHED, cold_starts.SAMPLER_FILE, "fastdiff", "fastdiff, eager"):
            ready = contender.make()
            images[contender.name] = ready.outputs()
            assert ready.facts["peak_bytes"] > 2**25
    assert len(images) == 4
    for image in images.values():
        assert image.shape == (1, *load(networks.SHIPPED[network]).image_shape)
        assert rel(image, images[PUBLISHED]) < parity.BOUNDS[Kind.COLD]


def test_the_cold_starts_script_reads_its_models_where_they_lie(tmp_path):
    assert cold_process.STEPS == 25 == len(evaluations.ddim(load("sprites")))
    for name in networks.SHIPPED.values():
        assert (Path(fastdiff.__file__).parent / "models" / name / "model.safetensors").exists()
