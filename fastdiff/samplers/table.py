"""A sampler's run as a table: float64 columns, one row for each network evaluation.

    x0 = clip(p x + q out);  m = u x + v x0
    x <- a x + b x0 + o out + c m_1 + d m_2 + e m_3 + std noise

m_1, m_2 and m_3 are the m of the rows before. std is s; where the network learned the variance, s^(1 - f) S^f with
f = (var + 1) / 2 for its second output var (Nichol and Dhariwal 2021, eq. 15). The table checks itself; samplers.py
makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from fastdiff.errors import InputError, check_float, check_int, unknown_name
from fastdiff.samplers.prediction import PREDICTION_TYPES

COEFFICIENTS = ("p", "q", "a", "b", "c", "s", "o", "d", "e", "u", "v", "S")
HISTORY = ("c", "d", "e")  # the weights of what was remembered one, two and three rows before
TIMES = ("index", "fraction")
_ZEROS: Any = 0.0
_ONES: Any = 1.0
_UNSAID: Any = None


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class StepTable:
    """The coefficients of one sampler run; columns are (rows,) float64, read-only.

    x is always what the network is given: samplers that others write for x = x0 + sigma noise are here for the scaled
    x, and init_noise_sigma is where they begin.

    Attributes:
        sampler: its name.
        prediction_type: epsilon, sample or v_prediction; what the network predicts.
        timestep: the schedule's node, which may lie between two.
        time: what the network is given: the timestep, or timestep / T.
        alpha, sigma: sqrt(abar) and sqrt(1 - abar) at the node.
        alpha_next, sigma_next: at the next node; 1 and 0 at the end.
        p, q, a, b, c, s, o, d, e, u, v, S: see the top of this file; o, d, e and u are 0 unless given, v is 1, and S
            is s.
        returns: (rows,) bool, whether x is noised again after the row, to the level at which the next one begins;
            nowhere unless given.
        init_noise_sigma: x before the first row is so many times the noise of draw 0.
        preserves_mean: False for samplers that do not keep a constant x0.
        preserves_variance: False for samplers whose added noise is not that of the next node.

    Raises:
        InputError: unless, with a network whose x0 is right, each row leads from alpha x0 + sigma noise to
            alpha' x0 + sigma' noise (the mean unless preserves_mean is False, and the noise unless preserves_variance
            is); unless what no row has remembered yet has weight 0; with both u and s; and unless all is finite.
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
    o: np.ndarray = _ZEROS
    d: np.ndarray = _ZEROS
    e: np.ndarray = _ZEROS
    u: np.ndarray = _ZEROS
    v: np.ndarray = _ONES
    S: np.ndarray = _UNSAID
    returns: np.ndarray = _UNSAID
    init_noise_sigma: float = 1.0
    preserves_mean: bool = True
    preserves_variance: bool = True

    def __post_init__(self) -> None:
        for name in COLUMNS:
            given = self.s if name == "S" and self.S is None else getattr(self, name)
            column = np.array(given, dtype=np.float64)
            if column.ndim == 0 and name in _OPTIONAL:
                column = np.full(len(self.timestep), column)
            if column.ndim != 1 or len(column) != len(self.timestep) or len(column) == 0:
                raise InputError(f"table column {name} has shape {column.shape}; accepted: ({len(self.timestep)},)")
            if not np.isfinite(column).all():
                raise InputError(
                    f"table column {name} holds {column[~np.isfinite(column)][0]}; accepted: finite values"
                )
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        returns = np.zeros(len(self), dtype=bool) if self.returns is None else np.array(self.returns, dtype=bool)
        if returns.shape != self.timestep.shape or returns[-1]:
            raise InputError(f"table column returns = {returns}; accepted: a bool for each row, of the last False")
        object.__setattr__(self, "returns", returns)
        check_float("init_noise_sigma", self.init_noise_sigma, 0, 1e6)
        if self.prediction_type not in PREDICTION_TYPES:
            raise unknown_name("prediction type", self.prediction_type, PREDICTION_TYPES)
        for back, name in enumerate(HISTORY, start=1):
            early = getattr(self, name)[:back]
            if early.any():
                raise InputError(
                    f"{name} = {early[early != 0][0]} in row {int(early.nonzero()[0][0])}; accepted: 0 in the first "
                    f"{back}, for there is nothing yet from {back} before"
                )
        if np.any(self.u) and self.s.any():
            raise InputError("a table with u and s; accepted: one of them, for what is remembered is to have no noise")
        self._check()

    def _check(self) -> None:
        """Raise InputError unless the rows lead where they say."""
        alpha, sigma = leads_to({name: getattr(self, name) for name in COLUMNS})
        if self.preserves_mean:
            self._require("alpha_next", alpha - self.alpha_next)
        if self.preserves_variance:
            self._require("sigma_next squared", sigma**2 - self.sigma_next**2)

    def _require(self, what: str, error: np.ndarray) -> None:
        row = int(np.abs(error).argmax())
        if abs(error[row]) > 1e-9:
            raise InputError(f"table row {row} misses {what} by {error[row]:.3g}")

    def __len__(self) -> int:
        return len(self.timestep)

    @property
    def rows(self) -> np.ndarray:
        """(rows, 12) float64, in the order of COEFFICIENTS."""
        return np.stack([getattr(self, name) for name in COEFFICIENTS], axis=1)

    @property
    def whole_times(self) -> bool:
        """Whether all that the network is given are whole timesteps."""
        return not (self.time % 1).any()

    @property
    def depth(self) -> int:
        """How many rows back what was remembered is used, 0 to 3."""
        return max((back for back, name in enumerate(HISTORY, start=1) if getattr(self, name).any()), default=0)

    @property
    def remembers_x0(self) -> bool:
        """Whether what is remembered is x0 itself."""
        return not self.u.any() and bool((self.v == 1).all())

    @property
    def learned_variance(self) -> bool:
        """Whether the network's second output chooses the noise between s and S."""
        return bool(np.any(self.s != self.S))

    def resampled(self, times: int) -> StepTable:
        """Each step but the last so often, for what is partly known (Lugmayr et al. 2022, algorithm 1); see `returns`.

        Raises:
            InputError: unless times is from 1 to 1000, and 1 where a row uses the x0 before.
        """
        if check_int("resample", times, 1, 1000) == 1:
            return self
        if self.depth:
            raise InputError(
                f"resample = {times} with sampler {self.sampler!r}, which uses the x0 before; accepted: 1, or ddim or "
                "ddpm"
            )
        counts = [times] * (len(self) - 1) + [1]
        columns: dict[str, Any] = {name: np.repeat(getattr(self, name), counts) for name in COLUMNS}
        again = [row + 1 < count for count in counts for row in range(count)]
        return replace(self, **columns, returns=np.array(again))

    def __repr__(self) -> str:
        rows, plain = self.rows, {"o": 0, "d": 0, "e": 0, "u": 0, "v": 1}
        shown = [
            k
            for k, name in enumerate(COEFFICIENTS)
            if (self.learned_variance if name == "S" else (rows[:, k] != plain.get(name)).any())
        ]
        lines = [
            f"StepTable({self.sampler!r}, {len(self)} rows, {self.prediction_type})",
            "    timestep " + "".join(f"{COEFFICIENTS[k]:>10}" for k in shown),
        ]
        for i in (0, -1)[: len(self)]:
            lines.append(f"    {self.timestep[i]:8g} " + "".join(f"{rows[i, k]:10.4f}" for k in shown))
        return "\n".join(lines)


_SCALARS = ("sampler", "prediction_type", "returns", "init_noise_sigma", "preserves_mean", "preserves_variance")
_OPTIONAL = ("o", "d", "e", "u", "v")
COLUMNS = tuple(one.name for one in fields(StepTable) if one.name not in _SCALARS)


def leads_to(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """alpha' and sigma' to which each row of these columns leads from alpha x0 + sigma noise, if x0 is right.

    What is remembered is then a share of x0 and, by u, of the only noise that there is.
    """
    a, b, o, p, q, u, v, alpha, sigma = (
        columns[name] for name in ("a", "b", "o", "p", "q", "u", "v", "alpha", "sigma")
    )
    mean = a * alpha + b + o * (1 - p * alpha) / q
    noise = (a - o * p / q) * sigma
    for back, name in enumerate(HISTORY, start=1):
        weight, before = columns[name][back:], slice(0, -back)
        mean[back:] += weight * (u * alpha + v)[before]
        noise[back:] += weight * (u * sigma)[before]
    return mean, np.hypot(noise, columns["s"])
