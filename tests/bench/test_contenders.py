"""torch.compile's cache, the published loops, and the processes of cold starts."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import AnnotatedUnet, ContextUnet, InputError, load, make_table
from fastdiff.bench import compiling, networks, parity, runner, session
from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import PUBLISHED, Status
from fastdiff.bench.contenders import cold_starts, evaluations, samplings
from fastdiff.bench.peers import cold_process
from fastdiff.bench.peers.reference import CourseLoop, ancestral_step, ddim_loop, dpmpp_2m_loop

CPU = torch.device("cpu")


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
    ours = fastdiff.sample(model, 2, sampler, steps=steps, noise=source, device="cpu", form="eager")
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


@pytest.mark.parametrize(
    "name, sampler, steps", [("A28@28", "ddpm", 50), ("B@16", "ddpm_large", 50), ("A28@28", "ddim", 10)]
)
def test_the_loop_of_a_publication_is_fastdiffs(name, sampler, steps, small, rel):
    model = small[name]
    drawn, source = noises((2, *model.image_shape))
    network = networks.published(model)
    images = samplings.published_loop(model, sampler, steps, 2, CPU)(network, drawn.__getitem__)
    ours = fastdiff.sample(model, 2, sampler, steps=steps, noise=source, device="cpu", form="eager")
    assert rel(images, ours) < 1e-4  # 50 steps


def test_a_loop_that_nobody_published_is_refused(models):
    for name, sampler, steps in (("B@16", "ddpm", 50), ("A28@28", "ddpm", 10), ("A28@28", "ddpm_large", 50)):
        with pytest.raises(InputError, match=f"{sampler} {steps} is published for no network like this one"):
            samplings.published_loop(models[name], sampler, steps, 2, CPU)


@pytest.mark.parametrize("name", ["A28@28", "B@16"])
def test_the_loop_that_is_compared_calls_a_predictor_of_two_arguments(name, small):
    """As predictors.Predict is: (x, time)."""
    sampler = {"A28@28": "ddpm", "B@16": "ddpm_large"}[name]
    loop = samplings.published_loop(small[name], sampler, 50, 2, CPU)
    drawn, _ = noises((2, *small[name].image_shape))
    assert loop(lambda x, time: torch.zeros_like(x), drawn.__getitem__).shape == drawn[0].shape


def test_the_networks_by_name():
    assert [networks.load(name).image_shape for name in networks.SHIPPED] == [(1, 28, 28), (3, 16, 16)]
    assert {name: type(load(model).network) for name, model in networks.SHIPPED.items()} == {
        "A28@28": AnnotatedUnet,
        "B@16": ContextUnet,
    }
    made = networks.load("A28@32")
    assert made.image_shape == (3, 32, 32) and made.network.options["dim"] == 28
    before = torch.get_rng_state()
    again = networks.load.__wrapped__("A28@32")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(made.network.parameters(), again.network.parameters(), strict=True))
    for name in ("A28", "A28@29", "C@16", "", "A28@28 "):
        with pytest.raises(InputError, match="accepted: A28@28, .*B@16"):
            networks.load(name)


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
        "reference",
        "torch.compile, warm cache",
        "ONNX Runtime, sampler.onnx",
        "fastdiff",
        "fastdiff, empty cache",
    ]
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
