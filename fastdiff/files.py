"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from fastdiff.errors import InputError

TEMPORARY = ".fastdiff-"  # how names begin that only a killed process leaves


def check_folder(folder: str | Path) -> Path:
    """See that a file can be put into a folder that may not exist yet, leaving no trace. Raises InputError."""
    folder = Path(folder)
    made: list[Path] = []
    try:
        missing = [part for part in (folder, *folder.parents) if not part.exists()]
        for part in reversed(missing):
            part.mkdir()
            made.append(part)
        handle, probe = tempfile.mkstemp(dir=folder, prefix=TEMPORARY)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise InputError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    finally:
        for part in reversed(made):
            part.rmdir()
    return folder


def check_writable(path: str | Path) -> Path:
    """See that a file of this name can be written, before any long work. Raises InputError."""
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"cannot write {str(path)!r}: it is a folder; give a file name")
    except OSError as error:  # a name too long
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from error
    check_folder(path.parent)
    return path


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: the name never holds half a file.

    Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only the owner can read
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
