"""Training data: small pictures, kept whole in memory as uint8."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.files import write_atomically
from fastdiff.images import from_picture

FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPRITE_CLASSES = ("hero", "non-hero", "food", "spell", "side-facing")  # the course's

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Of the unpacked files: distributions compress them anew.
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
PICTURE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
HOLDOUT_BLOCK = 50


@dataclass(frozen=True)
class ImageData:
    """images: (N, C, H, W) uint8. labels: (N, K) float32, one-hot or any mixture. val: the same, never trained on."""

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    val_images: Tensor
    val_labels: Tensor

    def fingerprint(self) -> int:
        """CRC-32 of the training pictures and labels, by which a resumed run knows its data again."""
        return zlib.crc32(self.labels.numpy().tobytes(), zlib.crc32(self.images.numpy().tobytes()))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])  # type: ignore[return-value]


def load_data(source: str, labels: str | None = None, size: int | None = None, class_names: tuple[str, ...] = (),
              holdout: float = 0.05, download: bool = True) -> ImageData:  # fmt: skip
    """The data that `fastdiff train --data` names.

    source: "fashion-mnist" (found where Debian's dataset-fashion-mnist puts it, in the cache, or downloaded with a
        checksum), a folder of IDX files, a folder of CIFAR-10 (binary or Python version), a folder of pictures (a
        class for each subfolder), or an .npy file of (N, H, W, C) or (N, H, W) uint8 pictures.
    labels: the .npy file of (N, K) labels beside an .npy of pictures. size: pictures of a folder are cut to their
        middle square and resized to size x size. class_names: K names, for .npy labels.
    holdout: the share kept for validation where the data has no test set, taken in blocks of neighbours, for
        neighbours in a file are often variants of one drawing.

    Raises InputError where there is no data of that kind.
    """
    if labels is not None and not source.endswith(".npy"):
        raise InputError(f"labels = {labels!r} with data {source!r}; accepted only beside an .npy of pictures")
    if not 0 < holdout <= 0.5:
        raise InputError(f"holdout = {holdout}; accepted: more than 0, at most 0.5")
    if source == "fashion-mnist":
        return _idx_folder(_find_fashion(download), "fashion-mnist", FASHION_CLASSES)
    path = Path(source)
    if path.is_file() and path.suffix == ".npy":
        return _npy_pair(path, labels, class_names, holdout)
    if not path.is_dir():
        raise InputError(f"data {source!r} is neither a folder, an .npy file nor 'fashion-mnist'")
    if _has(path, "train-images-idx3-ubyte"):
        return _idx_folder(path, path.name, FASHION_CLASSES)
    for folder in (path, path / "cifar-10-batches-bin", path / "cifar-10-batches-py"):
        for ending, read in ((".bin", _cifar_binary), ("", _cifar_pickle)):
            if (folder / f"data_batch_1{ending}").is_file():
                return _cifar(folder, ending, read)
    return _picture_folder(path, size, holdout)


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.gz").is_file()


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """An IDX file (LeCun's MNIST format), gzipped or not."""
    path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
        zero, kind, ndim = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{ndim}I", data, 4)
        if zero or kind != 8:
            raise ValueError("not an IDX file of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise InputError(f"{str(path)!r} cannot be read as an IDX file ({error})") from error


def _idx_folder(folder: Path, name: str, class_names: tuple[str, ...]) -> ImageData:
    parts = []
    for split in ("train", "t10k"):
        images = torch.from_numpy(_read_idx(folder, f"{split}-images-idx3-ubyte").copy())[:, None]
        index = torch.from_numpy(_read_idx(folder, f"{split}-labels-idx1-ubyte").astype(np.int64))
        parts += [images, torch.nn.functional.one_hot(index, len(class_names)).float()]
    return ImageData(name, parts[0], parts[1], class_names, parts[2], parts[3])


def _find_fashion(download: bool) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdiff" / "fashion-mnist"
    for folder in (DEBIAN_FASHION, cache):
        if all(_has(folder, name) for name in FASHION_SHA256):
            return folder
    if not download:
        raise InputError(f"no Fashion-MNIST in {str(DEBIAN_FASHION)!r} or {str(cache)!r}")
    cache.mkdir(parents=True, exist_ok=True)
    for name, digest in FASHION_SHA256.items():
        _download(f"{FASHION_URL}{name}.gz", cache / name, digest)
    return cache


def _download(url: str, path: Path, sha256: str) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            data = gzip.decompress(response.read())
    except (urllib.error.URLError, OSError, EOFError, ValueError) as error:
        raise InputError(
            f"cannot download {url} ({getattr(error, 'reason', error)}); install Debian's dataset-fashion-mnist, "
            "or give the folder of the IDX files with --data"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError(f"{url} unpacks to SHA-256 {found}; expected {sha256}")
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


class _ArraysOnly(pickle.Unpickler):
    """The Python version of CIFAR-10 is pickled; nothing but NumPy arrays may be made from it."""

    ALLOWED = {
        ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    }  # fmt: skip

    def find_class(self, module: str, name: str):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")
        return super().find_class(module, name)


def _cifar_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    return np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32), np.asarray(batch[b"labels"], np.int64)


def _cifar_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return rows[:, 1:].reshape(-1, 3, 32, 32).copy(), rows[:, 0].astype(np.int64)


def _cifar(folder: Path, ending: str, read: Callable[[Path], tuple[np.ndarray, np.ndarray]]) -> ImageData:
    parts: list[Tensor] = []
    for names in (sorted(folder.glob(f"data_batch_[0-9]{ending}")), [folder / f"test_batch{ending}"]):
        try:
            batches = [read(name) for name in names]
        except (OSError, ValueError, KeyError, EOFError, TypeError, pickle.UnpicklingError) as error:
            raise InputError(f"{str(folder)!r} holds no whole CIFAR-10 ({error})") from error
        index = torch.from_numpy(np.concatenate([labels for _, labels in batches]))
        if len(index) and int(index.max()) >= len(CIFAR_CLASSES):
            raise InputError(f"{str(folder)!r} holds label {int(index.max())}; CIFAR-10 has 0 to 9")
        parts += [torch.from_numpy(np.concatenate([images for images, _ in batches]))]
        parts += [torch.nn.functional.one_hot(index, len(CIFAR_CLASSES)).float()]
    return ImageData("cifar-10", parts[0], parts[1], CIFAR_CLASSES, parts[2], parts[3])


def _npy_pair(path: Path, labels: str | None, class_names: tuple[str, ...], holdout: float) -> ImageData:
    images = _load_npy(path)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InputError(f"{str(path)!r} is {images.dtype} of shape {images.shape}; accepted: uint8 (N, H, W[, C])")
    images = images[..., None] if images.ndim == 3 else images
    pictures = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    if labels is None:
        context = torch.zeros(len(pictures), 0)
    else:
        array = _load_npy(Path(labels))
        if array.ndim != 2 or len(array) != len(pictures) or array.dtype.kind not in "uifb":
            raise InputError(
                f"{labels!r} is {array.dtype} of shape {array.shape}; accepted: ({len(pictures)}, K) numbers"
            )
        context = torch.from_numpy(array.astype(np.float32))
    width = context.shape[1]
    if class_names and len(class_names) != width:
        raise InputError(f"{len(class_names)} class names for labels of width {width}")
    names = tuple(class_names) or (SPRITE_CLASSES if width == 5 else tuple(f"class{k}" for k in range(width)))
    return _split(path.stem, pictures, context, names, holdout)


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{str(path)!r} cannot be read as an .npy file ({error})") from error


def _picture_folder(folder: Path, size: int | None, holdout: float) -> ImageData:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_ENDINGS and p.is_file())
    if not files:
        raise InputError(
            f"{str(folder)!r} holds no data; accepted: pictures, IDX files (train-images-idx3-ubyte), CIFAR-10 batches"
        )
    names = sorted({p.relative_to(folder).parts[0] for p in files if p.parent != folder})
    pictures, index = [], []
    gray = all(_read(path).mode in ("1", "L", "I", "I;16", "LA") for path in files)
    for path in files:
        pictures.append(from_picture(_read(path).convert("L" if gray else "RGB"), size))
        index.append(names.index(path.relative_to(folder).parts[0]) if path.parent != folder else -1)
        if pictures[-1].shape != pictures[0].shape:
            raise InputError(
                f"{str(path)!r} is {pictures[-1].shape[2]}x{pictures[-1].shape[1]} and {str(files[0])!r} "
                f"{pictures[0].shape[2]}x{pictures[0].shape[1]}; give --size to make them equal"
            )
    labels = torch.zeros(len(files), len(names))
    for row, label in enumerate(index):
        if label >= 0:
            labels[row, label] = 1
    return _split(folder.name, torch.stack(pictures), labels, tuple(names), holdout)


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {str(path)!r} as a picture ({error})") from error


def _split(name: str, images: Tensor, labels: Tensor, class_names: tuple[str, ...], holdout: float) -> ImageData:
    if len(images) < 2:
        raise InputError(f"data {name!r} holds {len(images)} pictures; accepted: at least 2")
    block = max(1, min(HOLDOUT_BLOCK, len(images) // 10))
    every = round(1 / holdout)
    number = torch.arange(len(images)) // block
    held = number % every == min(every - 1, int(number.max()))
    return ImageData(name, images[~held], labels[~held], class_names, images[held], labels[held])
