"""Training data: small pictures, kept whole in memory as uint8."""

from __future__ import annotations

from pathlib import Path

from fastdiff.data.cifar import read_cifar
from fastdiff.data.idx import find_fashion, is_idx_folder, read_idx_folder
from fastdiff.data.images import ImageData
from fastdiff.data.pictures import read_npy_pair, read_picture_folder
from fastdiff.errors import InputError

__all__ = ["ImageData", "load_data"]


def load_data(
    source: str,
    labels: str | None = None,
    size: int | None = None,
    class_names: tuple[str, ...] = (),
    holdout: float = 0.05,
    download: bool = True,
) -> ImageData:
    """The data that `fastdiff train --data` names.

    source: "fashion-mnist" (found where Debian's dataset-fashion-mnist puts it, in the cache, or downloaded with a
        checksum), a folder of IDX files, a folder of CIFAR-10 (binary or Python version), a folder of pictures (a
        class for each subfolder), or an .npy file of (N, H, W, C) or (N, H, W) uint8 pictures.
    labels: the .npy file of (N, K) labels beside an .npy of pictures. size: pictures of a folder are cut to their
        middle square and resized to size x size. class_names: K names in place of the data's own.
    holdout: the share of each class kept for validation where the data has no test set, in blocks of neighbours, for
        neighbours in a file are often variants of one drawing.

    Raises InputError where there is no whole data of that kind.
    """
    if labels is not None and not source.endswith(".npy"):
        raise InputError(f"labels = {labels!r} with data {source!r}; accepted only beside an .npy of pictures")
    if not 0 < holdout <= 0.5:
        raise InputError(f"holdout = {holdout}; accepted: more than 0, at most 0.5")
    try:
        data = _read(source, labels, size, holdout, download)
    except OSError as error:  # an unreadable folder, a name too long
        raise InputError(f"cannot read data {source!r}: {error.strerror or error}") from error
    return data.named(class_names) if class_names else data


def _read(source: str, labels: str | None, size: int | None, holdout: float, download: bool) -> ImageData:
    path = Path(source)
    if source == "fashion-mnist":
        found = find_fashion(download)
    elif path.is_file() and path.suffix == ".npy":
        _refuse_size(source, size)
        return read_npy_pair(path, labels, holdout)
    elif path.is_dir():
        found = path
    else:
        raise InputError(f"data {source!r} is neither a folder, an .npy file nor 'fashion-mnist'")
    if is_idx_folder(found):
        _refuse_size(source, size)
        return read_idx_folder(found, source if source == "fashion-mnist" else path.name)
    cifar = read_cifar(found)
    if cifar is not None:
        _refuse_size(source, size)
        return cifar
    return read_picture_folder(found, size, holdout)


def _refuse_size(source: str, size: int | None) -> None:
    if size is not None:
        raise InputError(f"size = {size} with data {source!r}; accepted only with a folder of pictures")
