"""The data of the shipped models."""

from __future__ import annotations

import fastdiff
from fastdiff.data.images import ImageData
from fastdiff.data.load import load_data
from fastdiff.errors import InputError


def read_data(name: str, data: str | None = None, labels: str | None = None) -> ImageData:
    """The pictures that the shipped model of that name was trained on, and those held out.

    Args:
        name: fashion-mnist or sprites.
        data: the sprites' pictures.
        labels: the sprites' labels.

    Raises:
        InputError: without these files, for they do not ship, or for others.
    """
    if name == "fashion-mnist":
        return load_data(name)
    if data is None or labels is None:
        raise InputError(f"the data of {name!r} does not ship; give its pictures and labels with --data and --labels")
    return load_data(data, labels, class_names=fastdiff.load(name).class_names)
