"""What every data source becomes, and how validation pictures are set aside."""

from __future__ import annotations

import base64
import html
import io
import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.images import grid

HOLDOUT_BLOCK = 50
SHOWN_NAMES = 20


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Pictures to train on, and others to validate with, whole in memory.

    Attributes:
        name: what reports and model cards call it.
        images: (N, C, H, W) uint8.
        labels: (N, K) float32, one-hot or any mixture; K = 0 without labels.
        class_names: K names.
        val_images: (M, C, H, W) uint8, never trained on.
        val_labels: (M, K) float32.

    Raises:
        InputError: if there is nothing to train on or to validate with, or labels are not finite.
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

    def __len__(self) -> int:
        """The pictures to train on."""
        return len(self.images)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Some of the pictures, and their labels."""
        return self.images[rows], self.labels[rows]

    def unit(self, pixels: Tensor) -> Tensor:
        """0 to 255 → [-1, 1] float32."""
        return pixels.float() / 127.5 - 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])  # type: ignore[return-value]

    def fingerprint(self) -> int:
        """CRC-32 of the training pictures and labels, by which a resumed run recognises its data."""
        return zlib.crc32(self.labels.numpy().tobytes(), zlib.crc32(self.images.numpy().tobytes()))

    def named(self, class_names: tuple[str, ...]) -> ImageData:
        """The same data with other names of the classes.

        Args:
            class_names: K different names.

        Raises:
            InputError: for another number of names, or a name given twice.
        """
        width = self.labels.shape[1]
        if len(class_names) != width or len(set(class_names)) != width:
            raise InputError(f"{len(class_names)} class names {list(class_names)}; accepted: {width} different ones")
        return replace(self, class_names=tuple(class_names))

    def summary(self) -> str:
        """One line: name, numbers and shape."""
        shape = "x".join(map(str, self.image_shape))
        return f"{self.name}: {len(self.images):,} pictures {shape}, {len(self.val_images):,} held out"

    def __repr__(self) -> str:
        more = len(self.class_names) - SHOWN_NAMES
        names = [*self.class_names[:SHOWN_NAMES], *([f"and {more} more"] if more > 0 else [])]
        return f"ImageData of {self.summary()}\nclasses: {', '.join(names) or 'none'}"

    def _repr_html_(self) -> str:
        """For notebooks: the repr, and a grid of the first pictures of about 640x320 pixels."""
        _, height, width = self.image_shape
        columns, rows = (max(1, min(most, room // side)) for most, room, side in ((8, 640, width), (4, 320, height)))
        file = io.BytesIO()
        grid(self.images[: rows * columns].float() / 127.5 - 1, columns).save(file, "png")
        picture = base64.b64encode(file.getvalue()).decode()
        return f'<pre>{html.escape(repr(self))}</pre><img alt="pictures" src="data:image/png;base64,{picture}">'


def one_hot(index: Tensor, class_names: tuple[str, ...], name: str) -> Tensor:
    """(N,) int64 → (N, K) float32; raises InputError for a label that is no class."""
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(class_names):
        raise InputError(
            f"data {name!r} has label {int(index.max())}; accepted: 0 to {len(class_names) - 1}, one number a class"
        )
    return torch.nn.functional.one_hot(index, len(class_names)).float()


def split(name: str, images: Tensor, labels: Tensor, class_names: tuple[str, ...], holdout: float) -> ImageData:
    """Hold out every (1 / holdout)-th block of neighbours within each class, so that no class is left out."""
    if len(images) < 2:
        raise InputError(f"data {name!r} holds {len(images)} pictures; accepted: at least 2")
    every = round(1 / holdout)
    classes = labels.argmax(dim=1) if labels.shape[1] else torch.zeros(len(images), dtype=torch.int64)
    held = torch.zeros(len(images), dtype=torch.bool)
    for value in classes.unique():
        members = (classes == value).nonzero()[:, 0]
        block = max(1, min(HOLDOUT_BLOCK, len(members) // every))
        held[members[torch.arange(len(members)) // block % every == every - 1]] = True
    if not held.any():  # few pictures: one of the largest class
        held[(classes == classes.mode().values).nonzero()[-1]] = True
    return ImageData(name, images[~held], labels[~held], class_names, images[held], labels[held])
