"""The samplers' entries: what names, titles and default steps are taken from, and that an entry is all it takes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastdiff import AnnotatedUnet, InputError, Model, make_schedule, make_table, sample, save
from fastdiff.cli.main import main
from fastdiff.samplers.samplers import DEFAULT, SAMPLERS, Coefficients, Sampler, find_sampler, sampler


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = AnnotatedUnet(dim=8, dim_mults=(1, 2))
    return Model(network, make_schedule("linear", 30), image_shape=(1, 8, 8), time="fraction")


@pytest.fixture
def trial():
    """A sampler of a user's own: DDIM, written as Euler's method in sigma / alpha (Song et al. 2021, eq. 14)."""

    @sampler("Euler's method in sigma / alpha", "Song et al. 2021, eq. 14", steps=4)
    def trial(path):
        ratio = path.sigma_next / path.sigma
        return Coefficients(a=ratio, b=path.alpha_next - ratio * path.alpha)

    yield trial
    del SAMPLERS["trial"]


def test_a_name_is_taken_once():
    with pytest.raises(InputError, match="a second sampler 'ddim'"):

        @sampler("another", "nowhere")
        def ddim(path):
            raise NotImplementedError


def test_entries_say_what_they_are():
    assert DEFAULT in SAMPLERS
    for name, entry in SAMPLERS.items():
        assert entry.name == entry.formula.__name__ == name
        assert entry.title and entry.paper
        assert entry.default_steps(3) == 3 and entry.default_steps(1000) == (entry.steps or 1000)


def test_the_ddpm_family_takes_all_steps():
    assert all(SAMPLERS[name].steps is None for name in ("ddpm", "ddpm_large", "ddpm_no_noise"))


@pytest.mark.parametrize("name", SAMPLERS)
def test_python_and_the_command_take_the_same_number_of_steps(name, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(model, "m.safetensors")
    rows, steps = len(make_table(name, model.schedule)), SAMPLERS[name].default_steps(30)
    assert len(model.table(name)) == rows == (2 * steps - 1 if name in ("heun", "edm") else steps)
    words = ["sample", "m.safetensors", "-n", "1", "--sampler", name, "--npy", "m.npy"]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert f"{name}, {steps} steps" in done.output and (f" in {rows} rows" in done.output) == (rows != steps)
    assert np.array_equal(np.load("m.npy"), sample(model, 1, name).numpy())


def test_an_entry_is_all_it_takes(trial, model):
    table = model.table("trial")
    assert len(table) == 4 and table.sampler == "trial"
    assert np.allclose(table.rows, model.table("ddim", 4).rows, atol=1e-12)
    assert torch.allclose(sample(model, 2, "trial"), sample(model, 2, "ddim", steps=4), atol=1e-4)
    with pytest.raises(InputError, match="did you mean 'trial'"):
        find_sampler("trail")


def test_a_formula_with_a_mistake_is_refused(monkeypatch, model):
    for formula, words in (
        (
            lambda path: Coefficients(a=path.sigma_next / path.sigma, b=path.alpha_next),
            "table row .* misses alpha_next by",
        ),
        (lambda path: (path.sigma_next, path.alpha_next), "'wrong' returned tuple; accepted: Coefficients"),
        (lambda path: Coefficients(a=path.sigma[1:], b=0.0), r"column a has shape \(24,\); accepted: \(25,\)"),
    ):
        monkeypatch.setitem(SAMPLERS, "wrong", Sampler("wrong", formula, "a slip", "nowhere"))
        with pytest.raises(InputError, match=words):
            model.table("wrong")


def test_names_are_read_without_torch():
    code = "import sys; from fastdiff.samplers.samplers import SAMPLERS; assert SAMPLERS and 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
