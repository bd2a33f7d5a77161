"""MNIST's IDX files."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from fastdiff.data.source import Pictures, Source
from fastdiff.data.space import most_memory
from fastdiff.errors import InputError, first_line
from fastdiff.files import open_regular

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def holds(folder: Path, name: str) -> bool:
    """Whether the folder has an IDX file of that name, gzipped or not."""
    return (folder / name).is_file() or (folder / f"{name}.gz").is_file()


def place(source: str) -> Path:
    """The folder of the IDX files: the source, or MNIST/raw in it, FashionMNIST/raw, ..., as torchvision has them.

    Raises:
        InputError: if several folders in it have some.
    """
    folder = Path(source)
    if holds(folder, TRAIN_IMAGES) or not folder.is_dir():
        return folder
    inner = [raw for raw in (folder / "raw", *sorted(folder.glob("*/raw"))) if holds(raw, TRAIN_IMAGES)]
    if len(inner) > 1:
        raise InputError(
            f"{source!r} holds {', '.join(raw.parent.name for raw in inner)}; accepted: one of these folders"
        )
    return inner[0] if inner else folder


def name_of(folder: Path) -> str:
    """What data in the folder is called, MNIST in MNIST/raw."""
    return folder.resolve().parent.name if folder.name == "raw" else folder.name


def unpacked(folder: Path, name: str) -> bytes:
    path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    with open_regular(path) as raw:
        if path.suffix != ".gz":
            return raw.read()
        most = most_memory(path)
        try:
            with gzip.GzipFile(fileobj=raw) as file:
                data = file.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{str(path)!r} cannot be read as an IDX file ({first_line(error)})") from error
    if len(data) > most:
        raise InputError(f"{str(path)!r} unpacks to more than {most:,} bytes; accepted: unpacked by gunzip")
    return data


def _array(folder: Path, name: str, ndim: int) -> np.ndarray:
    data = unpacked(folder, name)
    try:
        if struct.unpack_from(">HBB", data) != (0, 8, ndim):  # type 8 is uint8
            raise ValueError(f"it should hold bytes in {ndim} dimensions")
        shape = struct.unpack_from(f">{ndim}I", data, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (ValueError, struct.error) as error:
        raise InputError(f"{str(folder / name)!r} cannot be read as an IDX file ({error})") from error


def read_folder(folder: Path, name: str, class_names: tuple[str, ...] = ()) -> Pictures:
    """train-* and t10k-* of a folder, gzipped or not; the t10k pictures are the test set."""

    def part(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        images = _array(folder, f"{prefix}-images-idx3-ubyte", 3)
        return images[:, None], _array(folder, f"{prefix}-labels-idx1-ubyte", 1)

    return Pictures(name, *part("train"), class_names, *part("t10k"))


def read(source: str) -> Pictures:
    folder = place(source)
    return read_folder(folder, name_of(folder))


SOURCE = Source(
    "a folder of IDX files (train-images-idx3-ubyte, ..., or torchvision's MNIST)",
    lambda source: holds(place(source), TRAIN_IMAGES),
    read,
)
