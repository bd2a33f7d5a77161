"""A zip archive of picture files, which are read in place."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from fastdiff.data.pictures import OPTIONS, is_picture, told_of
from fastdiff.data.reading import read_files
from fastdiff.data.source import Pictures, Source
from fastdiff.errors import InputError


def _common_folder(names: list[str]) -> str:
    """The folder that all of the names lie in, with its slash; empty if there is none."""
    common = ""
    while len(tops := {name.removeprefix(common).partition("/")[:2] for name in names}) == 1:
        top, slash = tops.pop()
        if not slash:
            break
        common += top + slash
    return common


def read(source: str, **options: Any) -> Pictures:
    """All pictures of the archive; one folder that holds them all is no class. options: see read_files."""
    try:
        with zipfile.ZipFile(source) as file:
            members = sorted((name for name in file.namelist() if is_picture(name)), key=PurePosixPath)
            if not members:
                raise InputError(f"{source!r} holds no pictures; accepted: a zip archive of pictures")
            common = _common_folder(members)
            files = {name.removeprefix(common): partial(file.open, name) for name in members}
            return told_of(read_files(Path(source).stem, files, **options), file.namelist())
    except zipfile.BadZipFile as error:
        raise InputError(f"{source!r} cannot be read as a zip archive ({error})") from error


SOURCE = Source(
    "a .zip of pictures",
    lambda source: source.lower().endswith(".zip") and Path(source).is_file(),
    read,
    options=OPTIONS,
)
