"""`load_data`: training data from any of the sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdiff.data.images import ImageData, one_hot, split
from fastdiff.data.source import Pictures, Source
from fastdiff.data.sources import SOURCES, accepted
from fastdiff.errors import InputError


def load_data(
    source: str | Path,
    labels: str | Path | None = None,
    *,
    size: int | None = None,
    class_names: Sequence[str] = (),
    holdout: float = 0.05,
    download: bool = True,
) -> ImageData:
    """Training data, whole in memory.

    Args:
        source: {sources}.
        labels: the .npy file of the labels of an .npy of pictures: (N, K) numbers, a row for each picture, one-hot or
            any mixture of K classes.
        size: in pixels; pictures of a folder are cut to their middle square and resized to size x size. Without it
            they must all be of one size.
        class_names: K names in place of the data's own.
        holdout: share of each class that is held out for validation if the data has no test set, above 0 and at most
            0.5. It is taken in blocks of up to 50 neighbours, which in a file are often variants of one drawing.
        download: whether Fashion-MNIST may be downloaded if it is not found. The files' SHA-256 are checked.

    Returns:
        The pictures and their labels, and those held out for validation.

    Raises:
        InputError: if the source is none of these or is damaged, or an argument does not apply to it.
    """
    source = str(source)
    if not 0 < holdout <= 0.5:
        raise InputError(f"holdout = {holdout}; accepted: more than 0, at most 0.5")
    try:
        chosen = _recognised(source)
        given = {"labels": None if labels is None else str(labels), "size": size}
        for name, value in given.items():
            if value is not None and name not in chosen.options:
                raise InputError(f"{name} = {value!r} with data {source!r}; accepted only with {accepted(name)}")
        options = {name: value for name, value in {**given, "download": download}.items() if name in chosen.options}
        found = chosen.read(source, **options)
    except OSError as error:  # an unreadable folder, a name too long
        raise InputError(f"cannot read data {source!r}: {error.strerror or error}") from error
    data = _image_data(found, holdout)
    return data.named(tuple(class_names)) if class_names else data


if load_data.__doc__:  # python -OO leaves none
    load_data.__doc__ = load_data.__doc__.replace("{sources}", accepted())


def _recognised(source: str) -> Source:
    for one in SOURCES:
        if one.recognises(source):
            return one
    what = f"{source!r} holds no data" if Path(source).is_dir() else f"no data at {source!r}"
    raise InputError(f"{what}; accepted: {accepted()}")


def _image_data(found: Pictures, holdout: float) -> ImageData:
    """As tensors, with pictures held out if the source has no test set."""
    count = len(found.images)
    weights = np.zeros((count, 0), np.float32) if found.labels is None else found.labels
    names = found.class_names
    if not names:
        classes = weights.shape[1] if weights.ndim == 2 else int(weights.max(initial=0)) + 1
        names = tuple(f"class{k}" for k in range(classes))
    images, labels = _tensor(found.images), _weights(weights, names, found.name)
    if found.test_images is None or found.test_labels is None:
        return split(found.name, images, labels, names, holdout)
    test_labels = _weights(found.test_labels, names, found.name)
    return ImageData(found.name, images, labels, names, _tensor(found.test_images), test_labels)


def _weights(labels: np.ndarray, class_names: tuple[str, ...], name: str) -> Tensor:
    """(N,) class numbers or (N, K) weights → (N, K) float32."""
    if labels.ndim == 1:
        return one_hot(torch.from_numpy(labels.astype(np.int64)), class_names, name)
    return torch.from_numpy(labels.astype(np.float32))


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(images, requirements=["C", "W"]))
