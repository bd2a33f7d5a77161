"""What a data source is: an entry of the list in fastdiff.data.sources. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pictures:
    """What a source reads, as NumPy arrays.

    Attributes:
        name: the data's name in reports and model cards.
        images: (N, C, H, W) uint8.
        labels: (N,) whole numbers, each a class; or (N, K) numbers, the weights of K classes; or None.
        class_names: names of the classes; empty for class0, class1, ...
        test_images: pictures for validation alone, (M, C, H, W) uint8; None if the data has no test set, and some of
            the pictures are to be held out.
        test_labels: as labels.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """One kind of data that `load_data` and `fastdiff train --data` accept.

    Attributes:
        accepts: what the user gives, in a few words, for the help and for error messages.
        recognises: source → whether a name or path is of this kind.
        read: (source, **options) → its pictures; the keywords are those of load_data's arguments that `options`
            names. Raises InputError for damaged data.
        options: load_data's arguments that apply: "labels", "size", "download".
    """

    accepts: str
    recognises: Callable[[str], bool]
    read: Callable[..., Pictures]
    options: tuple[str, ...] = ()
