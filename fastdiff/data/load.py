"""`load_data`: training data from any of the sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.data.images import ImageData, made_up, one_hot, split
from fastdiff.data.source import Pictures, Source
from fastdiff.data.sources import SOURCES, accepted
from fastdiff.data.space import check_classes
from fastdiff.data.values import Range, check_range, choose_range, in_float32
from fastdiff.errors import InputError, check_float

MAX_CLASSES = 10_000


def load_data(
    source: str | Path,
    labels: str | Path | None = None,
    *,
    size: int | str | tuple[int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    alpha: bool = False,
    skip_corrupt: bool = False,
    class_names: Sequence[str] = (),
    holdout: float = 0.05,
    download: bool = True,
    progress: bool = False,
) -> ImageData:
    """Training data. Arrays of more than 1 GiB are mapped from files, not held in memory.

    Args:
        source: {sources}.
        labels: for an .npy of pictures the .npy of their labels: (N,) or (N, 1) class numbers, or (N, K) numbers, a
            row for each picture, one-hot or any mixture of K classes. For a folder or a zip archive a .csv of file name
            and class, in place of the subfolders.
        size: in pixels, N or (width, height) or "WxH": the middle of picture files is cut to that ratio and resized.
            Without it they must all be of one size.
        value_range: (low, high), the values that become -1 and 1. For pictures of 8 bits it is (0, 255) unless given.
            For 16 bits, other whole numbers and floats it is (0, 1) or (-1, 1) if all values lie there, else their
            least and greatest; `summary()` says which.
        alpha: whether picture files keep their transparency, as a fourth channel; else they lie on white.
        skip_corrupt: whether picture files that cannot be read are left out, which `summary()` says.
        class_names: K names in place of the data's own.
        holdout: share of each class that is held out for validation if the data has no test set, above 0 and at most
            0.5. It is taken in blocks of up to 50 neighbours, which in a file are often variants of one drawing.
        download: whether Fashion-MNIST may be downloaded if it is not found. The files' SHA-256 are checked.
        progress: whether a bar shows how many picture files are read, where stderr is a terminal.

    Returns:
        The pictures and their labels, and those held out for validation.

    Raises:
        InputError: if the source is none of these or is damaged, or an argument does not apply to it.
    """
    source, value_range = str(source), check_range(value_range)
    if not 0 < check_float("holdout", holdout) <= 0.5:
        raise InputError(f"holdout = {holdout}; accepted: more than 0, at most 0.5")
    given = {
        "labels": None if labels is None else str(labels),
        "size": size,
        "alpha": alpha,
        "skip_corrupt": skip_corrupt,
    }
    try:
        chosen = _recognised(source)
        for name, value in given.items():
            if value is not None and value is not False and name not in chosen.options:
                raise InputError(f"{name} = {value!r} with data {source!r}; accepted only with {accepted(name)}")
        every = {**given, "download": download, "progress": progress}
        found = chosen.read(source, **{name: value for name, value in every.items() if name in chosen.options})
    except OSError as error:  # an unreadable folder, a name too long
        raise InputError(f"cannot read data {source!r}: {error.strerror or error}") from error
    data = _image_data(found, holdout, value_range)
    return data.named(tuple(class_names)) if class_names else data


if load_data.__doc__:  # python -OO leaves none
    load_data.__doc__ = load_data.__doc__.replace("{sources}", accepted())


def _recognised(source: str) -> Source:
    for one in SOURCES:
        if one.recognises(source):
            return one
    what = f"{source!r} holds no data" if Path(source).is_dir() else f"no data at {source!r}"
    raise InputError(f"{what}; accepted: {accepted()}")


def _image_data(found: Pictures, holdout: float, given: Range | None) -> ImageData:
    """As tensors, with pictures held out if the source has no test set."""
    arrays = [in_float32(images) for images in (found.images, found.test_images) if images is not None]
    value_range, said = choose_range(found.name, arrays, given)
    more: dict[str, Any] = {"value_range": value_range, "notes": (*([said] if said else []), *found.notes)}
    labels = _weights(found.labels, arrays[0], len(found.class_names), found.name)
    classes = labels.shape[1]
    names = found.class_names or made_up(classes)
    if len(arrays) == 1:
        return split(found.name, _tensor(arrays[0]), labels, names, holdout, **more)
    test_labels = _weights(found.test_labels, arrays[1], classes, f"{found.name} (held out)")
    return ImageData(found.name, _tensor(arrays[0]), labels, names, _tensor(arrays[1]), test_labels, **more)


def _weights(labels: np.ndarray | None, images: np.ndarray, classes: int, name: str) -> Tensor:
    """Of N pictures (N,) class numbers or (N, K) weights → (N, K) float32; classes: 0 if not known. K is 0 without."""
    if labels is None:
        return torch.zeros(len(images), 0, device="cpu", dtype=torch.float32)
    if labels.ndim == 2:
        return torch.from_numpy(labels.astype(np.float32))
    index = torch.from_numpy(labels.astype(np.int64))
    classes = classes or min(int(labels.max(initial=0)) + 1, MAX_CLASSES)
    check_classes(name, len(images), classes, images.nbytes)
    return one_hot(index, classes, name)


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(images, requirements=["W"]))
