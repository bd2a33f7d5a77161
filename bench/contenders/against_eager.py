"""Whole sampling of any network by fastdiff's engine: the form that users get, the network as it is, and in ONNX
Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastdiff.bench.case import Case
from fastdiff.bench.contender import FASTDIFF, ONNXRUNTIME, TO_EXPORT, Contender, Ready, Role
from fastdiff.bench.contenders.samplings import by_engine
from fastdiff.bench.networks import NETWORKS
from fastdiff.bench.peers import predictors


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    needs = NETWORKS[case.network].needs
    yield Contender(f"{FASTDIFF}, eager", partial(by_engine, case, "eager"), Role.REFERENCE, needs=needs)
    yield Contender(ONNXRUNTIME, partial(_by_onnxruntime, case), needs=(*needs, *TO_EXPORT))
    yield Contender(FASTDIFF, partial(by_engine, case), Role.FASTDIFF, needs=needs)


class _Predictor(nn.Module):
    """A predictor in the place of a network; engines copy the module, but not the function."""

    def __init__(self, predict: predictors.Predict) -> None:
        super().__init__()
        self.predict = predict

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.predict(x, t)


def _by_onnxruntime(case: Case) -> Ready:
    """The reference's own loop around the exported network."""
    network: Any = _Predictor(predictors.onnxruntime(case.network, case.place, case.threads))
    return by_engine(case, "eager", replace(case.model, network=network))
