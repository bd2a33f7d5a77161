"""Pictures of the user's own: a folder of files, or an .npy with its labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastdiff.data.images import ImageData, split
from fastdiff.errors import InputError
from fastdiff.images import PICTURE_ENDINGS, from_picture, open_picture


def read_npy_pair(path: Path, labels: str | None, holdout: float) -> ImageData:
    images = _load_npy(path)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InputError(f"{str(path)!r} is {images.dtype} of shape {images.shape}; accepted: uint8 (N, H, W[, C])")
    images = images[..., None] if images.ndim == 3 else images
    pictures = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    context = torch.zeros(len(pictures), 0)
    if labels is not None:
        array = _load_npy(Path(labels))
        if array.ndim != 2 or len(array) != len(pictures) or array.dtype.kind not in "uifb":
            raise InputError(
                f"{labels!r} is {array.dtype} of shape {array.shape}; accepted: ({len(pictures)}, K) numbers"
            )
        context = torch.from_numpy(array.astype(np.float32))
    names = tuple(f"class{k}" for k in range(context.shape[1]))
    return split(path.stem, pictures, context, names, holdout)


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{str(path)!r} cannot be read as an .npy file ({error})") from error


def read_picture_folder(folder: Path, size: int | None, holdout: float) -> ImageData:
    """All pictures below the folder; its subfolders are the classes. Gray where every picture is."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_ENDINGS and p.is_file())
    if not files:
        raise InputError(
            f"{str(folder)!r} holds no data; accepted: pictures, IDX files (train-images-idx3-ubyte), CIFAR-10 batches"
        )
    names = sorted({p.relative_to(folder).parts[0] for p in files if p.parent != folder})
    opened = [open_picture(path) for path in files]
    mode = "L" if all(picture.mode == "L" for picture in opened) else "RGB"
    pictures = [from_picture(picture.convert(mode), size) for picture in opened]
    for path, picture in zip(files, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise InputError(
                f"{str(path)!r} is {picture.shape[2]}x{picture.shape[1]} and {str(files[0])!r} "
                f"{pictures[0].shape[2]}x{pictures[0].shape[1]}; give --size to make them equal"
            )
    labels = torch.zeros(len(files), len(names))
    for row, path in enumerate(files):
        if path.parent != folder:
            labels[row, names.index(path.relative_to(folder).parts[0])] = 1
    return split(folder.name, torch.stack(pictures), labels, tuple(names), holdout)
