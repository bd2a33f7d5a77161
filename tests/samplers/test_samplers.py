"""The samplers' entries: what names, titles and default steps are taken from, and that an entry is all it takes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastdiff import AnnotatedUnet, InputError, Model, make_schedule, make_table, sample, save
from fastdiff.cli.main import main
from fastdiff.samplers.samplers import DEFAULT, SAMPLERS, Coefficients, find_sampler, sampler


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model(AnnotatedUnet(dim=8, dim_mults=(1, 2)), make_schedule("linear", 30), image_shape=(1, 8, 8))


@pytest.fixture
def euler():
    """A sampler of a user's own: DDIM, written as Euler's method in sigma / alpha (Song et al. 2021, eq. 14)."""

    @sampler("Euler's method in sigma / alpha", "Song et al. 2021, eq. 14", steps=4)
    def euler(path):
        ratio = path.sigma_next / path.sigma
        return Coefficients(a=ratio, b=path.alpha_next - ratio * path.alpha)

    yield euler
    del SAMPLERS["euler"]


def test_entries_say_what_they_are():
    assert DEFAULT in SAMPLERS
    for name, entry in SAMPLERS.items():
        assert entry.name == entry.formula.__name__ == name
        assert entry.title and entry.paper
        assert entry.default_steps(10) == 10 and entry.default_steps(1000) in (25, 1000)


def test_the_ddpm_family_takes_all_steps():
    assert {name for name, entry in SAMPLERS.items() if entry.steps is None} == {"ddpm", "ddpm_large", "ddpm_no_noise"}


@pytest.mark.parametrize("name", SAMPLERS)
def test_python_and_the_command_take_the_same_number_of_steps(name, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(model, "m.safetensors")
    steps = len(make_table(name, model.schedule))
    assert len(model.table(name)) == steps == SAMPLERS[name].default_steps(30)
    words = ["sample", "m.safetensors", "-n", "1", "--sampler", name, "--npy", "m.npy"]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert f"{name}, {steps} steps" in done.output
    assert np.array_equal(np.load("m.npy"), sample(model, 1, name).numpy())


def test_an_entry_is_all_it_takes(euler, model):
    table = model.table("euler")
    assert len(table) == 4 and table.sampler == "euler"
    assert np.allclose(table.rows, model.table("ddim", 4).rows, atol=1e-12)
    assert torch.allclose(sample(model, 2, "euler"), sample(model, 2, "ddim", steps=4), atol=1e-4)
    with pytest.raises(InputError, match="did you mean 'euler'"):
        find_sampler("eular")


def test_a_formula_with_a_mistake_is_refused(monkeypatch, model):
    monkeypatch.setitem(SAMPLERS, "wrong", None)  # taken out at the end

    @sampler("DDIM with a slip", "nowhere")
    def wrong(path):
        ratio = path.sigma_next / path.sigma
        return Coefficients(a=ratio, b=path.alpha_next - ratio)

    with pytest.raises(InputError, match="table row .* breaks a alpha"):
        model.table("wrong")


def test_names_are_read_without_torch():
    code = "import sys; from fastdiff.samplers.samplers import SAMPLERS; assert SAMPLERS and 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
