"""Feature networks: the project's classifiers, and others by import path."""

import sys

import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.evaluation import classifier, pixels
from fastdiff.evaluation.features import Features, choose, imported
from fastdiff.evaluation.measures import frechet

CPU = torch.device("cpu")
OWN = """
import torch
from torch import nn

def means(x):
    assert x.dtype == torch.float32 and -1 <= x.min() and x.max() <= 1 and not torch.is_grad_enabled()
    return x.flatten(2).mean(dim=2)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
    def forward(self, x):
        return self.drop(x.flatten(1))

made, number = Net(), 3

def fails(x): raise RuntimeError("too small\\nby far")
def rows(x): return x
def several(x): return x, x
def nan(x): return x.flatten(1) / 0 * 0
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_features.py").write_text(OWN)
    (tmp_path / "broken_features.py").write_text("import no_such_library\n")
    yield "own_features"
    for name in ("own_features", "broken_features"):
        sys.modules.pop(name, None)


def of(features: Features, images: torch.Tensor) -> torch.Tensor:
    return features.of(pixels.samples(images), pixels.everything(len(images)))


def own(shape) -> Features:
    torch.manual_seed(0)
    return Features("tiny", classifier.Classifier(shape, 2).eval().requires_grad_(False).features, CPU, {})


def test_features_of_a_classifier(pictures):
    features = own((3, 16, 16))
    x = pictures(5, (3, 16, 16))
    unit = x.float() / 127.5 - 1
    found = features.network(unit)
    assert found.shape == (5, 64) and found.dtype == torch.float32
    assert torch.equal(of(features, x), found.double()) and torch.equal(of(features, unit), found.double())
    # A sum in another order; one picture's rows in another kernel.
    torch.testing.assert_close(found, features.network(unit.flip(3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2:3], features.network(unit[2:3]), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"pictures of shape \(5, 1, 16, 16\); accepted: \(N, 3, 16, 16\)"):
        of(features, x[:, :1])


@pytest.mark.parametrize("name", classifier.NAMES)
def test_the_shipped_features_tell_noise(name, pictures):
    assert (classifier.FOLDER / f"{name}.safetensors").stat().st_size < 600_000
    shape = next(shape for shape, other in classifier.shapes().items() if other == name)
    features = choose(None, shape, CPU)
    assert features.name == f"fastdiff's {name} classifier" and features.facts["accuracy"] > 0.5
    real, *others = (
        of(features, pictures(200, shape, seed, noise)) for seed, noise in ((0, 0.0), (1, 0.0), (1, 0.2), (1, 0.5))
    )
    found = [frechet(made, real) for made in others]
    assert 0 < found[0] < found[1] < found[2]


def test_other_shapes_need_features_of_their_own():
    with pytest.raises(InputError) as refused:
        choose(None, (3, 32, 32), CPU)
    assert "pictures 32x32x3; fastdiff has its own for 28x28x1 (fashion-mnist) and 16x16x3" in str(refused.value)


@pytest.mark.parametrize("name", ["means", "Net", "made"])
def test_by_import_path(name, module, pictures):
    x = pictures(300)  # more than are taken at once
    before = list(sys.path)
    features = choose(f"{module}:{name}", (1, 8, 8), CPU)
    assert features.name == f"{module}:{name}" and sys.path == before
    unit = (x.float() / 127.5 - 1).flatten(1).double()
    expected = unit.mean(dim=1, keepdim=True) if name == "means" else unit  # without dropout
    done = []
    found = features.of(pixels.samples(x), pixels.everything(300), done.append)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert sum(done) == 300 and len(done) > 1


@pytest.mark.parametrize(
    "path, said",
    [
        ("own_features", "accepted: MODULE:NAME"),
        ("own_features:", "accepted: MODULE:NAME"),
        ("no_features:x", "cannot import --features 'no_features:x': ModuleNotFoundError"),
        ("broken_features:x", "No module named 'no_such_library'"),
        ("own_features:mean", "has no attribute 'mean'"),
        ("own_features:number", "is a int; accepted: a callable"),
    ],
)
def test_what_cannot_be_imported(path, said, module):
    with pytest.raises(InputError) as refused:
        imported(path, CPU)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name, said",
    [
        ("fails", "fail on pictures (4, 1, 8, 8): RuntimeError: too small"),
        ("rows", "are a tensor (4, 1, 8, 8); accepted: a tensor (4, D)"),
        ("several", "are a tuple"),
        ("nan", "hold NaN or infinity"),
    ],
)
def test_features_that_are_none(name, said, module, pictures):
    with pytest.raises(InputError) as refused:
        of(choose(f"{module}:{name}", (1, 8, 8), CPU), pictures(4))
    assert said in str(refused.value) and "\n" not in str(refused.value)
