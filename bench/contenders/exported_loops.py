"""What an exported sampling loop costs over its network, in ONNX Runtime.

The reference is the network's own file, evaluated as often as the loop has steps; the others are files of the whole
loop, and fastdiff's engine. Their images are compared with those of `fastdiff.sample`: the network alone has none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff.bench.case import Case
from fastdiff.bench.contender import FASTDIFF, TO_EXPORT, Contender, Ready, Role
from fastdiff.bench.contenders.samplings import by_engine
from fastdiff.bench.peers import predictors

NETWORK = "network.onnx, as many evaluations"
FACES: dict[str, dict[str, Any]] = {
    "sampler.onnx": {},
    "sampler.onnx, noise from outside": {"noise": "input"},
    "sampler.onnx, a row a call": {"stepwise": True},
}


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    folder = tempfile.TemporaryDirectory(prefix="fastdiff-loop-")
    yield Contender(NETWORK, partial(_network, case), Role.REFERENCE, needs=TO_EXPORT)
    for name, face in FACES.items():
        yield Contender(name, partial(_sampler, case, face, folder), needs=TO_EXPORT)
    yield Contender(FASTDIFF, partial(by_engine, case), Role.FASTDIFF)


def _network(case: Case) -> Ready:
    predict = predictors.onnxruntime(case.network, case.place, case.threads)
    x = torch.randn(case.batch, *case.model.image_shape)
    time = predictors.time_of(case.model, case.table.time[0], case.batch, case.place)

    def run() -> None:
        for _ in range(case.steps):
            predict(x, time)

    def exact() -> Any:
        return fastdiff.sample(case.model, case.batch, case.table, device=case.place)

    return Ready(run, exact=exact, facts={"bytes": len(predictors.exported(case.network))})


def _sampler(case: Case, face: dict[str, Any], folder: tempfile.TemporaryDirectory[str]) -> Ready:
    from fastdiff.export import OnnxSampler
    from fastdiff.export.assemble import Face, sampler_model
    from fastdiff.export.parts import capture

    path = Path(folder.name) / f"{'-'.join(face) or 'plain'}.onnx"
    path.write_bytes(sampler_model(capture(case.model), Face(case.table, **face)).SerializeToString())
    file = OnnxSampler(path, threads=case.threads)
    sample: Callable[[], Any] = lambda: file.sample(case.batch)  # noqa: E731
    return Ready(sample, lambda: torch.from_numpy(sample()), facts={"bytes": path.stat().st_size})
