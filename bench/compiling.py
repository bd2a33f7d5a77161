"""torch.compile with a cache that is kept, and whether that cache is warm."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

import fastdiff
from fastdiff.bench.peers import reference
from fastdiff.files import save_text
from fastdiff.kernels.cpu.compiled import cache_folder
from fastdiff.provenance import device_name

COLD = "not compiled here before, which takes minutes; a run without --quick does it once"


caches: list[str] = []  # what each compilation of this process began with


class ColdCacheError(RuntimeError):
    """A quick run does not wait for a compilation."""


def folder() -> Path:
    """Where inductor keeps what it compiled for the benchmarks."""
    return cache_folder() / "bench" / "inductor"


def use_folder() -> None:
    """Have torch.compile keep its results there; to be called before its first use in the process."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder())


@cache
def _sources() -> str:
    """A hash of what is compiled: with another network the kept results are no use."""
    package = Path(fastdiff.__file__).parent
    digest = hashlib.sha256(Path(reference.__file__).read_bytes())
    for path in sorted((package / "networks").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def marker(key: tuple[Any, ...], mode: str | None) -> Path:
    """The file that says that what has that key was compiled here, by this version of torch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = f"{torch.__version__} {triton.__version__} {device_name(device)} {_sources()} {key} {mode}"
    return folder() / f"fastdiff-{hashlib.sha256(facts.encode()).hexdigest()[:24]}"


def mark(key: tuple[Any, ...], mode: str | None) -> None:
    """What has that key is compiled now."""
    save_text("", marker(key, mode))


def compiled(
    call: Callable[..., Any], key: tuple[Any, ...], mode: str | None, cold: bool, **options: Any
) -> Callable[..., Any]:
    """torch.compile(call, mode=mode, **options), every size static.

    cold: whether it may compile for minutes; where not, raises ColdCacheError unless a run on this machine, with the
    same key, has compiled it before.
    """
    warm = marker(key, mode).exists()
    if not cold and not warm:
        raise ColdCacheError(COLD)
    caches.append("from a warm cache" if warm else "from a cold cache")
    # Beyond its limit of 8 compilations of the same code torch would run it eagerly, without a word.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    made = torch.compile(call, mode=mode, dynamic=False, **options)
    done = False

    def first(*given: Any) -> Any:
        nonlocal done
        if done:
            return made(*given)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # tables of its tuning
            result = made(*given)
        mark(key, mode)
        done = True
        return result

    return first
