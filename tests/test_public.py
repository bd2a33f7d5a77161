"""What `import fastdiff` gives: public names, documented, and loaded when they are used."""

import inspect
import subprocess
import sys

import pytest
import torch

import fastdiff


def test_dir_shows_the_public_names_alone():
    assert dir(fastdiff) == sorted(fastdiff.__all__)
    assert {"export", "losses", "grid", "save_gif", "save_picture", "load", "sample", "Recipe"} <= set(dir(fastdiff))
    assert dir(fastdiff.export) == ["OnnxSampler", "export_network", "export_page", "export_sampler"]


@pytest.mark.parametrize("name", [name for name in fastdiff.__all__ if name != "__version__"])
def test_every_public_name_is_documented(name):
    value = getattr(fastdiff, name)
    assert value.__doc__ and value.__doc__.strip()
    assert not value.__doc__.startswith(f"{name}(")  # what a dataclass writes by itself


@pytest.mark.parametrize("name", ["export", "grid", "losses", "save_gif", "load"])
def test_a_name_is_reached_by_a_plain_import(name):
    code = f"import sys, fastdiff; assert 'torch' not in sys.modules; print(fastdiff.{name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = {"export": "fastdiff.export", "losses": "fastdiff.training.losses"}.get(name, name)
    assert done.stdout.strip() == expected, done.stderr


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        fastdiff.smaple  # noqa: B018


CALLABLES = {
    name: getattr(module, name)
    for module in (fastdiff, fastdiff.export)
    for name in module.__all__
    if callable(getattr(module, name))
    and name not in ("InputError", "NotFinite", "AnnotatedUnet", "ContextUnet")  # as published
}
METHODS = {
    f"{cls.__name__}.{name}": method
    for cls in filter(inspect.isclass, CALLABLES.values())
    for name, method in vars(cls).items()
    if inspect.isfunction(method) and not name.startswith("_")
}


@pytest.mark.parametrize("name", CALLABLES)
def test_options_are_given_by_name(name):
    """All but the first two or three arguments; and the device comes before the dtype."""
    parameters = inspect.signature(CALLABLES[name]).parameters.values()
    assert sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters) <= 3
    names = [one.name for one in parameters]
    if {"device", "dtype"} <= set(names):
        assert names.index("device") < names.index("dtype")


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_help_names_what_it_takes(name):
    parameters = inspect.signature(METHODS[name]).parameters.values()
    assert [one.name for one in parameters if one.kind is one.VAR_KEYWORD] == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda many: fastdiff.sample(many, 1), "model = a value of type Tensor; accepted: fastdiff.Model"),
        (
            lambda many: fastdiff.sample("sprites", 1, noise="philox"),
            "noise = 'philox'; accepted: x_T, or a callable",
        ),
        (
            lambda many: fastdiff.Engine(fastdiff.load("sprites"), many),
            "table = a value of type Tensor; accepted: a St",
        ),
        (lambda many: fastdiff.Trainer(fastdiff.Recipe(), many), "data = a value of type Tensor; accepted: what"),
        (lambda many: fastdiff.Trainer("annotated", many), "recipe = 'annotated'; accepted: a fastdiff.Recipe"),
        (lambda many: fastdiff.load(3), "model = 3; accepted: a shipped model's name or a path"),
        (lambda many: fastdiff.grid(many.numpy()), "images = a value of type ndarray; accepted: a tensor"),
        (lambda many: fastdiff.save_picture(many, "a.png"), "picture = a value of type Tensor; accepted: a picture"),
        (lambda many: fastdiff.Schedule("linear"), "betas = 'linear'; accepted: numbers, or fastdiff.make_schedule"),
    ],
)
def test_what_is_mistaken_for_another_is_named_in_a_sentence(call, words):
    with pytest.raises(fastdiff.InputError) as refused:
        call(torch.zeros(4, 3, 16, 16))
    assert str(refused.value).startswith(words) and len(str(refused.value)) < 160
