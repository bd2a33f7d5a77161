"""Names for files and folders while they are written, which say whose they are, so that the next run can tidy up.

A process that is killed leaves what it was writing. Its name tells the command, the machine and the process; the next
run that writes to the same folder removes it if no such process lives, and leaves alone what another one still writes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = re.compile(
    r"\.fastdiff-[a-z]+-(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-(?P<started>\d+)-\w+(\..*)?", re.DOTALL
)
FOREIGN_SECONDS = 7 * 24 * 3600.0  # after which another machine's file that nobody has changed counts as left behind

_command = "python"
_tidied: set[tuple[int, str]] = set()  # (process, folder)


def say_command(name: str) -> None:
    """The command that this process runs, for the names of its temporary files."""
    global _command
    _command = re.sub("[^a-z]", "", name) or "python"


@contextmanager
def temporary(folder: Path, suffix: str = "", *, as_folder: bool = False) -> Iterator[Path]:
    """A new empty file or folder, of a name that begins with a dot; what is not renamed within the context is removed.

    What killed processes left in the folder is removed first, once in a process.

    Raises:
        OSError: if it cannot be made.
    """
    place = os.getpid(), str(folder.absolute())
    if place not in _tidied:
        _tidied.add(place)
        tidy(folder)
    prefix = f".fastdiff-{_command}-{_machine()}-{os.getpid()}-{_started(os.getpid()) or 0}-"
    if as_folder:
        made = Path(tempfile.mkdtemp(dir=folder, prefix=prefix))
    else:
        handle, name = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=suffix)
        os.close(handle)
        made = Path(name)
    try:
        yield made
    finally:
        remove(made)


def tidy(folder: Path) -> None:
    """Remove what processes that live no more left in a folder. Links are removed, never followed."""
    with suppress(OSError), os.scandir(folder) as entries:
        for path in [entry.path for entry in entries if _is_left(entry)]:
            remove(Path(path))


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that is being written, or was left behind."""
    return _NAME.fullmatch(name) is not None


def _is_left(entry: os.DirEntry[str]) -> bool:
    match = _NAME.fullmatch(entry.name)
    if match is None:
        return False
    if match["machine"] != _machine():
        with suppress(OSError):
            return time.time() - entry.stat(follow_symlinks=False).st_mtime > FOREIGN_SECONDS
        return False
    return _started(int(match["process"])) != int(match["started"])


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there and this user may."""
    try:
        path.unlink()
    except FileNotFoundError:
        pass
    except OSError:  # a folder
        shutil.rmtree(path, ignore_errors=True)


@functools.cache
def _machine() -> str:
    """Names what process numbers are unique in: the machine, and the container on it."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _started(process: int) -> int | None:
    """When a process began, in ticks since the machine did, or 0 where systems do not say; None if it lives no more."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            state, *fields = file.read().rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else int(fields[18])
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return None
    except (OSError, ValueError, IndexError):
        pass
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:
        pass
    return 0
