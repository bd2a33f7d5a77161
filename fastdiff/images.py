"""Pictures from tensors: grids, animations, strips."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.files import write_atomically


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] float → 0..255 uint8, same shape; values outside are clamped, NaN becomes 0."""
    return ((images.float().nan_to_num(-1.0) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def to_picture(image: Tensor) -> Image.Image:
    """(C, H, W) uint8 with 1, 3 or 4 channels → a picture; other counts show the first channel."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array if array.shape[2] in (3, 4) else array[:, :, 0])


def grid(images: Tensor, columns: int | None = None, scale: int | None = None, gap: int = 1) -> Image.Image:
    """(n, C, H, W) in [-1, 1] → one picture, row by row.

    columns: about the square root of n unless given. scale: whole-number enlargement (nearest neighbour), so that
    the picture is about 640 pixels wide unless given. gap: pixels between images, before enlargement.
    """
    pixels = to_uint8(images)
    n, channels, height, width = pixels.shape
    columns = min(n, math.ceil(math.sqrt(n)) if columns is None else columns)
    rows = math.ceil(n / columns)
    sheet = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for index in range(n):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = pixels[index]
    picture = to_picture(sheet)
    scale = max(1, round(640 / picture.width)) if scale is None else scale
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write in the format of the path's ending."""
    check_picture_name(path, reading=False)
    write_atomically(path, picture.save)


def save_gif(pictures: list[Image.Image], path: str | Path, milliseconds: int = 80, hold: int = 1500) -> None:
    """An animation that repeats; the last picture stays for `hold` milliseconds."""
    times = [milliseconds] * (len(pictures) - 1) + [hold]
    first, *rest = [picture.convert("RGB").quantize(256) for picture in pictures]
    write_atomically(
        path, lambda p: first.save(p, format="GIF", save_all=True, append_images=rest, duration=times, loop=0)
    )


def check_picture_name(path: str | Path, reading: bool) -> Path:
    """An InputError for a file ending that Pillow does not know."""
    Image.init()
    known = sorted(
        k for k, name in Image.registered_extensions().items() if name in (Image.OPEN if reading else Image.SAVE)
    )
    if Path(path).suffix.lower() not in known:
        raise InputError(
            f"picture name {str(path)!r}; accepted endings: .png, .jpg, .webp, .gif and others of Pillow's"
        )
    return Path(path)


def read_picture(path: str | Path, size: int | None = None) -> Tensor:
    """A picture file as (3, H, W) in [-1, 1]; with size, cut to its middle square and resized to size x size."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {str(path)!r} as a picture: {error}") from error
    return from_picture(picture, size).float() / 127.5 - 1


def from_picture(picture: Image.Image, size: int | None = None) -> Tensor:
    """A picture → (C, H, W) uint8; with size, its middle square resized to size x size."""
    if size is not None:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    raw = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return raw.view(picture.height, picture.width, len(picture.getbands())).permute(2, 0, 1)
