"""What every data source becomes, and how validation pictures are set aside."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdiff.errors import InputError

HOLDOUT_BLOCK = 50


@dataclass(frozen=True)
class ImageData:
    """images: (N, C, H, W) uint8. labels: (N, K) float32, one-hot or any mixture. val: the same, never trained on.

    Raises InputError where there is nothing to train on, or where the labels are not finite.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    val_images: Tensor
    val_labels: Tensor

    def __post_init__(self) -> None:
        for images, labels in ((self.images, self.labels), (self.val_images, self.val_labels)):
            if images.ndim != 4 or not images.numel() or len(labels) != len(images):
                raise InputError(
                    f"data {self.name!r} holds pictures of shape {tuple(images.shape)} with {len(labels)} labels; "
                    "accepted: at least one picture for training and one for validation, a label for each"
                )
            if not torch.isfinite(labels).all():
                raise InputError(f"data {self.name!r} has labels that are NaN or infinite")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])  # type: ignore[return-value]

    def fingerprint(self) -> int:
        """CRC-32 of the training pictures and labels, by which a resumed run knows its data again."""
        return zlib.crc32(self.labels.numpy().tobytes(), zlib.crc32(self.images.numpy().tobytes()))

    def named(self, class_names: tuple[str, ...]) -> ImageData:
        width = self.labels.shape[1]
        if len(class_names) != width or len(set(class_names)) != width:
            raise InputError(f"{len(class_names)} class names {list(class_names)}; accepted: {width} different ones")
        return replace(self, class_names=tuple(class_names))


def one_hot(index: Tensor, class_names: tuple[str, ...], name: str) -> Tensor:
    """(N,) int64 → (N, K) float32. Raises InputError for a label that is no class."""
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(class_names):
        raise InputError(
            f"data {name!r} has label {int(index.max())}; accepted: 0 to {len(class_names) - 1}, one number a class"
        )
    return torch.nn.functional.one_hot(index, len(class_names)).float()


def split(name: str, images: Tensor, labels: Tensor, class_names: tuple[str, ...], holdout: float) -> ImageData:
    """Set aside every (1 / holdout)-th block of neighbours within each class, so that no class is lost."""
    if len(images) < 2:
        raise InputError(f"data {name!r} holds {len(images)} pictures; accepted: at least 2")
    every = round(1 / holdout)
    kind = labels.argmax(dim=1) if labels.shape[1] else torch.zeros(len(images), dtype=torch.int64)
    held = torch.zeros(len(images), dtype=torch.bool)
    for value in kind.unique():
        members = (kind == value).nonzero()[:, 0]
        block = max(1, min(HOLDOUT_BLOCK, len(members) // every))
        held[members[torch.arange(len(members)) // block % every == every - 1]] = True
    if not held.any():  # few pictures: one of the largest class
        held[(kind == kind.mode().values).nonzero()[-1]] = True
    return ImageData(name, images[~held], labels[~held], class_names, images[held], labels[held])
