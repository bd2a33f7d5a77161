"""MNIST's IDX files, and where Fashion-MNIST is found."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import torch

from fastdiff.data.images import ImageData, one_hot
from fastdiff.errors import InputError
from fastdiff.files import write_atomically

FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Of the unpacked files: distributions compress them anew.
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def is_idx_folder(folder: Path) -> bool:
    return _has(folder, "train-images-idx3-ubyte")


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.gz").is_file()


def _unpacked(folder: Path, name: str) -> bytes:
    path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{str(path)!r} cannot be read as an IDX file ({error})") from error


def _read_idx(folder: Path, name: str, ndim: int) -> np.ndarray:
    data = _unpacked(folder, name)
    try:
        zero, kind, found = struct.unpack_from(">HBB", data)
        if (zero, kind, found) != (0, 8, ndim):
            raise ValueError(f"it should hold bytes in {ndim} dimensions")
        shape = struct.unpack_from(f">{ndim}I", data, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (ValueError, struct.error) as error:
        raise InputError(f"{str(folder / name)!r} cannot be read as an IDX file ({error})") from error


def read_idx_folder(folder: Path, name: str) -> ImageData:
    """train-* and t10k-* of the folder, gzipped or not; the t10k pictures are the validation set.

    Fashion-MNIST is known by its labels and gets its class names; other data is named by number.
    """
    labels = _read_idx(folder, "train-labels-idx1-ubyte", 1)
    digest = hashlib.sha256(_unpacked(folder, "train-labels-idx1-ubyte")).hexdigest()
    fashion = digest == FASHION_SHA256["train-labels-idx1-ubyte"]
    names = FASHION_CLASSES if fashion else tuple(f"class{k}" for k in range(int(labels.max(initial=0)) + 1))
    parts = []
    for part in ("train", "t10k"):
        images = torch.from_numpy(_read_idx(folder, f"{part}-images-idx3-ubyte", 3).copy())[:, None]
        index = torch.from_numpy(_read_idx(folder, f"{part}-labels-idx1-ubyte", 1).astype(np.int64))
        parts += [images, one_hot(index, names, name)]
    return ImageData(name, parts[0], parts[1], names, parts[2], parts[3])


def find_fashion(download: bool) -> Path:
    """The folder of Fashion-MNIST: Debian's, the cache, or the cache after a download."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdiff" / "fashion-mnist"
    for folder in (DEBIAN_FASHION, cache):
        if all(_has(folder, name) for name in FASHION_SHA256):
            return folder
    if not download:
        raise InputError(f"no Fashion-MNIST in {str(DEBIAN_FASHION)!r} or {str(cache)!r}")
    for name, digest in FASHION_SHA256.items():
        _download(f"{FASHION_URL}{name}.gz", cache / name, digest)
    return cache


def _download(url: str, path: Path, sha256: str) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            data = gzip.decompress(response.read())
    except (urllib.error.URLError, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"cannot download {url} ({getattr(error, 'reason', error)}); install Debian's dataset-fashion-mnist, "
            "or give the folder of the IDX files with --data"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError(f"{url} unpacks to SHA-256 {found}; expected {sha256}")
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
