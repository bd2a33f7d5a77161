"""The one parity gate: how far a contender's result may be from the reference's."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import Role

# Relative error, ||difference|| / ||reference||, that parity allows. One evaluation in float32 adds up a few roundings;
# a loop of trained networks amplifies them; 16-bit networks round every layer, to 2^-8 or 2^-11.
BOUNDS = {
    **dict.fromkeys(Kind, 1e-5),
    **dict.fromkeys((Kind.SAMPLING, Kind.COLD, Kind.LOOP, Kind.EAGER, Kind.THREADS), 3e-4),
    Kind.TRAINING: 1e-4,
}
# 10 bits of mantissa, in the others' convolutions
BOUNDS_TF32 = {Kind.EVALUATION: 5e-3, Kind.SAMPLING: 5e-2, Kind.TRAINING: 5e-3, Kind.PROFILE: 5e-3}
BOUNDS_16 = {Kind.EVALUATION: 5e-2, Kind.SAMPLING: 0.25, Kind.TRAINING: 5e-2, Kind.PROFILE: 3e-2}
OPERATOR_16 = {"bfloat16": 2e-2, "float16": 3e-3}  # one operator rounds its result once


class Verdict(NamedTuple):
    """parity: the relative error, None where it is no number; reason: why the result is refused, or None."""

    parity: float | None
    reason: str | None


def bound(case: Case, role: Role, precision: str | None = None) -> float:
    """The relative error that a contender is allowed."""
    if "float32" not in (case.dtype, precision):
        return OPERATOR_16[case.dtype] if case.kind == Kind.OPERATOR else BOUNDS_16[case.kind]
    tf32 = case.device == "cuda" and role != Role.FASTDIFF
    return (BOUNDS | BOUNDS_TF32 if tf32 else BOUNDS)[case.kind]


def check(result: Tensor, expected: Tensor, bound: float) -> Verdict:
    """Hold a result against what is expected; NaN is refused too."""
    if result.shape != expected.shape:
        return Verdict(None, f"its result has shape {tuple(result.shape)}, not {tuple(expected.shape)}")
    parity = float((result - expected).norm() / expected.norm())
    known = parity if math.isfinite(parity) else None  # JSON knows no other numbers
    if parity <= bound:
        return Verdict(known, None)
    return Verdict(known, f"it differs from the reference by {parity:.1e}, more than {bound:.0e}")
