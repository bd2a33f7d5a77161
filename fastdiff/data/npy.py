"""Pictures in an .npy file, with their labels in another."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastdiff.data.source import Pictures, Source
from fastdiff.errors import InputError

USUAL_CHANNELS = (1, 3, 4)


def numbers(path: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path!r} cannot be read as an .npy file ({error})") from error


def channels_first(images: np.ndarray) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) → (N, C, H, W).

    The channels are the last axis if its size is 1, 3 or 4; else the second, if its size is 1, 3 or 4, or smaller than
    the other two; else the last.
    """
    if images.ndim == 3:
        return images[:, None]
    _, second, third, last = images.shape
    first = last not in USUAL_CHANNELS and (second in USUAL_CHANNELS or second < min(third, last))
    return images if first else images.transpose(0, 3, 1, 2)


def read(source: str, labels: str | None) -> Pictures:
    images = numbers(source)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InputError(
            f"{source!r} is {images.dtype} of shape {images.shape}; accepted: uint8 (N, H, W), (N, H, W, C) or "
            "(N, C, H, W)"
        )
    weights = None
    if labels is not None:
        weights = numbers(labels)
        if weights.ndim != 2 or len(weights) != len(images) or weights.dtype.kind not in "uifb":
            raise InputError(
                f"{labels!r} is {weights.dtype} of shape {weights.shape}; accepted: ({len(images)}, K) numbers"
            )
    return Pictures(Path(source).stem, channels_first(images), weights)


SOURCE = Source(
    "an .npy of pictures",
    lambda source: source.endswith(".npy") and Path(source).is_file(),
    read,
    options=("labels",),
)
