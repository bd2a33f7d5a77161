"""A folder of picture files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastdiff.data.source import Pictures, Source
from fastdiff.errors import InputError


def _files(folder: Path) -> Iterator[Path]:
    from fastdiff.images import PICTURE_ENDINGS

    return (path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_ENDINGS and path.is_file())


def read(source: str, size: int | None) -> Pictures:
    """All pictures below the folder, whose subfolders are the classes; gray if every picture is."""
    from fastdiff.images import from_picture, open_picture  # here, since it imports torch

    folder = Path(source)
    files = sorted(_files(folder))
    opened = [open_picture(path) for path in files]
    mode = "L" if all(picture.mode == "L" for picture in opened) else "RGB"
    images = [from_picture(picture.convert(mode), size).numpy() for picture in opened]
    for path, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise InputError(
                f"{str(path)!r} is {image.shape[2]}x{image.shape[1]} and {str(files[0])!r} "
                f"{images[0].shape[2]}x{images[0].shape[1]}; give a size (--size) to make them equal"
            )
    names = sorted({path.relative_to(folder).parts[0] for path in files if path.parent != folder})
    labels = np.zeros((len(files), len(names)), np.float32)
    for row, path in enumerate(files):
        if path.parent != folder:
            labels[row, names.index(path.relative_to(folder).parts[0])] = 1
    return Pictures(folder.name, np.stack(images), labels, tuple(names))


SOURCE = Source(
    "a folder of pictures (a class for each subfolder)",
    lambda source: next(_files(Path(source)), None) is not None,
    read,
    options=("size",),
)
