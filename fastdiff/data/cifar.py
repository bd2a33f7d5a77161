"""CIFAR-10, binary and Python version."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdiff.data.images import ImageData, one_hot
from fastdiff.errors import InputError

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class ArraysOnly(pickle.Unpickler):
    """The Python version of CIFAR-10 is pickled; nothing but NumPy arrays may be made from it."""

    ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")
        return super().find_class(module, name)


def _python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    return np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32), np.asarray(batch[b"labels"], np.int64)


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return rows[:, 1:].reshape(-1, 3, 32, 32).copy(), rows[:, 0].astype(np.int64)


def read_cifar(folder: Path) -> ImageData | None:
    """The data of a folder that holds CIFAR-10 or its unpacked archive; None where it holds neither."""
    for place in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        for ending, read in ((".bin", _binary), ("", _python)):
            if (place / f"data_batch_1{ending}").is_file():
                return _read(place, ending, read)
    return None


def _read(folder: Path, ending: str, read: Callable[[Path], tuple[np.ndarray, np.ndarray]]) -> ImageData:
    parts: list[Tensor] = []
    for files in (sorted(folder.glob(f"data_batch_[0-9]{ending}")), [folder / f"test_batch{ending}"]):
        try:
            batches = [read(file) for file in files]
        except (OSError, ValueError, KeyError, EOFError, TypeError, IndexError, pickle.UnpicklingError) as error:
            raise InputError(f"{str(folder)!r} holds no whole CIFAR-10 ({error})") from error
        index = torch.from_numpy(np.concatenate([labels for _, labels in batches]))
        parts += [torch.from_numpy(np.concatenate([images for images, _ in batches]))]
        parts += [one_hot(index, CIFAR_CLASSES, folder.name)]
    return ImageData("cifar-10", parts[0], parts[1], CIFAR_CLASSES, parts[2], parts[3])
