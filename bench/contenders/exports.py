"""From a model in memory to an .onnx file: torch's exporter, and fastdiff's, which also checks what it wrote."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench import networks
from fastdiff.bench.case import Case
from fastdiff.bench.contender import FASTDIFF, PUBLISHED, TO_EXPORT, Contender, Ready, Role
from fastdiff.bench.contenders import evaluations
from fastdiff.export.exporter import quiet


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    yield Contender(PUBLISHED, partial(_ready, case, _by_torch), Role.REFERENCE, needs=TO_EXPORT)
    yield Contender(FASTDIFF, partial(_ready, case, _network), Role.FASTDIFF, needs=TO_EXPORT)
    yield Contender(f"{FASTDIFF}, the whole loop", partial(_ready, case, _loop), Role.FASTDIFF, needs=TO_EXPORT)


def _by_torch(case: Case, path: Path) -> None:
    x, times = evaluations.inputs(case)
    network = networks.published(networks.load(case.network))

    with quiet():
        program: Any = torch.onnx.export(network, (x, times[0]), dynamo=True, verbose=False)
        program.save(str(path), external_data=False)


def _network(case: Case, path: Path) -> None:
    from fastdiff.export import export_network

    export_network(networks.load(case.network), path)


def _loop(case: Case, path: Path) -> None:
    from fastdiff.export import export_sampler

    model = networks.load(case.network)
    export_sampler(model, path, evaluations.ddim(model))


def _ready(case: Case, export: Callable[[Case, Path], None]) -> Ready:
    facts: dict[str, object] = {}

    def run() -> Path:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "made.onnx"
            export(case, path)
            facts["bytes"] = path.stat().st_size
            return path

    def outputs() -> Tensor:
        """The file's own, by ONNX Runtime: of the network, or of the loop's last evaluation's equal."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "made.onnx"
            export(case, path)
            return _outputs(case, path)

    return Ready(run, None if export is _loop else outputs, facts=facts)


def _outputs(case: Case, path: Path) -> Tensor:
    from fastdiff.export.runner import onnxruntime

    x, times = evaluations.inputs(case)
    session = onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()
    values = [x.numpy()]
    for time in times[:1]:
        values.append((time.flatten() if len(given[1].shape) == 1 else time).numpy())
    if len(given) > 2:
        values.append(torch.zeros(case.batch, given[2].shape[1]).numpy())
    return torch.from_numpy(session.run(None, dict(zip([g.name for g in given], values, strict=True)))[0])
