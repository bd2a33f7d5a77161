"""What the tests of the benchmarks share: tiny models in the places of the shipped ones."""

from collections.abc import Callable
from functools import cache

import pytest

from fastdiff import AnnotatedUnet, ContextUnet, Model, make_schedule

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
