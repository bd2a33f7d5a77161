"""CIFAR-10, binary and Python version."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastdiff.data.source import Pictures, Source
from fastdiff.errors import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Batch = tuple[np.ndarray, np.ndarray]  # (N, 3, 32, 32) uint8, (N,) int64


class ArraysOnly(pickle.Unpickler):
    """CIFAR-10's Python version is pickled; this unpickler makes nothing but NumPy arrays."""

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


def _python(path: Path) -> Batch:
    batch = ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    return np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32), np.asarray(batch[b"labels"], np.int64)


def _binary(path: Path) -> Batch:
    rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def _find(source: str) -> tuple[Path, str, Callable[[Path], Batch]] | None:
    """The folder of the batches, their ending, and the function that reads one; None if there are none."""
    folder = Path(source)
    for place in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        for ending, read in ((".bin", _binary), ("", _python)):
            if (place / f"data_batch_1{ending}").is_file():
                return place, ending, read
    return None


def read(source: str) -> Pictures:
    found = _find(source)
    assert found is not None
    folder, ending, read_batch = found

    def joined(files: list[Path]) -> Batch:
        try:
            images, labels = zip(*map(read_batch, files), strict=True)
        except (OSError, ValueError, KeyError, EOFError, TypeError, IndexError, pickle.UnpicklingError) as error:
            raise InputError(f"{str(folder)!r} holds no whole CIFAR-10 ({error})") from error
        return np.concatenate(images), np.concatenate(labels)

    images, labels = joined(sorted(folder.glob(f"data_batch_[0-9]{ending}")))
    return Pictures("cifar-10", images, labels, CLASSES, *joined([folder / f"test_batch{ending}"]))


SOURCE = Source("a folder of CIFAR-10 (binary or Python version)", lambda source: _find(source) is not None, read)
