"""A folder of picture files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fastdiff.data.reading import read_files
from fastdiff.data.source import Pictures, Source

OPTIONS = ("labels", "size", "alpha", "skip_corrupt", "progress")


def is_picture(name: str) -> bool:
    """Whether a file of that name, relative to its folder and with slashes, is one of the data.

    Hidden files and folders (.ipynb_checkpoints, ._1.png) and those that macOS adds to archives are not.
    """
    from fastdiff.images import PICTURE_ENDINGS

    parts = [part for part in name.split("/") if part != "."]
    return name.lower().endswith(PICTURE_ENDINGS) and not any(p.startswith(".") or p == "__MACOSX" for p in parts)


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


def _pictures(source: str) -> Iterator[tuple[str, str]]:
    """(name relative to the folder, path) of each picture."""
    for path in _files(source):
        name = Path(path).relative_to(source).as_posix()
        if is_picture(name):
            yield name, path


def read(source: str, **options: Any) -> Pictures:
    """All pictures below the folder; options: see read_files."""
    found = sorted(_pictures(source), key=lambda pair: Path(pair[0]))
    return read_files(Path(source).name, {name: partial(str, path) for name, path in found}, **options)


SOURCE = Source(
    "a folder of pictures (a class for each subfolder, or by a CSV)",
    lambda source: Path(source).is_dir() and next(_pictures(source), None) is not None,
    read,
    options=OPTIONS,
)
