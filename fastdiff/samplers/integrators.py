"""Multistep exponential integrators of the ODE d(x / sigma) = x0 d(alpha / sigma), and of its SDE: DPM-Solver++, UniPC.

With h the step in log(alpha / sigma), x leads to sigma'/sigma x + alpha' (1 - exp(-h)) x0 where x0 is constant; a
method of higher order takes x0 for a polynomial through the ones before.
"""

from __future__ import annotations

import numpy as np

from fastdiff.samplers.entry import Coefficients, sampler
from fastdiff.samplers.path import Path

FEW = 15  # below so many steps lower_order_final has an effect on DPM-Solver++, in its authors' code and diffusers


@sampler("second order, deterministic", "Lu et al. 2022, algorithm 2")
def dpmpp_2m(path: Path) -> Coefficients:
    return dpmpp(path, order=2)


@sampler("second order, with noise, which undoes the errors of few steps", "Lu et al. 2022, appendix A, midpoint form")
def dpmpp_2m_sde(path: Path) -> Coefficients:
    return dpmpp(path, order=2, sde=True)


@sampler("from the last three x0s, deterministic", "Lu et al. 2022, multistep of order 3 in their code")
def dpmpp_3m(path: Path) -> Coefficients:
    return dpmpp(path, order=3)


def dpmpp(path: Path, order: int, sde: bool = False) -> Coefficients:
    """Multistep DPM-Solver++, as its authors' code and diffusers' DPMSolverMultistepScheduler have it.

    Order 2 is the midpoint method. Of order 3 both halve the weight of x0's curvature, the second divided difference
    without its factor 2, which leaves order 2 with smaller errors.

    Args:
        path: the nodes.
        order: 1 to 3; the first rows have less history, and so a lower one, as has a step to what is clean. Below 15
            steps the last has order 1 and the one before 2 at most.
        sde: whether it is the SDE's solver, of order 1 or 2.
    """
    decay, h = path.decay, _steps(path)
    most = np.full(len(path), order)
    if len(path) < FEW:
        most[-2:] = np.minimum(most[-2:], [2, 1][-len(path) :])
    orders = _orders(h, most)

    kept = decay * decay if sde else decay
    w = path.alpha_next * (1 - kept)  # of x0 as a constant
    slope, curve = _moments(2 * h if sde else h)
    slope, curve = np.where(orders == 2, w / 2, path.alpha_next * slope), path.alpha_next * (curve + 0.5)

    b, c, d = w.copy(), np.zeros_like(w), np.zeros_like(w)
    for i in np.flatnonzero(orders > 1):
        r0 = h[i - 1] / h[i]
        newer, older = slope[i], 0.0  # weights of (m0 - m1) / r0 and of (m1 - m2) / r1
        if orders[i] == 3:
            r1 = h[i - 2] / h[i]
            older = -(slope[i] * r0 + curve[i]) / (r0 + r1)
            newer -= older
            d[i] = -older / r1
        b[i] += newer / r0
        c[i] = -newer / r0 - d[i]
    s = path.sigma_next * np.sqrt(np.maximum(1 - kept, 0)) if sde else 0.0
    return Coefficients(path.sigma_next / path.sigma * (decay if sde else 1.0), b, c, s, d=d)


def _moments(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 - (1 - exp(-h)) / h and (1 - exp(-h) - h) / h^2, and their limits 1 and 0 where h is infinite."""
    finite = np.where(np.isfinite(h) & (h != 0), h, 1.0)
    rise = -np.expm1(-finite)
    slope, curve = 1 - rise / finite, (rise - finite) / finite**2
    return np.where(np.isfinite(h), slope, 1.0), np.where(np.isfinite(h), curve, 0.0)


@sampler(
    "second order with a corrector, deterministic",
    "Zhao et al. 2023, algorithms 1 and 2 for x0, B_2(h)",
)
def unipc(
    path: Path,
    order: int = 2,
    lower_order_final: bool = True,
) -> Coefficients:
    """UniPC, as diffusers' UniPCMultistepScheduler that predicts x0.

    Only the prediction is kept as x: at a node the corrected x is the predicted one and a sum of x0s, so that a row
    corrects and predicts on with one evaluation, and remembers one x0 more than the predictor needs.

    Args:
        path: the nodes.
        order: 1 to 3; the first rows have less history, and so a lower one, as has a step to what is clean.
        lower_order_final: whether the last steps have orders ..., 2, 1.
    """
    rows, h = len(path), _steps(path)
    most = np.minimum(order, np.arange(rows, 0, -1)) if lower_order_final else np.full(rows, order)
    orders = _orders(h, most)
    a = path.sigma_next / path.sigma
    weights = np.zeros((rows, 4))  # of x0 here and one, two and three rows before
    predicted = np.zeros(3)
    for i in range(rows):
        if i:
            corrected = path.alpha[i] * _unipc_weights(h, i - 1, orders[i - 1], corrector=True)
            weights[i] = a[i] * (corrected - np.append(0.0, predicted))
        predicted = path.alpha_next[i] * _unipc_weights(h, i, orders[i], corrector=False)
        weights[i, :3] += predicted
    b, c, d, e = weights.T
    return Coefficients(a, b, c, d=d, e=e)


def _unipc_weights(h: np.ndarray, i: int, order: int, *, corrector: bool) -> np.ndarray:
    """The weights of the x0s in step i's result over alpha', newest first: 3, or 4 with the one at the step's end.

    The result is sigma'/sigma x + alpha' ((1 - exp(-h)) m_0 - B sum_k rho_k (m_k - m_0) / r_k), where m_k lies r_k h
    after m_0, and B = B_2(h) = exp(-h) - 1. The rho solve sum_k r_k^(j-1) rho_k = j! (-h) phi_(j+1)(-h) / B for all
    j (Zhao et al. 2023, section 3).
    """
    step = -h[i]
    growth = np.expm1(step)
    r = -np.cumsum(h[:i][::-1])[: order - 1] / h[i]
    nodes = np.append(r, 1.0) if corrector else r
    if len(nodes) == 1:  # the value that makes no difference to the order
        rho = np.array([0.5])
    else:
        moments, phi, factorial = [], growth / step - 1, 1
        for j in range(1, len(nodes) + 1):
            moments.append(phi * factorial / growth)
            factorial *= j + 1
            phi = phi / step - 1 / factorial
        rho = np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(moments)) if len(nodes) else nodes
    share = -growth * rho / nodes  # of m_k - m_0
    weights = np.zeros(4)
    weights[0] = share[-1] if corrector else 0.0
    weights[1] = -growth - share.sum()
    weights[2 : 2 + len(r)] = share[: len(r)]
    return weights if corrector else weights[1:]


def _steps(path: Path) -> np.ndarray:
    """h of each step: infinite from pure noise, and to what is clean."""
    with np.errstate(divide="ignore"):
        return -np.log(path.decay)


def _orders(h: np.ndarray, most: np.ndarray) -> np.ndarray:
    """(rows,) orders: at most what is asked for, and as many as there are nodes at finite distances.

    1 for a step that is infinite, and for one of no length, such as diffusers' last one from sigma_min to sigma_min.
    """
    # A node of pure noise is infinitely far away, and so no history; only the first can be one.
    history = np.arange(1, len(h) + 1)
    history[1:] -= np.isinf(h[0])
    return np.where(np.isfinite(h) & (h > 1e-9), np.minimum(most, history), 1)
