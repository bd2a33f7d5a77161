"""An exported file's description of itself: JSON in one metadata entry, "fastdiff". Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastdiff.errors import InputError

FORMAT = 2  # 1 had a table of six columns, and x0_prev for history
KEY = "fastdiff"
KINDS = ("network", "sampler")
DTYPES = ("float32", "float16")  # of the arithmetic, and of stored weights
NOISES = {"philox": "made in the file from a seed", "input": "given by the caller"}
REQUIRED = {
    "kind",
    "image_shape",
    "prediction_type",
    "time",
    "schedule",
    "class_names",
    "context_width",
    "num_classes",
    "null_class",
    "learned_variance",
    "self_condition",
    "dtype",
}
REQUIRED_OF_SAMPLERS = {"sampler", "clip", "stepwise", "noise", "random", "pictures"}


def describe(parts: Any, **more: Any) -> dict[str, Any]:
    """A file's description.

    Args:
        parts: a parts.Parts.
        more: the file's kind, one of KINDS, and what else that kind has to say.
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
    try:
        description = json.loads(properties[KEY])
        missing = REQUIRED - description.keys()
        if description.get("kind") == "sampler":
            missing |= REQUIRED_OF_SAMPLERS - description.keys()
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path!r} has damaged metadata ({error})") from error
    if description.get("format") != FORMAT:
        raise InputError(
            f"{path!r} has format {description.get('format')!r}; this version reads {FORMAT}: export the model again"
        )
    if missing:
        raise InputError(f"{path!r} lacks {', '.join(sorted(missing))} in its metadata")
    return description
