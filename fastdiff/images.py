"""Pictures: tensors into grids and animations, and files into tensors."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastdiff.errors import InputError, check_int, wrong_type
from fastdiff.files import write_atomically

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 200_000_000
MAX_MILLISECONDS = 60_000


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] float → 0 to 255 uint8, same shape; values outside are clamped, NaN becomes 0."""
    return ((images.float().nan_to_num(-1.0) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def to_picture(image: Tensor) -> Image.Image:
    """(C, H, W) uint8 → a picture; with other than 1, 3 or 4 channels, of the first channel."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array if array.shape[2] in (3, 4) else array[:, :, 0])


def grid_layout(
    n: int, height: int, width: int, *, columns: int | None, scale: int | None, gap: int
) -> tuple[int, int, int]:
    """(columns, rows, scale) of a grid; raises InputError if the picture would have more than MAX_PIXELS."""
    columns = math.ceil(math.sqrt(n)) if columns is None else check_int("columns", columns, 1, MAX_PIXELS)
    columns = min(n, columns)
    rows = math.ceil(n / columns)
    check_int("gap", gap, 0, MAX_PIXELS)
    across, down = columns * (width + gap) + gap, rows * (height + gap) + gap
    scale = max(1, round(640 / across)) if scale is None else check_int("scale", scale, 1, MAX_PIXELS)
    if across * down * scale**2 > MAX_PIXELS:
        raise InputError(f"a grid of {across * scale}x{down * scale} pixels; accepted: up to {MAX_PIXELS:,} pixels")
    return columns, rows, scale


def grid(images: Tensor, columns: int | None = None, *, scale: int | None = None, gap: int = 1) -> Image.Image:
    """All images in one picture, row by row, on white.

    Args:
        images: (n, C, H, W) float in [-1, 1], as `sample` returns them.
        columns: images in a row. Default: the square root of n, rounded up.
        scale: whole-number enlargement (nearest neighbour). Default: so that the picture is about 640 pixels wide.
        gap: pixels between images, before enlargement.

    Returns:
        A picture of the Python Imaging Library, in mode L, RGB or RGBA by the number of channels.

    Raises:
        InputError: if images have another shape, a number is out of range, or the picture would have over 200,000,000
            pixels.
    """
    if not isinstance(images, Tensor):
        raise wrong_type("images", images, "a tensor (n, C, H, W)")
    if images.ndim != 4 or not images.numel():
        raise InputError(f"images of shape {tuple(images.shape)}; accepted: (n, C, H, W), none of them 0")
    pixels = to_uint8(images.detach().cpu())
    n, channels, height, width = pixels.shape
    columns, rows, scale = grid_layout(n, height, width, columns=columns, scale=scale, gap=gap)
    sheet = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for index in range(n):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = pixels[index]
    picture = to_picture(sheet)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture, whole or not at all.

    Args:
        picture: such as a `grid`.
        path: the file; its ending, such as .png, .jpg or .webp, gives the format.

    Raises:
        InputError: if the ending is no picture's, or the format cannot hold the picture.
    """
    check_picture_name(path)
    if not isinstance(picture, Image.Image):
        raise wrong_type("picture", picture, "a picture, such as fastdiff.grid(images)")
    try:
        write_atomically(path, picture.save)
    except (OSError, ValueError) as error:  # a format's own limits
        raise InputError(f"cannot write {str(path)!r}, {picture.width}x{picture.height}: {error}") from error


class Animation:
    """Pictures one after another, over and over; in a notebook it shows itself.

    Args:
        pictures: the frames, in their order, all of one size; see `grid`.
        milliseconds: how long each frame is shown, 1 to 60,000.
        hold: how long the last one is shown, in milliseconds.

    Raises:
        InputError: if there are no pictures, a frame is none or of another size, or a time is out of range.
    """

    def __init__(self, pictures: Sequence[Image.Image], *, milliseconds: int = 80, hold: int = 1500) -> None:
        self.pictures = list(pictures)
        for picture in self.pictures:
            if not isinstance(picture, Image.Image):
                raise InputError(f"a frame of type {type(picture).__name__}; accepted: pictures, see fastdiff.grid")
        if not self.pictures:
            raise InputError("no pictures for an animation; accepted: at least one")
        if len(sizes := {picture.size for picture in self.pictures}) > 1:
            given = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
            raise InputError(f"frames of {given} pixels; accepted: all of one size")
        self.milliseconds = check_int("milliseconds", milliseconds, 1, MAX_MILLISECONDS)
        self.hold = check_int("hold", hold, 1, MAX_MILLISECONDS)

    def save(self, path: str | Path) -> None:
        """Write it as a GIF, whole or not at all.

        Args:
            path: the file, which ends in .gif.

        Raises:
            InputError: if the path has another ending.
        """
        if Path(path).suffix.lower() != ".gif":
            raise InputError(f"animation {str(path)!r}; accepted: a name that ends in .gif")
        write_atomically(path, self._encode)

    def _encode(self, file: Path | BinaryIO) -> None:
        times = [self.milliseconds] * (len(self.pictures) - 1) + [self.hold]
        first, *rest = [picture.convert("RGB").quantize(256) for picture in self.pictures]
        first.save(file, format="GIF", save_all=True, append_images=rest, duration=times, loop=0)

    def __repr__(self) -> str:
        width, height = self.pictures[0].size
        return f"Animation({len(self.pictures)} frames of {width}x{height})"

    def _repr_html_(self) -> str:
        """For notebooks: as HTML, since their viewers know that better than the type image/gif."""
        file = io.BytesIO()
        self._encode(file)
        return f'<img alt="animation" src="data:image/gif;base64,{base64.b64encode(file.getvalue()).decode()}">'


def animation(
    frames: Tensor,
    columns: int | None = None,
    *,
    scale: int | None = None,
    gap: int = 1,
    milliseconds: int = 80,
    hold: int = 1500,
) -> Animation:
    """The frames that `sample` returns, each as a grid, as an animation that a notebook shows.

    Args:
        frames: (m, n, C, H, W) float in [-1, 1]: m frames of n images.
        columns, scale, gap: of each frame, see `grid`.
        milliseconds: how long each frame is shown, 1 to 60,000.
        hold: how long the last one is shown, in milliseconds.

    Returns:
        The animation; its `save` writes a GIF.

    Raises:
        InputError: if frames have another shape, a number is out of range, or a frame would have over 200,000,000
            pixels.
    """
    if not isinstance(frames, Tensor):
        raise wrong_type("frames", frames, "a tensor (m, n, C, H, W)")
    if frames.ndim != 5 or not frames.numel():
        raise InputError(f"frames of shape {tuple(frames.shape)}; accepted: (m, n, C, H, W), none of them 0")
    pictures = [grid(frame, columns, scale=scale, gap=gap) for frame in frames]
    return Animation(pictures, milliseconds=milliseconds, hold=hold)


def save_gif(pictures: Sequence[Image.Image], path: str | Path, *, milliseconds: int = 80, hold: int = 1500) -> None:
    """Write any pictures as an animation that repeats, whole or not at all; for frames of `sample` see `animation`.

    Args:
        pictures: the frames, in their order, all of one size; see `grid`.
        path: the file, which ends in .gif.
        milliseconds: how long each frame is shown, 1 to 60,000.
        hold: how long the last one is shown, in milliseconds.

    Raises:
        InputError: if there are no pictures, a frame is none or of another size, a time is out of range, or the path
            has another ending.
    """
    Animation(pictures, milliseconds=milliseconds, hold=hold).save(path)


def check_picture_name(path: str | Path) -> Path:
    """The path, if its ending is a picture's; raises InputError."""
    if Path(path).suffix.lower() not in PICTURE_ENDINGS:
        raise InputError(f"picture name {str(path)!r}; accepted endings: {', '.join(PICTURE_ENDINGS)}")
    return Path(path)


def open_picture(path: str | Path) -> Image.Image:
    """A picture file in mode L or RGB, 16-bit gray scaled to 8 bits, transparency on white; raises InputError."""
    try:
        with Image.open(path) as opened:
            opened.load()
            picture: Image.Image = opened
            if picture.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(picture).astype(np.uint32) * 255 // 65535).astype(np.uint8))
            if picture.mode in ("I", "F"):
                raise InputError(f"{str(path)!r} has {picture.mode} pixels; accepted: 8 or 16 bits a channel")
            gray = picture.mode in ("1", "L", "LA", "La")
            if picture.has_transparency_data:
                colored = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", colored.size, "white"), colored)
            return picture.convert("L" if gray else "RGB")
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {str(path)!r} as a picture: {error}") from error


def read_picture(path: str | Path, size: int | None = None) -> Tensor:
    """A picture file as an image in colour, such as `grid` shows and `Schedule.q_sample` noises.

    Args:
        path: the file.
        size: cut its middle square and resize it to size x size; None keeps it as it is.

    Returns:
        (3, H, W) float32 in [-1, 1].

    Raises:
        InputError: if the file cannot be read as a picture.
    """
    return from_picture(open_picture(path).convert("RGB"), size).float() / 127.5 - 1


def fit_picture(path: str | Path, image_shape: tuple[int, int, int]) -> Tensor:
    """A picture file as a model's image: its middle, resized, (C, H, W) in [-1, 1]; C is 1 (gray) or 3."""
    channels, height, width = image_shape
    if channels not in (1, 3):
        raise InputError(f"a picture for images of {channels} channels; accepted: 1 or 3")
    picture = open_picture(path).convert("L" if channels == 1 else "RGB")
    return from_picture(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)).float() / 127.5 - 1


def from_picture(picture: Image.Image, size: int | None = None) -> Tensor:
    """A picture → (C, H, W) uint8; with size, its middle square resized to size x size."""
    if size is not None:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    raw = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return raw.view(picture.height, picture.width, len(picture.getbands())).permute(2, 0, 1)
