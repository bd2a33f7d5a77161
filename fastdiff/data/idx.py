"""MNIST's IDX files."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from fastdiff.data.source import Pictures, Source
from fastdiff.errors import InputError

TRAIN_LABELS = "train-labels-idx1-ubyte"


def holds(folder: Path, name: str) -> bool:
    """Whether the folder has an IDX file of that name, gzipped or not."""
    return (folder / name).is_file() or (folder / f"{name}.gz").is_file()


def unpacked(folder: Path, name: str) -> bytes:
    path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{str(path)!r} cannot be read as an IDX file ({error})") from error


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


SOURCE = Source(
    "a folder of IDX files (train-images-idx3-ubyte, ...)",
    lambda source: holds(Path(source), "train-images-idx3-ubyte"),
    lambda source: read_folder(Path(source), Path(source).name),
)
