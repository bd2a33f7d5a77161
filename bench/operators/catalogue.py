"""The one catalogue of operators."""

from __future__ import annotations

from fastdiff.bench.case import Case
from fastdiff.bench.operators import fused, in_c
from fastdiff.bench.operators.operator import A32, A, Operator
from fastdiff.kernels import dispatch
from fastdiff.kernels.cpu import compiled

LEVELS = ((28, 28), (56, 14), (112, 7))  # A's channels and pixels
COURSE = (64, 16)  # B's
WIDER = ((64, 32), (128, 16), (256, 16))  # diffusers', around which the library's are expected to be faster
STEPS = ((A, 1, 28), (A32, 3, 32))  # pictures of a sampler's step


def catalogue(device: str) -> list[Operator]:
    """The operators that users' networks run there: on CUDA, and where Triton was told to interpret, those that have
    Triton kernels; on a CPU the C kernels take the places of those that they replace."""
    found = list(fused.of_networks(LEVELS, COURSE, WIDER))
    if device == "cpu" and dispatch.backend() != "triton" and compiled.build_error() is None:
        kept = [operator for operator in found if operator.name not in in_c.REPLACED]
        found = [*in_c.of_networks(LEVELS, COURSE), *kept]
    return [*found, *(operator for shape in STEPS for operator in fused.steps(*shape))]


def find(case: Case) -> Operator:
    """The operator of a case."""
    return next(one for one in catalogue(case.device) if (one.network, one.what) == (case.network, case.what))
