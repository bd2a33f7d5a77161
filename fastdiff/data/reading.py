"""Picture files, of a folder or an archive, as one array: each is opened, turned, cut and let go again, in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastdiff.data.classes import csv_classes, folder_classes, weights
from fastdiff.data.source import Pictures
from fastdiff.data.space import check_classes, room
from fastdiff.errors import InputError, check_int, first_line

if TYPE_CHECKING:
    from PIL import Image

Opener = Callable[[], "str | IO[bytes]"]
Result = TypeVar("Result")
THREADS = 8  # at most, for each holds a picture at its full size
NAMED = 5  # corrupt files named in a note
SMALLEST, LARGEST = 4, 2**15  # sides of a picture


def parse_size(size: int | str | Sequence[int]) -> tuple[int, int]:
    """N, "N", "WxH" or (W, H) → (width, height); raises InputError."""
    parts: Sequence[Any] = size.lower().split("x") if isinstance(size, str) else size  # type: ignore[assignment]
    try:
        sides = [int(part) if isinstance(part, str) else part for part in np.atleast_1d(parts).tolist()]
        width, height = (check_int("size", side, SMALLEST, LARGEST) for side in sides * (3 - len(sides)))
    except (TypeError, ValueError):
        raise InputError(
            f"size = {size!r}; accepted: N or WxH, such as 32 or 48x32, each from {SMALLEST} to {LARGEST}"
        ) from None
    return width, height


def read_files(
    name: str,
    files: Mapping[str, Opener],
    *,
    labels: str | None,
    size: int | str | Sequence[int] | None,
    alpha: bool,
    skip_corrupt: bool,
    progress: bool,
) -> Pictures:
    """All files as pictures of one size, gray if all are.

    Args:
        name: of the data.
        files: each one's name, relative to the folder or archive, with slashes → what opens it.
        labels: a CSV of their classes; without it their folders are, see folder_classes.
        size: see parse_size; None leaves them as they are.
        alpha: whether transparency is a fourth channel.
        skip_corrupt: whether files that cannot be read are left out.
        progress: whether a bar is shown.

    Raises:
        InputError: for files that cannot be read, or pictures of several sizes or kinds.
    """
    names = list(files)
    classes = folder_classes(names) if labels is None else csv_classes(names, labels, name)
    sides = None if size is None else parse_size(size)
    reader = _Reader(files, alpha, skip_corrupt, progress)
    mode = reader.common_mode()
    images = reader.array(mode, sides)
    kept = [at for at, one in enumerate(names) if one not in reader.corrupt]
    check_classes(name, len(kept), len(set(classes)), images.nbytes)
    rows, class_names = weights([classes[at] for at in kept])
    return Pictures(name, images, rows, class_names, notes=reader.notes())


class _Reader:
    """Two passes over files: their headers, then their pixels.

    Attributes:
        corrupt: what is wrong with files that were left out, by their names.
    """

    def __init__(self, files: Mapping[str, Opener], alpha: bool, skip_corrupt: bool, progress: bool) -> None:
        self.files, self.alpha, self.skip_corrupt, self.progress = files, alpha, skip_corrupt, progress
        self.corrupt: dict[str, InputError] = {}

    def common_mode(self) -> str:
        """The mode in which all pictures are read, L, RGB, RGBA or F; of each file the header alone is read."""
        found = self._each(self._mode, list(self.files), "looked at")
        modes = dict(zip(found.values(), found, strict=True))  # with an example of each
        if "F" in modes and (len(modes) > 1 or self.alpha):
            other = next((f"{name!r} 8" for mode, name in modes.items() if mode != "F"), "no transparency")
            raise InputError(f"{modes['F']!r} has 16 bits or floats, and {other}; accepted: pictures of one kind")
        return next(iter(modes)) if len(modes) == 1 else "RGB"

    def array(self, mode: str, sides: tuple[int, int] | None) -> np.ndarray:
        """The pictures, (N, C, H, W), those of corrupt files left out."""
        from fastdiff.images import picture_array

        names = [name for name in self.files if name not in self.corrupt]
        first, shape = self._first(names, mode, sides)
        images = room((len(names), *shape), np.float32 if mode == "F" else np.uint8)
        places = {name: row for row, name in enumerate(names)}

        def fill(name: str) -> None:
            pixels = picture_array(self._picture(name, mode, sides))
            if pixels.shape != shape:
                raise _Unequal(
                    f"{name!r} is {pixels.shape[2]}x{pixels.shape[1]} and {first!r} {shape[2]}x{shape[1]}; give a size "
                    "(--size) to make them equal"
                )
            images[places[name]] = pixels

        whole = list(self._each(fill, names, "read"))
        for row, name in enumerate(whole):  # closes the gaps, where there are any
            if places[name] != row:
                images[row] = images[places[name]]
        return images[: len(whole)]

    def notes(self) -> tuple[str, ...]:
        if not self.corrupt:
            return ()
        count = len(self.corrupt)
        names = ", ".join(list(self.corrupt)[:NAMED]) + (", ..." if count > NAMED else "")
        return (f"{count:,} corrupt file{'s' * (count > 1)} left out: {names}",)

    def _mode(self, name: str) -> str:
        from PIL import Image

        from fastdiff.images import picture_mode

        try:
            with Image.open(self.files[name]()) as picture:
                return picture_mode(picture, self.alpha)
        except Exception as error:  # of Pillow's decoders and of archives, for files of any kind
            raise InputError(f"cannot read {name!r} as a picture: {first_line(error)}") from error

    def _picture(self, name: str, mode: str, sides: tuple[int, int] | None) -> Image.Image:
        from fastdiff.images import cut_picture, open_picture

        source = self.files[name]()
        picture = open_picture(source, name=name, alpha=self.alpha, least=None if sides is None else max(sides))
        return (picture if sides is None else cut_picture(picture, sides)).convert(mode)

    def _first(
        self, names: Sequence[str], mode: str, sides: tuple[int, int] | None
    ) -> tuple[str, tuple[int, int, int]]:
        """The first picture that can be read, and its shape, which the others must have."""
        from fastdiff.images import picture_array

        for name in names:
            try:
                channels, height, width = picture_array(self._picture(name, mode, sides)).shape
            except InputError:  # `_each` meets it again
                continue
            else:
                return name, (channels, height, width)
        raise InputError(f"none of {len(self.files):,} pictures can be read, {next(iter(self.files))!r} among them")

    def _each(self, work: Callable[[str], Result], names: Sequence[str], what: str) -> dict[str, Result]:
        """name → what work returned, in their order; files of which it raised InputError are noted as corrupt."""
        from tqdm.auto import tqdm

        def tried(name: str) -> Result | InputError:
            try:
                return work(name)
            except _Unequal:
                raise
            except InputError as error:
                return error

        pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
        try:
            done = pool.map(tried, names)
            shown = tqdm(done, what, len(names), unit="picture", leave=False, disable=None if self.progress else True)
            results = dict(zip(names, shown, strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
        found = {name: error for name, error in results.items() if isinstance(error, InputError)}
        self.corrupt |= found
        if found and not self.skip_corrupt:
            others = len(found) - 1
            more = f", and {others:,} more file{'s' * (others > 1)}" if others else ""
            raise InputError(f"{next(iter(found.values()))}{more}; skip_corrupt (--skip-corrupt) leaves them out")
        return {name: result for name, result in results.items() if not isinstance(result, InputError)}


class _Unequal(InputError):
    """A picture of another size, which no file is left out for."""
