"""What a data source is: an entry of the list in fastdiff.data.sources. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastdiff.errors import InputError


@dataclass(frozen=True)
class Pictures:
    """What a source reads, as NumPy arrays.

    Attributes:
        name: the data's name in reports and model cards.
        images: (N, C, H, W): uint8 from 0 to 255; or other whole numbers or floats, in units of their own. Any strides.
        labels: (N,) whole numbers, each a class; or (N, K) numbers, the weights of K classes; or None.
        class_names: names of the classes; empty for class0, class1, ...
        test_images: pictures for validation alone, (M, C, H, W) of the same dtype; None if the data has no test set,
            and some of the pictures are to be held out.
        test_labels: as labels.
        notes: what the user is to be told of the data, a few words each.

    Raises:
        InputError: for arrays of other shapes, or labels for another number of pictures.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.test_images is not None and (self.labels is None) != (self.test_labels is None):
            raise InputError(
                f"data {self.name!r} has labels for one of training and validation; accepted: both, or none"
            )
        for images, labels in ((self.images, self.labels), (self.test_images, self.test_labels)):
            if images is None:
                continue
            if images.ndim != 4 or images.dtype.kind not in "uifb":
                raise InputError(
                    f"data {self.name!r} has pictures of shape {images.shape} and dtype {images.dtype}; accepted: "
                    "(N, C, H, W) uint8, other whole numbers or floats"
                )
            if (images.dtype, images.shape[1:]) != (self.images.dtype, self.images.shape[1:]):
                raise InputError(
                    f"data {self.name!r} has {self.images.dtype} pictures of shape {self.images.shape} to train on and "
                    f"{images.dtype} of {images.shape} for validation; accepted: one dtype and one size"
                )
            if labels is not None and (labels.ndim not in (1, 2) or len(labels) != len(images)):
                raise InputError(
                    f"data {self.name!r} has labels of shape {labels.shape} for {len(images)} pictures; accepted: "
                    f"({len(images)},) or ({len(images)}, K)"
                )


@dataclass(frozen=True)
class Source:
    """One kind of data that `load_data` and `fastdiff train --data` accept.

    Attributes:
        accepts: what the user gives, in a few words, for the help and for error messages.
        recognises: source → whether a name or path is of this kind.
        read: (source, **options) → its pictures; the keywords are those of load_data's arguments that `options`
            names. Raises InputError for damaged data.
        options: load_data's arguments that apply: "labels", "size", "alpha", "skip_corrupt", "download", "progress".
    """

    accepts: str
    recognises: Callable[[str], bool]
    read: Callable[..., Pictures]
    options: tuple[str, ...] = ()
