"""A sampler's run as a table: float64 columns, one row for each network evaluation.

    x0 = clip(p x + q out)
    x  <- a x + b x0 + c x0_prev + s noise;  x0_prev <- x0

The table checks itself; samplers.py makes them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from fastdiff.errors import InputError, check_int, unknown_name
from fastdiff.samplers.prediction import PREDICTION_TYPES

COEFFICIENTS = ("p", "q", "a", "b", "c", "s")
TIMES = ("index", "fraction")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class StepTable:
    """The coefficients of one sampler run; columns are (rows,) float64, read-only.

    Attributes:
        sampler: its name.
        prediction_type: epsilon, sample or v_prediction; what the network predicts.
        timestep: the schedule's node.
        time: what the network is given: the timestep, or timestep / T.
        alpha, sigma: sqrt(abar) and sqrt(1 - abar) at the node.
        alpha_next, sigma_next: at the next node; 1 and 0 at the end.
        p, q, a, b, c, s: see the top of this file.
        preserves_variance: False for samplers whose added noise is not that of the next node.

    Raises:
        InputError: unless a alpha + b + c = alpha' (the mean is right where x0 is constant) and, with
            preserves_variance, a^2 sigma^2 + s^2 = sigma'^2; unless c[0] = 0; and unless all is finite.
    """

    sampler: str
    prediction_type: str
    timestep: np.ndarray
    time: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    alpha_next: np.ndarray
    sigma_next: np.ndarray
    p: np.ndarray
    q: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    s: np.ndarray
    preserves_variance: bool = True

    def __post_init__(self) -> None:
        for name in COLUMNS:
            column = np.array(getattr(self, name), dtype=np.float64)
            if column.ndim != 1 or len(column) != len(self.timestep) or len(column) == 0:
                raise InputError(f"table column {name} has shape {column.shape}; accepted: ({len(self.timestep)},)")
            if not np.isfinite(column).all():
                raise InputError(
                    f"table column {name} holds {column[~np.isfinite(column)][0]}; accepted: finite values"
                )
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        if self.prediction_type not in PREDICTION_TYPES:
            raise unknown_name("prediction type", self.prediction_type, PREDICTION_TYPES)
        if self.c[0] != 0:
            raise InputError(f"c = {self.c[0]} in the first row; accepted: 0, for there is no x0_prev yet")
        self._require("a alpha + b + c = alpha'", self.a * self.alpha + self.b + self.c - self.alpha_next)
        if self.preserves_variance:
            drift = (self.a * self.sigma) ** 2 + self.s**2 - self.sigma_next**2
            self._require("a^2 sigma^2 + s^2 = sigma'^2", drift)

    def _require(self, equation: str, error: np.ndarray) -> None:
        row = int(np.abs(error).argmax())
        if abs(error[row]) > 1e-9:
            raise InputError(f"table row {row} breaks {equation} by {error[row]:.3g}")

    def __len__(self) -> int:
        return len(self.timestep)

    @property
    def rows(self) -> np.ndarray:
        """(rows, 6) float64: p, q, a, b, c, s."""
        return np.stack([getattr(self, name) for name in COEFFICIENTS], axis=1)

    def resampled(self, times: int) -> StepTable:
        """Each step but the last so often, for what is partly known (Lugmayr et al. 2022, algorithm 1); see `returns`.

        Raises:
            InputError: unless times is from 1 to 1000, and 1 where a row uses the x0 before.
        """
        if check_int("resample", times, 1, 1000) == 1:
            return self
        if self.c.any():
            raise InputError(
                f"resample = {times} with sampler {self.sampler!r}, which uses the x0 before; accepted: 1, or ddim or "
                "ddpm"
            )
        counts = [times] * (len(self) - 1) + [1]
        columns: dict[str, Any] = {name: np.repeat(getattr(self, name), counts) for name in COLUMNS}
        return replace(self, **columns)

    @property
    def returns(self) -> np.ndarray:
        """(rows,) bool: whether the next row begins at an earlier time than the row ends, so that x is noised again."""
        return np.append(self.alpha[1:] < self.alpha_next[:-1] * (1 - 1e-9), False)

    def __repr__(self) -> str:
        lines = [
            f"StepTable({self.sampler!r}, {len(self)} steps, {self.prediction_type})",
            "    timestep " + "".join(f"{name:>10}" for name in COEFFICIENTS),
        ]
        for i in (0, -1)[: len(self)]:
            numbers = "".join(f"{value:10.4f}" for value in self.rows[i])
            lines.append(f"    {self.timestep[i]:8g} {numbers}")
        return "\n".join(lines)


COLUMNS = tuple(
    one.name for one in fields(StepTable) if one.name not in ("sampler", "prediction_type", "preserves_variance")
)
