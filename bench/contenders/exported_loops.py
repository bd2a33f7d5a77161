"""What an exported sampling loop costs over its network, in ONNX Runtime.

The reference is the network's own file, evaluated as often as the loop has steps; the others are files of the whole
loop, and fastdiff's engine. Their images are compared with those of `fastdiff.sample`: the network alone has none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench import networks
from fastdiff.bench.case import Case
from fastdiff.bench.contender import FASTDIFF, TO_EXPORT, Contender, Ready, Role
from fastdiff.bench.contenders.samplings import table_of
from fastdiff.bench.peers import predictors

NETWORK = "network.onnx, as many evaluations"
FACES: dict[str, dict[str, Any]] = {
    "sampler.onnx": {},
    "sampler.onnx, noise from outside": {"noise": "input"},
    "sampler.onnx, a row a call": {"stepwise": True},
}


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    folder = tempfile.TemporaryDirectory(prefix="fastdiff-loop-")
    yield Contender(NETWORK, lambda: _network(case), Role.REFERENCE, needs=TO_EXPORT)
    for name, face in FACES.items():
        make = lambda face=face: _sampler(case, face, folder)  # noqa: E731
        yield Contender(name, make, needs=TO_EXPORT)
    yield Contender(FASTDIFF, lambda: _engine(case), Role.FASTDIFF)


def _network(case: Case) -> Ready:
    model, cpu = networks.load(case.network), torch.device("cpu")
    table = table_of(model, case.sampler, case.steps)
    predict = predictors.onnxruntime(case.network, cpu, case.threads)
    x = torch.randn(case.batch, *model.image_shape)
    time = predictors.time_of(model, table.time[0], case.batch, cpu)

    def run() -> None:
        for _ in range(len(table)):
            predict(x, time)

    def exact() -> Any:
        return fastdiff.sample(model, case.batch, table, device=cpu)

    return Ready(run, exact=exact, facts={"bytes": len(predictors.exported(case.network))})


def _sampler(case: Case, face: dict[str, Any], folder: tempfile.TemporaryDirectory[str]) -> Ready:
    from fastdiff.export import OnnxSampler
    from fastdiff.export.assemble import Face, sampler_model
    from fastdiff.export.trace import trace

    model = networks.load(case.network)
    path = Path(folder.name) / f"{'-'.join(face) or 'plain'}.onnx"
    made = sampler_model(trace(model), Face(table_of(model, case.sampler, case.steps), **face))
    path.write_bytes(made.SerializeToString())
    file = OnnxSampler(path, threads=case.threads)
    sample: Callable[[], Any] = lambda: file.sample(case.batch)  # noqa: E731
    return Ready(sample, lambda: torch.from_numpy(sample()), facts={"bytes": path.stat().st_size})


def _engine(case: Case) -> Ready:
    model = networks.load(case.network)
    engine = fastdiff.Engine(model, table_of(model, case.sampler, case.steps), batch_size=case.batch, device="cpu")

    def sample() -> Tensor:
        return engine.sample(case.batch)

    return Ready(sample, sample)
