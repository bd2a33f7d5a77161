"""Compiles the C sources with the system's compiler, for the processor at hand, and loads the library.

That takes about a second, on first use. The library is kept on disk under a hash of sources, compiler, flags and
processor: in the folder FASTDIFF_CACHE, else in fastdiff's folder of the user's cache, else of the temporary files.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent
FILES = tuple(sorted(path.name for path in SOURCES.glob("*.c")))
# Without -ffast-math NaN and infinity keep their meaning. Multiply-adds are fused in the sources only (vectors.h).
# The sources say which loops are vectors and which are unrolled; what the compiler adds takes it time and gains little.
FLAGS = (
    *("-std=gnu11", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-pthread", "-fvisibility=hidden"),
    *("-fno-tree-vectorize", "-ftree-slp-vectorize", "-fno-unroll-loops"),
)
MOST_UNITS = 3
SLOW = {"product.c": 3}  # as slow to compile as a source so many times its size, since its blocks are unrolled


ANSWER_SECONDS, COMPILE_SECONDS = 20.0, 300.0  # until a compiler counts as one that hangs
PARTS = "compiling-"  # begins the names of folders in which a library is being made


class Unavailable(RuntimeError):
    """The C kernels cannot run here; the message says why."""


def cache_folder() -> Path:
    """The folder of compiled libraries."""
    given = os.environ.get("FASTDIFF_CACHE")
    if given:
        return Path(given)
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return base / "fastdiff" if base.is_absolute() else _temporary_cache()  # a user without a home


def _temporary_cache() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"fastdiff-{user}"


def _usable(folder: Path) -> bool:
    """Whether the folder exists or can be made, and only this user can put a library into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = bool(folder.stat().st_mode & 0o022)
    except OSError:
        return False
    return os.access(folder, os.W_OK) and not others and _is_own(folder)


def _is_own(path: Path) -> bool:
    return not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()


def switched_off() -> bool:
    """Whether the user asks for plain torch."""
    return os.environ.get("FASTDIFF_KERNELS") == "reference"


def build_error() -> str | None:
    """Compiles the kernels if need be; returns why they cannot run here, or None."""
    if switched_off():
        return "FASTDIFF_KERNELS=reference asks for plain torch"
    problem = _load()
    return problem if isinstance(problem, str) else None


def identity() -> str:
    """Names all that a result's last bits depend on: a hash of the sources, and the vectors' width."""
    return f"{_sources_digest()[:12]}, vectors of {vector_width()}"


def library() -> ctypes.CDLL:
    """The compiled kernels; raises Unavailable if they cannot run here."""
    loaded = _load()
    if isinstance(loaded, str):
        raise Unavailable(loaded)
    return loaded


@functools.cache
def _load() -> ctypes.CDLL | str:
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        return "no C compiler (cc, gcc or clang) was found"
    try:
        words = shlex.split(compiler)
    except ValueError as error:
        return f"CC = {compiler!r} is not a command: {error}"
    machine = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    try:
        # The compiler's version is in it; and machines that share a home folder may differ in what "native" means.
        native = _run([*words, machine, "-dM", "-E", "-x", "c", os.devnull], ANSWER_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return f"the C compiler {compiler!r} does not run: {error}"
    command = [*words, *FLAGS, machine]
    parts = [_sources_digest(), native, shlex.join(command)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    try:
        return _opened(command, f"kernels-{key}")
    except OSError as error:
        problem = str(error)
    except subprocess.CalledProcessError as error:
        problem = (error.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired as error:
        problem = str(error)
    return f"the CPU kernels could not be compiled by {compiler!r}: {problem}"


@functools.cache
def _sources_digest() -> str:
    paths = sorted(path for path in SOURCES.iterdir() if path.suffix in (".c", ".h"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def _opened(command: list[str], key: str) -> ctypes.CDLL:
    """Loads the library of that key from the cache, or compiles it if it is absent or damaged.

    A file's name ends in the digest of its bytes, because loading a truncated library would crash the process.
    """
    place = next((folder for folder in (cache_folder(), _temporary_cache()) if _usable(folder)), None)
    if place is None:  # the library serves this process only
        return _compiled(command, key, None)
    kept = _kept(place, key)
    if kept is None:
        with _alone(place):
            kept = _kept(place, key) or _compiled(command, key, place)  # another process may have made it meanwhile
    return kept


def _kept(folder: Path, key: str) -> ctypes.CDLL | None:
    for path in sorted(folder.glob(f"{key}-*.so")):
        if _is_own(path) and path.stem.endswith(_digest(path)):
            return _declared(ctypes.CDLL(str(path)))
        path.unlink(missing_ok=True)
    return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the context only this process compiles into the folder; what a killed one left there is removed first."""
    try:
        import fcntl
    except ImportError:  # a system without these locks
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without them
            fcntl.flock(handle, fcntl.LOCK_EX)
            for left in folder.glob(f"{PARTS}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


def _compiled(command: list[str], key: str, place: Path | None) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(dir=place, prefix=PARTS) as temporary:
        made = Path(temporary) / "kernels.so"
        compile_unit = functools.partial(_compile_unit, command, Path(temporary))
        with ThreadPoolExecutor() as pool:  # each thread waits for a compiler
            objects = list(pool.map(compile_unit, _units(min(os.cpu_count() or 1, MOST_UNITS))))
        _run([*command, "-shared", *objects, "-lm", "-o", str(made)])
        if place is not None:
            made = made.rename(place / f"{key}-{_digest(made)}.so")
        return _declared(ctypes.CDLL(str(made)))


def _units(count: int) -> list[list[str]]:
    """The sources in so many groups, or fewer, that take about as long to compile.

    A group is compiled as one file, because the compiler takes longer to read its own headers than a source of ours.
    """
    units: list[list[str]] = [[] for _ in range(min(count, len(FILES)))]
    for name in sorted(FILES, key=lambda name: (-_effort([name]), name)):
        min(units, key=_effort).append(name)
    return units


def _effort(names: list[str]) -> int:
    """About how long the sources take to compile, in bytes of a usual one."""
    return sum((SOURCES / name).stat().st_size * SLOW.get(name, 1) for name in names)


def _compile_unit(command: list[str], folder: Path, names: list[str]) -> str:
    """Compiles sources as one file; returns the object's path."""
    unit = folder / f"with_{names[0]}"
    unit.write_text("".join(f'#include "{name}"\n' for name in names))
    made = str(unit.with_suffix(".o"))
    _run([*command, "-iquote", str(SOURCES), "-c", str(unit), "-o", made])
    return made


def _run(command: list[str], seconds: float | None = None) -> str:
    """What a command prints; raises subprocess.SubprocessError if it fails or takes too long."""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, **pipes, stdin=subprocess.DEVNULL) as process:
        try:
            out, told = process.communicate(timeout=COMPILE_SECONDS if seconds is None else seconds)
        except BaseException:  # subprocess.run would wait for the pipes, which what it started may hold on to
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, out, told)
    return out


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES: dict[str, list[Any]] = {  # all return an int64
    "vector_width": [],
    "operands": [],
    "find_kernel": [ctypes.c_char_p],
    "kernel_space": [_INT, _POINTER],
    "run_call": [_INT, _POINTER, _POINTER, _POINTER, _INT],
    "run_plan": [_POINTER, _INT, _INT, _INT, _INT, ctypes.c_double],
    "multiply_adds": [ctypes.c_double],
}


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, _INT
    return loaded


@functools.cache
def vector_width() -> int:
    """Floats in a vector of the compiled kernels, which is also the fewest channels that they take."""
    width: int = library().vector_width()
    return width
