"""The C sources of kernels/cpu, which the system's compiler turns into a library for this very processor.

The library is compiled when it is first asked for, in about a second, and kept on disk under a key of sources,
compiler, flags and processor: in the folder FASTDIFF_CACHE, else in fastdiff's folder of the user's cache.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

SOURCES = Path(__file__).parent
FILES = ("winograd.c", "norm.c", "attention.c", "depthwise.c")
# No -ffast-math: NaN and infinity keep their meaning. What is fused the sources say (vectors.h).
FLAGS = ("-std=gnu11", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fPIC")


class Unavailable(RuntimeError):
    """Why there are no CPU kernels here."""


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    given = os.environ.get("FASTDIFF_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~")) / ".cache"
    return Path(base) / "fastdiff"


def _usable(folder: Path) -> bool:
    """Whether the folder is there or can be made, and nobody else can put a library into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError:
        return False
    others = hasattr(os, "getuid") and (about.st_uid != os.getuid() or bool(about.st_mode & 0o022))
    return os.access(folder, os.W_OK) and not others


def switched_off() -> bool:
    """Whether the user asks for plain torch."""
    return os.environ.get("FASTDIFF_KERNELS") == "reference"


def build_error() -> str | None:
    """Why the kernels cannot run here, or None; compiles them."""
    if switched_off():
        return "FASTDIFF_KERNELS=reference asks for plain torch"
    problem = _load()
    return problem if isinstance(problem, str) else None


def identity() -> str:
    """What a result's last bits depend on: the sources, and how wide the vectors are that the compiler made of them."""
    return f"{_sources_digest()[:12]}, vectors of {vector_width()}"


def library() -> ctypes.CDLL:
    """The compiled kernels. Raises Unavailable where there are none."""
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
        about = _run([*words, "--version"])
        # What "native" means differs between the machines that share a home folder.
        native = _run([*words, machine, "-dM", "-E", "-x", "c", os.devnull])
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the C compiler {compiler!r} does not run: {error}"
    problem = ""
    for threads in (_openmp(), ()):  # a compiler may have no OpenMP
        command = [*words, *FLAGS, machine, *threads]
        parts = [_sources_digest(), about, native, shlex.join(command)]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        try:
            return _opened(command, f"kernels-{key}")
        except OSError as error:
            problem = str(error)
        except subprocess.CalledProcessError as error:
            problem = (error.stderr.strip().splitlines() or ["no message"])[-1]
    return f"the CPU kernels could not be compiled by {compiler!r}: {problem}"


@functools.cache
def _sources_digest() -> str:
    paths = sorted(path for path in SOURCES.iterdir() if path.suffix in (".c", ".h"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def _opened(command: list[str], key: str) -> ctypes.CDLL:
    """The library of that key in the cache; compiled where it is not there, or not as it was written.

    Its name ends in the digest of its bytes: loading a file that was cut short would end the process.
    """
    folder = cache_folder()
    place = folder if _usable(folder) else None  # without one the library lives for this process only
    for path in sorted(folder.glob(f"{key}-*.so")) if place else ():
        if path.stem.endswith(_digest(path)):
            return _declared(ctypes.CDLL(str(path)))
        path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix="compiling-") as temporary:
        made = Path(temporary) / "kernels.so"
        objects = [str(Path(temporary) / f"{name}.o") for name in FILES]
        with ThreadPoolExecutor() as pool:  # a process for each file
            list(
                pool.map(
                    lambda at: _run([*command, "-c", str(SOURCES / FILES[at]), "-o", objects[at]]), range(len(FILES))
                )
            )
        _run([*command, "-shared", *objects, "-lm", "-o", str(made)])
        if place is not None:
            made = made.rename(place / f"{key}-{_digest(made)}.so")
        return _declared(ctypes.CDLL(str(made)))


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
_SIGNATURES = {  # pointers are written p, whole numbers i, floats f, as in the C functions
    "winograd": "pippfppppiiiiiiiip",
    "group_norm": "ppiiiippfiip",
    "attention": "ppiiiiipppppppffip",
    "depthwise": "ppppiiiiiip",
    "winograd_space": "iiiii",
    "attention_space": "iiiii",
    "depthwise_space": "iiiii",
    "vector_width": "",
}


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    kinds = {"p": _POINTER, "i": _INT, "f": _FLOAT}
    for name, signature in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes = [kinds[letter] for letter in signature]
        function.restype = ctypes.c_long if name.endswith("_space") else _INT if name == "vector_width" else None
    return loaded


def _openmp() -> tuple[str, ...]:
    """OpenMP by torch's own runtime: a second one would have threads of its own, which fight for the same cores."""
    runtimes = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return ("-fopenmp", *map(str, runtimes[:1]))


@functools.cache
def vector_width() -> int:
    """Floats in a vector of the compiled kernels; channels must be at least as many."""
    return library().vector_width()
