"""What every data source becomes, and how validation pictures are set aside."""

from __future__ import annotations

import base64
import html
import io
import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastdiff.data.space import room
from fastdiff.data.values import EIGHT_BITS, Range, shown
from fastdiff.errors import InputError
from fastdiff.images import cell_size, grid, to_unit

HOLDOUT_BLOCK = 50
SHOWN_NAMES = 20
READ = 256  # pictures read together for a fingerprint
ALL: Any = None


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Pictures to train on, and others to validate with. Its length is the number of those to train on, N.

    Attributes:
        name: what reports and model cards call it.
        pixels: (P, C, H, W), all pictures as they were read: uint8, or float32 in units of their own. Large ones are
            mapped from a file.
        labels: (N, K) float32, one-hot or any mixture; K = 0 without labels.
        class_names: K names.
        val_images: (M, C, H, W), of the same dtype, never trained on.
        val_labels: (M, K) float32.
        rows: (N,) int64, which of `pixels` are trained on; all of them unless given.
        value_range: the values (low, high) that become -1 and 1.
        notes: what else there is to say of the data, for `summary`.

    Raises:
        InputError: if there is nothing to train on or to validate with, or labels are not finite.
    """

    name: str
    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    val_images: Tensor
    val_labels: Tensor
    rows: Tensor = ALL
    value_range: Range = EIGHT_BITS
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rows is ALL:
            object.__setattr__(self, "rows", torch.arange(len(self.pixels), device="cpu"))
        for images, count, labels in (
            (self.pixels, len(self.rows), self.labels),
            (self.val_images, len(self.val_images), self.val_labels),
        ):
            if images.ndim != 4 or not images.numel() or not len(labels) == count > 0:
                raise InputError(
                    f"data {self.name!r} holds pictures of shape {tuple(images.shape)} with {len(labels)} labels; "
                    "accepted: at least one picture for training and one for validation, a label for each"
                )
            if not torch.isfinite(labels).all():
                raise InputError(f"data {self.name!r} has labels that are NaN or infinite")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def images(self) -> Tensor:
        """(N, C, H, W), the pictures to train on, in values of their own; a copy unless all of `pixels` are."""
        return self.pixels if len(self.rows) == len(self.pixels) else self.pixels[self.rows]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.pixels.shape[1:])  # type: ignore[return-value]

    @property
    def unnamed(self) -> bool:
        """Whether its classes have no names but those that load_data makes up."""
        return self.class_names == made_up(self.labels.shape[1])

    @property
    def own_range(self) -> Range | None:
        """The range of the values, for a Model; None for usual pictures of 8 bits."""
        usual = self.pixels.dtype == torch.uint8 and self.value_range == EIGHT_BITS
        return None if usual else self.value_range

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Some of the pictures to train on.

        Args:
            rows: (B,) int64, 0 to N - 1, on the CPU.

        Returns:
            (B, C, H, W) pixels, see `unit`, and (B, K) labels; copies.
        """
        return self.pixels[self.rows[rows]].contiguous(), self.labels[rows]

    def unit(self, pixels: Tensor) -> Tensor:
        """Pixels in values of their own, of any shape → float32 in [-1, 1]."""
        return to_unit(pixels, self.value_range)

    def fingerprint(self) -> int:
        """CRC-32 of the training pictures, their labels and their range, by which a resumed run knows its data."""
        crc = 0
        for rows in torch.arange(len(self), device="cpu").split(READ):
            crc = zlib.crc32(self.take(rows)[0].numpy().tobytes(), crc)
        crc = zlib.crc32(self.labels.numpy().tobytes(), crc)
        return crc if self.own_range is None else zlib.crc32(repr(self.own_range).encode(), crc)

    def named(self, class_names: tuple[str, ...]) -> ImageData:
        """The same data with other names of the classes.

        Args:
            class_names: K different names.

        Raises:
            InputError: for another number of names, or a name given twice.
        """
        width = self.labels.shape[1]
        if not width:
            raise InputError(f"class names {list(class_names)} for data {self.name!r}, which has no classes")
        if len(class_names) != width or len(set(class_names)) != width:
            raise InputError(f"{len(class_names)} class names {list(class_names)}; accepted: {width} different ones")
        return replace(self, class_names=tuple(class_names))

    def summary(self) -> str:
        """One line: name, numbers, shape, the range of values where it is not that of 8 bits, and the notes."""
        shape = "x".join(map(str, self.image_shape))
        facts = f"{self.name}: {len(self):,} pictures {shape}, {len(self.val_images):,} held out"
        values = "" if self.own_range is None else f", values {shown(self.own_range)}"
        loose = int((kinds(self.labels) < 0).sum() + (kinds(self.val_labels) < 0).sum())
        unlabelled = [f"{loose:,} of them without a class"] if loose else []
        return "; ".join([facts + values, *unlabelled, *self.notes])

    def class_list(self) -> str:
        """The first names of the classes, and how many there are more; "none" without classes."""
        more = len(self.class_names) - SHOWN_NAMES
        names = [*self.class_names[:SHOWN_NAMES], *([f"and {more} more"] if more > 0 else [])]
        return ", ".join(names) or "none"

    def __repr__(self) -> str:
        return f"ImageData of {self.summary()}\nclasses: {self.class_list()}"

    def _repr_html_(self) -> str:
        """For notebooks: the repr, and a grid of the first pictures of about 640x320 pixels."""
        height, width = cell_size(self.image_shape)
        columns, rows = (max(1, min(most, room // side)) for most, room, side in ((8, 640, width), (4, 320, height)))
        pixels, _ = self.take(torch.arange(min(len(self), rows * columns), device="cpu"))
        file = io.BytesIO()
        grid(self.unit(pixels), columns).save(file, "png")
        picture = base64.b64encode(file.getvalue()).decode()
        return f'<pre>{html.escape(repr(self))}</pre><img alt="pictures" src="data:image/png;base64,{picture}">'


def made_up(count: int) -> tuple[str, ...]:
    """Names of so many classes that have none."""
    return tuple(f"class{k}" for k in range(count))


def one_hot(index: Tensor, classes: int, name: str) -> Tensor:
    """(N,) int64 → (N, classes) float32; raises InputError for a label that is no class."""
    for label in (int(index.min()), int(index.max())) if len(index) else ():
        if not 0 <= label < classes:
            raise InputError(f"data {name!r} has label {label}; accepted: 0 to {classes - 1}, one number a class")
    return torch.nn.functional.one_hot(index, classes).float()


def kinds(labels: Tensor) -> Tensor:
    """(N, K) weights of classes → (N,) the heaviest class of each, -1 of rows of zeros; without classes all are 0."""
    if not labels.shape[1]:
        return torch.zeros(len(labels), dtype=torch.int64, device="cpu")
    return torch.where((labels > 0).any(dim=1), labels.argmax(dim=1), -1)


def _whole(number: float) -> int:
    return int(number + 1e-9)  # 0.07 * 100 is a little above 7, 0.29 * 100 below 29


def _spread(members: Tensor, share: float, block: int) -> Tensor:
    """That share of the members, in blocks of neighbours that lie evenly among them, each at the end of its part."""
    place, part = torch.arange(len(members), dtype=torch.float64, device="cpu"), block / share
    within = place - part * (place / part + 1e-9).floor()  # remainder() takes 50 for no multiple of 1 / 0.06
    return members[within >= part - block - 1e-6]


def split(
    name: str,
    images: Tensor,
    labels: Tensor,
    class_names: tuple[str, ...],
    holdout: float,
    **more: Any,
) -> ImageData:
    """Hold out blocks of neighbours, evenly over each class; classes that are too small for it are taken together.

    more: further fields of ImageData. Only what is held out is copied.
    """
    if len(images) < 2:
        raise InputError(f"data {name!r} holds {len(images)} pictures; accepted: at least 2")
    classes = kinds(labels)
    held, small = torch.zeros(len(images), dtype=torch.bool, device="cpu"), []
    for value in classes.unique():
        members = (classes == value).nonzero()[:, 0]
        share = _whole(len(members) * holdout)
        if share:
            held[_spread(members, holdout, min(HOLDOUT_BLOCK, share))] = True
        else:
            small.append(members)
    if small:
        held[_spread(torch.cat(small), holdout, 1)] = True
    if not held.any():  # few pictures: one of the largest class
        held[(classes == classes.mode().values).nonzero()[-1]] = True
    rows, others = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
    val_images = torch.from_numpy(room((len(others), *images.shape[1:]), images.numpy().dtype))
    torch.index_select(images, 0, others, out=val_images)
    return ImageData(name, images, labels[rows], class_names, val_images, labels[others], rows=rows, **more)
