"""Fashion-MNIST: found on this machine, or downloaded and checked."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
import zlib
from pathlib import Path

from fastdiff.data import idx
from fastdiff.data.source import Pictures, Source
from fastdiff.errors import InputError
from fastdiff.files import write_atomically

NAME = "fashion-mnist"
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Of the unpacked files, since distributions compress them again.
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def _is_fashion(folder: Path) -> bool:
    """Whether a folder's IDX files are Fashion-MNIST's, by its labels."""
    if not idx.holds(folder, idx.TRAIN_LABELS):
        return False
    return hashlib.sha256(idx.unpacked(folder, idx.TRAIN_LABELS)).hexdigest() == FASHION_SHA256[idx.TRAIN_LABELS]


def find_fashion(download: bool) -> Path:
    """The folder of Fashion-MNIST: Debian's, the cache, or the cache after a download."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fastdiff" / NAME
    for folder in (DEBIAN_FASHION, cache):
        if folder.is_absolute() and all(idx.holds(folder, name) for name in FASHION_SHA256):
            return folder
    if not cache.is_absolute():
        raise InputError(
            f"no Fashion-MNIST in {str(DEBIAN_FASHION)!r}, and no home folder to download it to; the variable "
            "XDG_CACHE_HOME names a folder"
        )
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


def read(source: str, download: bool) -> Pictures:
    folder = find_fashion(download) if source == NAME else idx.place(source)
    return idx.read_folder(folder, NAME if source == NAME else idx.name_of(folder), CLASSES)


SOURCE = Source(NAME, lambda source: source == NAME or _is_fashion(idx.place(source)), read, options=("download",))
