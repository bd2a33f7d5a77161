"""The cold start: a fresh process, from the interpreter's start to one image on disk, DDIM, 25 steps."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.bench import compiling, networks
from fastdiff.bench.case import Case
from fastdiff.bench.contender import COMPILED, FASTDIFF, PUBLISHED, TO_EXPORT, Contender, Ready, Role
from fastdiff.bench.peers import cold_process
from fastdiff.engine.noise import PhiloxNoise
from fastdiff.errors import InputError

SAMPLER_FILE = "ONNX Runtime, sampler.onnx"


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    if case.network not in networks.SHIPPED:
        raise InputError(f"cold start of {case.network}; accepted: {', '.join(networks.SHIPPED)}, which ship")
    folder = tempfile.TemporaryDirectory(prefix="fastdiff-cold-")
    process = partial(_process, case, folder)
    yield Contender(PUBLISHED, partial(process, cold_process.PUBLISHED), Role.REFERENCE)
    yield Contender(f"{COMPILED}, warm cache", partial(_compiled, case, folder, cold), Role.COMPILED)
    yield Contender(SAMPLER_FILE, partial(_file, case, folder), needs=TO_EXPORT)
    yield Contender(FASTDIFF, partial(process, cold_process.OURS), Role.FASTDIFF)
    yield Contender(f"{FASTDIFF}, eager", partial(process, cold_process.EAGER))
    yield Contender(f"{FASTDIFF}, empty cache", partial(process, cold_process.OURS, empty=True), Role.FASTDIFF)


def _file(case: Case, folder: tempfile.TemporaryDirectory) -> Ready:
    """The whole loop as one file, written beforehand."""
    from fastdiff.export.runner import onnxruntime

    onnxruntime()  # or the sentence that says how to install it
    from fastdiff.export.assemble import Face, sampler_model
    from fastdiff.export.parts import capture

    path = Path(folder.name) / "sampler.onnx"
    path.write_bytes(sampler_model(capture(case.model), Face(case.table, noise="input")).SerializeToString())
    return _process(case, folder, cold_process.FILE, str(path))


def _compiled(case: Case, folder: tempfile.TemporaryDirectory, cold: bool) -> Ready:
    key = ("cold", case.network, case.device, case.threads)
    if not cold and not compiling.marker(key, None).exists():
        raise compiling.ColdCacheError(compiling.COLD)
    ready = _process(case, folder, cold_process.COMPILED, TORCHINDUCTOR_CACHE_DIR=str(compiling.folder()))
    outputs = ready.outputs
    assert outputs is not None

    def marking() -> Tensor:
        image = outputs()
        compiling.mark(key, None)
        return image

    ready.outputs = marking
    return ready


def _process(
    case: Case,
    folder: tempfile.TemporaryDirectory,
    contender: str,
    model: str | None = None,
    empty: bool = False,
    **environment: str,
) -> Ready:
    """empty: with caches of C and of Triton kernels that are made anew each time."""
    start, image = (str(Path(folder.name) / name) for name in ("start.npy", "image.npy"))
    np.save(start, PhiloxNoise(0)(0, 0, (1, *case.model.image_shape)).numpy())
    module = [sys.executable, "-m", "fastdiff.bench.peers.cold_process"]
    words = [*module, contender, model or networks.SHIPPED[case.network], start, image, case.device]
    environment = {**os.environ, "OMP_NUM_THREADS": str(case.threads), **environment}
    facts: dict[str, Any] = {}

    def run(held: Any = folder) -> None:  # the folder goes with the last that needs it
        with tempfile.TemporaryDirectory() as made:
            more = {"FASTDIFF_CACHE": made, "TRITON_CACHE_DIR": str(Path(made) / "triton")} if empty else {}
            facts["peak_bytes"] = int(printed(words, {**environment, **more}).split()[-1])

    def outputs() -> Tensor:
        run()
        return torch.from_numpy(np.load(image))

    return Ready(run, outputs, facts=facts)


def printed(words: list[str], environment: dict[str, str]) -> str:
    """What a process prints; where it fails, raises RuntimeError with the last line of its errors."""
    ended = subprocess.run(words, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError((ended.stderr.strip().splitlines() or ["it failed"])[-1])
    return ended.stdout
