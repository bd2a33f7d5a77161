"""Pictures and labels in one .npz: MedMNIST's, Keras', or one array of pictures and one of labels."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fastdiff.data.npy import check_labels, check_pictures, header
from fastdiff.data.source import Pictures, Source
from fastdiff.data.space import BLOCK, most_memory, room
from fastdiff.errors import InputError, first_line

# Names of pictures and labels: those to train on, and those to hold out, of which the first that are there are taken.
TRAIN = (("train_images", "train_labels"), ("x_train", "y_train"))
HELD_OUT = (("val_images", "val_labels"), ("test_images", "test_labels"), ("x_val", "y_val"), ("x_test", "y_test"))
LABELS = {labels for _, labels in (*TRAIN, *HELD_OUT)}


class Arrays:
    """The arrays of an .npz, each read when it is asked for, a large one into a mapped file.

    Args:
        path: the file.

    Attributes:
        shapes: name → shape; those of other things than numbers are left out.

    Raises:
        InputError: here and later, for a damaged file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        others: dict[str, np.dtype] = {}
        with self._open() as file:
            for name in file.namelist():
                if name.endswith(".npy"):
                    with file.open(name) as member:
                        shape, _, dtype = header(member)
                    if dtype.kind in "uifb":
                        self.shapes[name.removesuffix(".npy")] = shape
                    else:
                        others[name.removesuffix(".npy")] = dtype
        for name in LABELS & others.keys():
            raise InputError(f"{path!r} holds {name} of {others[name]}; accepted: numbers of classes")

    def __getitem__(self, name: str) -> np.ndarray:
        with self._open() as file, file.open(f"{name}.npy") as member:
            shape, by_columns, dtype = header(member)
            if math.prod(shape) * dtype.itemsize > file.getinfo(f"{name}.npy").file_size:
                raise EOFError(f"{name} ends too early")
            array = room(shape[::-1] if by_columns else shape, dtype, most_memory(self.path))
            left = memoryview(array.reshape(-1).view(np.uint8).data) if array.size else memoryview(b"")
            while left:
                part = member.read(min(len(left), BLOCK))
                if not part:
                    raise EOFError(f"{name} ends too early")
                left[: len(part)] = part
                left = left[len(part) :]
            return array.transpose() if by_columns else array

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as file:
                yield file
        except InputError:
            raise
        except Exception as error:  # of zipfile and NumPy, for files of any kind
            raise InputError(f"{self.path!r} cannot be read as an .npz file ({first_line(error)})") from error


def _plain(shapes: dict[str, tuple[int, ...]], source: str) -> tuple[str, str]:
    """The names of the one array of pictures and of the one array of labels, which may be missing."""
    pictures = [name for name, shape in shapes.items() if len(shape) > 2]
    if len(pictures) == 1:
        count = shapes[pictures[0]][0]
        labels = [name for name, shape in shapes.items() if len(shape) in (1, 2) and shape[0] == count]
        if len(labels) <= 1:
            return pictures[0], labels[0] if labels else ""
    held = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "no arrays of numbers"
    wanted = ", ".join(f"{images} and {labels}" for images, labels in (*TRAIN, *HELD_OUT))
    raise InputError(f"{source!r} holds {held}; accepted: {wanted}; or one array of pictures, and one of their labels")


def read(source: str) -> Pictures:
    """The training pictures and those held out, by their names; or an array of pictures, found by its shape."""
    arrays = Arrays(source)

    def part(images: str, labels: str) -> tuple[np.ndarray, np.ndarray | None]:
        found = check_pictures(arrays[images], f"{images} of {source!r}")
        if labels not in arrays.shapes:
            return found, None
        return found, check_labels(arrays[labels], len(found), f"{labels} of {source!r}")

    train = next((pair for pair in TRAIN if pair[0] in arrays.shapes), None)
    name = Path(source).stem
    if train is None:
        return Pictures(name, *part(*_plain(arrays.shapes, source)))
    held_out = [pair for pair in HELD_OUT if pair[0] in arrays.shapes]
    if not held_out:
        return Pictures(name, *part(*train))
    notes = [f"held out are its {held_out[0][0]}", *(f"its {images} are not used" for images, _ in held_out[1:])]
    return Pictures(name, *part(*train), (), *part(*held_out[0]), tuple(notes))


SOURCE = Source(
    "an .npz (MedMNIST's, or of pictures and labels)",
    lambda source: source.lower().endswith(".npz") and Path(source).is_file(),
    read,
)
