"""Which form a network runs in, and what of the surroundings it does not depend on."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch

from fastdiff import AnnotatedUnet, Engine, InputError, Model, make_schedule, make_table, sample
from fastdiff.engine.forms import FORMS, choose_form
from fastdiff.kernels.cpu import compiled

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))


@needs_compiler
@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.inference_mode(),
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.enable_grad(),
        lambda: default_dtype(torch.bfloat16),
        lambda: default_dtype(torch.float64),
        lambda: torch.device("meta"),
    ],
)
@pytest.mark.parametrize("form", ["cpu", "eager"])
def test_settings_of_the_callers_change_nothing(around, form, randomised):
    model = Model(randomised(AnnotatedUnet(16, dim_mults=(1, 2))), make_schedule("linear", 20), image_shape=(1, 8, 8))
    options = dict(sampler="ddpm", steps=3, device="cpu", form=form)
    expected = sample(model, 2, **options)
    engine = Engine(model, make_table("ddpm", model.schedule, 3), batch_size=2, device="cpu", form=form)
    with around():
        assert torch.equal(sample(model, 2, **options), expected) and torch.equal(engine.sample(2), expected)
        made = Engine(model, make_table("ddpm", model.schedule, 3), batch_size=2, device="cpu", form=form)
    assert torch.equal(made.sample(2), expected) and expected.dtype == torch.float32


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


CHOICE = """
import torch
from fastdiff.engine.forms import choose_form
from fastdiff.kernels.cpu import compiled
print(choose_form(None, torch.device("cpu"), torch.float32).name, compiled.build_error())
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Names the compiler, as a new process would find it, with an empty cache; at the end that of before is back."""

    def choose(words: str) -> None:
        monkeypatch.setenv("CC", words)
        monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path))
        compiled._load.cache_clear()

    yield choose
    monkeypatch.undo()
    compiled._load.cache_clear()


@pytest.mark.parametrize(
    "words, reason", [("/bin/false", "does not run"), ("nosuchcompiler", "does not run"), ("cc '", "not a command")]
)
def test_without_a_compiler_the_network_runs_in_torch(words, reason, compiler):
    compiler(words)
    with pytest.warns(UserWarning, match=f"runs in plain torch.*{reason}"):
        assert choose_form(None, CPU, torch.float32).name == "eager"
    assert reason in compiled.build_error()
    with pytest.raises(InputError, match="form = 'cpu' cannot be used here"):
        choose_form("cpu", CPU, torch.float32)


@needs_compiler
def test_the_library_is_kept_and_a_broken_one_is_made_anew(tmp_path):
    assert run(CHOICE, FASTDIFF_CACHE=str(tmp_path)).stdout == "cpu None\n"
    (kept,) = tmp_path.iterdir()
    size, made = kept.stat().st_size, kept.stat().st_mtime_ns
    assert run(CHOICE, FASTDIFF_CACHE=str(tmp_path)).stdout == "cpu None\n"
    assert kept.stat().st_mtime_ns == made
    kept.write_bytes(kept.read_bytes()[:1000])
    assert run(CHOICE, FASTDIFF_CACHE=str(tmp_path)).stdout == "cpu None\n"
    assert [p.stat().st_size for p in tmp_path.iterdir()] == [size]


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(CHOICE, FASTDIFF_CACHE=str(tmp_path / "file" / "cache"))
    assert done.stdout == "cpu None\n", done.stderr


def test_preparing_takes_no_time_to_speak_of():
    """The kernels are compiled; issue: under 3 s for network A on two cores."""
    model = Model(AnnotatedUnet(28), make_schedule("linear", 200))
    table = make_table("ddim", model.schedule, 25)
    compiled.build_error()
    began = time.perf_counter()
    next(Engine(model, table, batch_size=1, device=CPU).stream(1))
    assert time.perf_counter() - began < 3


def test_forms_are_named():
    with pytest.raises(InputError, match="unknown form 'cpus'; accepted: .* did you mean 'cpu'"):
        choose_form("cpus", CPU, torch.float32)
    with pytest.raises(InputError, match="'cpu' cannot be used here: .*bfloat16"):
        choose_form("cpu", CPU, torch.bfloat16)
    with pytest.raises(InputError, match="'cuda' cannot be used here: .*cpu"):
        choose_form("cuda", CPU, torch.float32)
    assert list(FORMS) == ["cuda", "cpu", "eager"]
