"""A zip archive of picture files, which are read in place."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from fastdiff.data.pictures import OPTIONS, is_picture, told_of
from fastdiff.data.reading import read_files
from fastdiff.data.source import Pictures, Source
from fastdiff.errors import InputError, first_line


def read(source: str, **options: Any) -> Pictures:
    """All pictures of the archive; options: see read_files."""
    try:
        with zipfile.ZipFile(source) as file:
            names = {name.replace("\\", "/"): name for name in file.namelist()}  # some of Windows' have backslashes
            members = sorted(filter(is_picture, names), key=PurePosixPath)
            if not members:
                raise InputError(f"{source!r} holds no pictures; accepted: a zip archive of pictures")
            files = {name: partial(file.open, names[name]) for name in members}
            return told_of(read_files(Path(source).stem, files, **options), names)
    except InputError:
        raise
    except Exception as error:  # of zipfile, for files of any kind
        raise InputError(f"{source!r} cannot be read as a zip archive ({first_line(error)})") from error


SOURCE = Source(
    "a .zip of pictures",
    lambda source: source.lower().endswith(".zip") and Path(source).is_file(),
    read,
    options=OPTIONS,
)
