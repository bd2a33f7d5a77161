"""Models, their captured networks and their files, for the tests of exports."""

import numpy as np
import pytest
import torch
from torch import nn

from fastdiff import AnnotatedUnet, ContextUnet, Model, make_schedule
from fastdiff.export import OnnxSampler
from fastdiff.export.assemble import sampler_model
from fastdiff.export.parts import capture


class Own(nn.Module):
    """A user's network: all that is known of it is that it takes (x, t)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x, t):
        return self.last(torch.tanh(self.first(x) + 0.01 * t.to(x.dtype)[:, None, None, None]))


class Unsupported(Own):
    """Uses an operator that ONNX does not have."""

    def forward(self, x, t):
        return super().forward(torch.linalg.svdvals(x)[..., None] + x, t)


class Branching(Own):
    """Branches on values in Python."""

    def forward(self, x, t):
        return super().forward(x * 2 if x.mean() > 0 else x, t)


class NeedsContext(Own):
    """Takes a context whose width nothing tells."""

    def forward(self, x, t, label):
        return super().forward(x, t) + label.mean()


class TakesContext(Own):
    """May be given a context whose width nothing tells."""

    def forward(self, x, t, label=None):
        return super().forward(x, t)


@pytest.fixture
def own_networks():
    return {
        "unsupported": Unsupported(),
        "branching": Branching(),
        "needs context": NeedsContext(),
        "takes context": TakesContext(),
    }


@pytest.fixture(scope="session")
def models(randomised):
    """The two published networks, small, and a user's own on images that are neither square nor even."""
    names = ("monster", "player", "item", "spell", "dungeon")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "A": Model(
                randomised(AnnotatedUnet(dim=8, dim_mults=(1, 2))).eval(),
                make_schedule("linear", 200),
                image_shape=(1, 8, 8),
            ),
            "B": Model(
                randomised(ContextUnet(3, 8, 5, 16)).eval(),
                make_schedule("course", 250),
                image_shape=(3, 16, 16),
                time="fraction",
                class_names=names,
            ),
            "own": Model(Own(), make_schedule("cosine", 50), prediction_type="v_prediction", image_shape=(2, 5, 7)),
        }


@pytest.fixture(scope="session")
def parts(models):
    """name → the captured network, made when first asked for; "B16" has its weights stored in half."""
    made = {}

    def get(name, fractional=False):
        if (name, fractional) not in made:
            options = {"weights": "float16"} if name == "B16" else {}
            made[name, fractional] = capture(models[name.removesuffix("16")], fractional=fractional, **options)
        return made[name, fractional]

    return get


@pytest.fixture
def make(parts, tmp_path):
    """(a model's name or its parts, face) → the sampler's file, run by ONNX Runtime."""
    count = iter(range(100))

    def build(of, face):
        path = tmp_path / f"{next(count)}.onnx"
        if isinstance(of, str):
            of = parts(of, fractional=face.table is not None and not face.table.whole_times)
        path.write_bytes(sampler_model(of, face).SerializeToString())
        return OnnxSampler(path, threads=1)

    return build


@pytest.fixture(scope="session")
def table_of():
    """(model, sampler, steps) → a table that fits the model."""

    def make(model, sampler="ddim", steps=25, **options):
        return model.table(sampler, steps, **options)

    return make


@pytest.fixture(scope="session")
def apart():
    """(images, expected) → their largest distance, in units of max(1, max|x|)."""

    def distance(images, expected) -> float:
        images, expected = np.asarray(images), np.asarray(expected)
        return float(np.abs(images - expected).max() / max(1, np.abs(expected).max()))

    return distance


@pytest.fixture
def context_for():
    """(model, n) → random contexts, None for a model without classes."""
    return lambda model, n: torch.rand(n, 5) if model.class_names else None
