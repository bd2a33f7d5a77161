"""Pictures in an .npy file, with their labels in another."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import IO

import numpy as np

from fastdiff.data import space
from fastdiff.data.source import Pictures, Source
from fastdiff.errors import InputError, first_line
from fastdiff.files import open_regular

USUAL_CHANNELS = (1, 3, 4)
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def numbers(path: str, mapped: bool = False) -> np.ndarray:
    """What an .npy file holds; a large one is mapped if asked for, and writing to it does not reach the file."""
    try:
        with open_regular(path) as file:
            shape, _, dtype = header(file)
            begin, size = file.tell(), os.fstat(file.fileno()).st_size
        if begin + math.prod(shape) * dtype.itemsize > size:  # before room is made for them
            raise EOFError(f"{size:,} bytes for {dtype} of shape {shape}")
        large = mapped and size > space.LARGE
        return np.load(path, mmap_mode="c" if large else None, allow_pickle=False)
    except Exception as error:  # of NumPy, for files of any kind
        raise InputError(f"{path!r} cannot be read as an .npy file ({first_line(error)})") from error


def header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it lies column by column, and dtype of an array's file, which is read up to its numbers."""
    try:
        version = np.lib.format.read_magic(file)
    except ValueError as error:
        raise ValueError(f"it is no single array: {first_line(error)}") from error
    if version not in HEADERS:
        raise ValueError(f"an array of format {version}")
    shape, by_columns, dtype = HEADERS[version](file)
    if min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape}")
    return shape, by_columns, dtype


def channels_first(images: np.ndarray) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) → (N, C, H, W), a view.

    The channels are the last axis if its size is 1, 3 or 4; else the second, if its size is 1, 3 or 4, or smaller than
    the other two; else the last.
    """
    if images.ndim == 3:
        return images[:, None]
    _, second, third, last = images.shape
    first = last not in USUAL_CHANNELS and (second in USUAL_CHANNELS or second < min(third, last))
    return images if first else images.transpose(0, 3, 1, 2)


def check_pictures(images: np.ndarray, name: str) -> np.ndarray:
    """The pictures of an array as (N, C, H, W); raises InputError if it holds none."""
    if images.dtype.kind not in "uifb" or images.ndim not in (3, 4) or not images.size:
        raise InputError(
            f"{name} is {images.dtype} of shape {images.shape}; accepted: whole numbers or floats, (N, H, W), "
            "(N, H, W, C) or (N, C, H, W)"
        )
    return channels_first(images)


def check_labels(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    """The labels of so many pictures: (N,) class numbers or (N, K) weights.

    Whole numbers in one row or one column are class numbers, such as MedMNIST's (N, 1). A column of floats is one
    weight for each picture, unless it holds whole numbers of which one is above 1, so class numbers that were saved as
    floats. More columns are weights, one for each class.

    Raises:
        InputError: for arrays of other shapes, and for a row of numbers that are not whole.
    """
    column = labels.ndim == 2 and labels.shape[1] == 1
    accepted = f"accepted: ({count},) class numbers, or ({count}, K) numbers, the weights of K classes"
    if labels.ndim not in (1, 2) or len(labels) != count or labels.dtype.kind not in "uifb":
        raise InputError(f"{name} is {labels.dtype} of shape {labels.shape}; {accepted}")
    whole = labels.dtype.kind != "f" or bool((np.isfinite(labels) & (labels == np.floor(labels))).all())
    if labels.ndim == 1 and not whole:
        raise InputError(f"{name} has numbers that are not whole in its {count}; {accepted}")
    numbered = column and whole and (labels.dtype.kind != "f" or labels.max(initial=0) > 1)
    return labels[:, 0] if numbered else labels


def read(source: str, labels: str | None) -> Pictures:
    """Pictures of any number of channels, the labels from a second file."""
    images = check_pictures(numbers(source, mapped=True), repr(source))
    classes = None if labels is None else check_labels(numbers(labels), len(images), repr(labels))
    return Pictures(Path(source).stem, images, classes)


SOURCE = Source(
    "an .npy of pictures",
    lambda source: source.lower().endswith(".npy") and Path(source).is_file(),
    read,
    options=("labels",),
)
