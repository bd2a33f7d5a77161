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
    yield Contender(f"{COMPILED}, warm cache", partial(process, cold_process.COMPILED, cold=cold), Role.COMPILED)
    yield Contender(SAMPLER_FILE, partial(_file, case, folder), needs=TO_EXPORT)
    yield Contender(FASTDIFF, partial(process, cold_process.OURS), Role.FASTDIFF)
    yield Contender(f"{FASTDIFF}, empty cache", partial(process, cold_process.OURS, empty=True), Role.FASTDIFF)


def _file(case: Case, folder: tempfile.TemporaryDirectory) -> Ready:
    """The whole loop as one file, written beforehand."""
    from fastdiff.bench.contenders.evaluations import ddim
    from fastdiff.export.runner import onnxruntime

    onnxruntime()  # or the sentence that says how to install it
    from fastdiff.export.assemble import Face, sampler_model
    from fastdiff.export.trace import trace

    model = networks.load(case.network)
    path = Path(folder.name) / "sampler.onnx"
    path.write_bytes(sampler_model(trace(model), Face(ddim(model), noise="input")).SerializeToString())
    return _process(case, folder, cold_process.FILE, str(path))


def _process(
    case: Case,
    folder: tempfile.TemporaryDirectory,
    contender: str,
    model: str | None = None,
    cold: bool = True,
    empty: bool = False,
) -> Ready:
    """empty: with caches of C and of Triton kernels that are made anew each time."""
    here = Path(folder.name)
    start, image = here / "start.npy", here / "image.npy"
    shape = (1, *networks.load(case.network).image_shape)
    np.save(start, PhiloxNoise(0)(0, 0, shape).numpy())
    words = [
        sys.executable,
        "-m",
        "fastdiff.bench.peers.cold_process",
        contender,
        model or networks.SHIPPED[case.network],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(case.threads)}
    if contender == cold_process.COMPILED:
        mark = compiling.marker(("cold", case.network, case.device, case.threads), None)
        if not cold and not mark.exists():
            raise compiling.ColdCacheError(compiling.COLD)
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(compiling.folder())
    facts: dict[str, Any] = {}

    def run(held: Any = folder) -> None:  # the folder goes with the last that needs it
        with tempfile.TemporaryDirectory() as made:
            more = {"FASTDIFF_CACHE": made, "TRITON_CACHE_DIR": str(Path(made) / "triton")} if empty else {}
            ended = subprocess.run(
                [*words, str(start), str(image), case.device],
                env={**environment, **more},
                capture_output=True,
                text=True,
            )
        if ended.returncode:
            raise RuntimeError((ended.stderr.strip().splitlines() or ["it failed"])[-1])
        facts["peak_bytes"] = int(ended.stdout.split()[-1])

    def outputs() -> Tensor:
        run()
        if contender == cold_process.COMPILED:
            compiling.mark(("cold", case.network, case.device, case.threads), None)
        return torch.from_numpy(np.load(image))

    return Ready(run, outputs, facts=facts)
