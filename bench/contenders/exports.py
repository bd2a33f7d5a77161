"""From a model in memory to an .onnx file: torch's exporter, and fastdiff's, which also checks what it wrote."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench import networks
from fastdiff.bench.case import Case
from fastdiff.bench.contender import FASTDIFF, PUBLISHED, TO_EXPORT, Contender, Ready, Role
from fastdiff.bench.contenders import evaluations


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    by_torch = (*TO_EXPORT, "onnxscript")
    yield Contender(PUBLISHED, partial(_ready, case, _by_torch), Role.REFERENCE, needs=by_torch)
    yield Contender(FASTDIFF, partial(_ready, case, _network), Role.FASTDIFF, needs=TO_EXPORT)
    yield Contender(f"{FASTDIFF}, the whole loop", partial(_ready, case, _loop), Role.FASTDIFF, needs=TO_EXPORT)


def _by_torch(case: Case, path: Path) -> None:
    x, times = evaluations.inputs(case)
    with _quiet():
        program: Any = torch.onnx.export(networks.published(case.model), (x, times[0]), dynamo=True, verbose=False)
        program.save(str(path), external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages about its inner workings and about torchvision's absence."""
    known = logging.Logger.manager.loggerDict
    own = [name for name, one in known.items() if name.startswith("torch.") and getattr(one, "level", 0) > 0]
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", *own)]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        nowhere = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _network(case: Case, path: Path) -> None:
    fastdiff.export.export_network(case.model, path)


def _loop(case: Case, path: Path) -> None:
    fastdiff.export.export_sampler(case.model, path, evaluations.ddim(case.model))


def _ready(case: Case, export: Callable[[Case, Path], None]) -> Ready:
    """Compared are the network's own outputs; of the whole loop, which has none, nothing."""
    facts: dict[str, object] = {}
    folder = tempfile.TemporaryDirectory(prefix="fastdiff-export-")

    def run() -> Path:
        path = Path(folder.name) / "made.onnx"
        export(case, path)
        facts["bytes"] = path.stat().st_size
        return path

    return Ready(run, None if export is _loop else lambda: _outputs(case, run()), facts=facts)


def _outputs(case: Case, path: Path) -> Tensor:
    """By ONNX Runtime, of the first of an evaluation's times; the files name their inputs differently."""
    from fastdiff.export.runner import onnxruntime

    x, times = evaluations.inputs(case)
    session = onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names, shapes = zip(*((given.name, given.shape) for given in session.get_inputs()), strict=True)
    values = [x, times[0].flatten() if len(shapes[1]) == 1 else times[0]]
    values += [torch.zeros(case.batch, shape[1]) for shape in shapes[2:]]  # contexts
    given = {name: value.numpy() for name, value in zip(names, values, strict=True)}
    return torch.from_numpy(session.run(None, given)[0])
