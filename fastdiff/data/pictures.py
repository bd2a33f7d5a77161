"""A folder of picture files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from fastdiff.data.reading import read_files
from fastdiff.data.source import Pictures, Source

# Of cameras and scanners, which Pillow alone does not read.
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".dcm", ".nii")
OPTIONS = ("labels", "size", "alpha", "skip_corrupt", "progress")


def is_picture(name: str) -> bool:
    """Whether a file of that name, relative to its folder and with slashes, is one of the data.

    Hidden files and folders (.ipynb_checkpoints, ._1.png) and those that macOS adds to archives are not.
    """
    from fastdiff.images import PICTURE_ENDINGS

    return name.lower().endswith(PICTURE_ENDINGS) and not _hidden(name)


def _hidden(name: str) -> bool:
    parts = [part for part in name.split("/") if part != "."]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def told_of(found: Pictures, names: Iterable[str]) -> Pictures:
    """What was read, with a note on files whose names are those of pictures that are not."""
    endings = Counter(PurePosixPath(name).suffix.lower() for name in names if not _hidden(name))
    notes = [f"not read: {count:,} of {ending}" for ending, count in endings.items() if ending in UNREAD]
    return replace(found, notes=(*found.notes, *notes))


def _files(folder: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Everything below the folder that is no folder; links are followed, but not to a folder that they lie in."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            if not entry.name.startswith("."):
                yield from _files(entry.path, above | {real})
        elif entry.is_file() or not os.path.exists(entry.path):  # a broken link is said, a pipe is not waited for
            yield entry.path


def _named(source: str) -> Iterator[tuple[str, str]]:
    """(name relative to the folder, path) of each file."""
    return ((Path(path).relative_to(source).as_posix(), path) for path in _files(source))


def read(source: str, **options: Any) -> Pictures:
    """All pictures below the folder; options: see read_files."""
    paths = dict(sorted(_named(source), key=lambda pair: Path(pair[0])))
    files = {name: partial(str, path) for name, path in paths.items() if is_picture(name)}
    return told_of(read_files(Path(source).resolve().name, files, **options), paths)


SOURCE = Source(
    "a folder of pictures (a class for each subfolder, or by a CSV)",
    lambda source: Path(source).is_dir() and any(is_picture(name) for name, _ in _named(source)),
    read,
    options=OPTIONS,
)
