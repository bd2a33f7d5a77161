"""An exported file's description of itself: JSON in one metadata entry, "fastdiff". Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Le, Len
from typing_extensions import TypedDict

from fastdiff.errors import InputError, shown
from fastdiff.schema import Finite, check, parse_json

FORMAT = 2  # 1 had a table of six columns, and x0_prev for history
KEY = "fastdiff"
DTYPES = ("float32", "float16")  # of the arithmetic, and of stored weights
NOISES = {"philox": "made in the file from a seed", "input": "given by the caller"}


class _Sampler(TypedDict):
    """The loop of a sampler that brings its table."""

    name: str
    steps: Annotated[int, Ge(1)]
    init_noise_sigma: Finite


class _About(TypedDict):
    """What is read of a file's description."""

    kind: Literal["network", "sampler"]
    made_by: str
    image_shape: Annotated[list[Annotated[int, Ge(1), Le(2**31)]], Len(3, 3)]
    value_range: NotRequired[Annotated[list[Finite], Len(2, 2)] | None]
    prediction_type: str
    time: Literal["index", "fraction"]
    timesteps: Annotated[int, Ge(1)]
    schedule: dict[str, Any]
    class_names: list[str]
    context_width: Annotated[int, Ge(0)] | None
    num_classes: Annotated[int, Ge(1)] | None
    null_class: Annotated[int, Ge(0)] | None
    learned_variance: bool
    self_condition: bool
    dtype: str
    weights: str


class _AboutSampler(_About):
    sampler: _Sampler | None
    clip: Any
    stepwise: bool
    noise: Literal["philox", "input"]
    random: bool
    pictures: bool


def describe(parts: Any, **more: Any) -> dict[str, Any]:
    """A file's description.

    Args:
        parts: a parts.Parts.
        more: the file's kind and what else that kind has to say.
    """
    import torch

    from fastdiff.provenance import source_version

    model = parts.model
    return {
        "format": FORMAT,
        "made_by": f"fastdiff {source_version()}, torch {torch.__version__}",
        "image_shape": list(model.image_shape),
        "range": [-1, 1],
        "value_range": model.value_range,  # what -1 and 1 are of the training data, null for pictures of 8 bits
        "prediction_type": model.prediction_type,
        "time": model.time,
        "timesteps": model.schedule.num_timesteps,
        "schedule": model.schedule.config(),
        "class_names": list(model.class_names),
        "context_width": model.context_width if parts.context is not None else 0,
        "num_classes": model.num_classes,
        "null_class": model.null_class,
        "learned_variance": parts.learned_variance,
        "self_condition": model.self_condition,
        "dtype": str(parts.dtype).removeprefix("torch."),
        "weights": parts.weights,
        "prepared": parts.prepared,
        **more,
    }


def to_properties(description: Mapping[str, Any]) -> dict[str, str]:
    """The description as ONNX metadata."""
    return {KEY: json.dumps(description)}


def from_properties(properties: Mapping[str, str], path: str) -> dict[str, Any]:
    """The description in a file's metadata; raises InputError that says what is missing."""
    if KEY not in properties:
        raise InputError(f"{path!r} lacks the metadata entry {KEY!r}; accepted: a file made by `fastdiff export`")
    where = f"the metadata of {path!r}"
    description = check(dict[str, Any], parse_json(properties[KEY], where), where)
    if description.get("format") != FORMAT:
        found = shown(description.get("format"))
        raise InputError(f"{path!r} has format {found}; this version reads {FORMAT}: export the model again")
    return check(_AboutSampler if description.get("kind") == "sampler" else _About, description, where)
