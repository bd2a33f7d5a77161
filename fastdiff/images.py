"""Pictures: tensors into grids and animations, and files into tensors."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastdiff.errors import InputError, check_int, first_line, wrong_type
from fastdiff.files import open_regular, write_atomically

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 200_000_000
MOST_PIXELS = 89_478_485  # of a picture file, as many as Pillow reads without a warning: a flat one takes no room
MAX_MILLISECONDS = 60_000
SHOWN_CHANNELS = (1, 3, 4)  # as gray, RGB and RGBA
DRAFT = 3  # a JPEG is decoded at no less than so many times the size that it is cut to


def to_unit(pixels: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Values from low to high, uint8 or floats → float32 in [-1, 1], same shape."""
    low, high = value_range
    half = (high - low) / 2
    return pixels.float() / half - (low + high) / 2 / half


def from_unit(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """The inverse of to_unit: [-1, 1] float → float32 from low to high, same shape; nothing is clamped."""
    low, high = value_range
    return images.float() * ((high - low) / 2) + (low + high) / 2


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] float → 0 to 255 uint8, same shape; values outside are clamped, NaN becomes 0."""
    return ((images.float().nan_to_num(-1.0) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def to_picture(image: Tensor) -> Image.Image:
    """(C, H, W) uint8, or (1, H, W) int32 from 0 to 65535 → a picture of 8 or 16 bits; C is 1, 3 or 4."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    if array.dtype != np.uint8:
        array = array.astype(np.uint16)
    return Image.fromarray(array if array.shape[2] in (3, 4) else array[:, :, 0])


def cell_size(image_shape: Sequence[int]) -> tuple[int, int]:
    """(height, width) of an image (C, H, W) in a grid: channels that are no colors stand side by side."""
    channels, height, width = image_shape
    return height, width if channels in SHOWN_CHANNELS else channels * width


def sixteen_bits(value_range: tuple[float, float]) -> bool:
    """Whether a range is one of whole numbers that need 16 bits, so that pictures can hold the values themselves."""
    low, high = value_range
    return 0 <= low and 255 < high < 2**16 and low == int(low) and high == int(high)


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

    Images of 1, 3 or 4 channels are gray, RGB or RGBA; of others each channel is shown, side by side, in gray.

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
    if pixels.shape[1] not in SHOWN_CHANNELS:
        pixels = pixels.permute(0, 2, 1, 3).flatten(2)[:, None]  # (n, 1, H, C W)
    n, channels, height, width = pixels.shape
    columns, rows, scale = grid_layout(n, height, width, columns=columns, scale=scale, gap=gap)
    sheet = torch.full(
        (channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8, device="cpu"
    )
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

    def write(made: Path) -> None:
        try:
            picture.save(made)
        except ValueError as error:  # a format's own limits
            size = f"{picture.width}x{picture.height}"
            raise InputError(f"cannot write {str(path)!r}, {size}: {first_line(error)}") from error

    write_atomically(path, write)


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


def picture_mode(picture: Image.Image, alpha: bool = False) -> str:
    """The mode in which open_picture gives a picture, known from its header.

    F, float32 in the file's own units, for gray of 16 bits and more and for floats; else RGBA where alpha is asked
    for; else L or RGB.
    """
    if picture.mode.startswith(("I", "F")):
        return "F"
    if alpha:
        return "RGBA"
    return "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"


def open_picture(
    source: str | Path | IO[bytes],
    *,
    name: str | None = None,
    alpha: bool = False,
    least: int | None = None,
) -> Image.Image:
    """A picture, turned as its EXIF orientation says, in the mode that picture_mode tells.

    Args:
        source: a file's path, or the open file.
        name: what errors call it; the path unless given.
        alpha: whether transparency is kept as a fourth channel; else it lies on white.
        least: the shorter side that is needed; of a large JPEG fewer pixels are then decoded, but more than these.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with Image.open(open_regular(source) if isinstance(source, (str, Path)) else source) as picture:
            mode = picture_mode(picture, alpha)
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"{picture.width}x{picture.height} pixels; accepted: up to {MOST_PIXELS:,}")
            if least is not None:
                times = DRAFT * least / min(picture.size)
                picture.draft(None, (math.ceil(picture.width * times), math.ceil(picture.height * times)))
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            if mode == "F":
                return Image.fromarray(np.asarray(picture).astype(np.float32))
            if not picture.has_transparency_data:
                return picture.convert(mode)
            colored = picture.convert("RGBA")
            if not alpha:
                colored = Image.alpha_composite(Image.new("RGBA", colored.size, "white"), colored)
            return colored.convert(mode)
    except Exception as error:  # of Pillow's decoders and of archives, for files of any kind
        raise InputError(f"cannot read {name or str(source)!r} as a picture: {first_line(error)}") from error


def cut_picture(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture's middle of the ratio width : height, resized to size, (width, height)."""
    made = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    if made.mode == "F":  # Lanczos goes beyond the values that it joins; 8 bits are clipped by Pillow
        made = Image.fromarray(np.asarray(made).clip(*picture.getextrema()))
    return made


def picture_array(picture: Image.Image) -> np.ndarray:
    """A picture → (C, H, W), float32 for mode F, else uint8."""
    array = np.asarray(picture)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def read_picture(path: str | Path, size: int | None = None) -> Tensor:
    """A picture file as an image in colour, such as `grid` shows and `Schedule.q_sample` noises.

    Args:
        path: the file.
        size: cut its middle square and resize it to size x size, up to 14,142; None keeps it as it is.

    Returns:
        (3, H, W) float32 in [-1, 1].

    Raises:
        InputError: if the file cannot be read as a picture.
    """
    if size is not None:
        check_int("size", size, 1, math.isqrt(MAX_PIXELS))
    picture = open_picture(path)
    if size is not None:
        picture = cut_picture(picture, (size, size))
    image = _unit(picture if picture.mode == "F" else picture.convert("RGB"))
    return image.expand(3, -1, -1)


def fit_picture(
    path: str | Path, image_shape: tuple[int, int, int], value_range: tuple[float, float] | None = None
) -> Tensor:
    """A picture file as a model's image: its middle, resized, (C, H, W) in [-1, 1].

    Args:
        path: the file.
        image_shape: (C, H, W) of the model; C is 1 (gray), 3 (RGB) or 4 (RGBA).
        value_range: the model's. What is -1 and 1 in pictures of 16 bits or floats; of 8 bits it is always 0 and 255.
            None: the picture's own least and greatest value.

    Raises:
        InputError: for a file that is no picture, or other channels.
    """
    channels, height, width = image_shape
    if channels not in SHOWN_CHANNELS:
        raise InputError(f"a picture for images of {channels} channels; accepted: 1, 3 or 4")
    picture = cut_picture(open_picture(path, alpha=channels == 4), (width, height))
    if picture.mode != "F":
        picture = picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    elif channels == 4:
        raise InputError(f"{str(path)!r} has 16 bits or floats, in gray; accepted for images of 4 channels: 8 bits")
    return _unit(picture, value_range).expand(channels, -1, -1)


def _unit(picture: Image.Image, value_range: tuple[float, float] | None = None) -> Tensor:
    """(C, H, W) in [-1, 1]; values in mode F that lie outside of the range are clamped."""
    pixels = torch.from_numpy(picture_array(picture).copy())
    if picture.mode != "F":
        return to_unit(pixels, (0, 255))
    low, high = value_range or (float(pixels.min()), float(pixels.max()))
    return to_unit(pixels, (low, high)).clamp(-1, 1) if high > low else torch.zeros_like(pixels)
