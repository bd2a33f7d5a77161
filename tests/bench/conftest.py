"""What the tests of the benchmarks share: tiny models in the places of the shipped ones."""

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import pytest

from fastdiff import AnnotatedUnet, ContextUnet, Model, make_schedule
from fastdiff.bench import limits, networks, timing

NAMES = ("monster", "player", "item", "spell", "dungeon")


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
def models(tiny) -> dict[str, Model]:
    return tiny(50)


@pytest.fixture
def small(monkeypatch, models):
    """Tiny networks in place of the shipped ones, and no count of the others left."""
    monkeypatch.setattr(networks, "load", models.__getitem__)
    limits.counted.cache_clear()
    yield models
    limits.counted.cache_clear()


@pytest.fixture
def clock(monkeypatch):
    """The timer's clock, which only goes where a test moves it: clock.now += seconds."""
    made = SimpleNamespace(now=0.0, perf_counter=lambda: made.now, sleep=lambda seconds: None)
    monkeypatch.setattr(timing, "time", made)
    return made
