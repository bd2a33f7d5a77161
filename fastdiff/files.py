"""Writing files whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fastdiff.errors import InputError, first_line
from fastdiff.temporary import temporary, tidy

if TYPE_CHECKING:
    import numpy as np

CANNOT_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)  # of file systems without it


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
        for place in (folder, (made[0] if made else folder).absolute().parent):  # a new folder is made beside it
            tidy(place)
        with temporary(folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {str(folder)!r}: {reason(error)}") from error
    finally:
        for part in reversed(made):
            with suppress(OSError):  # another run began to write there
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
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        kind = stat.S_IFREG
    except OSError as error:  # a name too long, a link to itself
        raise InputError(f"cannot write {str(path)!r}: {reason(error)}") from error
    if stat.S_ISDIR(kind):
        raise InputError(f"cannot write {str(path)!r}: it is a folder; give a file name")
    if not stat.S_ISREG(kind):  # the file would take the place of a pipe or a device
        raise InputError(f"cannot write {str(path)!r}: it is a pipe or a device; give a file name")
    check_folder(path.parent)
    return path


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, open to be read: a pipe would be waited for, and a device has no end.

    Raises:
        InputError: if it is no regular file, or cannot be read.
    """
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError for a name with a zero byte
        raise InputError(f"cannot read {str(path)!r}: {reason(error)}") from error
    raise InputError(f"cannot read {str(path)!r}: it is not a regular file")


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary file beside `path`, then rename it, so that `path` never holds half a file.

    What has its name outlives a loss of power: the file is on the disk before it gets it.

    Args:
        path: the file; missing folders are made.
        write: writes the file of the name that it is given.

    Raises:
        InputError: if the file cannot be written, as on a full disk; and what else `write` raises.
    """
    path = Path(path)
    with as_refusal(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path.parent, path.suffix) as made:
            write(made)
            made.chmod(0o666 & ~_umask())  # a temporary file is one that only the owner can read
            _put(made, path)


def save_json(value: Any, path: str | Path) -> None:
    """Plain values as JSON, whole or not at all; ValueError for NaN and infinity, which JSON does not have."""
    save_text(json.dumps(value, indent=1, allow_nan=False) + "\n", path)


def save_text(text: str, path: str | Path) -> None:
    """Text in UTF-8, whole or not at all."""
    write_atomically(path, lambda made: made.write_text(text, encoding="utf-8"))


def save_npy(array: np.ndarray, path: str | Path) -> None:
    """The bytes of np.save(path, array), whole or not at all. np.save itself does not say why the system refused."""
    import numpy as np

    def write(made: Path) -> None:
        with open(made, "wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            file.write(np.ascontiguousarray(array).data)

    write_atomically(path, write)


@contextmanager
def write_folder(path: Path, last: str = "") -> Iterator[Path]:
    """Within the context, a temporary folder to fill; after it, `path` holds the files, or is as it was.

    Args:
        path: the folder. If it is there it is empty, and stays itself: it may be the one that the user works in, or its
            parent one that the user may not write to.
        last: the file that such a folder gets last, which says that it is whole.

    Raises:
        InputError: if it cannot be written.
    """
    there = path.exists()
    place = path if there else next(folder for folder in path.parents if folder.exists())
    with as_refusal(path), temporary(place, as_folder=True) as made:
        yield made
        for file in made.iterdir():
            _sync(file)
        if there:
            for file in sorted(made.iterdir(), key=lambda file: file.name == last):
                os.replace(file, path / file.name)
            _sync(path)
        else:
            made.chmod(0o777 & ~_umask())
            path.parent.mkdir(parents=True, exist_ok=True)
            _put(made, path)


@contextmanager
def as_refusal(path: Path) -> Iterator[None]:
    """What the system raises where `path` cannot be written, as an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why the system refused, in its words: No space left on device."""
    return getattr(error, "strerror", None) or first_line(error)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Lock the folder; raises InputError if another run has. However the process ends, its lock ends with it."""
    try:
        import fcntl
    except ImportError:  # a system without these locks
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run writes to {str(folder)!r}; wait for it, or name another folder") from None
        except OSError:  # a file system without them
            pass
        yield
    finally:
        os.close(handle)


def _put(made: Path, path: Path) -> None:
    """Give what was written its name when it is on the disk, and see that the name is there too."""
    _sync(made)
    os.replace(made, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until the disk has a file or a folder; raises OSError if it has no room or is broken."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to, but not be listed
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
