"""Writing files whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdiff.errors import InputError

TEMPORARY = ".fastdiff-"  # prefix of temporary files; only a killed process leaves any


def check_folder(folder: str | Path) -> Path:
    """Check that files can be written to a folder, which may not exist yet; nothing is left behind.

    Args:
        folder: the folder.

    Returns:
        Its path.

    Raises:
        InputError: if they cannot.
    """
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
    """Check that a file of this name can be written, before any long work; nothing is left behind.

    Args:
        path: the file.

    Returns:
        Its path.

    Raises:
        InputError: if it cannot, or the path is a folder.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"cannot write {str(path)!r}: it is a folder; give a file name")
    except OSError as error:  # a name too long
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from error
    check_folder(path.parent)
    return path


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary file beside `path`, then rename it, so that `path` never holds half a file.

    Args:
        path: the file; missing folders are made.
        write: writes the file of the name that it is given.

    Raises:
        OSError: if the file cannot be written, and what `write` raises.
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


def save_json(value: Any, path: str | Path) -> None:
    """Plain values as JSON, whole or not at all; ValueError for NaN and infinity, which JSON does not have."""
    write_atomically(path, lambda p: p.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n"))


def save_text(text: str, path: str | Path) -> None:
    """Text, whole or not at all."""
    write_atomically(path, lambda p: p.write_text(text))
