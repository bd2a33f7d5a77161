"""What the tests of the benchmarks share: tiny models in the places of the shipped ones, and the command."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from fastdiff import AnnotatedUnet, ContextUnet, Model, make_schedule
from fastdiff.bench import compiling, limits, networks, timing
from fastdiff.bench.peers import others, predictors
from fastdiff.cli.main import main

NAMES = ("monster", "player", "item", "spell", "dungeon")
CACHES = (predictors.compiled, predictors.autotuned, predictors.exported, limits.counted)
DYNAMO = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")


@pytest.fixture(scope="session")
def tiny(randomised) -> Callable[[int], dict[str, Model]]:
    """T → tiny models by the names of the shipped networks."""

    @cache
    def made(timesteps: int) -> dict[str, Model]:
        annotated = randomised(AnnotatedUnet(8, dim_mults=(1, 2))).eval()
        context = randomised(ContextUnet(3, 8, 5, 16)).eval()
        return {
            "A28@28": Model(annotated, make_schedule("linear", timesteps), image_shape=(1, 8, 8)),
            "B@16": Model(
                context,
                make_schedule("course", timesteps),
                prediction_type="epsilon",
                image_shape=(3, 16, 16),
                time="fraction",
                class_names=NAMES,
            ),
        }

    return made


@pytest.fixture
def small(monkeypatch, tiny):
    """Tiny networks in place of the shipped ones, with as many timesteps as an evaluation's table has steps; nothing of
    the others is left. New objects for each test: diffusers' schedulers are kept by model."""
    made = {name: replace(model) for name, model in tiny(25).items()}
    monkeypatch.setattr(networks, "load", made.__getitem__)
    for cached in CACHES:
        cached.cache_clear()
    yield made
    for cached in CACHES:
        cached.cache_clear()


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A cache of compilations of its own; torch.compile returns what it is given."""
    import torch._dynamo

    monkeypatch.setattr(compiling, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    with torch._dynamo.config.patch({name: getattr(torch._dynamo.config, name) for name in DYNAMO}):
        yield tmp_path / "cache"


@pytest.fixture
def stubbed(small, compiler, monkeypatch):
    """No long work: what ONNX Runtime would run runs in torch, other networks return noise, every turn is one call, the
    rates are measured briefly, operations are not counted."""
    monkeypatch.setattr(predictors, "onnxruntime", lambda name, device, threads: predictors.published(name, device))
    other = others.Other("another", torch.nn.Identity(), 1000, lambda x, t: x + 1, lambda *case: torch.zeros(case[-1]))
    for name in ("diffusers_unet", "lucidrains_unet"):
        monkeypatch.setattr(others, name, lambda *given: other)
    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setattr(timing, "TURN", 0)
    monkeypatch.setattr(limits, "SIZES", {"cpu": (16, 256)})
    monkeypatch.setattr(limits, "SECONDS", 1e-3)
    monkeypatch.setattr(limits, "counted", lambda *given: (10**6, 10**5))


class OneConvolution(torch.nn.Module):
    """Of a convolution with a bias and a GELU the first two channels: a network of (2, 4, 4) pictures."""

    options: dict = {}

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x, t):
        return torch.nn.functional.gelu(self.conv(x))[:, :2]


@pytest.fixture
def one_convolution():
    return OneConvolution


@pytest.fixture
def clock(monkeypatch):
    """The timer's clock, which only goes where a test moves it: clock.now += seconds."""
    made = SimpleNamespace(now=0.0, perf_counter=lambda: made.now, sleep=lambda seconds: None)
    monkeypatch.setattr(timing, "time", made)
    return made


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command: (words) → its result; catches no exception that is not its own."""
    monkeypatch.chdir(tmp_path)

    def invoke(*words, code=0):
        result = CliRunner().invoke(main, ["bench", *map(str, words)], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return invoke
