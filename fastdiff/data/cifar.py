"""CIFAR-10, binary and Python version."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.data.source import Pictures, Source
from fastdiff.errors import InputError, first_line
from fastdiff.files import open_regular

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Batch = tuple[np.ndarray, np.ndarray]  # (N, 3, 32, 32) uint8, (N,) int64


def _empty_array(*args: Any) -> np.ndarray:
    """In place of NumPy's own: the array gets its shape with its bytes, whose number NumPy checks."""
    return np.ndarray((0,), "b")


def _latin(text: str, encoding: str) -> bytes:
    """Bytes, as Python 3 pickles them for Python 2."""
    return text.encode("latin1")


class ArraysOnly(pickle._Unpickler):  # type: ignore[name-defined]
    """CIFAR-10's Python version is pickled; this unpickler makes nothing but NumPy arrays.

    It is the one in Python: that in C makes room for as many objects as a file says to come. So does the opcode of a
    bytearray, which is left out.
    """

    ALLOWED = {
        ("numpy", "ndarray"): object(),  # named by arrays, and never called
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin,
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    }

    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]}  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")
        return self.ALLOWED[module, name]


def _python(path: Path) -> Batch:
    with open_regular(path) as file:
        batch = ArraysOnly(file, encoding="bytes").load()
    return np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32), np.asarray(batch[b"labels"], np.int64)


def _binary(path: Path) -> Batch:
    with open_regular(path) as file:
        rows = np.frombuffer(file.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
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
            if any(one.shape != (len(pictures),) for pictures, one in zip(images, labels, strict=True)):
                raise ValueError("its labels are no number for each picture")
            return np.concatenate(images), np.concatenate(labels)
        except Exception as error:  # of the unpickler and NumPy, for files of any kind
            raise InputError(f"{str(folder)!r} holds no whole CIFAR-10 ({first_line(error)})") from error

    images, labels = joined(sorted(folder.glob(f"data_batch_[0-9]{ending}")))
    return Pictures("cifar-10", images, labels, CLASSES, *joined([folder / f"test_batch{ending}"]))


SOURCE = Source("a folder of CIFAR-10 (binary or Python version)", lambda source: _find(source) is not None, read)
